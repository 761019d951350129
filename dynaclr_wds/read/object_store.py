"""Shards in object storage to bytes: the store that reads by bounded range requests, several in flight.

A block that is fetched comes in requests of at most `request_bytes` into memory of its own, and patches are copied
from there as from a map. What is gathered is requested patch by patch, with neighbours joined, checked when it comes,
and kept in a pool of recently used patches. Every request is pinned to the version that the shard had when the set was
opened, or when it was first read. How requests are repeated, and when they fail, is the business of
`storage/client.py`.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from dynaclr_wds.contract import ShardRecord
from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.read.arrivals import Arrival, Arrivals
from dynaclr_wds.read.coalesce import cut_range, join_ranges
from dynaclr_wds.read.disk_pool import DiskPool
from dynaclr_wds.read.files import check_inside
from dynaclr_wds.read.held_blocks import HeldBlocks, copy_own
from dynaclr_wds.read.patch_pool import PatchPool
from dynaclr_wds.storage.client import Storage, check_process
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.store import Check, RowFailure


class _Request(NamedTuple):
    """Bytes of one shard that are asked for together."""

    arrival: Arrival
    shard: int
    begin: int
    end: int
    disk: DiskPool | None


class ObjectStore:
    """Shards in object storage.

    Parameters
    ----------
    storage
        Where they are.
    shards
        Their records.
    versions
        Version of each shard, as far as it is known.
    in_flight
        Requests at a time.
    pool_bytes
        Bytes of patches to keep in memory after they were read; of blocks that were fetched nothing is kept.
    disk
        What is kept on this node; None = nothing.
    """

    def __init__(
        self,
        storage: Storage,
        shards: Sequence[ShardRecord],
        versions: Sequence[ObjectInfo | None],
        *,
        in_flight: int,
        pool_bytes: int = 0,
        disk: DiskPool | None = None,
    ) -> None:
        self.ahead = in_flight
        self._storage = storage
        self._shards = shards
        self._options = storage.options
        self._bytes = np.array([s.bytes for s in shards], np.int64)
        self._base = np.concatenate([[0], np.cumsum(self._bytes)])
        self._edges: list[int] = self._base.tolist()
        self._versions = list(versions)
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._held = HeldBlocks(self._bring_block)
        self._gathered: dict[threading.Thread, tuple[Arrivals, ...]] = {}
        self._pool = PatchPool(pool_bytes)
        self._disk = disk
        if disk is not None:
            disk.know(versions)
        self._requests: ThreadPoolExecutor | None = None

    def read(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        offset: Int64[np.ndarray, " k"],
        out: UInt8[np.ndarray, "n k bytes"],
    ) -> None:
        """Copy patches; see `BlockStore.read`."""
        with self.locate(shard, begin + offset[0], begin + offset[-1] + out.shape[2]) as address:
            copy_own(address - offset[0], offset, out)

    @contextmanager
    def locate(
        self, shard: Int64[np.ndarray, " n"], begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]
    ) -> Iterator[Int64[np.ndarray, " n"]]:
        """Give the address of each range that was fetched or gathered, once it is there; it stays inside the context.

        Raises
        ------
        RowFailure
            A range can't be had.
        """
        check_inside(begin, end, self._bytes[shard])
        first, last = begin + self._base[shard], end + self._base[shard]
        with self._held.locate(self._gathered.get(threading.current_thread(), ()), first, last) as (address, _):
            if not address.all():  # to ask for them now would bring bytes that nobody checks
                row = int(np.argmin(address))
                raise RowFailure(row, self._explain_absence(int(shard[row])))
            yield address

    @contextmanager
    def gather(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
        check: Check,
    ) -> Iterator[None]:
        """Ask for ranges that this thread is about to read; see `RemoteStore.gather`."""
        number = np.flatnonzero((begin >= 0) & (end <= self._bytes[shard]))  # the others fail when they are read
        base = self._base[shard[number]]
        tables = self._ask(number, base + begin[number], base + end[number], check)
        self._gathered[threading.current_thread()] = tables
        try:
            yield
        finally:
            del self._gathered[threading.current_thread()]
            _give_up(tables)  # after an error, nobody waits for the others

    def give_up(self, threads: Collection[threading.Thread]) -> None:
        """Give up what threads have gathered and not read yet; see `RemoteStore.give_up`."""
        for thread in threads:
            _give_up(self._gathered.get(thread, ()))

    def fetch(self, shard: int, begin: int, end: int) -> None:
        """Ask for a block, and return at once."""
        self._held.fetch(int(self._base[shard]) + begin, int(self._base[shard]) + end)

    def forget(self, shard: int, begin: int, end: int) -> None:
        """Let go of a block: its memory is free when nobody reads from it any more."""
        self._held.forget(int(self._base[shard]) + begin, int(self._base[shard]) + end)

    def fetch_again(self, shard: int, begin: int, end: int, found: int) -> None:
        """Ask anew for a block that came damaged; see `RemoteStore.fetch_again`."""
        base = int(self._base[shard])
        self._held.renew(base + begin, base + end, found, partial(self.drop_kept, shard, begin, end))

    def checksum(self, shard: int, begin: int, end: int) -> int:
        """Return the XXH3 of a block, as it came."""
        return self._held.checksum(int(self._base[shard]) + begin, int(self._base[shard]) + end)

    def drop_kept(self, shard: int, begin: int, end: int) -> None:
        """Forget a block that is kept on this node's disk."""
        if self._disk is not None:
            self._disk.drop_spans(shard, np.array([[begin, end]]))

    def request_block(
        self, shard: int, begin: int, end: int, then: Callable[[Arrival], None] | None = None, *, mapped: bool = False
    ) -> Arrival:
        """Send the requests for a block, which nobody but the caller holds; see `Arrival`."""
        base = int(self._base[shard])
        return self._request(base + begin, base + end, self._disk, then, mapped=mapped)

    def close(self) -> None:
        """Give back memory and threads; requests on their way are not waited for."""
        with self._starting:
            requests, self._requests = self._requests, None
        self._held.close()
        if requests is not None:
            requests.shutdown(wait=False, cancel_futures=True)

    def _ask(
        self,
        number: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
        check: Check,
    ) -> tuple[Arrivals, ...]:
        """Ask for ranges, as far as no block or pool holds them; return what the pool has, and what comes.

        Each range has the number that `check` knows it by. What is on the disk is not joined with others. Joined ranges
        are the last to look in: between what was asked for they hold bytes that nobody checks.
        """
        new = self._held.table.find(begin, end) < 0
        spans, some = np.unique(np.stack([begin[new], end[new]], axis=1), axis=0, return_index=True)
        pooled = self._pool.find(spans)
        absent = np.array([tuple(span) not in pooled for span in spans.tolist()], bool)
        missing, number = spans[absent], number[new][some][absent]
        there = np.zeros(len(missing), bool) if self._disk is None else self._disk.find(missing, self._base)
        far = missing[~there]
        joined, owner = join_ranges(
            far[:, 0], far[:, 1], self._base, self._options.coalesce_bytes, self._options.request_bytes
        )
        at = np.flatnonzero(~there)
        groups: list[tuple[Any, Any, DiskPool | None]] = [
            *((span, at[owner == place], None) for place, span in enumerate(joined.tolist())),
            *((missing[place].tolist(), np.array([place]), self._disk) for place in np.flatnonzero(there).tolist()),
        ]
        pieces, requests = [], deque[_Request]()
        for (first, last), own, disk in groups:
            accept = partial(self._accept, number=number[own], spans=missing[own], check=check)
            arrival, parts = self._plan_requests(first, last, accept, disk)
            pieces.append(arrival)
            requests.extend(parts)
        for _ in range(min(len(requests), self.ahead)):
            self._submit(self._bring_all, requests)
        return Arrivals(list(pooled.values())), Arrivals(pieces[len(joined) :]), Arrivals(pieces[: len(joined)])

    def _accept(
        self, piece: Arrival, number: Int64[np.ndarray, " n"], spans: Int64[np.ndarray, "n 2"], check: Check
    ) -> None:
        """Check the ranges of a piece that came, ask for it once more if one is damaged, and keep them."""
        shard, parts = self._cut(piece.begin, piece.end)
        base = int(self._base[shard])
        if _find_damage(piece, number, spans, check) is not None:
            if self._disk is not None:
                self._disk.drop_spans(shard, spans - base)
            for first, last in parts:
                piece.overwrite(base + first, self._load(piece, shard, first, last))
            if (error := _find_damage(piece, number, spans, check)) is not None:
                raise error
        self._pool.keep(piece, spans)
        if self._disk is not None:
            self._disk.keep_spans(piece, shard, base, spans)

    def _request(
        self,
        begin: int,
        end: int,
        disk: DiskPool | None = None,
        then: Callable[[Arrival], None] | None = None,
        *,
        mapped: bool = False,
    ) -> Arrival:
        """Send the requests for a range of one shard, or read it from the disk where it is there."""
        arrival, requests = self._plan_requests(begin, end, then, disk, mapped=mapped)
        for request in requests:
            self._submit(self._bring, request)
        return arrival

    def _plan_requests(
        self,
        begin: int,
        end: int,
        then: Callable[[Arrival], None] | None,
        disk: DiskPool | None,
        *,
        mapped: bool = False,
    ) -> tuple[Arrival, list[_Request]]:
        """Return memory for a range of one shard, and the requests that fill it."""
        shard, parts = self._cut(begin, end)
        arrival = Arrival(begin, end, len(parts), then, mapped=mapped)
        return arrival, [_Request(arrival, shard, first, last, disk) for first, last in parts]

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have something done in a thread that makes requests."""
        check_process()
        with self._starting:
            requests = self._requests
            if requests is None:
                requests = self._requests = ThreadPoolExecutor(self.ahead, thread_name_prefix="dynaclr-request")
        requests.submit(work, *arguments)

    def _bring_block(self, begin: int, end: int) -> Arrival:
        return self._request(begin, end, disk=self._disk)

    def _explain_absence(self, shard: int) -> StorageError:
        return StorageError(
            f"{self._storage.root / self._shards[shard].path}: bytes are read that nobody had asked for, or that were "
            "let go meanwhile, because the loader was closed. Read batches of a loader that is open."
        )

    def _cut(self, begin: int, end: int) -> tuple[int, list[tuple[int, int]]]:
        """Return the shard of a range, and the requests that it takes: first byte in the shard and end."""
        shard = bisect_right(self._edges, begin) - 1
        base = self._edges[shard]
        return shard, cut_range(begin - base, end - base, self._options.request_bytes)

    def _bring_all(self, requests: deque[_Request]) -> None:
        """Make one request after the other, beside other threads that do the same, until none is left."""
        while requests:
            try:
                request = requests.popleft()
            except IndexError:  # another thread took the last one
                return
            self._bring(request)

    def _bring(self, request: _Request) -> None:
        """Make one request; what goes wrong is raised where the bytes are waited for."""
        arrival, shard, begin, end, disk = request
        if arrival.over:
            return
        try:
            data = None if disk is None else disk.read(shard, begin, end)
            if data is None:
                data = self._load(arrival, shard, begin, end)
                if disk is not None:
                    disk.keep(shard, begin, end, data)
            arrival.put(self._edges[shard] + begin, data)
        except BaseException as error:
            arrival.fail(error)

    def _load(self, arrival: Arrival, shard: int, begin: int, end: int) -> memoryview:
        """Make one request for bytes of an arrival."""
        name = self._shards[shard].path
        data, found = self._storage.read_range(name, begin, end, self._versions[shard], arrival.sleep)
        self._pin(shard, found)
        return data

    def _pin(self, shard: int, found: ObjectInfo) -> None:
        """Keep the version of a shard's first answer; every later one must be of the same."""
        known = self._versions[shard]
        if known is not None and known.is_same(found):  # nearly always; a lock would make all requests wait for it
            return
        with self._lock:
            known = self._versions[shard]
            if known is None:
                record = self._shards[shard]
                if found.size != record.bytes:
                    raise FormatError(
                        f"{self._storage.root / record.path}: has {found.size:,} bytes, the manifest says "
                        f"{record.bytes:,}. Copy it again, or build the shards again."
                    )
                self._versions[shard] = found
                if self._disk is not None:
                    self._disk.know_one(shard, found)
            elif not known.is_same(found):
                raise FormatError(
                    f"{self._storage.root / self._shards[shard].path}: was replaced while it was read. Put the old one "
                    "back, or open the new set and train from there."
                )


def _give_up(tables: tuple[Arrivals, ...]) -> None:
    """Give up what was asked for; the first table is of a pool, and stays."""
    for table in tables[1:]:
        for piece in table.members:
            piece.give_up()


def _find_damage(
    piece: Arrival, number: Int64[np.ndarray, " n"], spans: Int64[np.ndarray, "n 2"], check: Check
) -> Exception | None:
    """Say what is wrong with the first damaged range of a piece; None where all are well."""
    for place, (begin, end) in zip(number.tolist(), spans.tolist(), strict=True):
        if (error := check(place, piece.bytes[begin - piece.begin : end - piece.begin])) is not None:
            return error
    return None
