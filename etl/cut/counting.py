"""Counts pixels by value, which gives exact quantiles without sorting.

Measured on 2**20 pixels, one core. Quantiles of float32: 0.7 ms compiled, 7 with numpy's `bincount`, 21 by
`np.partition`, 24 by `np.quantile`, 35 by sorting, 36 by DuckDB's `quantile_cont`. Counting uint16: 0.4 ms compiled,
1.3 by `bincount`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int64, Num, UInt32

from etl.cut.compiled import load_compiled
from etl.kept_memory import borrow

BINS = 1 << 16
_TABLES = 4
_COMPILED_BINS = 1 << 14
_SLAB = 1 << 17
_SIGN = np.uint32(1 << 31)

Pixels = Float[np.ndarray, " pixels"]
Ends = UInt32[np.ndarray, " two"]
"""Sortable bits of the least and the greatest pixel."""


def count_values(flat: Num[np.ndarray, " pixels"]) -> tuple[Int64[np.ndarray, " values"], int]:
    """Count how often each value of an integer dtype of 8 or 16 bits occurs.

    Returns
    -------
    tuple
        Counts of the values from the least that occurs to the greatest, and the least.
    """
    kind = flat.dtype
    if not flat.size:
        return np.empty(0, np.int64), 0
    if kind.kind == "i":  # negative numbers have the greater bits
        counts, least = _count_bits(flat.view(f"{kind.byteorder}u{kind.itemsize}"))
        whole = np.zeros(1 << 8 * kind.itemsize, np.int64)
        whole[least : least + counts.size] = counts
        counts, least = np.roll(whole, whole.size // 2), -whole.size // 2
    else:
        counts, least = _count_bits(flat)
    present = np.flatnonzero(counts != 0)  # of bool: five times as fast
    return counts[present[0] : present[-1] + 1], int(least + present[0])


def _count_bits(flat: Num[np.ndarray, " pixels"]) -> tuple[Int64[np.ndarray, " values"], int]:
    """Count unsigned values from one on."""
    compiled = load_compiled()
    if compiled is None or not flat.dtype.isnative:
        counts = np.zeros(1 << 8 * flat.itemsize, np.int64)
        for first in range(0, flat.size, _SLAB):  # bincount copies its input to 64 bits
            counts += np.bincount(flat[first : first + _SLAB], minlength=counts.size)
        return counts, 0
    flat, tables = np.ascontiguousarray(flat), borrow("tables", _TABLES * BINS, np.uint32)
    if flat.itemsize == 1:
        counts = np.zeros(256, np.int64)
        compiled["count_8"](flat.ctypes.data, flat.size, tables.ctypes.data, counts.ctypes.data)
        return counts, 0
    room, written = borrow("counts", BINS, np.int64), np.zeros(1, np.int64)
    addresses = (array.ctypes.data for array in (tables, room, written))
    least: int = compiled["count_16"](flat.ctypes.data, flat.size, *addresses)
    return room[: int(written[0])].copy(), least


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
    return restore_floats(np.partition(picked, np.unique(place))[place])


def restore_floats(bits: UInt32[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the float32 of sortable bits, as float64."""
    return np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float32).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Binning:
    """Puts finite float32 into bins of equal width by their sortable bits, for values that come in several arrays."""

    ends: Ends
    shift: int
    """A bin is so many bits wide."""

    bins: ClassVar[int] = _COMPILED_BINS

    @classmethod
    def between(cls, least: float, greatest: float) -> Binning:
        """Make bins from the least to the greatest value; zeros of both signs lie between them."""
        ends = _sortable_bits(np.array([-0.0 if least == 0 else least, greatest + 0.0], np.float32))
        return cls(ends, max(int(ends[1] - ends[0]).bit_length() - (_COMPILED_BINS.bit_length() - 1), 0))

    def count(self, values: Pixels) -> Num[np.ndarray, " bins"]:
        """Count how many values are in each bin."""
        return self._number(values)[1]

    def pick(self, values: Pixels, chosen: Int64[np.ndarray, " chosen"]) -> UInt32[np.ndarray, " picked"]:
        """Return the sortable bits of the values in some bins, ascending."""
        compiled, (numbers, counts) = load_compiled(), self._number(values)
        if compiled is None:
            return _sortable_bits(values)[np.isin(numbers, chosen)]
        picked, wanted = np.empty(int(counts[chosen].sum()) + 1, np.uint32), chosen.astype(np.uint16)
        compiled["pick_float32"](
            values.ctypes.data, numbers.ctypes.data, values.size, wanted.ctypes.data, wanted.size, picked.ctypes.data
        )
        return picked[:-1]

    def _number(self, values: Pixels) -> tuple[Num[np.ndarray, " pixels"], Num[np.ndarray, " bins"]]:
        """Return the bin of each value, and how many are in each."""
        compiled = load_compiled()
        if compiled is None:
            numbers = (_sortable_bits(values) - self.ends[0]) >> np.uint32(self.shift)
            return numbers, np.bincount(numbers, minlength=self.bins)
        numbers, counts = borrow("numbers", values.size, np.uint16), np.empty(self.bins, np.uint32)
        room = [array.ctypes.data for array in (self.ends, numbers, counts)]
        compiled["bin_float32"](values.ctypes.data, values.size, *room)
        return numbers, counts

    def split(self, bits: UInt32[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the bin of sortable bits, and what is left of them inside it."""
        above = bits.astype(np.int64) - int(self.ends[0])
        return above >> self.shift, above & ((1 << self.shift) - 1)

    def join(self, bins: Int64[np.ndarray, " n"], rest: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
        """Return the sortable bits that `split` takes apart."""
        return ((bins << self.shift | rest) + int(self.ends[0])).astype(np.uint32)


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
