"""Compressed shards to samples/s: our loader on a set and on the same set with `codec: gzip`, over links of some rates.

The link is simulated in the loader's process: each request gets its bytes from the local shard once the link has
brought them, no faster than its rate and after a delay. All else is the real loader: requests in flight, checks,
decoding, window, batches. Sets are measured in turn, several times over; medians count.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dynaclr_wds import datamodule
from dynaclr_wds.contract import NO_CODEC
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.read.object_store import ObjectStore
from dynaclr_wds.read.remote_decoding import RemoteDecodingStore
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.store import RemoteStore

_IN_FLIGHT = 32


class Simulated:
    """A link that brings bytes no faster than a rate; for several threads."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._free_at = time.perf_counter()

    def bring(self, count: int) -> None:
        """Return when so many bytes have come after those asked for before."""
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter() - 0.02) + count / self.rate
            wait = self._free_at - time.perf_counter()
        if wait > 0.002:
            time.sleep(wait)


class LinkStorage:
    """Shards on a disk, as a storage behind a link that counts what it brings."""

    def __init__(self, shards: ShardSet, rate: float, delay_seconds: float) -> None:
        self.root, self.options = Path(str(shards.root)), StorageOptions()
        self._link, self._delay = Simulated(rate), delay_seconds
        self.bytes = 0

    def read_range(self, name: str, begin: int, end: int, *known: Any) -> tuple[memoryview, ObjectInfo]:
        """Read bytes of a shard."""
        time.sleep(self._delay)
        self._link.bring(end - begin)
        with (self.root / name).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), end - begin, begin)
        self.bytes += len(data)
        return memoryview(data), known[0]


@contextmanager
def read_through(storage: LinkStorage) -> Iterator[None]:
    """Have DataModules read through a link."""

    def open_store(shards: ShardSet, *, pool_bytes: int = 0, **_: Any) -> RemoteStore:
        records = shards.manifest.shards
        versions = [ObjectInfo(size=record.bytes, etag=record.xxh3, changed=None) for record in records]
        store = ObjectStore(storage, records, versions, in_flight=_IN_FLIGHT, pool_bytes=pool_bytes)  # type: ignore[arg-type]
        return store if shards.manifest.codec == NO_CODEC else RemoteDecodingStore(store, shards)

    with patch.object(datamodule, "open_store", open_store):
        yield


def measure(shards: Path, rate: float, delay: float, seconds: float, options: dict[str, Any]) -> dict[str, float]:
    """Read batches for some seconds; samples/s, and bytes and processor time of a sample."""
    opened = ShardSet.open(shards)
    storage = LinkStorage(opened, rate, delay)
    with read_through(storage):
        data = MultiExperimentDataModule(
            str(shards), batch_size=32, num_workers=4, tau_range=opened.manifest.tau_range_hours, val_experiments=[],
            split_ratio=1.0, condition_balanced=False, channel_dropout_channels=(), **options,
        )  # fmt: skip
        data.setup("fit")
    loader, samples, epoch = data.train_dataloader(), 0, 0
    begin, used = time.perf_counter(), time.process_time()
    while (took := time.perf_counter() - begin) < seconds:
        data.train_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        epoch += 1
        for batch in loader:
            samples += len(batch["anchor"])
            if (took := time.perf_counter() - begin) >= seconds:
                break
    cpu = time.process_time() - used
    return {"speed": samples / took, "bytes": storage.bytes / samples, "cpu": cpu / samples}


MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "streaming": {"window_bytes": "60%", "num_streams": 1, "relax_lineages": True},
}


def report(plain: Path, compressed: Path, given: argparse.Namespace) -> None:
    """Print a line for each mode and rate."""
    print(
        f"\n{plain.name}, {compressed.name}: {_size(plain) / 1e6:,.0f} and {_size(compressed) / 1e6:,.0f} MB of shards"
    )
    for mode in given.modes:
        for rate in given.rates:
            rows: dict[Path, list[dict[str, float]]] = {plain: [], compressed: []}
            for _ in range(given.repeats):
                for path, found in rows.items():
                    found.append(measure(path, rate * 1e6, given.delay, given.seconds, MODES[mode]))
            median: Callable[[Path, str], float] = lambda path, key: statistics.median(row[key] for row in rows[path])  # noqa: B023, E731
            line = f"{mode:10}{rate:8,.0f} MB/s"
            for path in rows:
                line += f"{median(path, 'speed'):10,.0f}/s {median(path, 'bytes') / 1e3:7,.1f} kB"
                line += f"{median(path, 'cpu') * 1e6:8,.0f} us"
            print(f"{line}{median(compressed, 'speed') / median(plain, 'speed'):7.2f}x", flush=True)


def _size(shards: Path) -> int:
    return sum(path.stat().st_size for path in shards.rglob("*.tar"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/compressed.py", description=__doc__)
    parser.add_argument("sets", type=Path, nargs="+", help="pairs: a set without a codec, the same with gzip")
    parser.add_argument("--rates", type=float, nargs="+", default=[200, 1000], help="of the link, MB/s")
    parser.add_argument("--delay", type=float, default=0.005, help="of each request, seconds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (%(default)s)")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    given = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs; {_IN_FLIGHT} requests in flight, {given.delay * 1e3:.0f} ms each"
    )
    print("mode, link; without and with codec: samples/s, bytes and CPU of a sample; ratio of speeds")
    for pair in zip(given.sets[::2], given.sets[1::2], strict=True):
        report(*pair, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
