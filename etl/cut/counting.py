"""Counts pixels by value, which gives exact quantiles without sorting.

Measured on 2**20 pixels, one core. Quantiles of float32: 0.7 ms compiled, 7 with numpy's `bincount`, 21 by
`np.partition`, 24 by `np.quantile`, 35 by sorting, 36 by DuckDB's `quantile_cont`. Counting uint16: 0.4 ms compiled,
1.3 by `bincount`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64, Num, UInt32

from etl.cut.compiled import borrow, load_compiled

BINS = 1 << 16
_TABLES = 4
_COMPILED_BINS = 1 << 14
_SLAB = 1 << 17
_SIGN = np.uint32(1 << 31)

Pixels = Float[np.ndarray, " pixels"]
Ends = UInt32[np.ndarray, " two"]
"""Sortable bits of the least and the greatest pixel."""


def count_values(flat: Num[np.ndarray, " pixels"]) -> Int64[np.ndarray, " values"]:
    """Count how often each value of an unsigned dtype of 8 or 16 bits occurs."""
    compiled, counts = load_compiled(), np.zeros(1 << 8 * flat.itemsize, np.int64)
    if compiled is None or not flat.dtype.isnative:
        for first in range(0, flat.size, _SLAB):  # bincount copies its input to 64 bits
            counts += np.bincount(flat[first : first + _SLAB], minlength=counts.size)
        return counts
    flat, tables = np.ascontiguousarray(flat), borrow("tables", _TABLES * BINS, np.uint32)
    count = compiled[f"count_{8 * flat.itemsize}"]
    count(flat.ctypes.data, flat.size, tables.ctypes.data, counts.ctypes.data)
    return counts


def find_order_statistics(
    values: Pixels, ranks: Int64[np.ndarray, " ranks"], ends: Ends | None = None
) -> Float[np.ndarray, " ranks"]:
    """Return the float32 values at some ranks: put pixels into bins by their sortable bits, then look into few of them.

    Parameters
    ----------
    ends
        Of the values, where they are known; else the compiled pass is not taken.
    """
    compiled = load_compiled()
    if compiled is None or ends is None:
        size = _count_upper(values)
        bins, place, wanted = _find_bins(size, ranks)
        picked = _pick_upper(values, wanted)
    else:
        values = np.ascontiguousarray(values)
        numbers, counts = borrow("numbers", values.size, np.uint16), np.empty(_COMPILED_BINS, np.uint32)
        pixels = values.ctypes.data
        compiled["bin_float32"](pixels, values.size, ends.ctypes.data, numbers.ctypes.data, counts.ctypes.data)
        bins, place, _ = _find_bins(counts, ranks)
        chosen = np.unique(bins).astype(np.uint16)
        picked = borrow("picked", int(counts[chosen].sum()) + 1, np.uint32)
        compiled["pick_float32"](
            pixels, numbers.ctypes.data, values.size, chosen.ctypes.data, chosen.size, picked.ctypes.data
        )
        picked = picked[:-1]
    found = np.partition(picked, np.unique(place))[place]
    return np.where(found & _SIGN, found ^ _SIGN, ~found).view(np.float32).astype(np.float64)


def _find_bins(
    size: Num[np.ndarray, " bins"], ranks: Int64[np.ndarray, " ranks"]
) -> tuple[Int64[np.ndarray, " ranks"], Int64[np.ndarray, " ranks"], Bool[np.ndarray, " bins"]]:
    """Return the bin of each rank, its rank among the pixels of those bins, and which bins these are."""
    end = np.cumsum(size, dtype=np.int64)
    bins = np.searchsorted(end, ranks, "right")
    wanted = np.zeros(size.size, bool)
    wanted[bins] = True
    before = end - np.cumsum(np.where(wanted, size, 0), dtype=np.int64)  # values below a bin that are not picked
    return bins, ranks - before[bins], wanted


def _count_upper(values: Pixels) -> Int64[np.ndarray, " values"]:
    size = np.zeros(BINS, np.int64)
    for first in range(0, values.size, _SLAB):
        size += np.bincount(_sortable_bits(values[first : first + _SLAB]) >> 16, minlength=BINS)
    return size


def _pick_upper(values: Pixels, wanted: Bool[np.ndarray, " values"]) -> UInt32[np.ndarray, " picked"]:
    slabs = (_sortable_bits(values[first : first + _SLAB]) for first in range(0, values.size, _SLAB))
    return np.concatenate([bits[wanted[bits >> 16]] for bits in slabs])


def _sortable_bits(slab: Pixels) -> UInt32[np.ndarray, " pixels"]:
    """Bits of float32 that sort as unsigned integers as the numbers do."""
    bits = slab.view(np.int32)
    flip = bits >> 31
    flip |= np.int32(-(1 << 31))
    flip ^= bits
    return flip.view(np.uint32)
