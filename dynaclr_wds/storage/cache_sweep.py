"""Makes room in a cache folder: looks at all files, and deletes what was used longest ago.

Whoever calls it holds the lock of the folder, so nobody begins a file meanwhile; files that were begun before may get
their names while it looks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WRITING = "writing"
"""Folder of the files that are not whole yet, in the folder of the cache."""
_PAGE = 4096
"""What a file takes on a disk is a multiple of this."""
_LEFT = 0.9
"""Share of the limit that a sweep leaves, so that the next one is far."""
_PAUSE = 0.001
"""Seconds between two looks whether a lock is free."""


class Sweep:
    """Looks at all files of a cache, while nobody else counts.

    Parameters
    ----------
    folder
        Of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._being_written = dict(self._find_partials())  # first: one that is finished meanwhile is then seen twice

    def make_room(self, limit_bytes: int, size: int) -> int:
        """Delete what was used longest ago, until `size` bytes have room with some to spare; return the bytes left."""
        files = sorted(self._find_files())
        own = {name for _, _, name in files}
        used = sum(taken for _, taken, _ in files)
        used += sum(taken for name, taken in self._being_written.items() if name not in own)
        if used + size <= limit_bytes:
            return used
        for _, taken, name in files:
            if used + size <= _LEFT * limit_bytes:
                break
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()
            used -= taken
            with suppress(OSError):  # others are in it, but for the last one
                (self._folder / name).parent.rmdir()
        return used

    def _find_partials(self) -> Iterator[tuple[str, int]]:
        """Name the ranges that are being written, with their bytes; what a killed process left is deleted."""
        for entry in os.scandir(self._folder / WRITING):
            with suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if lock_file(descriptor, 0.0):
                        Path(entry.path).unlink()
                        continue
                    yield entry.name.rpartition(".")[0].replace(".", "/"), bytes_on_disk(os.fstat(descriptor).st_size)
                finally:
                    os.close(descriptor)

    def _find_files(self) -> Iterator[tuple[int, int, str]]:
        """List when each range was used last, the bytes that it takes, and its name."""
        for version in os.scandir(self._folder):
            if version.name == WRITING or not version.is_dir(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):
                for entry in os.scandir(version.path):
                    with suppress(FileNotFoundError):
                        state = entry.stat(follow_symlinks=False)
                        yield state.st_mtime_ns, bytes_on_disk(state.st_size), f"{version.name}/{entry.name}"


def bytes_on_disk(size: int) -> int:
    """Return the bytes that a file of so many takes on a disk."""
    return -(-size // _PAGE) * _PAGE


def lock_file(descriptor: int, patience: float) -> bool:
    """Lock a file; False where another process keeps it longer than `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE)
