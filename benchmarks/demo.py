"""The whole way on simulated cells: plates → shards → two trainings → embeddings → votes, pictures and a page.

The first training sees both channels of a cell at once, the second one channel at a time (a bag of channels), from the
same shards. Run by `make demo`. Each step is a command that a user would type; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.demo_page import PIXELS, Outcome, Step, make_page
from benchmarks.picture import draw_batch
from dynaclr_wds.evaluate.cells import Embedding
from dynaclr_wds.evaluate.pixels import Patches, embed_pixels
from dynaclr_wds.evaluate.probes import NEIGHBOURS, vote_accuracy
from dynaclr_wds.evaluate.reading import Table, read_table
from dynaclr_wds.pages.shell import write_page
from dynaclr_wds.preview.configured import make_data, read_data_section
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
    """Run every step, print what came of it, and write a page."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--simulate", default="", help="options for simulate, such as '--fovs 2 --frames 12'")
    parser.add_argument("--fit", default="", help="options for fit, such as '--trainer.max_epochs 1'")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    for made in ("checkpoints", "lightning_logs", BAG.name):
        shutil.rmtree(OUT / made, ignore_errors=True)
    steps = run_all(shlex.split(given.simulate), shlex.split(given.fit))
    outcome = sum_up(steps, time.monotonic() - began)
    print(describe(outcome), flush=True)
    page = OUT / "report.html"
    write_page(page, make_page(outcome, OUT))
    print(f"\nAll of it on one page, with pictures: open {page.resolve()} in a browser.", flush=True)
    return 0


def run_all(simulate: Sequence[str], fit: Sequence[str]) -> list[Step]:
    """Run the commands from nothing to embeddings that are judged."""
    steps: list[Step] = []

    def step(what: str, command: str, *options: str) -> None:
        steps.append(Step(what=what, command=shlex.join([command, *options]), seconds=run(command, *options)))

    config = str(CONFIG.relative_to(Path.cwd()) if CONFIG.is_relative_to(Path.cwd()) else CONFIG)
    plates, shards = f"{OUT}/plates", f"{OUT}/shards"
    given = f"{plates}/experiments.yaml"
    step(
        "Writes plates and tracks of cells that move, divide and respond to an infection.",
        "simulate",
        plates,
        *simulate,
    )
    step("Looks at the plates before anything is built.", "inspect", given, "--quiet", *_page("before.html"))
    step("Cuts a patch around every cell and packs them into shards.", "build", given, "--out", shards)
    step("Looks at the shards.", "inspect", shards, "--quiet", *_page("after.html"))
    step("Shows batches as the first network will see them.", "preview", "-c", config, *_page("preview.html"))
    for folder, options, what in ((OUT, (), "both channels at once"), (BAG, ONE_CHANNEL, "one channel at a time")):
        step(f"Trains a network that sees {what}, on three of the experiments.", "fit", "-c", config, *options, *fit)
        ckpt, embeddings = f"{folder}/checkpoints/last.ckpt", f"{folder}/embeddings.parquet"
        written = ("--out", embeddings, "--accelerator", "cpu", "--overwrite")
        step("Embeds the cells of all experiments.", "predict", "--ckpt", ckpt, *written)
    tables = (f"both={OUT}/embeddings.parquet", f"bag={BAG}/embeddings.parquet")
    page = _page("evaluation.html")
    step("Judges the embeddings, beside the raw pixels.", "evaluate", *tables, "--shards", shards, *page)
    return steps


def _page(name: str) -> tuple[str, ...]:
    return "--html", f"{OUT}/{name}", "--overwrite"


def run(command: str, *options: str) -> float:
    """Print a command and run it, and return the seconds; end the demo with its exit status if it fails."""
    print(f"\n$ dynaclr-wds {shlex.join([command, *options])}", flush=True)
    began = time.monotonic()
    # as where the environment is active, so that commands are told as a user types them
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    status = subprocess.run(["dynaclr-wds", command, *options], env=environment, check=False).returncode
    if status:
        sys.exit(f"`dynaclr-wds {command}` ended with status {status}; what it printed above says why.")
    seconds = time.monotonic() - began
    print(f"  ({seconds:.0f} s)", flush=True)
    return seconds


def sum_up(steps: Sequence[Step], seconds: float) -> Outcome:
    """Gather what was made and how good it is."""
    settings = read_data_section(CONFIG)
    (held_out,) = settings["val_experiments"]
    shards = ShardSet.open(OUT / "shards")
    scores, judged = score_all(shards, held_out, tuple(settings["final_yx_patch_size"]))
    manifest = shards.manifest
    conditions = sorted({str(part.labels["condition"]) for part in manifest.partitions})
    return Outcome(
        steps=steps,
        seconds=seconds,
        cells=sum(part.observations for part in manifest.partitions),
        experiments=len(manifest.experiments),
        shards=len(manifest.shards),
        shard_bytes=sum(s.bytes for s in manifest.shards),
        held_out=held_out,
        conditions=conditions,
        judged=judged,
        late_hpi=LATE_HPI,
        scores=scores | {"chance": {"both": 1 / len(conditions)}},
        picture=draw_patches(),
    )


def describe(made: Outcome) -> str:
    """Say what was made and how good it is."""
    return f"""
Made in {made.seconds:.0f} s: {made.cells:,} cells in {made.experiments} experiments, {made.shards} shards, \
{made.shard_bytes / 2**20:,.0f} MiB.
Two networks trained on {made.experiments - 1} experiments embedded {made.held_out}, which they had never seen, nor any
label. The first saw both channels of a cell at once. The second saw one channel at a time (a bag of channels), so it
embeds each channel of a cell by itself; under "both", its two embeddings of a cell are joined.
Vote of {NEIGHBOURS} nearest cells of other fields of view on {" or ".join(made.conditions)}, \
{made.judged:,} cells from {LATE_HPI:g} HPI on, balanced accuracy:

{format_scores(made.scores)}

  {OUT}/embeddings.parquet       an embedding for every cell, with its identity
  {BAG}/embeddings.parquet   an embedding for every channel of every cell
  {made.picture}               anchors, positives, and what the first network sees of them
  {OUT}/lightning_logs           curves: tensorboard --logdir {OUT}"""


def draw_patches() -> Path:
    """Draw a batch of the first training; return the picture."""
    data = make_data(CONFIG)
    data.setup("fit")
    return draw_batch(data, OUT / "patches.png")


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
        PIXELS: _vote(whole, names, pixels),
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
