"""Shards in object storage to bytes/s: our loader beside bare range requests to the same server, in one run, as ratios.

"Bare" asks obstore for the same ranges with as many requests in flight, and drops what comes. "Least" does in addition
what no loader can leave out: it checks what comes, holds as much as the window (or four batches), and copies it out
once for each patch of a batch. Where server and client share the processors, that alone costs. Two servers, started
here on loopback, hold the same set: SeaweedFS (s3) and nginx (http). Each is measured as it is, and again by way of a
link that delays each answer and limits each connection. Streaming reads whole epochs; exact mode reads batch after
batch of patches. All are measured in turn, several times over; medians count.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import xxhash

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks` and `tests`, which are not installed
from benchmarks.loader import make_shards
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.shardset import ShardSet
from tests.remote import upload
from tests.servers.bucket import Bucket
from tests.servers.far_link import FarLink
from tests.servers.nginx import Nginx
from tests.servers.proxy import Link
from tests.servers.seaweedfs import SeaweedFS

FAR = Link(delay_seconds=0.03, bytes_per_second=60e6)
Ranges = list[tuple[str, int, int]]
"""Object, first byte, byte after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A set on a server, and how it is read."""

    name: str
    bucket: Bucket
    url: str
    cache: str
    batch_size: int
    in_flight: int
    window: float

    @property
    def options(self) -> dict[str, Any]:
        """`storage_options`."""
        return {**self.bucket.storage_options(), "requests_in_flight": self.in_flight}


def make_data(setting: Setting, **sampling: Any) -> MultiExperimentDataModule:
    """Make a DataModule that trains on all of the set, every anchor once an epoch."""
    shards = ShardSet.open(setting.url, storage_options=setting.options, cache_dir=setting.cache)
    data = MultiExperimentDataModule(
        shards=setting.url,
        storage_options=setting.options,
        cache_dir=setting.cache,
        batch_size=setting.batch_size,
        num_workers=2,
        tau_range=shards.manifest.tau_range_hours,
        condition_balanced=False,
        channel_dropout_channels=(),
        **sampling,
    )
    data.setup("fit")
    return data


def read_ranges(setting: Setting, ranges: Ranges, keep: int | None = None, copies: float = 1.0) -> float:
    """Ask for ranges with `in_flight` requests at a time; bytes/s.

    With `keep`, do the least that a loader has to do with what comes: check it, hold so many bytes, and copy each byte
    out `copies` times before it is let go. Without, drop it.
    """
    store, folder = setting.bucket.store(retries=2, seconds=60), setting.url.removeprefix(setting.bucket.url).strip("/")
    held: deque[np.ndarray] = deque()
    lock, local = threading.Lock(), threading.local()

    def read(item: tuple[str, int, int]) -> int:
        data = np.frombuffer(obstore.get(store, f"{folder}/{item[0]}", options={"range": item[1:]}).bytes(), np.uint8)
        if keep is not None:
            xxhash.xxh3_64_intdigest(data.data)
            with lock:
                held.append(data)
                old = held.popleft() if len(held) * len(data) > keep else None
            if old is not None:
                copy_out(old)
        return len(data)

    def copy_out(data: np.ndarray) -> None:
        if len(getattr(local, "target", ())) < len(data):
            local.target = np.empty(len(data), np.uint8)
        for begin in np.arange(0, copies, 1.0):
            part = data[: int(len(data) * min(copies - begin, 1.0))]
            local.target[: len(part)] = part

    begin = time.perf_counter()
    with ThreadPoolExecutor(setting.in_flight) as pool:
        total = sum(pool.map(read, ranges))
    return total / (time.perf_counter() - begin)


def stream(setting: Setting) -> Iterator[dict[str, float]]:
    """Read an epoch of streaming and the same blocks without a loader, again and again; bytes/s of each."""
    share = setting.window
    data = make_data(setting, window_bytes=f"{share:.0%}", num_streams=1, relax_lineages=True)
    loader, sampler, shards = data.train_dataloader(), data.train_sampler, data.shard_set
    assert sampler is not None
    assert shards is not None
    for number in range(1 << 30):
        sampler.set_epoch(number)
        reads = sampler.block_reads()
        assert reads is not None
        begin, end = shards.arrays["block_begin"][reads.block], shards.arrays["block_end"][reads.block]
        names = [shards.manifest.shards[k].path for k in shards.arrays["block_shard"][reads.block].tolist()]
        ranges = list(zip(names, begin.tolist(), end.tolist(), strict=True))
        bare, size, copied = read_ranges(setting, ranges), int((end - begin).sum()), 0
        with peak_memory() as grown:
            start = time.perf_counter()
            for batch in loader:
                copied += batch["anchor"].nbytes + batch["positive"].nbytes
            took = time.perf_counter() - start
        yield {
            "bare": bare,
            "least": read_ranges(setting, ranges, sampler.window_bytes or 0, copied / size),
            "ours": size / took,
            "held": data.train_dataset.held_peak_bytes,
            "window": sampler.window_bytes or 0,
            "grown": grown[0],
        }


def draw(setting: Setting, seconds: float) -> Iterator[dict[str, float]]:
    """Read batches in exact mode, and as many patches without a loader, again and again; bytes/s of each."""
    data = make_data(setting)
    loader, sampler, shards = data.train_dataloader(), data.train_sampler, data.shard_set
    assert sampler is not None
    assert shards is not None
    rng = np.random.default_rng(0)
    for number in range(1 << 30):
        sampler.set_epoch(number)
        total, start = 0, time.perf_counter()
        for batch in loader:
            total += batch["anchor"].nbytes + batch["positive"].nbytes
            if time.perf_counter() - start > seconds:
                break
        took = time.perf_counter() - start
        size = batch["anchor"][0].nbytes
        records = [shards.manifest.shards[k] for k in rng.integers(len(shards.manifest.shards), size=total // size)]
        ranges = []
        for record in records:
            first = int(rng.integers(record.bytes - size))
            ranges.append((record.path, first, first + size))
        least = read_ranges(setting, ranges, 4 * setting.batch_size * size)
        yield {"bare": read_ranges(setting, ranges), "least": least, "ours": total / took}


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Watch the memory of this process; the list's one number is by how many bytes it grew at most."""
    grown, over = [0], threading.Event()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while not over.wait(0.005):
            grown[0] = max(grown[0], resident() - before)

    before = resident()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield grown
    finally:
        over.set()
        thread.join()


def report(name: str, make: Callable[[], Iterator[dict[str, float]]], repeats: int) -> None:
    """Measure `repeats` times after one that does not count; print medians and the median ratio."""
    rounds = [row for _, row in zip(range(repeats + 1), make(), strict=False)][1:]
    line = f"{name:28}" + "".join(
        f"{statistics.median(row[key] for row in rounds) / 1e6:8,.0f}" for key in ("bare", "least", "ours")
    )
    for peer in ("bare", "least"):
        line += f"{statistics.median(row['ours'] / row[peer] for row in rounds):10.0%}"
    if "window" in rounds[0]:
        most = {key: max(row[key] for row in rounds) / 1e6 for key in ("held", "window", "grown")}
        line += f"   held {most['held']:,.0f} of {most['window']:,.0f} MB, process grew {most['grown']:,.0f} MB"
    print(line, flush=True)


def serve_set(stack: ExitStack, shards: Path) -> dict[str, tuple[Bucket, str]]:
    """Start the servers and give each the set: name → bucket and URL."""
    weed = stack.enter_context(SeaweedFS())
    nginx = stack.enter_context(Nginx())
    bucket = weed.bucket("bench")
    nginx.files("bench").symlink_to(shards, target_is_directory=True)
    plain = Bucket(url=f"{nginx.plain_endpoint}/bench", endpoint=nginx.plain_endpoint)
    places = {"SeaweedFS": (bucket, upload(bucket, shards, "set")), "nginx": (plain, plain.url)}
    for name, (near, url) in list(places.items()):
        far = stack.enter_context(FarLink(near.endpoint, FAR))
        moved = far.before(near)
        places[f"{name}, far"] = (moved, url.replace(near.url, moved.url))
    return places


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/object_store.py", description=__doc__)
    parser.add_argument("--shards", type=Path, help="a shard set; simulated in a temporary folder when left out")
    parser.add_argument("--gib", type=float, default=1.0, help="of simulated shards, about (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="samples (%(default)s)")
    parser.add_argument("--in_flight", type=int, default=16, help="requests at a time (%(default)s)")
    parser.add_argument("--window", type=float, default=0.4, help="of streaming, share of the bytes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of exact mode (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--servers", nargs="+", default=["SeaweedFS", "nginx", "SeaweedFS, far", "nginx, far"])
    given = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shards = given.shards or make_shards(folder, 192, "float32", given.gib)
        places = serve_set(stack, shards)
        size = sum(path.stat().st_size for path in shards.rglob("*.tar"))
        print(f"{platform.machine()}, {os.cpu_count()} CPUs, obstore {obstore.__version__}; {size / 2**30:.2f} GiB")
        print(
            f"batches of {given.batch_size}, {given.in_flight} requests in flight; far: 30 ms, 60 MB/s a connection\n"
        )
        print(f"{'MB/s':28}{'bare':>8}{'least':>8}{'ours':>8}{'of bare':>10}{'of least':>10}")
        for name in given.servers:
            bucket, url = places[name]
            setting = Setting(
                name=name,
                bucket=bucket,
                url=url,
                cache=str(folder / "cache" / name.replace(", ", "-")),
                batch_size=given.batch_size,
                in_flight=given.in_flight,
                window=given.window,
            )
            report(f"{name}: streaming", partial(stream, setting), given.repeats)
            report(f"{name}: exact", partial(draw, setting, given.seconds), given.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
