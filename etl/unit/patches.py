"""Memory for the patches of a group, from cutting to packing; a file without a name where that is too little."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from etl.run.output import naming_file

_own = threading.local()


def _reuse(size: int) -> UInt8[np.ndarray, " size"]:
    """Return memory of this thread, the same one for one group after the other: new pages cost as much as a copy."""
    room: UInt8[np.ndarray, " room"] | None = getattr(_own, "room", None)
    if room is None or room.size < size:
        _own.room = room = None  # so that both are never held at once
        _own.room = room = np.empty(size, np.uint8)
    return room


def hold_patches(count: int, patch_bytes: int, most_memory: int, scratch: Path) -> UInt8[np.ndarray, "count bytes"]:
    """Make room for patches; a thread has one at a time.

    Parameters
    ----------
    most_memory
        Above so many bytes, the patches lie in a file that has no name, so nothing of it is left whatever happens.
    scratch
        Folder for it.
    """
    size = count * patch_bytes
    if size <= most_memory:
        return _reuse(most_memory)[:size].reshape(count, patch_bytes)
    scratch.mkdir(parents=True, exist_ok=True)
    with naming_file(scratch), tempfile.TemporaryFile(dir=scratch) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is said here, and not by a signal later
        room = mmap.mmap(file.fileno(), size)
    return np.frombuffer(room, np.uint8).reshape(count, patch_bytes)
