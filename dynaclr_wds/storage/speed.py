"""A set in object storage to requests and MB/s, at several sizes and numbers in flight, and what to set then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaclr_wds.contract import Manifest
from dynaclr_wds.storage.client import Storage

IN_FLIGHT = (1, 4, 16, 64)
_PER_WORKER = 16
"""Requests in flight that each of `num_workers` brings."""
NEARLY = 0.9
"""Fewest requests in flight that give so much of the best rate are enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What requests of one size, so many at a time, gave."""

    request_bytes: int
    in_flight: int
    requests: float
    """Per second."""

    @property
    def bytes(self) -> float:
        """Per second."""
        return self.requests * self.request_bytes


def measure_link(storage: Storage, manifest: Manifest, sizes: Sequence[int], seconds: float) -> list[Rate]:
    """Read ranges of shards at random places, for a while at each size and number in flight.

    Parameters
    ----------
    storage, manifest
        The set.
    sizes
        Bytes of a request.
    seconds
        For each pair of size and number.

    Raises
    ------
    FormatError, StorageError
        A request failed.
    """
    shards = [(record.path, record.bytes) for record in manifest.shards]
    rng = np.random.default_rng(0)
    rates = []
    for size in sizes:
        fitting = [(path, total) for path, total in shards if total >= size]
        for in_flight in IN_FLIGHT if fitting else ():
            picks = [fitting[k] for k in rng.integers(len(fitting), size=4096)]
            places = [(path, int(rng.integers(total - size + 1))) for path, total in picks]
            rates.append(_measure(storage, places, size, in_flight, seconds))
    return rates


def choose(rates: Sequence[Rate], request_bytes: int) -> Rate:
    """Choose the fewest requests in flight that give nearly the best rate at a size."""
    own = [rate for rate in rates if rate.request_bytes == request_bytes]
    best = max(rate.requests for rate in own)
    return next(rate for rate in own if rate.requests >= NEARLY * best)


def _measure(storage: Storage, places: Sequence[tuple[str, int]], size: int, in_flight: int, seconds: float) -> Rate:
    begun = time.perf_counter()

    def read(first: int) -> int:
        """Read until the time is over, at least once; return how often."""
        done = 0
        while not done or time.perf_counter() - begun < seconds:
            path, begin = places[(first + done * in_flight) % len(places)]
            storage.read_range(path, begin, begin + size)
            done += 1
        return done

    with ThreadPoolExecutor(in_flight) as pool:
        count = sum(pool.map(read, range(in_flight)))
    return Rate(request_bytes=size, in_flight=in_flight, requests=count / (time.perf_counter() - begun))


def advise(rates: Sequence[Rate], manifest: Manifest, patch: int) -> dict[str, dict[str, Any]]:
    """Say for streaming and for exact mode what to set, and how many samples/s the link can bring."""
    large = choose(rates, max(rate.request_bytes for rate in rates))
    advice = {}
    for mode, rate in (("streaming", large), ("exact", choose(rates, patch))):
        advice[mode] = {
            "num_workers": max(1, -(-rate.in_flight // _PER_WORKER)),
            "requests_in_flight": rate.in_flight,
            "samples_per_second": round(rate.bytes / (2 * patch), 1),
        }
    stored = sum(shard.bytes for shard in manifest.shards)
    # of the window, what is on its way should be a small part
    advice["streaming"]["window_bytes"] = min(8 * large.in_flight * large.request_bytes, stored)
    return advice


def format_rates(rates: Sequence[Rate], patch: int, advice: dict[str, dict[str, Any]]) -> str:
    """Write the table, and what follows from it."""
    lines = [f"{'request':>12} {'in flight':>10} {'requests/s':>11} {'MB/s':>8}"]
    lines += [
        f"{rate.request_bytes:>12,} {rate.in_flight:>10} {rate.requests:>11,.1f} {rate.bytes / 1e6:>8,.1f}"
        for rate in rates
    ]
    streaming, exact = advice["streaming"], advice["exact"]
    lines += [
        "",
        f"A sample is an anchor and its positive, 2 × {patch:,} bytes.",
        f"Streaming: num_workers: {streaming['num_workers']}, storage_options: {{requests_in_flight: "
        f"{streaming['requests_in_flight']}}}, window_bytes of {streaming['window_bytes']:,} or more. The link brings "
        f"{streaming['samples_per_second']:,} samples/s where each patch is read once; `shuffle` says how often it is.",
        f"Exact mode: num_workers: {exact['num_workers']}, storage_options: {{requests_in_flight: "
        f"{exact['requests_in_flight']}}}; {exact['samples_per_second']:,} samples/s.",
    ]
    return "\n".join(lines)
