"""Shards read to shards streamed: bytes of files per second, beside loops that only read them.

Streaming reads every byte once and copies each patch that is drawn, about one and a half times what it reads. The
peers read the same files from front to back and do nothing else: into one small buffer, which stays in the processor's
cache, and into memory as large as a shard, as anything must that keeps what it reads. Whole epochs are
timed, the filling of the window counted in. Cold means that the system was asked to drop the files from its page cache.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.shardset import ShardSet

BUFFER_BYTES = 8 << 20


def read_files(shards: ShardSet, buffer: mmap.mmap) -> float:
    """Read every shard from front to back with `readinto`; bytes/s."""
    view, total, begin = memoryview(buffer), 0, time.perf_counter()
    for shard in shards.manifest.shards:
        with (shards.root / shard.path).open("rb", buffering=0) as file:
            at = 0
            while got := file.readinto(view[at:]):
                total += got
                at = (at + got) % len(view)
    return total / (time.perf_counter() - begin)


def drop_files(shards: ShardSet) -> None:
    """Ask the system to drop every shard from its page cache."""
    for shard in shards.manifest.shards:
        with (shards.root / shard.path).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_epoch(
    shards: ShardSet, batch_size: int, threads: int, share: float, verify_reads: bool = False
) -> Callable[[], tuple[float, float]]:
    """Prepare streaming epochs, every anchor once; each call runs one and gives bytes/s and samples/s."""
    window_bytes = int(share * sum(shard.bytes for shard in shards.manifest.shards))
    data = MultiExperimentDataModule(
        shards=str(shards.root),
        batch_size=batch_size,
        num_workers=threads,
        tau_range=shards.manifest.tau_range_hours,
        condition_balanced=False,
        channel_dropout_channels=(),
        window_bytes=window_bytes,
        verify_reads=verify_reads,
        num_streams=1,
    )
    data.setup("fit")
    loader, sampler = data.train_dataloader(), data.train_sampler
    assert sampler is not None
    number = 0

    def epoch() -> tuple[float, float]:
        nonlocal number
        sampler.set_epoch(number)
        number += 1
        begin = time.perf_counter()
        samples = sum(len(batch["anchor"]) for batch in loader)
        took = time.perf_counter() - begin
        reads = sampler.block_reads()
        assert reads is not None
        return int(reads.bytes.sum()) / took, samples / took

    return epoch


def report_streaming(
    shards: ShardSet, sample_bytes: int, batch_size: int, threads: int, share: float, repeats: int
) -> None:
    """Measure in turn, `repeats` times after one that does not count, and print medians and median ratios."""
    # a page's beginning: the copy to an address that is no multiple of 32, as Python gives bytes, takes twice as long
    small, large = (mmap.mmap(-1, size) for size in (BUFFER_BYTES, max(s.bytes for s in shards.manifest.shards)))
    epoch = make_epoch(shards, batch_size, threads, share)
    rows: dict[str, list[float]] = {}
    for number in range(repeats + 1):
        round_: dict[str, float] = {}
        drop_files(shards)
        round_["readinto, cold"] = read_files(shards, large)
        drop_files(shards)
        round_["streaming, cold"], samples = epoch()
        round_["its patches, cold"] = samples * sample_bytes
        read_files(shards, small)
        round_["readinto, small buffer"] = read_files(shards, small)
        round_["readinto, memory"] = read_files(shards, large)
        round_["streaming, warm"], samples = epoch()
        round_["its patches, warm"] = samples * sample_bytes
        for name, verify_reads in (("first epoch, warm", False), ("…, verified", True)):
            round_[name], _ = make_epoch(shards, batch_size, threads, share, verify_reads)()
        drop_files(shards)
        round_["first, cold, verified"], _ = make_epoch(shards, batch_size, threads, share, verify_reads=True)()
        if number:
            for name, value in round_.items():
                rows.setdefault(name, []).append(value)
    print(f"\nstreaming: window {share:.0%} of the bytes, batches of {batch_size}, {threads} threads, whole epochs")
    print("streaming: bytes of files that are used up; its patches: bytes of the batches that come out, as above")
    print(f"{'':24}{'MB/s':>9}{'of small buffer':>17}{'of memory':>11}{'of cold':>9}")
    for name, values in rows.items():
        ratios = [
            statistics.median(v / b for v, b in zip(values, rows[base], strict=True))
            for base in ("readinto, small buffer", "readinto, memory", "readinto, cold")
        ]
        print(f"{name:24}{statistics.median(values) / 1e6:9,.0f}{ratios[0]:17.0%}{ratios[1]:11.0%}{ratios[2]:9.0%}")
