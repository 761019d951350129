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
from etl.cut.filed_frames import Stack, read_slabs
from etl.cut.moments import NOTHING, measure, measure_finite, merge
from etl.cut.moments import Moments as FrameMoments
from etl.cut.quantiles import find_quantiles

WHOLE_PIXELS = 1 << 22
"""Frames of more pixels are looked at slab by slab, several times, and never held or copied whole."""
SAMPLE = 1024
"""Pixels of a frame and channel that represent it in the quantiles of its FOV and experiment."""

_SAMPLE_TAG = 0x5A3D
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)

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
        if not self.counts.size or not other.counts.size:
            return self if self.counts.size else other
        lowest = min(self.lowest, other.lowest)
        end = max(self.lowest + self.counts.size, other.lowest + other.counts.size)
        counts = np.zeros(end - lowest, np.int64)
        for part in (self, other):
            counts[part.lowest - lowest :][: part.counts.size] += part.counts
        return Counts(counts=counts, lowest=lowest)

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
    if is_counted(dtype):
        return Counts(counts=np.zeros(0, np.int64), lowest=0)
    return Moments(moments=NOTHING)


def summarize_frame(frame: Stack, key: tuple[int, int]) -> tuple[Statistics, Summary]:
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
        found = Counts(counts=np.zeros(0, np.int64), lowest=0)
        for slab in read_slabs(frame):
            counts, lowest = count_values(slab.ravel())
            found = found.merged(Counts(counts=counts, lowest=lowest))
        return found.statistics(), found
    rng = np.random.default_rng([_SAMPLE_TAG, *key])
    moments, quantiles, sample = (_look_by_slabs if frame.size > WHOLE_PIXELS else _look_at_once)(frame, rng)
    count, mean, squares, least, greatest = moments
    if not count:
        return np.full(len(STATISTICS), np.nan), Moments(moments=moments)
    exact = _ordered(mean, float(np.sqrt(squares / count)), quantiles, least, greatest)
    return exact, Moments(moments=moments, samples=(sample,))


_Looked = tuple[FrameMoments, Float[np.ndarray, " quantiles"], Float[np.ndarray, " sample"]]
"""Moments, quantiles, and a sample of the pixels that are finite."""
_NONE = np.empty(0)


def _look_at_once(frame: Stack, rng: np.random.Generator) -> _Looked:
    """Look at a frame that may be copied."""
    values, moments, ends = _take_finite(frame if isinstance(frame, np.ndarray) else frame.read(0, len(frame)))
    if not values.size:
        return moments, _NONE, _NONE
    sample = values[rng.integers(0, values.size, SAMPLE)].astype(np.float64)
    return moments, _exact_quantiles(values, ends), sample


def _look_by_slabs(frame: Stack, rng: np.random.Generator) -> _Looked:
    """Look at a large stack: once for its moments, then as often as its quantiles need."""
    moments = NOTHING
    for slab in read_slabs(frame):
        for plane in slab:
            found = measure_finite(plane)
            moments = merge(moments, found[0] if found is not None else measure(_drop_nonfinite(plane)))
    count = int(moments[0])
    if not count:
        return moments, _NONE, _NONE
    is_plain = count == frame.size and frame.dtype.kind == "f" and frame.dtype.itemsize > 2
    flatten = np.ravel if is_plain else _drop_nonfinite
    quantiles, sample = find_quantiles(
        lambda: map(flatten, read_slabs(frame)), moments, _QUANTILES, rng.integers(0, count, SAMPLE)
    )
    return moments, quantiles, sample


def _drop_nonfinite(pixels: Num[np.ndarray, "*shape"]) -> Num[np.ndarray, " pixels"]:
    """Return the finite pixels: float32 and float64 as they are, others as float64."""
    flat = pixels.ravel() if pixels.dtype.kind == "f" and pixels.itemsize > 2 else pixels.ravel().astype(np.float64)
    finite = np.isfinite(flat)
    return flat if finite.all() else flat[finite]


def _take_finite(frame: Num[np.ndarray, "z y x"]) -> tuple[Num[np.ndarray, " pixels"], FrameMoments, Ends | None]:
    """Return the finite pixels of a frame with their moments, and their ends where a compiled pass found them."""
    moments, ends, pixels = NOTHING, [], []
    for plane in frame:
        found = measure_finite(plane)
        if found is not None:
            of_plane, of_ends = found
            ends.append(of_ends)
            flat = plane.ravel()
        else:
            flat = _drop_nonfinite(plane)
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
