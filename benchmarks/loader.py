"""Shards to samples/s: our loader beside plain WebDataset and beside copying memory, in one run, as ratios.

A sample is an anchor and its positive: two patches. Plain WebDataset knows no pairs, so its patches are counted in
twos; it reads the same shards, front to back, and stacks what it reads into batches of as many patches. The ceiling
is copying as many bytes from memory to memory, with as many threads. All are measured in turn, several times over,
on shards that are in the page cache; medians count.

Where a sample is less than two patches, as with one channel of two or where the positive is the anchor itself, it is
compared with copying as many bytes as are copied for it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import IterableDataset

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.simulate.__main__ import simulate_collection
from etl.simulate.design import SimulationConfig
from etl.source.experiments import parse_build_config

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks`, which is not installed
from benchmarks.streaming import report_streaming

Measure = Callable[[float], float]
"""Seconds to run for → samples/s."""

MEMCPY_BYTES = 1 << 30
"""Bytes that are copied from: more than any cache holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured."""

    shards: ShardSet
    batch_size: int
    threads: int

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """(C, Z, Y, X)."""
        return self.shards.manifest.experiments[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a batch."""
        kinds = {e.dtype for e in self.shards.manifest.experiments}
        return np.dtype(kinds.pop() if len(kinds) == 1 else "<f4")

    @property
    def sample_bytes(self) -> int:
        """Of an anchor and its positive."""
        return 2 * int(np.prod(self.patch_shape)) * self.dtype.itemsize


_BAG, _SELF = "…, one channel", "…, self-positives"


def make_shards(root: Path, size: int, dtype: str, gib: float, planes: int = 1) -> Path:
    """Simulate two experiments and build shards of about `gib` GiB of patches.

    Clips are short, since the window that streaming needs grows with them, and the set is small beside real ones.
    """
    patch_bytes = 2 * planes * size * size * (4 if dtype == "float32" else 2)
    fovs = max(1, round(gib * 2**30 / patch_bytes / 3700))  # a short movie has some 3,700 patches per FOV and well
    config = SimulationConfig(experiments=2, fovs=fovs, frames=14, size=640, cells=60, z=planes)
    yaml = simulate_collection(root / "plates", config)
    options = {
        "yx_patch_size": [size, size],
        "dtype": dtype,
        "shard_bytes": 1 << 29,
        "block_bytes": 1 << 22,
        "clip_anchors": 8,
    }
    build_shards(parse_build_config(yaml, options), root / "shards")
    return root / "shards"


def measure_loader(setting: Setting, **sampling: Any) -> Measure:
    """Time our loader in exact mode, planning included."""
    data = MultiExperimentDataModule(
        shards=str(setting.shards.root),
        batch_size=setting.batch_size,
        num_workers=setting.threads,
        tau_range=setting.shards.manifest.tau_range_hours,
        channel_dropout_channels=(),
        **sampling,
    )
    data.setup("fit")
    assert data.train_sampler is not None
    sampler, loader, epoch = data.train_sampler, data.train_dataloader(), 0

    def measure(seconds: float) -> float:
        nonlocal epoch

        def epochs() -> Iterator[dict[str, Any]]:
            nonlocal epoch
            while True:
                sampler.set_epoch(epoch)
                epoch += 1
                yield from loader

        return count_samples((len(batch["anchor"]) for batch in epochs()), seconds)

    return measure


def measure_first_epoch(setting: Setting, verify_reads: bool) -> Measure:
    """Time the first epoch in exact mode of a process that has mapped nothing yet, with or without checking blocks."""

    def measure(seconds: float) -> float:
        del seconds  # the whole epoch
        data = MultiExperimentDataModule(
            shards=str(setting.shards.root),
            batch_size=setting.batch_size,
            num_workers=setting.threads,
            tau_range=setting.shards.manifest.tau_range_hours,
            channel_dropout_channels=(),
            verify_reads=verify_reads,
        )
        data.setup("fit")
        begin = time.perf_counter()
        samples = sum(len(batch["anchor"]) for batch in data.train_dataloader())
        return samples / (time.perf_counter() - begin)

    return measure


class PatchBatches(IterableDataset[Tensor]):
    """Plain WebDataset: decoded samples, their patches stacked into batches."""

    def __init__(self, setting: Setting) -> None:
        self.urls = [str(setting.shards.root / s.path) for s in setting.shards.manifest.shards]
        self.patches = 2 * setting.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (2 · batch_size, C, Z, Y, X) without end."""
        waiting: list[np.ndarray] = []
        while True:
            for sample in wds.WebDataset(
                self.urls, shardshuffle=False, workersplitter=None, empty_check=False
            ).decode():
                waiting += [value for key, value in sample.items() if key.endswith("npy")]
                while len(waiting) >= self.patches:
                    yield torch.from_numpy(np.stack(waiting[: self.patches]))
                    del waiting[: self.patches]


def measure_webdataset(setting: Setting, workers: int) -> Measure:
    """Time plain WebDataset in this process, or in a WebLoader with worker processes."""

    def measure(seconds: float) -> float:
        batches = PatchBatches(setting)
        source = wds.WebLoader(batches, batch_size=None, num_workers=workers) if workers else batches
        return count_samples((len(batch) // 2 for batch in source), seconds)

    return measure


def measure_memcpy(setting: Setting) -> Measure:
    """Time copying batches from warm memory to warm memory."""
    count = setting.sample_bytes * setting.batch_size
    batches = max(MEMCPY_BYTES // count, setting.threads)
    source = np.full((batches, count), 1, np.uint8)
    targets = [np.full(count, 2, np.uint8) for _ in range(setting.threads)]

    def measure(seconds: float) -> float:
        done = [0] * setting.threads
        end = time.perf_counter() + seconds

        def copy(thread: int) -> None:
            at = thread
            while time.perf_counter() < end:
                np.copyto(targets[thread], source[at % batches])
                at += setting.threads
                done[thread] += 1

        begin = time.perf_counter()
        threads = [threading.Thread(target=copy, args=(t,)) for t in range(setting.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done) * setting.batch_size / (time.perf_counter() - begin)

    return measure


def count_samples(sizes: Iterator[int], seconds: float) -> float:
    """Samples/s of a running source: the clock starts at its first batch."""
    next(sizes)
    begin = time.perf_counter()
    samples = 0
    for size in sizes:
        samples += size
        if time.perf_counter() - begin >= seconds:
            break
    return samples / (time.perf_counter() - begin)


def warm(shards: ShardSet) -> None:
    """Read every shard once, so that all are in the page cache."""
    for shard in shards.manifest.shards:
        with (shards.root / shard.path).open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def run(setting: Setting, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Measure everything in turn, `repeats` times; the first round, which maps and allocates, does not count."""
    measures: dict[str, Measure] = {
        "memcpy": measure_memcpy(setting),
        "dynaclr_wds": measure_loader(setting),
        "…, leak and focus": measure_loader(setting, leaky=0.1, temporal_enrichment=True),
        _BAG: measure_loader(setting, channels_per_sample=1),
        _SELF: measure_loader(setting, positive="self"),
        "first epoch": measure_first_epoch(setting, verify_reads=False),
        "first epoch, verified": measure_first_epoch(setting, verify_reads=True),
        "WebDataset": measure_webdataset(setting, 0),
        "WebLoader, 2 workers": measure_webdataset(setting, 2),
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(repeats + 1):
        for name, measure in measures.items():
            rate = measure(seconds)
            if number:
                rates[name].append(rate)
    return rates


def report(setting: Setting, rates: dict[str, list[float]]) -> None:
    """Print medians and the medians of the ratios round by round."""
    manifest = setting.shards.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    shape = "x".join(map(str, setting.patch_shape))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{len(manifest.shards)} shards, {size / 2**30:.2f} GiB, patches {shape} {setting.dtype.name}")
    print(f"batches of {setting.batch_size} samples of {setting.sample_bytes:,} bytes, {setting.threads} threads\n")
    print(f"{'':22}{'samples/s':>12}{'MB/s':>10}{'of memcpy':>12}{'of WebDataset':>16}")
    for name, values in rates.items():
        share = {_BAG: 1 / setting.patch_shape[0], _SELF: 0.5}.get(name, 1.0)  # of a sample's bytes that are copied
        rate = statistics.median(values)
        ratios = [
            statistics.median(v * share / b for v, b in zip(values, rates[base], strict=True))
            for base in ("memcpy", "WebDataset")
        ]
        size = share * setting.sample_bytes
        print(f"{name:22}{rate:12,.0f}{rate * size / 1e6:10,.0f}{ratios[0]:12.1%}{ratios[1]:15.1f}x")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/loader.py", description=__doc__)
    parser.add_argument("--shards", type=Path, help="a shard set; simulated in a temporary folder when left out")
    parser.add_argument("--patch", type=int, default=192, help="of simulated shards: height and width (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "source"), default="float32", help="(%(default)s; source: uint16)"
    )
    parser.add_argument("--gib", type=float, default=4.5, help="of simulated shards, about (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="samples (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of our loader and of memcpy (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (%(default)s)")
    parser.add_argument("--window", type=float, default=0.3, help="of streaming, share of the bytes (%(default)s)")
    parser.add_argument("--stream_batch_size", type=int, default=64, help="of streaming (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = given.shards or make_shards(Path(folder), given.patch, given.dtype, given.gib)
        shards = ShardSet.open(path)
        warm(shards)
        setting = Setting(shards=shards, batch_size=given.batch_size, threads=given.threads)
        report(setting, run(setting, given.seconds, given.repeats))
        report_streaming(
            shards, setting.sample_bytes, given.stream_batch_size, given.threads, given.window, given.repeats
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
