"""Room for the patches of a group, from cutting to packing: in memory, or in a file without a name.

Of a file, each patch is given back to the disk when it has been written into the last clip that holds it: so file and
shards together take no more of the disk than the shards.
"""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Num, UInt8

from etl.run.file_room import FileRoom
from etl.source.stored import StoredPatch

_own = threading.local()


class FiledPatches:
    """Patches in a file: a patch is a row of bytes. Several threads may use it.

    Parameters
    ----------
    count
        Patches.
    folder
        Where the file is.
    """

    def __init__(self, count: int, patch_bytes: int, folder: Path) -> None:
        step = -(-patch_bytes // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages, which can be given back
        self._room, self._step = FileRoom(count * step, folder), step
        self._rows = self._room.data[: count * step].reshape(count, step)[:, :patch_bytes]
        self._uses, self._lock = np.zeros(count, np.int64), threading.Lock()

    def __getitem__(self, slot: int) -> UInt8[np.ndarray, " bytes"]:
        """Return the bytes of a patch, to write or to read; use them before the next ones."""
        self._room.use(self._step)
        row: UInt8[np.ndarray, " bytes"] = self._rows[slot]
        return row

    def expect(self, slots: Int[np.ndarray, " patches"]) -> None:
        """Say which patches will be used, each as often as it stands there; the others are given back."""
        self._uses = np.bincount(slots, minlength=self._uses.size)
        for slot in np.flatnonzero(self._uses == 0).tolist():
            self._give_back(slot)

    def finish(self, slots: Int[np.ndarray, " patches"]) -> None:
        """Say that patches have been used, and give back those that will not be used again."""
        with self._lock:
            np.subtract.at(self._uses, slots, 1)
            done = [slot for slot in np.unique(slots).tolist() if self._uses[slot] == 0]
        for slot in done:
            self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        self._room.give_back(slot * self._step, (slot + 1) * self._step)


class FiledRows:
    """The patches of one FOV in a file, as arrays.

    Parameters
    ----------
    first
        Slot of the first one.
    """

    def __init__(self, patches: FiledPatches, first: int, patch: StoredPatch) -> None:
        self._patches, self._first, self._patch = patches, first, patch

    def __getitem__(self, row: int) -> Num[np.ndarray, "c z y x"]:
        return self._patches[self._first + row].view(self._patch.dtype).reshape(self._patch.shape)


Patches = UInt8[np.ndarray, "slots bytes"] | FiledPatches
"""The patches of a group."""


def _reuse(size: int, most: int) -> UInt8[np.ndarray, " size"]:
    """Return memory of this thread, the same one for one group after the other: new pages cost as much as a copy."""
    room: UInt8[np.ndarray, " room"] | None = getattr(_own, "room", None)
    if room is None or not size <= room.size <= most:
        _own.room = room = None  # so that both are never held at once
        _own.room = room = np.empty(most, np.uint8)
    return room


def hold_patches(count: int, patch_bytes: int, most_memory: int, folder: Path) -> Patches:
    """Make room for patches; a thread has one at a time.

    Parameters
    ----------
    most_memory
        Above so many bytes, the patches lie in a file.
    folder
        Folder for it.
    """
    size = count * patch_bytes
    if size <= most_memory:
        return _reuse(size, most_memory)[:size].reshape(count, patch_bytes)
    _own.room = None
    return FiledPatches(count, patch_bytes, folder)


def take_rows(patches: Patches, first: int, count: int, patch: StoredPatch) -> Any:
    """Return the patches of one FOV as arrays (C, Z, Y, X), by their number."""
    if isinstance(patches, FiledPatches):
        return FiledRows(patches, first, patch)
    return patches[first : first + count].view(patch.dtype).reshape(count, *patch.shape)
