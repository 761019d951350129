"""Clip lengths to what they cost: patches stored per cell, bytes, and the smallest window that can be streamed.

Longer clips store fewer cells twice, but fewer of them fit a window, and a window must hold a batch's worth of
lineages. The same simulated movies are built at several lengths; the smallest window is found by bisection, by asking
the plan. No pixel is read for that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.shardset import ShardSet

LENGTHS = (2, 8, 16)
"""Cells per clip, in multiples of the longest τ in frames; 8 is the default."""

_STEPS = 12  # of the bisection: to 1/4096 of the set


def simulate(folder: Path, frames: int) -> Path:
    """Write plates with tracks of cells that are followed for long; return the experiments.yaml."""
    options = ["--experiments", "2", "--fovs", "8", "--cells", "12", "--size", "192", "--frames", str(frames)]
    subprocess.run([sys.executable, "-m", "etl.simulate", str(folder), *options], check=True)
    return folder / "experiments.yaml"


def build(experiments: Path, out: Path, clip_anchors: int, patch: int) -> ShardSet:
    """Build shards with clips of a length; blocks are small, so that clips decide."""
    options = ["--clip_anchors", str(clip_anchors), "--yx_patch_size", str(patch), str(patch), "--quiet"]
    options += ["--block_bytes", str(1 << 20)]
    subprocess.run(
        [sys.executable, "-m", "etl.build_shards", str(experiments), "--out", str(out), *options], check=True
    )
    return ShardSet.open(out)


def find_smallest_window(shards: ShardSet, batch_size: int, num_streams: int) -> int | None:
    """Find the smallest window, in bytes, that the plan accepts; None when it refuses all of the set."""
    index = shards.plan_index(shards.experiments, shards.manifest.tau_range_hours)
    config = SamplingConfig(batch_size=batch_size)

    def accepts(window_bytes: int) -> bool:
        try:
            sampler = FlexibleBatchSampler(index, config, window_bytes=window_bytes, num_streams=num_streams)
            sampler.plan(0)
        except ValueError:
            return False
        return True

    low, high = 0, index.stored_bytes
    if not accepts(high):
        return None
    for _ in range(_STEPS):
        middle = (low + high) // 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=96, help="timepoints per movie (default: %(default)s)")
    parser.add_argument("--patch", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_streams", type=int, default=1)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        experiments = simulate(Path(name) / "plates", arguments.frames)
        print(f"{'clip':>12}{'per cell':>10}{'clips':>8}{'MB':>8}{'smallest window':>17}{'of the set':>12}")
        for times in LENGTHS:
            longest = 4  # frames: 2 hours at the 30 minutes of the simulation
            shards = build(experiments, Path(name) / f"shards{times}", times * longest, arguments.patch)
            partitions = shards.manifest.partitions
            cells, patches = sum(p.observations for p in partitions), sum(p.patches for p in partitions)
            size = sum(p.bytes for p in partitions)
            window = find_smallest_window(shards, arguments.batch_size, arguments.num_streams)
            said = "refused" if window is None else f"{window / 1e6:,.0f} MB"
            share = "" if window is None else f"{window / size:.0%}"
            clips = sum(p.clips for p in partitions)
            print(f"{f'{times} × τ_max':>12}{patches / cells:10.2f}{clips:8,}{size / 1e6:8,.0f}{said:>17}{share:>12}")


if __name__ == "__main__":
    main()
