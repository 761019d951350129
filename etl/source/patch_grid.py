"""Says where the pixels of a patch lie in its image: around the cell's pixel, at the step of the stored pixel size.

Pixel i of a patch, along y or x, lies at `centre + (i - size // 2) * scale` of the image, `scale` being image pixels
per stored pixel. With a scale of 1 these are pixels of the image; with another they lie between them. So the cell is at
`size // 2` of its patch whatever the scale, and cells have the same size in every experiment. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

_ALMOST = 1e-6
"""Pixels that rounding may be off."""


SAME_SIZE = 0.001
"""Pixel sizes that differ by this fraction at most are the same: patches are copied, not resampled."""


def find_scale(reference: Sequence[float] | None, own: Sequence[float] | None) -> tuple[float, float, float]:
    """Return pixels of the plate per stored pixel along z, y and x: 1 where a size is not given, or almost the same.

    Parameters
    ----------
    reference, own
        Pixel size of stored patches and of the plate, of y and x or of z, y and x.
    """
    wanted, there = ((None, None, None, *(size or ()))[-3:] for size in (reference, own))
    scales = [1.0 if a is None or b is None else a / b for a, b in zip(wanted, there, strict=True)]
    z, y, x = (1.0 if abs(scale - 1) <= SAME_SIZE else scale for scale in scales)
    return z, y, x


def find_limits(size: tuple[int, int], given: float | None) -> tuple[float, float]:
    """Return how many stored pixels a patch may move to larger and to smaller y or x, to lie inside the image.

    By default a quarter of the larger side, as in the reference implementation; but a cell stays inside every centre
    crop of at least half of a square patch. Such a crop of an even number of pixels has one less behind its middle, so
    one pixel less is allowed there.

    Parameters
    ----------
    size
        (Y, X) of a patch.
    given
        What the user asks for, in both directions; None is the default.
    """
    if given is not None:
        return given, given
    quarter, half = max(size) // 4, -(-max(size) // 2)
    return float(quarter), float(min(quarter, half - 1 - half // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """The pixels of a patch along y or x."""

    size: int
    """Stored pixels."""
    scale: float
    """Image pixels per stored pixel; exactly 1 where nothing is resampled."""

    @property
    def extent(self) -> float:
        """Image pixels that a patch covers."""
        return self.size * self.scale

    @property
    def smoothing(self) -> float:
        """Standard deviation in image pixels of the Gaussian that smooths before shrinking, as in scikit-image."""
        return max(self.scale - 1, 0) / 2

    def window(self, centre: int, length: int, margin: int = 0) -> slice:
        """Return the pixels of an image of this length that a patch is made of, and so many more on both sides."""
        first = centre - self.size // 2 * self.scale
        last = first + (self.size - 1) * self.scale
        begin, end = math.floor(first + _ALMOST) - margin, math.ceil(last - _ALMOST) + 1 + margin
        return slice(max(begin, 0), min(end, length))

    def first_pixels(self, centres: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return where patches begin; below 0 where they reach beyond the image."""
        firsts = np.floor(centres - self.size // 2 * self.scale + _ALMOST)
        return firsts.astype(np.int64)

    def image_pixels(self, stored: float) -> float:
        """Return how many image pixels so many stored ones are, and what rounding may lack."""
        return stored * self.scale + _ALMOST

    def centres(self, length: int, *, beyond: bool) -> tuple[int, int]:
        """Return the least and the greatest centre that a patch may have.

        Parameters
        ----------
        length
            Of the image.
        beyond
            Whether the patch may reach beyond the image; its centre never does.

        Returns
        -------
        tuple
            The least is above the greatest where no patch fits into the image.
        """
        if beyond:
            return 0, length - 1
        before, behind = self.size // 2, self.size - 1 - self.size // 2
        least = math.ceil(before * self.scale - _ALMOST)
        return least, math.floor(length - 1 - behind * self.scale + _ALMOST)

    def reaches_beyond(self, centre: Int[np.ndarray, " n"], length: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Say which patches reach beyond images of these lengths."""
        first = centre - self.size // 2 * self.scale
        last = first + (self.size - 1) * self.scale
        return (first < -_ALMOST) | (last > length - 1 + _ALMOST)
