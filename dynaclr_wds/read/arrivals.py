"""Bytes on their way from a server: page-aligned memory that requests fill, and that readers wait for."""

from __future__ import annotations

import copy
import mmap
import threading
from collections.abc import Callable

import numpy as np
import xxhash
from jaxtyping import Int64, UInt8

from dynaclr_wds.errors import StorageError

_NOTHING = np.empty(0, np.uint8)


class Arrival:
    """A range of bytes that several requests fill.

    Parameters
    ----------
    begin, end
        The range.
    parts
        Requests that will fill it.
    mapped
        Bytes always come into memory of their own, also those of a single request; so that `drop`
        can give back a part of it.
    then
        Called in the thread of the last request when all bytes are there, before those who wait go on. What it raises,
        `put` raises.

    Notes
    -----
    Pages take memory as they are filled. It is given back as soon as the range was given up and nobody holds it, not
    when Python finds that the last reference is gone: what is resident is to be known at any moment.
    """

    def __init__(
        self,
        begin: int,
        end: int,
        parts: int,
        then: Callable[[Arrival], None] | None = None,
        *,
        mapped: bool = False,
    ) -> None:
        self.begin, self.end = begin, end
        self.users = 1
        """How many have asked for it and not let go."""
        self.bytes: UInt8[np.ndarray, " n"] = _NOTHING
        self.address = 0
        self._pages: mmap.mmap | None = None
        if parts != 1 or mapped:
            self._pages = mmap.mmap(-1, end - begin, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.bytes = np.frombuffer(self._pages, np.uint8)
            self.address = self.bytes.__array_interface__["data"][0]
        self._left = parts
        self._error: BaseException | None = None
        self._over = False
        self._gate = threading.Lock()  # opened once and for all at the end; an Event takes ten times as long to make
        self._gate.acquire()
        self._lock = threading.Lock()
        self._holders = 0
        self._given_up = False
        self.digest: int | None = None
        """XXH3 of the bytes, once somebody has asked for it."""
        self._then = then

    @classmethod
    def of(cls, begin: int, data: UInt8[np.ndarray, " n"]) -> Arrival:
        """Make one of bytes that are there."""
        arrival = cls(begin, begin + len(data), 1)
        arrival.put(begin, data.data)
        return arrival

    @property
    def over(self) -> bool:
        """Whether nobody waits for more: it has failed, or was let go."""
        return self._error is not None

    def hold(self) -> bool:
        """Keep the memory until `let_go`; False if it was given back already."""
        with self._lock:
            if self._given_up and not self._holders:
                return False
            self._holders += 1
            return True

    def let_go(self) -> None:
        """End a `hold`."""
        with self._lock:
            self._holders -= 1
            if self._given_up and not self._holders:
                self._free()

    def put(self, begin: int, data: memoryview) -> None:
        """Fill a part, unless nobody wants it any more."""
        if not self.hold():
            return
        try:
            self.overwrite(begin, data)
            with self._lock:
                self._left -= 1
                whole = self._left == 0
            if whole:
                if self._then is not None:
                    self._then(self)
                with self._lock:
                    self._end()
        finally:
            self.let_go()

    def overwrite(self, begin: int, data: memoryview) -> None:
        """Replace bytes; only for one who holds it, or is called back by `put`."""
        if self._pages is None and len(data) == self.end - self.begin:
            self.bytes = np.frombuffer(data, np.uint8)
            self.address = self.bytes.__array_interface__["data"][0]
        else:
            at = begin - self.begin
            self.bytes[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def fail(self, error: BaseException) -> None:
        """End it with an error, which all who wait for it get; the first one stays."""
        with self._lock:
            if not self._over:
                self._error = error
                self._end()

    def give_up(self) -> None:
        """End it, because nobody needs it any more; its memory is free once nobody holds it."""
        self.fail(StorageError("These bytes were let go while they were on their way."))
        with self._lock:
            self._given_up = True
            if not self._holders:
                self._free()

    def sleep(self, seconds: float) -> bool:
        """Sleep, unless it ends meanwhile; say whether its bytes are still wanted."""
        if self._gate.acquire(timeout=seconds):
            self._gate.release()
            return False
        return True

    def wait(self) -> None:
        """Return when all bytes are there.

        Raises
        ------
        FormatError, StorageError
            They can't be had.
        """
        with self._gate:
            pass
        if self._error is not None:
            raise copy.copy(self._error)  # several threads may get it, and each adds its own notes

    def checksum(self) -> int:
        """Return the XXH3 of the bytes, once they are there."""
        self.wait()
        if self.digest is None:
            self.digest = xxhash.xxh3_64_intdigest(self.bytes.data)
        return self.digest

    def _end(self) -> None:
        """Let those who wait go on; for one who has the lock."""
        if not self._over:
            self._over = True
            self._gate.release()

    def drop(self, begin: int, end: int) -> None:
        """Give back the memory of a part, as far as it is whole pages; only for one who holds it and reads it alone."""
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._pages is not None and last > first:
            self._pages.madvise(mmap.MADV_DONTNEED, first, last - first)

    def finish(self) -> None:
        """End the wait for bytes that were not `put`, but written in place."""
        with self._lock:
            self._end()

    def _free(self) -> None:
        self.bytes, self._pages = _NOTHING, None  # the last references are gone, so that the pages are free now


class Arrivals:
    """Ranges that don't overlap, ascending, for looking up many addresses at once; unchanging.

    Parameters
    ----------
    members
        In any order.
    """

    def __init__(self, members: list[Arrival]) -> None:
        self.members = sorted(members, key=lambda member: member.begin)
        self._begin = np.array([member.begin for member in self.members], np.int64)
        self._end = np.array([member.end for member in self.members], np.int64)

    def find(self, begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the place of the member that holds each range; −1 where none does."""
        if not len(self._begin):
            return np.full(len(begin), -1, np.int64)
        place = np.searchsorted(self._begin, begin, "right") - 1
        return np.where((place >= 0) & (end <= self._end[place]), place, -1)

    def addresses(self, place: Int64[np.ndarray, " n"], begin: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return where bytes are in memory, given the members that hold them, once these are there."""
        used, which = np.unique(place, return_inverse=True)
        address = np.array([self.members[member].address for member in used.tolist()], np.int64)
        return address[which] + begin - self._begin[place]
