"""The whole way on simulated cells: plates → shards → two trainings → embeddings → votes and a picture.

The first training sees both channels of a cell at once, the second one channel at a time (a bag of channels), from the
same shards. Run by `make demo`. Each step is a command that a user would type; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch.cli import LightningCLI

from benchmarks.picture import draw_batch
from dynaclr_wds import ContrastiveModule, MultiExperimentDataModule
from dynaclr_wds.evaluate.cells import Embedding
from dynaclr_wds.evaluate.pixels import Patches, embed_pixels
from dynaclr_wds.evaluate.probes import NEIGHBOURS, vote_accuracy
from dynaclr_wds.evaluate.reading import Table, read_table
from dynaclr_wds.shardset import ShardSet
from etl.simulate.design import SimulationConfig

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
OUT = Path("demo")
"""In the working directory, as the config says."""
BAG = OUT / "bag"
"""Folder of the second training."""
ONE_CHANNEL = (
    *("--data.channels_per_sample", "1", "--model.encoder.init_args.backbone.init_args.n_input_channels", "1"),
    *("--data.batch_group_by", "[experiment, marker]", "--data.channel_dropout_channels", "[]"),
    *("--trainer.max_epochs", "3", "--trainer.default_root_dir", str(BAG)),
    *("--checkpoint.dirpath", f"{BAG}/checkpoints"),
)
"""What the second training says otherwise than the config. It has twice the samples an epoch, so half the epochs."""
LATE_HPI = SimulationConfig().onset_hpi + 2.0
"""Cells are judged from here on: two hours after half of the response is reached on average."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every step and print what came of it."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--simulate", default="", help="options for simulate, such as '--fovs 2 --frames 12'")
    parser.add_argument("--fit", default="", help="options for fit, such as '--trainer.max_epochs 1'")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    for made in ("checkpoints", "lightning_logs", BAG.name):
        shutil.rmtree(OUT / made, ignore_errors=True)
    config = str(CONFIG.relative_to(Path.cwd()) if CONFIG.is_relative_to(Path.cwd()) else CONFIG)
    run("simulate", f"{OUT}/plates", *shlex.split(given.simulate))
    run("build", f"{OUT}/plates/experiments.yaml", "--out", f"{OUT}/shards")
    for folder, options in ((OUT, ()), (BAG, ONE_CHANNEL)):
        run("fit", "-c", config, *options, *shlex.split(given.fit))
        ckpt, embeddings = f"{folder}/checkpoints/last.ckpt", f"{folder}/embeddings.parquet"
        run("predict", "--ckpt", ckpt, "--out", embeddings, "--accelerator", "cpu", "--overwrite")
    report(time.monotonic() - began)
    return 0


def run(command: str, *options: str) -> None:
    """Print a command and run it; end the demo with its exit status if it fails."""
    print(f"\n$ dynaclr-wds {shlex.join([command, *options])}", flush=True)
    began = time.monotonic()
    status = subprocess.run([sys.executable, "-m", "dynaclr_wds", command, *options], check=False).returncode
    if status:
        sys.exit(f"`dynaclr-wds {command}` ended with status {status}; what it printed above says why.")
    print(f"  ({time.monotonic() - began:.0f} s)", flush=True)


def report(seconds: float) -> None:
    """Say what was made and how good it is."""
    config = yaml.safe_load(CONFIG.read_text())
    settings = config["data"]
    (held_out,) = settings["val_experiments"]
    shards = ShardSet.open(OUT / "shards")
    scores, judged = score_all(shards, held_out, tuple(settings["final_yx_patch_size"]))
    manifest = shards.manifest
    total, trained = sum(part.observations for part in manifest.partitions), len(manifest.experiments) - 1
    conditions = sorted({str(part.labels["condition"]) for part in manifest.partitions})
    print(
        f"""
Made in {seconds:.0f} s: {total:,} cells in {len(manifest.experiments)} experiments, \
{len(manifest.shards)} shards, {sum(s.bytes for s in manifest.shards) / 2**20:,.0f} MiB.
Two networks trained on {trained} experiments embedded {held_out}, which they had never seen, nor any label.
The first saw both channels of a cell at once. The second saw one channel at a time (a bag of channels), so it
embeds each channel of a cell by itself; under "both", its two embeddings of a cell are joined.
Vote of {NEIGHBOURS} nearest cells of other fields of view on {" or ".join(conditions)}, \
{judged:,} cells from {LATE_HPI:g} HPI on, balanced accuracy:

{format_scores(scores | {"chance": {"both": 1 / len(conditions)}})}

  {OUT}/embeddings.parquet       an embedding for every cell, with its identity
  {BAG}/embeddings.parquet   an embedding for every channel of every cell
  {draw_patches(config)}               anchors, positives, and what the first network sees of them
  {OUT}/lightning_logs           curves: tensorboard --logdir {OUT}""",
        flush=True,
    )


def draw_patches(config: Mapping[str, Any]) -> Path:
    """Draw a batch of the first training; return the picture."""
    command = LightningCLI(
        ContrastiveModule,
        MultiExperimentDataModule,
        args={key: value for key, value in config.items() if key != "checkpoint"},
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )
    command.datamodule.setup("fit")
    return draw_batch(command.datamodule, OUT / "patches.png")


def score_all(shards: ShardSet, held_out: str, yx: tuple[int, int]) -> tuple[dict[str, dict[str, float]], int]:
    """Let the cells of an experiment vote on their condition, by each training and by raw pixels.

    Returns
    -------
    tuple
        What was voted by → `both` or a channel → balanced accuracy; and how many cells were judged.
    """
    whole, bag = _read(OUT / "embeddings.parquet", held_out), _read(BAG / "embeddings.parquet", held_out)
    (channels,) = [e.source_channel for e in shards.manifest.experiments if e.name == held_out]
    patches, names = Patches(shards, whole.cells, yx), ("both", *channels)
    pixels = [embed_pixels(patches, whole.cells, channel) for channel in (None, *range(len(channels)))]
    voted = {
        "both channels at once": _vote(whole, ["both"], whole.embeddings),
        "bag of channels": _vote(bag, names, bag.embeddings),
        "PCA of raw pixels": _vote(whole, names, pixels),
    }
    return voted, int((whole.cells.hpi >= LATE_HPI).sum())


def _read(path: Path, held_out: str) -> Table:
    """Read the embeddings of an experiment; where each channel has its own, all of them joined come first."""
    table = read_table(path, path.stem, "features", sys.maxsize)
    rows = np.flatnonzero(table.cells.experiment == held_out)
    own = [Embedding(name=e.name, features=e.features[rows]) for e in table.embeddings]
    return dataclasses.replace(table, cells=table.cells.take(rows), embeddings=own)


def _vote(table: Table, names: Sequence[str], embeddings: Sequence[Embedding]) -> dict[str, float]:
    """Let late cells vote by each embedding."""
    cells = table.cells
    values = np.where(cells.hpi >= LATE_HPI, cells.labels["condition"], "")
    votes = [vote_accuracy(e.features.astype(np.float64), values, cells) for e in embeddings]
    return {name: vote for name, vote in zip(names, votes, strict=True) if vote is not None}


def format_scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Write a table: a row for what was voted by, a column for each thing that it was of."""
    columns = list(dict.fromkeys(name for row in scores.values() for name in row))
    width = max(len(name) for name in columns) + 3
    lines = ["".join(["  " + " " * 22, *(f"{name:>{width}}" for name in columns)])]
    for what, row in scores.items():
        numbers = [f"{row[name]:.2f}" if name in row else "" for name in columns]
        lines.append(f"  {what:<22}" + "".join(f"{number:>{width}}" for number in numbers))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
