"""Memory for the patches of a group, from cutting to packing; a file without a name where that is too little."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from etl.run.output import naming_file


def hold_patches(count: int, patch_bytes: int, most_memory: int, scratch: Path) -> UInt8[np.ndarray, "count bytes"]:
    """Make room for patches; it is given back when nothing refers to it any more.

    Parameters
    ----------
    most_memory
        Above so many bytes, the patches lie in a file that has no name, so nothing of it is left whatever happens.
    scratch
        Folder for it.
    """
    size = count * patch_bytes
    if size <= most_memory:
        return np.empty((count, patch_bytes), np.uint8)
    scratch.mkdir(parents=True, exist_ok=True)
    with naming_file(scratch), tempfile.TemporaryFile(dir=scratch) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is said here, and not by a signal later
        room = mmap.mmap(file.fileno(), size)
    return np.frombuffer(room, np.uint8).reshape(count, patch_bytes)
