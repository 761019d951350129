"""Room in a file that has no name, for what does not fit into memory: nothing of it is left, whatever happens.

The file is mapped. Its pages stay in it when the process forgets them, so the process holds few of them at a time;
pages that have served are given back to the disk.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from etl.run.output import naming_file

MOST_RESIDENT = 1 << 22
"""Bytes of a room that a process holds at most, before it forgets them; one use may be larger."""


class FileRoom:
    """A number of bytes in a file.

    Parameters
    ----------
    size
        Bytes.
    folder
        Where the file is; made if absent.

    Raises
    ------
    BuildError
        The disk is full, which is said here, and not by a signal later.
    """

    def __init__(self, size: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        size = max(size, 1)
        with naming_file(folder), tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self.data: UInt8[np.ndarray, " size"] = np.frombuffer(self._map, np.uint8)
        self._used = 0

    def use(self, size: int) -> None:
        """Say that so many bytes will be looked at; what was used before is forgotten when it is too much."""
        if self._used + size > MOST_RESIDENT:
            self.forget()
        self._used += size

    def forget(self) -> None:
        """Let the process hold no page of the file; what was written stays in it."""
        self._map.madvise(mmap.MADV_DONTNEED)
        self._used = 0

    def give_back(self, begin: int, end: int) -> None:
        """Give the whole pages of a range back to the disk, where its file system can do that; they read as zeros."""
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_REMOVE"):
            with suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, first, last - first)
