"""Takes intensity statistics of frames, and merges them upward to FOVs and experiments.

Integers of 8 and 16 bits are counted value by value, so every statistic at every level is exact.
Other dtypes: a frame's statistics are exact; of a FOV or an experiment, mean, std, min and max are
exact up to rounding (merged moments) and the quantiles come from a fixed random sample of
`SAMPLE` pixels a frame. NaN and infinity are left out everywhere. std is the population's; quantiles
interpolate linearly between neighbours, as numpy does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import DTypeLike

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.errors import PlateError
from etl.cut.counting import Ends, count_values, find_order_statistics
from etl.cut.moments import NOTHING, measure, measure_finite, merge
from etl.cut.moments import Moments as FrameMoments

SAMPLE = 1024
"""Pixels of a frame and channel that represent it in the quantiles of its FOV and experiment."""

_SAMPLE_TAG = 0x5A3D
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)

Frame = Num[np.ndarray, "z y x"]
Statistics = Float[np.ndarray, "8"]
"""In the order of `contract.STATISTICS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How often each value occurs: the mergeable summary of 8- and 16-bit integers."""

    counts: Int[np.ndarray, " values"]
    lowest: int
    """Value of the first entry."""

    @property
    def pixels(self) -> int:
        """How many were counted."""
        return int(self.counts.sum())

    def merged(self, other: Counts) -> Counts:
        """Return the summary of both."""
        return Counts(counts=self.counts + other.counts, lowest=self.lowest)

    def statistics(self) -> Statistics:
        """Compute the exact statistics; NaN of nothing."""
        present = np.flatnonzero(self.counts)
        if not present.size:
            return np.full(len(STATISTICS), np.nan)
        weight, value = self.counts[present], (present + self.lowest).astype(np.float64)
        cumulated = np.cumsum(weight)
        total = int(cumulated[-1])
        mean = float(value @ weight) / total
        std = float(np.sqrt(((value - mean) ** 2) @ weight / total))
        at = np.asarray(_QUANTILES) * (total - 1)
        below = value[np.searchsorted(cumulated, np.floor(at), "right")]
        above = value[np.searchsorted(cumulated, np.minimum(np.floor(at) + 1, total - 1), "right")]
        return _ordered(mean, std, below + (above - below) * (at - np.floor(at)), value[0], value[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean, squares, extremes and a sample: the mergeable summary of any other dtype."""

    moments: FrameMoments
    samples: tuple[Float[np.ndarray, " _"], ...] = ()

    @property
    def pixels(self) -> int:
        """How many are finite."""
        return int(self.moments[0])

    def merged(self, other: Moments) -> Moments:
        """Return the summary of both (Chan, Golub & LeVeque 1979)."""
        return Moments(moments=merge(self.moments, other.moments), samples=self.samples + other.samples)

    def statistics(self) -> Statistics:
        """Compute mean, std, min and max of all, quantiles of the sample; NaN of nothing."""
        count, mean, squares, least, greatest = self.moments
        if not count:
            return np.full(len(STATISTICS), np.nan)
        quantiles = np.quantile(np.concatenate(self.samples), _QUANTILES)
        return _ordered(mean, np.sqrt(squares / count), quantiles, least, greatest)


Summary = Counts | Moments


def is_counted(dtype: DTypeLike) -> bool:
    """Whether frames of this dtype are summarised exactly, by counting values."""
    return np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize <= 2


def empty_summary(dtype: DTypeLike) -> Summary:
    """Return the summary of no frame."""
    dtype = np.dtype(dtype)
    if is_counted(dtype):
        return Counts(counts=np.zeros(1 << 8 * dtype.itemsize, np.int64), lowest=int(np.iinfo(dtype).min))
    return Moments(moments=NOTHING)


def summarize_frame(frame: Frame, key: tuple[int, int]) -> tuple[Statistics, Summary]:
    """Take one frame of one channel.

    Parameters
    ----------
    frame
        Pixels of the stored slices.
    key
        (t, channel): seeds the sample, so that it is the same in any order of frames.

    Returns
    -------
    tuple
        Exact statistics of the frame, and what merges into those of its FOV.
    """
    if is_counted(frame.dtype):
        counts = Counts(counts=_count(frame), lowest=int(np.iinfo(frame.dtype).min))
        return counts.statistics(), counts
    values, moments, ends = _take_finite(frame)
    if not values.size:
        return np.full(len(STATISTICS), np.nan), Moments(moments=moments)
    count, mean, squares, least, greatest = moments
    quantiles = _exact_quantiles(values, ends)
    rng = np.random.default_rng([_SAMPLE_TAG, *key])
    sample = values[rng.integers(0, values.size, SAMPLE)].astype(np.float64)
    exact = _ordered(mean, float(np.sqrt(squares / count)), quantiles, least, greatest)
    return exact, Moments(moments=moments, samples=(sample,))


def _take_finite(frame: Frame) -> tuple[Num[np.ndarray, " pixels"], FrameMoments, Ends | None]:
    """Return the finite pixels of a frame with their moments, and their ends where a compiled pass found them."""
    moments, ends, pixels = NOTHING, [], []
    for plane in frame:
        found = measure_finite(plane)
        if found is not None:
            of_plane, of_ends = found
            ends.append(of_ends)
            flat = plane.ravel()
        else:
            flat = plane.ravel() if plane.dtype.kind == "f" and plane.itemsize > 2 else plane.ravel().astype(np.float64)
            finite = np.isfinite(flat)
            flat = flat if finite.all() else flat[finite]
            of_plane = measure(flat)
        pixels.append(flat)
        moments = merge(moments, of_plane)
    if len(ends) == len(frame):
        return frame.ravel(), moments, np.array([min(e[0] for e in ends), max(e[1] for e in ends)])
    return np.concatenate(pixels) if len(pixels) != 1 else pixels[0], moments, None


def apply_normalization(
    statistics: Float[np.ndarray, "channels 8"],
    normalization: Mapping[str, Any] | None,
    channels: tuple[str, ...],
    level: str,
    t: int | None = None,
) -> None:
    """Put the statistics that a plate carries, VisCy-style, in the place of computed ones.

    Parameters
    ----------
    statistics
        Changed in place. Statistics that the plate doesn't carry stay.
    normalization
        Channel → `<level>_statistics` → name → value, with a frame between for `timepoint`.
    level
        One of `contract.LEVELS`.
    t
        Frame, for `timepoint`.

    Raises
    ------
    PlateError
        A statistic that is no number.
    """
    for row, channel in zip(statistics, channels, strict=True):
        found = (normalization or {}).get(channel, {}).get(f"{level}_statistics", {})
        if t is not None:
            found = found.get(str(t), {})
        for column, name in enumerate(STATISTICS):
            if name in found:
                try:
                    row[column] = float(found[name])
                except (TypeError, ValueError) as error:
                    raise PlateError(
                        f"normalization.{channel}.{level}_statistics.{name}={found[name]!r} must be a number. "
                        "Compute the plate's normalization again, or remove it."
                    ) from error


def _ordered(mean: float, std: float, quantiles: np.ndarray, least: float, greatest: float) -> Statistics:
    p1, p25, median, p75, p99 = quantiles
    return np.array([mean, std, median, p75 - p25, p1, p99, least, greatest], np.float64)


def _count(frame: Frame) -> Int[np.ndarray, " values"]:
    flat = frame.ravel()
    if frame.dtype.kind == "u":
        return count_values(flat)
    counts = count_values(flat.view(f"{frame.dtype.byteorder}u{frame.itemsize}"))
    return np.roll(counts, counts.size // 2)  # negative numbers have the greater bits


def _exact_quantiles(values: Num[np.ndarray, " pixels"], ends: Ends | None) -> Float[np.ndarray, " quantiles"]:
    """Interpolate linearly, as `np.quantile`; counts instead of sorting where it can (float32)."""
    if values.dtype.newbyteorder("=") != np.float32:
        return np.quantile(values.astype(np.float64), _QUANTILES)
    at = np.asarray(_QUANTILES) * (values.size - 1)
    rank = np.floor(at).astype(np.int64)
    ranks = np.append(rank, np.minimum(rank + 1, values.size - 1))
    found = find_order_statistics(values.astype(np.float32, copy=False), ranks, ends)
    below, above = found[: rank.size], found[rank.size :]
    return below + (above - below) * (at - rank)
