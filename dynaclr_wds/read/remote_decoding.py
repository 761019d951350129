"""Compressed shards in object storage to decoded bytes; see `read/decoding.py`.

What is asked for, kept in memory and kept on the disk are compressed bytes. A block's are let go as they are decoded,
so that both together never take more than the block does in the window. Patches of exact mode are decoded in the
threads of the requests, once they are there, and their checksums are those of what was decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from jaxtyping import Int64, UInt8

from dynaclr_wds.addresses import ChannelRuns
from dynaclr_wds.errors import StorageError
from dynaclr_wds.read.arrivals import Arrival
from dynaclr_wds.read.decoding import DecodedBlock, DecodingStore
from dynaclr_wds.read.held_blocks import view_memory
from dynaclr_wds.read.object_store import ObjectStore
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import Check, RowFailure

_Run = tuple[int, int, int]
"""Patch, first channel, and how many."""


class _ComingBlock(DecodedBlock):
    """A block that comes over a network."""

    source: Arrival
    """Its bytes as they are stored."""

    def wait(self) -> None:
        """Return when all bytes are there; see `Arrival.wait`."""
        self.source.wait()  # fails where they don't come
        super().wait()

    def give_up(self) -> None:
        """End it, because nobody needs it any more."""
        super().give_up()
        self.source.give_up()


class RemoteDecodingStore(DecodingStore):
    """The decoded shards of a set in object storage."""

    def __init__(self, inner: ObjectStore, shards: ShardSet) -> None:
        super().__init__(inner, shards)
        self.ahead = inner.ahead
        self._objects = inner
        self._gathered = threading.local()

    @contextmanager
    def gather(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
        check: Check,
    ) -> Iterator[None]:
        """Ask for ranges that this thread is about to read; see `RemoteStore.gather`."""
        first, last = begin + self._base[shard], end + self._base[shard]
        is_new = (begin >= 0) & (end <= self._bytes[shard]) & (self._held.table.find(first, last) < 0)
        number = np.flatnonzero(is_new)
        runs, spans = self._at.find_channels(first[number], last[number]), dict[_Run, UInt8[np.ndarray, " b"]]()

        def check_stored(place: int, data: UInt8[np.ndarray, " b"]) -> Exception | None:
            try:
                span = self._decode_run(place, data, runs)
            except RowFailure as failure:
                return failure.error
            if (error := check(int(number[place]), span)) is None:
                spans[runs.key(place)] = span
            return error

        self._gathered.spans = spans
        try:
            with self._objects.gather(shard[number], *self._at.find_stored(runs), check_stored):
                yield
        finally:
            self._gathered.spans = None

    def give_up(self, threads: Collection[threading.Thread]) -> None:
        """Give up what threads have gathered and not read yet; see `RemoteStore.give_up`."""
        self._objects.give_up(threads)

    def fetch_again(self, shard: int, begin: int, end: int, found: int) -> None:
        """Ask anew for a block that came damaged; see `RemoteStore.fetch_again`."""
        at = int(self._base[shard])
        stored = self._at.stored_block(self._at.find_block(at + begin))
        self._held.renew(at + begin, at + end, found, partial(self._objects.drop_kept, *stored))

    def forget(self, shard: int, begin: int, end: int) -> None:
        """Let go of a block's memory."""
        self._held.forget(int(self._base[shard]) + begin, int(self._base[shard]) + end)

    def checksum(self, shard: int, begin: int, end: int) -> int:
        """Return the XXH3 of a block as it came."""
        return self._held.checksum(int(self._base[shard]) + begin, int(self._base[shard]) + end)

    def _bring(self, begin: int, end: int) -> Arrival:
        block = _ComingBlock(self._at.find_block(begin), begin, end)
        stored = self._at.stored_block(block.number)
        block.source = self._objects.request_block(*stored, partial(self._submit, block), mapped=True)
        return block

    def _pieces(
        self, block: DecodedBlock, source: Arrival | None
    ) -> Iterator[tuple[range, int, UInt8[np.ndarray, " b"]]]:
        assert source is not None
        if not source.hold():
            raise StorageError("These bytes were let go before they were decoded.")
        try:
            block.digest, done = source.checksum(), 0
            _, first, _ = self._at.stored_block(block.number)
            for rows, begin, end in self._cut_block(block.number):
                yield rows, begin, source.bytes[begin - first : end - first]
                source.drop(done, end - first)
                done = end - first
        finally:
            source.let_go()
        source.give_up()

    def _decode_runs(self, shard: Int64[np.ndarray, " n"], runs: ChannelRuns) -> list[UInt8[np.ndarray, " b"]]:
        """Take what was decoded when it came, and decode the rest, which the pool had."""
        spans = getattr(self._gathered, "spans", None) or {}
        with self._stored(shard, *self._at.find_stored(runs)) as found:
            coming = [spans.get(runs.key(place)) for place in range(len(found))]
            return [
                self._decode_run(place, data, runs) if span is None else span
                for place, (span, data) in enumerate(zip(coming, found, strict=True))
            ]

    @contextmanager
    def _stored(
        self, shard: Int64[np.ndarray, " n"], begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]
    ) -> Iterator[list[UInt8[np.ndarray, " b"]]]:
        with self._objects.locate(shard, begin, end) as address:
            sizes = (end - begin).tolist()
            yield [view_memory(at, size) for at, size in zip(address.tolist(), sizes, strict=True)]
