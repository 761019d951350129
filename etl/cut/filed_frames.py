"""Frames that do not fit into memory: pixels in a file, of which a plane, a slab or a crop is brought to memory.

A stack of such a frame has the part of an array's shape that cutting asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Num

from etl.run.file_room import FileRoom

SLAB_PIXELS = 1 << 21
"""Pixels of a stack that are looked at together, rounded to whole planes."""


class FiledStack:
    """One channel of one frame, (Z, Y, X), in a file.

    Parameters
    ----------
    room
        The file.
    pixels
        The stack in it.
    """

    def __init__(self, room: FileRoom, pixels: Num[np.ndarray, "z y x"]) -> None:
        self._room, self._pixels = room, pixels
        self.shape, self.dtype, self.size, self.nbytes = pixels.shape, pixels.dtype, pixels.size, pixels.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Num[np.ndarray, "y x"]]:
        for z in range(len(self)):
            yield self.read(z, z + 1)[0]

    def __getitem__(self, place: Any) -> Any:
        """Return some slices as a stack in the file; of some rows and columns, a copy in memory."""
        if isinstance(place, slice):
            return FiledStack(self._room, self._pixels[place])
        z, y, x = place
        if not isinstance(z, slice):
            return self.read(z, z + 1)[0][y, x]
        planes = self._pixels[z]
        copy = np.empty(planes[:, y, x].shape, self.dtype)
        rows = self._pixels[0, y].nbytes  # pages are of whole rows, or nearly
        for plane, target in zip(planes, copy, strict=True):
            self._room.use(rows)
            target[...] = plane[y, x]
        return copy

    def read(self, first: int, last: int) -> Num[np.ndarray, "z y x"]:
        """Bring some slices to memory."""
        copy = np.empty((last - first, *self.shape[1:]), self.dtype)
        for plane, target in zip(self._pixels[first:last], copy, strict=True):
            self._room.use(plane.nbytes)
            target[...] = plane
        self._room.forget()
        return copy


class FiledPixels:
    """Pixels of a run of frames, (T, C, Z, Y, X), in a file.

    Parameters
    ----------
    room
        The file; it has as many bytes as the pixels.
    """

    def __init__(self, room: FileRoom, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._room = room
        self._pixels = room.data[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def __setitem__(self, place: Any, pixels: Num[np.ndarray, "*shape"]) -> None:
        target = self._pixels[place]
        for plane in np.ndindex(target.shape[:-2]):
            self._room.use(pixels[plane].nbytes)
            target[plane] = pixels[plane]
        self._room.forget()

    def take(self, frame: int, channels: int, z: slice) -> list[FiledStack]:
        """Return the first channels of a frame."""
        return [FiledStack(self._room, self._pixels[frame, channel, z]) for channel in range(channels)]


Stack = Num[np.ndarray, "_ _ _"] | FiledStack


def read_slabs(stack: Any) -> Iterator[Num[np.ndarray, "z y x"]]:
    """Yield a stack from front to back, in memory, in runs of planes of about `SLAB_PIXELS`."""
    step = max(SLAB_PIXELS // max(stack.shape[1] * stack.shape[2], 1), 1)
    for first in range(0, len(stack), step):
        last = min(first + step, len(stack))
        yield stack.read(first, last) if isinstance(stack, FiledStack) else stack[first:last]
