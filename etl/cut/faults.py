"""Finds bad pixels: channels that are blank, because a chunk was never written, and values that are no number.

Zarr reads a missing chunk as fill value and says nothing; cameras and stitching leave zeros. A channel of a frame or a
patch is blank when every pixel is the array's fill value, or every pixel is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from etl.cut.filed_frames import Stack, read_slabs
from etl.source.image_axes import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankValues:
    """Values that a blank channel is full of."""

    numbers: tuple[float | int, ...]
    nan: bool
    """Whether a channel full of NaN is blank: the fill value is NaN."""

    @classmethod
    def of(cls, array: Image) -> BlankValues:
        """Take them from an array's metadata."""
        fill = array.dtype.type(0 if array.fill_value is None else array.fill_value)
        if np.isnan(fill):
            return cls(numbers=(0,), nan=True)
        return cls(numbers=tuple(dict.fromkeys((0, fill.item()))), nan=False)


def is_blank(pixels: Stack, values: BlankValues) -> bool:
    """Whether all pixels of a channel are one of the blank values; looks at one pixel before it looks at all."""
    first = pixels[0, 0, 0]
    if first in values.numbers:
        return all(bool((slab == first).all()) for slab in read_slabs(pixels))
    if not (values.nan and np.isnan(first)):
        return False
    return all(bool(np.isnan(slab).all()) for slab in read_slabs(pixels))


def count_nonfinite(pixels: Stack) -> int:
    """Count pixels that are NaN or infinite; integers have none, and cost nothing."""
    if pixels.dtype.kind != "f":
        return 0
    return sum(slab.size - int(np.count_nonzero(np.isfinite(slab))) for slab in read_slabs(pixels))


def zero_nonfinite(pixels: Num[np.ndarray, "*shape"]) -> Num[np.ndarray, "*shape"]:
    """Return a copy with zeros where pixels are NaN or infinite."""
    return np.where(np.isfinite(pixels), pixels, pixels.dtype.type(0))
