"""A place to a stream of its bytes, front to back: a file, or an object that is read ahead by ranges."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import BinaryIO

from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import Location, Place
from dynaclr_wds.storage.options import StorageOptions

_AHEAD = 4
"""Requests in flight: several fill a link whose replies come late."""


class ObjectStream:
    """An object, read front to back; all of one version.

    Parameters
    ----------
    where
        The object.
    options
        How requests are made.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    StorageError
        The request failed.
    """

    def __init__(self, where: Location, options: StorageOptions) -> None:
        folder, _, name = where.key.rpartition("/")
        self._storage = Storage(Location(where.scheme, where.bucket, folder), options)
        self._name = name
        self._whole = self._storage.info(name)
        step = options.request_bytes
        self._ranges = deque((at, min(at + step, self._whole.size)) for at in range(0, self._whole.size, step))
        self._pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="dynaclr-stream")
        self._coming: deque[Future[memoryview]] = deque()
        self._now = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none only at the end.

        Raises
        ------
        FormatError
            The object was replaced, or removed, while it was read.
        StorageError
            A request failed.
        """
        if not self._now:
            while self._ranges and len(self._coming) < _AHEAD:
                self._coming.append(self._pool.submit(self._bring, *self._ranges.popleft()))
            if not self._coming:
                return b""
            self._now = self._coming.popleft().result()
        part, self._now = self._now[:size], self._now[size:]
        return bytes(part)

    def close(self) -> None:
        """Ask for no more."""
        self._ranges.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bring(self, begin: int, end: int) -> memoryview:
        return self._storage.read_range(self._name, begin, end, self._whole)[0]


def open_stream(place: Place, options: StorageOptions) -> AbstractContextManager[BinaryIO | ObjectStream]:
    """Open a file or an object for reading from front to back; closed at the end of the context.

    Raises
    ------
    FileNotFoundError
        It is not there.
    """
    return place.open("rb") if isinstance(place, Path) else closing(ObjectStream(place, options))
