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


class Arrival:
    """A range of bytes that several requests fill.

    Parameters
    ----------
    begin, end
        The range.
    parts
        Requests that will fill it.
    then
        Called in the thread of the last request when all bytes are there, before those who wait go on.

    Notes
    -----
    Pages take memory as they are filled, and give it back when the last array over them is gone.
    """

    def __init__(self, begin: int, end: int, parts: int, then: Callable[[Arrival], None] | None = None) -> None:
        self.begin, self.end = begin, end
        self.users = 1
        """How many have asked for it and not let go."""
        self.bytes: UInt8[np.ndarray, " n"] = np.frombuffer(mmap.mmap(-1, end - begin), np.uint8)
        self.address = int(self.bytes.ctypes.data)
        self._left = parts
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
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

    def put(self, begin: int, data: memoryview) -> None:
        """Fill a part."""
        at = begin - self.begin
        self.bytes[at : at + len(data)] = np.frombuffer(data, np.uint8)
        with self._lock:
            self._left -= 1
            whole = self._left == 0
        if whole:
            if self._then is not None:
                self._then(self)
            self._done.set()

    def fail(self, error: BaseException) -> None:
        """End it with an error, which all who wait for it get; the first one stays."""
        with self._lock:
            if self._error is None and not self._done.is_set():
                self._error = error
                self._done.set()

    def give_up(self) -> None:
        """End it, because nobody needs it any more."""
        self.fail(StorageError("These bytes were let go while they were on their way."))

    def sleep(self, seconds: float) -> bool:
        """Sleep, unless it ends meanwhile; say whether its bytes are still wanted."""
        return not self._done.wait(seconds)

    def wait(self) -> None:
        """Return when all bytes are there.

        Raises
        ------
        FormatError, StorageError
            They can't be had.
        """
        self._done.wait()
        if self._error is not None:
            raise copy.copy(self._error)  # several threads may get it, and each adds its own notes

    def checksum(self) -> int:
        """Return the XXH3 of the bytes, once they are there."""
        self.wait()
        if self.digest is None:
            self.digest = xxhash.xxh3_64_intdigest(self.bytes.data)
        return self.digest


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
        self._address = np.array([member.address for member in self.members], np.int64)

    def find(self, begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the place of the member that holds each range; −1 where none does."""
        if not len(self._begin):
            return np.full(len(begin), -1, np.int64)
        place = np.searchsorted(self._begin, begin, "right") - 1
        return np.where((place >= 0) & (end <= self._end[place]), place, -1)

    def addresses(self, place: Int64[np.ndarray, " n"], begin: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return where bytes are in memory, given the members that hold them."""
        return self._address[place] + begin - self._begin[place]
