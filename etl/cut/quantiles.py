"""Finds exact quantiles of more values than memory holds: counts them by their upper bits, then looks into some bins.

Values come in slabs, as often as they are asked for: once to count, once to look into the bins that hold the quantiles
(float64: once for each further 16 bits). Where few values are in those bins, they are sorted out in memory; where many
are, they are counted by their lower bits. Which of the two, and so every bit of the result, depends on values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int64, Num, UInt64

from etl.cut.counting import Binning, restore_floats
from etl.cut.moments import Moments

Slabs = Callable[[], Iterator[Num[np.ndarray, " pixels"]]]
_MOST_PICKED = 1 << 21
"""Values that are sorted out in memory."""
_PIECE = 1 << 18
_DIGITS = 1 << 16
_SIGN = np.uint64(1 << 63)


def find_quantiles(
    slabs: Slabs, moments: Moments, quantiles: Sequence[float], drawn: Int64[np.ndarray, " drawn"]
) -> tuple[Float[np.ndarray, " quantiles"], Float[np.ndarray, " drawn"]]:
    """Interpolate quantiles linearly, as `np.quantile`; return also the values at some places.

    Parameters
    ----------
    slabs
        Yields the values, all finite, at least one; float32, or what float64 holds.
    moments
        Of the values.
    drawn
        Places among all values.

    Returns
    -------
    tuple
        float64.
    """
    drawing, size = _Drawing(drawn), int(moments[0])
    at = np.asarray(quantiles) * (size - 1)
    rank = np.floor(at).astype(np.int64)
    ranks = np.append(rank, np.minimum(rank + 1, size - 1))
    if next(slabs()).dtype.newbyteorder("=") == np.float32:
        found = _find_narrow(lambda: drawing.watch(slabs()), ranks, Binning.between(*moments[3:]))
    else:
        found = _find_wide(lambda: drawing.watch(slabs()), ranks)
    below, above = found[: rank.size], found[rank.size :]
    return below + (above - below) * (at - rank), drawing.values


class _Drawing:
    """Takes the values at some places while slabs pass by, the first time."""

    def __init__(self, places: Int64[np.ndarray, " drawn"]) -> None:
        self._order, self._is_done = np.argsort(places, kind="stable"), False
        self._places, self.values = places[self._order], np.empty(places.size)

    def watch(self, slabs: Iterator[Num[np.ndarray, " pixels"]]) -> Iterator[Num[np.ndarray, " pixels"]]:
        begin = 0
        for slab in slabs:
            if not self._is_done:
                a, b = np.searchsorted(self._places, [begin, begin + slab.size])
                self.values[self._order[a:b]] = slab[self._places[a:b] - begin]
                begin += slab.size
            yield slab
        self._is_done = True


def _find_narrow(slabs: Slabs, ranks: Int64[np.ndarray, " ranks"], binning: Binning) -> Float[np.ndarray, " ranks"]:
    """Return the float32 values at some ranks."""
    size = np.zeros(binning.bins, np.int64)
    for slab in slabs():
        size += binning.count(_native(slab, np.float32))
    end = np.cumsum(size)
    bins = np.searchsorted(end, ranks, "right")
    chosen, row = np.unique(bins, return_inverse=True)
    within = ranks - (end - size)[bins]
    picked = (binning.pick(_native(slab, np.float32), chosen) for slab in slabs())
    if size[chosen].sum() <= _MOST_PICKED:
        before = np.cumsum(size[chosen]) - size[chosen]
        place = before[row] + within
        return restore_floats(np.partition(np.concatenate(list(picked)), np.unique(place))[place])
    lower = np.zeros((chosen.size, 1 << binning.shift), np.int64)
    for bits in _pieces(picked):
        number, rest = binning.split(bits)
        key = np.searchsorted(chosen, number) << binning.shift | rest
        lower += np.bincount(key, minlength=lower.size).reshape(lower.shape)
    np.cumsum(lower, axis=1, out=lower)
    rest = np.array([np.searchsorted(lower[r], n, "right") for r, n in zip(row, within, strict=True)])
    return restore_floats(binning.join(bins, rest))


def _find_wide(slabs: Slabs, ranks: Int64[np.ndarray, " ranks"]) -> Float[np.ndarray, " ranks"]:
    """Return the float64 values at some ranks: 16 bits of all of them more with each pass."""
    found, within = np.zeros(ranks.size, np.uint64), ranks.copy()
    for shift in (48, 32, 16, 0):
        prefixes, which = np.unique(found, return_inverse=True)
        counts = np.zeros((prefixes.size, _DIGITS), np.int64)
        for slab in _pieces(slabs()):
            bits = _sortable_bits(_native(slab, np.float64))
            above = bits >> np.uint64(shift + 16) if shift < 48 else np.zeros_like(bits)
            row = np.minimum(np.searchsorted(prefixes, above), prefixes.size - 1)
            inside = prefixes[row] == above
            digit = (bits[inside] >> np.uint64(shift)).astype(np.int64) & (_DIGITS - 1)
            counts += np.bincount(row[inside] << 16 | digit, minlength=counts.size).reshape(counts.shape)
        end = np.cumsum(counts, axis=1)
        digits = [int(np.searchsorted(end[row], rank, "right")) for row, rank in zip(which, within, strict=True)]
        within -= [int(end[row, digit - 1]) if digit else 0 for row, digit in zip(which, digits, strict=True)]
        found = found << np.uint64(16) | np.array(digits, np.uint64)
    values: Float[np.ndarray, " ranks"] = np.where(found & _SIGN, found ^ _SIGN, ~found).view(np.float64)
    return values


def _sortable_bits(values: Float[np.ndarray, " pixels"]) -> UInt64[np.ndarray, " pixels"]:
    """Bits of float64 that sort as unsigned integers as the numbers do."""
    bits = values.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _pieces(arrays: Iterable[Num[np.ndarray, " n"]]) -> Iterator[Num[np.ndarray, " piece"]]:
    """Cut arrays into pieces, of which copies at 64 bits are small."""
    for array in arrays:
        for first in range(0, array.size, _PIECE):
            yield array[first : first + _PIECE]


def _native(slab: Num[np.ndarray, " pixels"], kind: type[np.floating]) -> Num[np.ndarray, " pixels"]:
    return np.ascontiguousarray(slab, kind)
