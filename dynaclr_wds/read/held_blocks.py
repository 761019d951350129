"""Blocks that were fetched and not forgotten: the memory that a store holds, and who waits for it.

Bytes are counted through all shards, which lie behind each other.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Int64, UInt8

from dynaclr_wds.errors import StorageError
from dynaclr_wds.read.arrivals import Arrival, Arrivals
from dynaclr_wds.read.mapped import copy_runs, load_copy
from dynaclr_wds.store import RowFailure


class HeldBlocks:
    """Blocks that are held or on their way; a block that was fetched twice is let go when it was forgotten twice.

    Parameters
    ----------
    bring
        Begins to bring a range, and returns at once what waits for it.
    """

    def __init__(self, bring: Callable[[int, int], Arrival]) -> None:
        self._bring = bring
        self._lock = threading.Lock()
        self._blocks: dict[int, Arrival] = {}
        self.table = Arrivals([])
        """All of them, for looking up; another one whenever that changes."""

    def __len__(self) -> int:
        return len(self._blocks)

    def fetch(self, begin: int, end: int) -> None:
        """Ask for a block, and return at once."""
        with self._lock:
            known = self._blocks.get(begin)
            if known is not None and known.end == end:  # also one that failed: whoever holds it gets its error
                known.users += 1
            else:
                self._put(self._bring(begin, end))

    def forget(self, begin: int, end: int) -> None:
        """Let go of a block: its memory is free when nobody reads from it any more."""
        with self._lock:
            block = self._blocks.get(begin)
            if block is None or block.end != end:
                return
            block.users -= 1
            if block.users <= 0:
                del self._blocks[begin]
                self.table = Arrivals(list(self._blocks.values()))
                block.give_up()

    def renew(self, begin: int, end: int, found: int, before: Callable[[], None]) -> None:
        """Ask anew for a block whose bytes have the checksum `found`; not if it was asked for anew already.

        Parameters
        ----------
        before
            Called before it is asked for.
        """
        with self._lock:
            known = self._blocks.get(begin)
            if known is not None and known.end == end and known.digest == found:
                known.give_up()
                before()
                new = self._bring(begin, end)
                new.users = known.users
                self._put(new)

    def checksum(self, begin: int, end: int) -> int:
        """Return the XXH3 of a block, as it came."""
        self.fetch(begin, end)  # so that to forget it ends the wait
        try:
            with self._lock:
                block = self._blocks.get(begin)
                if block is None or not block.hold():
                    raise StorageError("A block was let go while its checksum was asked for.")
            try:
                return block.checksum()
            finally:
                block.let_go()
        finally:
            self.forget(begin, end)

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            for block in self._blocks.values():
                block.give_up()
            self._blocks.clear()
            self.table = Arrivals([])

    @contextmanager
    def locate(
        self, tables: Sequence[Arrivals], begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]
    ) -> Iterator[tuple[Int64[np.ndarray, " n"], list[Arrival]]]:
        """Find the address of each range that a table or a block holds, once it is there; 0 where none does.

        Inside the context nothing of it is given back. The list says whose memory it is.

        Raises
        ------
        RowFailure
            A range can't be had.
        """
        address = np.zeros(len(begin), np.int64)
        held: list[Arrival] = []
        try:
            for table in (*tables, None):
                self._find(table, begin, end, address, held)
            yield address, held
        finally:
            for arrival in held:
                arrival.let_go()

    def _find(
        self,
        table: Arrivals | None,
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
        address: Int64[np.ndarray, " n"],
        held: list[Arrival],
    ) -> None:
        """Look for ranges without an address in a table; None = the blocks."""
        left = np.flatnonzero(address == 0)
        with self._lock:  # a block that is found is held before anybody can give it up
            source = self.table if table is None else table
            place = source.find(begin[left], end[left])
            left, place = left[place >= 0], place[place >= 0]
            used, at = np.unique(place, return_index=True)
            found = [source.members[member] for member in used.tolist() if source.members[member].hold()]
            held.extend(found)
        if len(found) < len(used):
            raise StorageError("These bytes were given up while they were read.")
        for member, row in zip(found, left[at].tolist(), strict=True):
            try:
                member.wait()
            except Exception as error:
                raise RowFailure(row, error) from None
        address[left] = source.addresses(place, begin[left])

    def _put(self, block: Arrival) -> None:
        self._blocks[block.begin] = block
        self.table = Arrivals(list(self._blocks.values()))


def copy_own(
    address: Int64[np.ndarray, " n"], offset: Int64[np.ndarray, " k"], out: UInt8[np.ndarray, "n k bytes"]
) -> None:
    """Copy the same runs of bytes from memory of ours."""
    if load_copy() is not None:
        failed = copy_runs(address, offset, out)
        assert failed is None, "memory of our own can't fail"
        return
    for row, start in enumerate((address + offset[0]).tolist()):
        size = int(offset[-1] - offset[0]) + out.shape[2]
        span = view_memory(start, size)
        out[row] = np.lib.stride_tricks.sliding_window_view(span, out.shape[2])[offset - offset[0]]


def view_memory(address: int, size: int) -> UInt8[np.ndarray, " b"]:
    """Look at bytes of ours, which somebody else keeps."""
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)
