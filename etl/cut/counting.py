"""Counts pixels by value, compiled where there is a compiler: the same numbers with and without it, only sooner.

Measured on 2**20 pixels, one core. Quantiles of float32: 1.9 ms compiled, 7 with numpy's `bincount`, 21 by
`np.partition`, 24 by `np.quantile`, 35 by sorting, 36 by DuckDB's `quantile_cont`. Counting uint16: 0.6 ms compiled,
1.3 by `bincount`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int64, Num, UInt32

BINS = 1 << 16
_TABLES = 4
_SLAB = 1 << 17
_SIGN = np.uint32(1 << 31)


@functools.cache
def load_counting() -> ctypes.CDLL | None:
    """Load the compiled functions; None where no compiler was at hand at installation."""
    spec = importlib.util.find_spec("etl.cut._count")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    for name in ("dynaclr_count_16", "dynaclr_count_upper", "dynaclr_pick_upper"):
        getattr(library, name).argtypes = [pointer, size, pointer, pointer]
    library.dynaclr_count_16.restype = library.dynaclr_count_upper.restype = None
    library.dynaclr_pick_upper.restype = size
    return library


def count_values(flat: Num[np.ndarray, " pixels"]) -> Int64[np.ndarray, " values"]:
    """Count how often each value of an unsigned dtype of 8 or 16 bits occurs."""
    library = load_counting()
    if library is None or flat.dtype != np.uint16:
        counts = np.zeros(1 << 8 * flat.itemsize, np.int64)
        for first in range(0, flat.size, _SLAB):  # bincount copies its input to 64 bits
            counts += np.bincount(flat[first : first + _SLAB], minlength=counts.size)
        return counts
    return _count(library.dynaclr_count_16, flat)


def find_order_statistics(
    values: Float[np.ndarray, " pixels"], ranks: Int64[np.ndarray, " ranks"]
) -> Float[np.ndarray, " ranks"]:
    """Return the float32 values at some ranks: count by the upper half of sortable bits, then look into those bins."""
    library = load_counting()
    size = _count_upper(values) if library is None else _count(library.dynaclr_count_upper, values)
    end = np.cumsum(size)
    bins = np.searchsorted(end, ranks, "right")
    wanted = np.zeros(BINS, bool)
    wanted[bins] = True
    picked = _pick_upper(values, wanted) if library is None else _pick(library, values, wanted)
    before = end - np.cumsum(np.where(wanted, size, 0))  # values below a bin that are not picked
    place = ranks - before[bins]
    found = np.partition(picked, np.unique(place))[place]
    return np.where(found & _SIGN, found ^ _SIGN, ~found).view(np.float32).astype(np.float64)


def _count(function: Callable[..., None], flat: Num[np.ndarray, " pixels"]) -> Int64[np.ndarray, " values"]:
    flat, tables, counts = np.ascontiguousarray(flat), np.empty(_TABLES * BINS, np.uint32), np.zeros(BINS, np.int64)
    function(flat.ctypes.data, flat.size, tables.ctypes.data, counts.ctypes.data)
    return counts


def _pick(
    library: ctypes.CDLL, values: Float[np.ndarray, " pixels"], wanted: Bool[np.ndarray, " values"]
) -> UInt32[np.ndarray, " picked"]:
    values, picked = np.ascontiguousarray(values), np.empty(values.size + 1, np.uint32)
    found = library.dynaclr_pick_upper(values.ctypes.data, values.size, wanted.ctypes.data, picked.ctypes.data)
    return picked[:found]


def _count_upper(values: Float[np.ndarray, " pixels"]) -> Int64[np.ndarray, " values"]:
    size = np.zeros(BINS, np.int64)
    for first in range(0, values.size, _SLAB):
        size += np.bincount(_sortable_bits(values[first : first + _SLAB]) >> 16, minlength=BINS)
    return size


def _pick_upper(
    values: Float[np.ndarray, " pixels"], wanted: Bool[np.ndarray, " values"]
) -> UInt32[np.ndarray, " picked"]:
    slabs = (_sortable_bits(values[first : first + _SLAB]) for first in range(0, values.size, _SLAB))
    return np.concatenate([bits[wanted[bits >> 16]] for bits in slabs])


def _sortable_bits(slab: Float[np.ndarray, " pixels"]) -> UInt32[np.ndarray, " pixels"]:
    """Bits of float32 that sort as unsigned integers as the numbers do."""
    bits = slab.view(np.int32)
    flip = bits >> 31
    flip |= np.int32(-(1 << 31))
    flip ^= bits
    return flip.view(np.uint32)
