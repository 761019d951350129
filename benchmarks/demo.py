"""The whole way on simulated cells: plates → shards → training → embeddings → a number and a picture.

Run by `make demo`. Each step is a command that a user would type; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from lightning.pytorch.cli import LightningCLI

from benchmarks.picture import draw_batch
from benchmarks.vote import NEIGHBOURS, principal_components, read_embeddings, read_pixels, score_vote, unit_length
from dynaclr_wds import ContrastiveModule, MultiExperimentDataModule
from dynaclr_wds.shardset import ShardSet
from etl.simulate.design import SimulationConfig

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
OUT = Path("demo")
"""In the working directory, as the config says."""
CENTRED = ("--max_border_shift_px", "12")
"""Patches at the border are moved into the image; leave out cells that this takes too far from the middle."""
LATE_HPI = SimulationConfig().onset_hpi + 2.0
"""Cells are judged from here on: two hours after half of the response is reached on average."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every step and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--simulate", default="", help="options for simulate, such as '--fovs 2 --frames 12'")
    parser.add_argument("--fit", default="", help="options for fit, such as '--trainer.max_epochs 1'")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    for made in ("checkpoints", "lightning_logs"):
        shutil.rmtree(OUT / made, ignore_errors=True)
    config = str(CONFIG.relative_to(Path.cwd()) if CONFIG.is_relative_to(Path.cwd()) else CONFIG)
    run("simulate", f"{OUT}/plates", *shlex.split(given.simulate))
    run("build", f"{OUT}/plates/experiments.yaml", "--out", f"{OUT}/shards", *CENTRED)
    run("fit", "-c", config, *shlex.split(given.fit))
    ckpt, embeddings = f"{OUT}/checkpoints/last.ckpt", f"{OUT}/embeddings.parquet"
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
    settings = yaml.safe_load(CONFIG.read_text())["data"]
    (held_out,) = settings["val_experiments"]
    shards = ShardSet.open(OUT / "shards")
    cells, features = read_embeddings(OUT / "embeddings.parquet", held_out)
    late = cells.hpi >= LATE_HPI
    learned = score_vote(cells, unit_length(features), late)
    pixel_cells, pixels = read_pixels(shards, held_out, tuple(settings["final_yx_patch_size"]))
    raw = score_vote(pixel_cells, principal_components(pixels), pixel_cells.hpi >= LATE_HPI)
    command = LightningCLI(
        ContrastiveModule,
        MultiExperimentDataModule,
        args={key: value for key, value in yaml.safe_load(CONFIG.read_text()).items() if key != "checkpoint"},
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )
    command.datamodule.setup("fit")
    manifest = shards.manifest
    total, trained = sum(part.observations for part in manifest.partitions), len(manifest.experiments) - 1
    conditions = sorted({str(part.labels["condition"]) for part in manifest.partitions})
    print(
        f"""
Made in {seconds:.0f} s: {total:,} cells in {len(manifest.experiments)} experiments, \
{len(manifest.shards)} shards, {sum(s.bytes for s in manifest.shards) / 2**20:,.0f} MiB.
A network trained on {trained} experiments embedded {held_out}, which it had never seen, nor any label.
Vote of {NEIGHBOURS} nearest cells of other fields of view on {" or ".join(conditions)}, \
{late.sum():,} cells from {LATE_HPI:g} HPI on, balanced accuracy:

  learned embedding   {learned:.2f}
  PCA of raw pixels   {raw:.2f}
  chance              {1 / len(conditions):.2f}

  {OUT}/embeddings.parquet   an embedding for every cell, with its identity
  {draw_batch(command.datamodule, OUT / "patches.png")}           anchors, positives, and what the network sees of them
  {OUT}/lightning_logs       curves: tensorboard --logdir {OUT}/lightning_logs""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
