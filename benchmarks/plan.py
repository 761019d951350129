"""Index arrays to batches: ms a batch at a million anchors and at ten, and the time to open such an index.

The plan needs no pixels, so neither does this: the index is made up (8 experiments of 2 conditions 4:1, 40 FOVs a
condition, lineages of one division), written to `.npy` files and mapped again, as a shard set is. Planning runs in one
thread; its CPU time counts, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynaclr_wds.plan.columns import CodeBook, PlanColumns
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.listing import plan_index
from dynaclr_wds.plan.sampler import FlexibleBatchSampler

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`, which is not installed
from tests.synthetic import Synthetic, index_columns, make_columns

ANCHORS_PER_LINEAGE = 18
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"experiment_aware": False, "condition_balanced": False},
    "leak, balance": {"leaky": 0.1},
    "… and focus": {"leaky": 0.1, "temporal_enrichment": True},
    "… and negatives": {"leaky": 0.1, "temporal_enrichment": True, "return_negative": True},
}


def make_collection(millions: float) -> tuple[Synthetic, PlanColumns, CodeBook]:
    """Make up the index arrays of about so many anchors."""
    count = round(millions * 1e6 / (8 * 5 * ANCHORS_PER_LINEAGE))
    spec = Synthetic(experiments=8, lineages=(4 * count, count), fovs=40, markers=("er", "golgi"))
    return spec, *make_columns(spec)


def make_screen(millions: float, perturbations: int, markers: int) -> tuple[PlanColumns, CodeBook]:
    """Make up an optical pooled screen: one experiment, and sizes of perturbations and markers with long tails."""
    lineages = max(round(millions * 1e6 / ANCHORS_PER_LINEAGE), perturbations * markers)
    columns, codes = make_columns(Synthetic(experiments=1, conditions=("all",), lineages=(lineages,), fovs=400))
    rng = np.random.default_rng(0)
    size = np.outer(1 / np.arange(1, perturbations + 1) ** 0.8, 1 / np.arange(1, markers + 1) ** 0.5).ravel()
    every = np.arange(len(size))
    drawn = rng.choice(len(size), lineages - len(size), p=size / size.sum())
    cell = rng.permutation(np.concatenate([every, drawn]))[columns.obs_track // 3]  # a lineage has three tracks
    code = {"perturbation": cell // markers, "marker": cell % markers}
    names = {
        "perturbation": [f"gene{k:04}" for k in range(perturbations)],
        "marker": [f"marker{k:02}" for k in range(markers)],
    }
    labels = {**columns.labels, **{name: values.astype(np.int32) for name, values in code.items()}}
    return dataclasses.replace(columns, labels=labels), dataclasses.replace(codes, values={**codes.values, **names})


def open_columns(folder: Path) -> PlanColumns:
    """Map the columns, as `ShardSet.open` does."""
    arrays = {path.stem: np.load(path, mmap_mode="r").view(np.ndarray) for path in folder.glob("*.npy")}
    labels = {name.removeprefix("label_"): arrays.pop(name) for name in list(arrays) if name.startswith("label_")}
    return PlanColumns(**arrays, labels=labels)


def map_index(
    spec: Synthetic, columns: PlanColumns, codes: CodeBook, repeats: int
) -> tuple[PlanIndex, dict[str, float]]:
    """Write an index to files, and open it again: maps, and the list of anchors; return it with the seconds.

    By experiment and condition, which the shards are partitioned by, and by marker and stage, which have to be looked
    up for every observation.
    """
    others = dataclasses.replace(spec, batch_group_by=("marker",), stratify_by=("condition", "stage"))
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for field in dataclasses.fields(PlanColumns):
            if field.name != "labels":
                np.save(folder / f"{field.name}.npy", getattr(columns, field.name))
        for label, values in columns.labels.items():
            np.save(folder / f"label_{label}.npy", values)
        for what, by in (("labels that are looked up", others), ("labels of the shards", spec)):
            taken = []
            for _ in range(repeats):
                begin = time.perf_counter()
                mapped = index_columns(by, open_columns(folder), codes)
                taken.append(time.perf_counter() - begin)
            times[what] = statistics.median(taken)
    return mapped, times


def time_batches(index: PlanIndex, config: SamplingConfig, batches: int, repeats: int) -> tuple[float, float, float]:
    """CPU time: seconds to make a sampler, seconds to the first batch of an epoch, ms for each of the next ones."""
    begin = time.process_time()
    sampler = FlexibleBatchSampler(index, config)
    made = time.process_time() - begin
    first, each = [], []
    for epoch in range(1, repeats + 1):
        sampler.set_epoch(epoch)
        plans = iter(sampler)
        begin = time.process_time()
        next(plans)
        middle = time.process_time()
        done = sum(1 for _, _ in zip(range(batches), plans, strict=False))
        first.append(middle - begin)
        each.append((time.process_time() - middle) / done * 1e3)
    return made, statistics.median(first), statistics.median(each)


def time_restore(index: PlanIndex, config: SamplingConfig, share: float, ranks: int, repeats: int) -> float:
    """CPU time, seconds: from the state of the middle of a streamed epoch to what to fetch and the first batch."""
    window = int(share * int(index.columns.block_bytes.sum()))
    times = []
    for epoch in range(1, repeats + 1):
        sampler = FlexibleBatchSampler(index, config, world_size=ranks, window_bytes=window)
        middle = sampler.global_batches // 2 // ranks * ranks
        state = sampler.state_dict() | {"epoch": epoch, "position": middle, "steps": middle // ranks}
        begin = time.process_time()
        sampler.load_state_dict(state)
        sampler.block_reads()
        next(iter(sampler))
        times.append(time.process_time() - begin)
    return statistics.median(times)


def print_screen(millions: float, given: argparse.Namespace) -> None:
    """Time a screen of 40 markers and so many perturbations that a stratum has 250 anchors on average."""
    columns, codes = make_screen(millions, max(round(100 * millions), 2), 40)
    for group, value in ((("marker",), ("perturbation",)), ((), ("perturbation", "marker"))):
        index = plan_index(columns, codes, (0.5, 2.0), batch_group_by=group, stratify_by=value)
        config = SamplingConfig(batch_size=given.batch_size)
        _, _, early = time_batches(index, config, min(given.batches, 400), given.repeats)
        _, first, each = time_batches(index, config, given.batches, given.repeats)
        mean = each + first * 1e3 / (len(index.row) / given.batch_size)
        print(
            f"{len(index.strata):,} strata, by {'/'.join(group) or 'nothing':12}{first:16.2f}{each:12.3f}{mean:14.3f}"
            f", the first 400 {early:.3f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/plan.py", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[1.0, 10.0], help="of anchors (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="samples (%(default)s)")
    parser.add_argument("--batches", type=int, default=1000, help="to time, of each epoch (%(default)s)")
    parser.add_argument("--window", type=float, default=0.4, help="of streaming, share of the bytes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="epochs (%(default)s)")
    given = parser.parse_args(arguments)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {np.__version__}")
    for millions in given.millions:
        index, opened = map_index(*make_collection(millions), given.repeats)
        rows = len(index.columns.patch_obs)
        print(f"\n{len(index.row):,} anchors, {rows:,} patches")
        print("opened in " + ", ".join(f"{seconds:.2f} s by {what}" for what, seconds in opened.items()))
        print(f"{'':16}{'sampler, s':>12}{'first batch, s':>16}{'ms a batch':>12}{'of the epoch':>14}")
        for name, options in SETTINGS.items():
            config = SamplingConfig(batch_size=given.batch_size, **options)
            made, first, each = time_batches(index, config, given.batches, given.repeats)
            count = len(index.row) / given.batch_size
            mean = each + first * 1e3 / count
            print(f"{name:16}{made:12.2f}{first:16.2f}{each:12.3f}{mean:14.3f}", flush=True)
        print_screen(millions, given)
        config = SamplingConfig(batch_size=given.batch_size, leaky=0.1, temporal_enrichment=True)
        for ranks in (1, 8):
            seconds = time_restore(index, config, given.window, ranks, given.repeats)
            what = f"streaming, window {given.window:.0%}, 8 streams, {ranks} process{'es' * (ranks > 1)}"
            print(f"{what}: restored in {seconds:.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
