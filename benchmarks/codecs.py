"""Patches to samples/s over a link of a given rate, as they are and compressed, to see whether a codec would pay.

Runs of patches of some 256 KiB are compressed together, which is kind to the codecs: single channels of small patches,
as exact mode reads them, compress less and decode more slowly. A link is simulated: compressed runs are handed out no
faster than its rate, and two threads decode them, as readers would. Without a codec they are copied. What is shown:
bytes, speed of decoding in one thread, samples/s (a sample is two patches) and processor time for each sample.

gzip is the one of these codecs that plain WebDataset decodes (`.npy.gz`). pcodec is no dependency of the project:
`pip install pcodec`.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from numcodecs import Blosc, blosc
from pcodec import ChunkConfig, standalone

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks`, which is not installed
from benchmarks.compressed import Simulated
from dynaclr_wds.contract import ExperimentRecord
from dynaclr_wds.shardset import ShardSet

LINKS = (200e6, 1e9)
"""Bytes per second."""
THREADS = 2
RUN_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Codec:
    """How a run of patches is stored."""

    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, np.ndarray], Any]
    """From bytes into an array."""


def make_codecs() -> list[Codec]:
    """As it is, and the codecs that are asked about."""
    fast = Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)
    strong = Blosc(cname="zstd", clevel=1, shuffle=Blosc.BITSHUFFLE)
    return [
        Codec("as it is", lambda a: a.tobytes(), lambda data, out: _copy(data, out)),
        Codec("gzip", lambda a: gzip.compress(a.tobytes(), 1), lambda data, out: _copy(gzip.decompress(data), out)),
        Codec("bitshuffle + lz4", lambda a: bytes(fast.encode(a)), fast.decode),
        Codec("bitshuffle + zstd", lambda a: bytes(strong.encode(a)), strong.decode),
        Codec(
            "pcodec",
            lambda a: standalone.simple_compress(a, ChunkConfig(compression_level=4, enable_8_bit=True)),
            standalone.simple_decompress_into,
        ),
    ]


def _copy(data: bytes, out: np.ndarray) -> None:
    np.copyto(out.view(np.uint8), np.frombuffer(data, np.uint8))


def load(shards: ShardSet, experiment: ExperimentRecord, most_bytes: int) -> list[np.ndarray]:
    """Read runs of an experiment's patches, flat, of one size, with plain WebDataset."""
    own = [p.labels["experiment"] == experiment.name for p in shards.manifest.partitions]
    urls = [str(shards.root / r.path) for r in shards.manifest.shards if own[r.partition]]
    found: list[np.ndarray] = []
    total = 0
    for sample in wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode():
        for key, value in sample.items():
            if key.endswith("npy"):
                found.append(value.reshape(-1))
                total += value.nbytes
        if total >= most_bytes:
            break
    run = max(1, RUN_BYTES // found[0].nbytes)
    return [np.concatenate(found[k : k + run]) for k in range(0, len(found) - run + 1, run)]


def measure_link(rate: float, codec: Codec, stored: list[bytes], plain: list[np.ndarray]) -> tuple[float, float]:
    """Bring and decode everything; seconds, and seconds of processor time."""
    link = Simulated(rate)
    targets = threading.local()

    def read(number: int) -> None:
        link.bring(len(stored[number]))
        like = plain[number]
        if getattr(targets, "out", None) is None or targets.out.dtype != like.dtype or targets.out.size != like.size:
            targets.out = np.zeros_like(like)
        codec.decode(stored[number], targets.out)

    begin, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(len(stored)), chunksize=4))
    return time.perf_counter() - begin, time.process_time() - used


def report(shards: ShardSet, experiment: ExperimentRecord, most_bytes: int, repeats: int) -> None:
    """Print a line for each codec."""
    plain = load(shards, experiment, most_bytes)
    total = sum(a.nbytes for a in plain)
    samples = sum(a.size for a in plain) / np.prod(experiment.shape) / 2
    times = max(1, round(most_bytes / total))  # a small movie is read several times over
    shape = "x".join(map(str, experiment.shape))
    print(f"\n{experiment.name}: {total / 1e6:,.0f} MB, patches {shape} {plain[0].dtype}")
    head = "".join(f"{f'{rate / 1e6:,.0f} MB/s link':>18}" for rate in LINKS)
    print(f"{'':20}{'bytes':>8}{'decode':>12}{head}{'CPU':>17}")
    first: dict[float, float] = {}
    for codec in make_codecs():
        stored = [codec.encode(a) for a in plain]
        out = np.zeros_like(plain[0])
        begin = time.process_time()
        for data in stored:
            codec.decode(data, out)
        decode = total / (time.process_time() - begin)
        assert np.array_equal(out, plain[-1])
        line = f"{codec.name:20}{sum(map(len, stored)) / total:8.0%}{decode / 1e9:7.2f} GB/s"
        for rate in LINKS:
            took = [measure_link(rate, codec, stored * times, plain * times) for _ in range(repeats)]
            speed = times * samples / statistics.median(t for t, _ in took)
            first.setdefault(rate, speed)
            line += f"{speed:10,.0f}/s {speed / first[rate]:5.2f}x"
        cpu = statistics.median(c for _, c in took) / times / samples
        print(f"{line}{cpu * 1e6:8,.0f} us/sample", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/codecs.py", description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+", help="shard sets")
    parser.add_argument("--mb", type=int, default=600, help="of patches to read (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    given = parser.parse_args(arguments)
    blosc.use_threads = False
    print(f"{platform.machine()}, {os.cpu_count()} CPUs; {THREADS} threads decode")
    for path in given.shards:
        shards = ShardSet.open(path)
        for experiment in shards.manifest.experiments:
            report(shards, experiment, given.mb * 10**6, given.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
