"""Compressed shards to decoded bytes: a store between the one that has the files and those who read patches.

To whoever reads, the shards look as if they were not compressed (`DecodedAddresses`). A block that is fetched is
decoded once, by threads of this store, into memory of its own; a patch that is in no such block is decoded when it is
read, in the thread that reads it. Decoding releases the GIL, is bounded by the size that is expected, and anything
that is not one whole gzip member of that size is an error that names the patch.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from jaxtyping import Int64, UInt8

from dynaclr_wds.addresses import ChannelRuns, DecodedAddresses
from dynaclr_wds.codec import CodecError, decompress
from dynaclr_wds.errors import ChecksumError
from dynaclr_wds.read.arrivals import Arrival
from dynaclr_wds.read.channel_ranges import explain_damage
from dynaclr_wds.read.files import check_inside
from dynaclr_wds.read.held_blocks import HeldBlocks, copy_own
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import BlockStore, RowFailure

_PIECE_BYTES = 1 << 20
"""Stored bytes of a block that are read at a time."""
_CHUNK_BYTES = 4 << 20
"""Decoded bytes of single patches that are held at a time."""


class DecodedBlock(Arrival):
    """A block that is decoded, or will be.

    Parameters
    ----------
    number
        The block.
    begin, end
        Its range as it is read.
    """

    def __init__(self, number: int, begin: int, end: int) -> None:
        super().__init__(begin, end, 1, mapped=True)
        self.number = number
        self.damage: dict[int, ChecksumError] = {}
        """Patch → what is wrong with it."""


class DecodingStore:
    """The decoded shards of a set on a disk.

    Parameters
    ----------
    inner
        The shards as they are stored.
    shards
        The set, whose patches are compressed.
    """

    def __init__(self, inner: BlockStore, shards: ShardSet) -> None:
        assert isinstance(shards.addresses, DecodedAddresses), "only sets with a codec are decoded"
        self._inner = inner
        self._shards = shards
        self._at = shards.addresses
        self._base = self._at.shard_at
        self._bytes = np.diff(self._base)
        self._stored_bytes = np.array([s.bytes for s in shards.manifest.shards], np.int64)
        self._held = HeldBlocks(self._bring)
        self._starting = threading.Lock()
        self._decoders: ThreadPoolExecutor | None = None

    def read(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        offset: Int64[np.ndarray, " k"],
        out: UInt8[np.ndarray, "n k bytes"],
    ) -> None:
        """Copy patches; see `BlockStore.read`."""
        first, last = begin + offset[0], begin + offset[-1] + out.shape[2]
        check_inside(first, last, self._bytes[shard])
        first, last = first + self._base[shard], last + self._base[shard]
        with self._held.locate((), first, last) as (address, held):
            self._check_damage(held, address, first, last)
            if address.all():
                copy_own(address - offset[0], offset, out)
                return
            for row in np.flatnonzero(address).tolist():
                copy_own(address[row : row + 1] - offset[0], offset, out[row : row + 1])
            left = np.flatnonzero(address == 0)
        self._read_single(left, shard, self._at.find_channels(first[left], last[left]), offset, out)

    def fetch(self, shard: int, begin: int, end: int) -> None:
        """Have a block read and decoded, and return at once."""
        self._held.fetch(int(self._base[shard]) + begin, int(self._base[shard]) + end)

    def forget(self, shard: int, begin: int, end: int) -> None:
        """Let go of a block's memory, and of its pages in the page cache."""
        at = int(self._base[shard])
        self._held.forget(at + begin, at + end)
        self._inner.forget(*self._at.stored_block(self._at.find_block(at + begin)))

    def checksum(self, shard: int, begin: int, end: int) -> int:  # noqa: ARG002
        """Return the XXH3 of a block as it is stored."""
        number = self._at.find_block(int(self._base[shard]) + begin)
        return self._inner.checksum(*self._at.stored_block(number))

    def close(self) -> None:
        """Give back memory and threads."""
        with self._starting:
            decoders, self._decoders = self._decoders, None
        self._held.close()
        if decoders is not None:
            decoders.shutdown(wait=False, cancel_futures=True)
        self._inner.close()

    def _bring(self, begin: int, end: int) -> Arrival:
        """Have a block decoded."""
        block = DecodedBlock(self._at.find_block(begin), begin, end)
        self._inner.fetch(*self._at.stored_block(block.number))
        self._submit(block, None)
        return block

    def _submit(self, block: DecodedBlock, source: Arrival | None) -> None:
        with self._starting:
            if self._decoders is None:
                threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
                self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="dynaclr-decode")
            self._decoders.submit(self._decode_block, block, source)

    def _decode_block(self, block: DecodedBlock, source: Arrival | None) -> None:
        """Fill a block; what goes wrong is raised where it is waited for."""
        if not block.hold():
            return
        try:
            for rows, begin, data in self._pieces(block, source):
                if block.over:
                    return
                self._decode_rows(block, rows, begin, data)
            block.finish()
        except BaseException as error:
            block.fail(error.error if isinstance(error, RowFailure) else error)
        finally:
            block.let_go()

    def _pieces(
        self, block: DecodedBlock, source: Arrival | None
    ) -> Iterator[tuple[range, int, UInt8[np.ndarray, " b"]]]:
        """Yield the stored patches of a block, some at a time: rows, first byte in the file, and the bytes from it."""
        assert source is None, "files are read here"
        shard = np.array([self._at.stored_block(block.number)[0]], np.int64)
        for rows, begin, end in self._cut_block(block.number):
            data = np.empty((1, 1, end - begin), np.uint8)
            self._inner.read(shard, np.array([begin]), np.zeros(1, np.int64), data)
            yield rows, begin, data[0, 0]

    def _cut_block(self, number: int) -> Iterator[tuple[range, int, int]]:
        """Cut a block into runs of patches of about `_PIECE_BYTES`: rows, and the bytes of the file that hold them."""
        first, last = self._at.block_rows(number)
        begin, end = self._at.size_rows(first, last)
        piece = (begin - begin[0]) // _PIECE_BYTES
        edges = np.append(np.flatnonzero(np.diff(piece, prepend=-1)), last - first).tolist()
        for low, high in itertools.pairwise(edges):
            yield range(first + low, first + high), int(begin[low]), int(end[high - 1])

    def _decode_rows(self, block: DecodedBlock, rows: range, begin: int, data: UInt8[np.ndarray, " b"]) -> None:
        """Decode patches into their places in a block."""
        row = np.arange(rows.start, rows.stop)
        places = (self._at.patches_at(row) - block.begin).tolist()
        starts = (self._at.size_rows(rows.start, rows.stop)[0] - begin).tolist()
        view = data.data
        for number, place, at in zip(rows, places, starts, strict=True):
            size, stored = self._at.channel_sizes(number)
            for channel, length in enumerate(stored):
                try:
                    found = decompress(view[at : at + length], size)
                except CodecError as error:
                    block.damage[number] = explain_damage(self._shards, number, channel, str(error))
                    break
                block.bytes[place : place + size] = np.frombuffer(found, np.uint8)
                place, at = place + size, at + length

    def _check_damage(
        self,
        held: list[Arrival],
        address: Int64[np.ndarray, " n"],
        first: Int64[np.ndarray, " n"],
        last: Int64[np.ndarray, " n"],
    ) -> None:
        """Refuse patches that could not be decoded with their block."""
        damage = {
            row: error for block in held if isinstance(block, DecodedBlock) for row, error in block.damage.items()
        }
        if not damage:
            return
        some = np.flatnonzero(address)
        for place, row in zip(some.tolist(), self._at.find_channels(first[some], last[some]).row.tolist(), strict=True):
            if row in damage:
                raise RowFailure(place, damage[row])

    def _read_single(
        self,
        places: Int64[np.ndarray, " r"],
        shard: Int64[np.ndarray, " n"],
        runs: ChannelRuns,
        offset: Int64[np.ndarray, " k"],
        out: UInt8[np.ndarray, "n k bytes"],
    ) -> None:
        """Decode what is in no block, some patches at a time, and copy what is wanted of it."""
        step = max(1, _CHUNK_BYTES // max(1, int((runs.count * runs.size).max())))
        for begin in range(0, len(places), step):
            part = slice(begin, begin + step)
            some = runs.take(part)
            try:
                spans = self._decode_runs(shard[places[part]], some)
            except RowFailure as failure:
                raise RowFailure(int(places[begin + failure.row]), failure.error) from failure.error.__cause__
            address = np.array([span.ctypes.data for span in spans], np.int64) + some.skip - offset[0]
            if len(places) == len(out):
                copy_own(address, offset, out[part])
                continue
            for number, place in enumerate(places[part].tolist()):
                copy_own(address[number : number + 1], offset, out[place : place + 1])

    def _decode_runs(self, shard: Int64[np.ndarray, " n"], runs: ChannelRuns) -> list[UInt8[np.ndarray, " b"]]:
        """Decode runs of channels."""
        with self._stored(shard, *self._at.find_stored(runs)) as found:
            return [self._decode_run(place, data, runs) for place, data in enumerate(found)]

    def _decode_run(self, place: int, data: UInt8[np.ndarray, " b"], runs: ChannelRuns) -> UInt8[np.ndarray, " d"]:
        """Decode one run of channels.

        Raises
        ------
        RowFailure
            A channel can't be decoded.
        """
        row, first = int(runs.row[place]), int(runs.first[place])
        size, stored = self._at.channel_sizes(row)
        view, at, parts = data.data, 0, list[bytes]()
        for channel in range(first, first + int(runs.count[place])):
            try:
                parts.append(decompress(view[at : at + stored[channel]], size))
            except CodecError as error:
                raise RowFailure(place, explain_damage(self._shards, row, channel, str(error))) from None
            at += stored[channel]
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)

    @contextmanager
    def _stored(
        self, shard: Int64[np.ndarray, " n"], begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]
    ) -> Iterator[list[UInt8[np.ndarray, " b"]]]:
        """Give the stored bytes of ranges; they stay inside the context."""
        size = int((end - begin).max())  # for all, so that one call reads them; what is too much is not looked at
        room = self._stored_bytes[shard]
        if (room < size).any():  # not where a whole shard is smaller than the largest patch
            yield [self._read_stored(place, shard, begin, end) for place in range(len(shard))]
            return
        start = np.minimum(begin, room - size)
        data = np.empty((len(shard), 1, size), np.uint8)
        self._inner.read(shard, start, np.zeros(1, np.int64), data)
        skip = (begin - start).tolist()
        yield [row[at : at + n] for row, at, n in zip(data[:, 0], skip, (end - begin).tolist(), strict=True)]

    def _read_stored(
        self,
        place: int,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
    ) -> UInt8[np.ndarray, " b"]:
        """Read the stored bytes of one range."""
        data, one = np.empty((1, 1, int(end[place] - begin[place])), np.uint8), slice(place, place + 1)
        try:
            self._inner.read(shard[one], begin[one], np.zeros(1, np.int64), data)
        except RowFailure as failure:
            raise RowFailure(place, failure.error) from failure.error.__cause__
        return data[0, 0]
