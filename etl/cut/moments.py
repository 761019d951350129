"""Moments of pixels that are no small integers: how many, mean, squares, least, greatest; those of parts are merged.

Pixels are taken in slabs, so that sums of many keep their digits, and nothing is ever copied to float64 as a whole.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from etl.cut.compiled import load_compiled
from etl.cut.counting import Ends

Moments = tuple[float, float, float, float, float]
"""Pixels, mean, sum of squared deviations, least, greatest."""

NOTHING: Moments = (0.0, 0.0, 0.0, float("inf"), float("-inf"))
_SLAB = 1 << 16


def measure_finite(plane: Num[np.ndarray, "y x"]) -> tuple[Moments, Ends] | None:
    """Measure a plane of float32 in one compiled pass.

    Returns
    -------
    tuple or None
        Moments, and the sortable bits of the least and the greatest pixel. None where a pixel is NaN or infinite, and
        where there is no such pass: of other dtypes, or without a compiler.
    """
    compiled = load_compiled()
    if compiled is None or plane.dtype != np.float32 or not plane.dtype.isnative:
        return None
    plane = np.ascontiguousarray(plane)
    slabs, ends = np.empty((-(-plane.size // _SLAB), 2)), np.empty(2, np.uint32)
    if not compiled["measure_float32"](plane.ctypes.data, plane.size, slabs.ctypes.data, ends.ctypes.data):
        return None
    least, greatest = np.where(ends >> 31, ends ^ np.uint32(1 << 31), ~ends).view(np.float32).tolist()
    found, left = NOTHING, plane.size
    for mean, squares in slabs.tolist():
        found = merge(found, (float(min(left, _SLAB)), mean, squares, least, greatest))
        left -= _SLAB
    return found, ends


def measure(flat: Num[np.ndarray, " pixels"]) -> Moments:
    """Measure finite pixels of any dtype."""
    found = NOTHING
    for first in range(0, flat.size, _SLAB):
        slab = flat[first : first + _SLAB].astype(np.float64)
        least, greatest, mean = float(slab.min()), float(slab.max()), float(slab.mean())
        slab -= mean
        squares = float(np.square(slab, out=slab).sum())
        found = merge(found, (float(slab.size), mean, squares, least, greatest))
    return found


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of both (Chan, Golub & LeVeque 1979)."""
    count = a[0] + b[0]
    if not count:
        return a
    shift = b[1] - a[1]
    mean = a[1] + shift * b[0] / count
    squares = a[2] + b[2] + shift**2 * a[0] * b[0] / count
    return count, mean, squares, min(a[3], b[3]), max(a[4], b[4])
