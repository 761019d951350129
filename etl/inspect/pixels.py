"""Frames to what is known of their pixels: which are blank, constant or not finite, and how bright each channel is.

Before a build some frames are read; after it, the statistics of all frames tell, and patches show the brightness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Num

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.errors import FovError
from etl.cut.faults import BlankValues, count_nonfinite, is_blank
from etl.inspect.frame_cuts import FrameCut

_TAG, _VALUES = 0x1A5B, 4096
_BINS = 48


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelLook:
    """One channel of one frame."""

    blank: bool
    """All pixels are the fill value, or zero; after a build, also a frame that holds no number."""
    constant: bool
    """All pixels are alike, whatever they are."""
    nonfinite: int
    """Pixels that are NaN or infinite; after a build that is not known."""
    values: Float32[np.ndarray, " n"]
    """Some of the finite pixels, drawn by chance; after a build, three that stand for all: p1, median and p99."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameLook:
    """One frame."""

    fov: int
    """Place in the collection."""
    t: int
    channels: tuple[ChannelLook, ...]
    seconds: float = 0.0
    """Time to read what a build would read for it."""
    bytes: int = 0
    """Bytes of the pixels that were read in this time."""
    cut: FrameCut | None = None
    """What it says of a build; None after one."""
    error: FovError | None = None
    """Why it can't be read; then nothing else is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFacts:
    """What was found of a channel of an experiment."""

    name: str
    blank: int
    """Frames."""
    constant: int
    """Frames that are constant and not blank."""
    nonfinite: int
    """Frames with pixels that are NaN or infinite."""
    nonfinite_pixels: int
    places: tuple[str, ...]
    """The first few of these frames."""
    statistics: dict[str, float | None]
    """p1, median, p99, mean and std of the pixels that were seen; None where there are none."""
    edges: tuple[float, ...]
    """Of the bins of intensities, which end at the dimmest and brightest thousandth; empty without pixels."""
    counts: tuple[int, ...]
    """Pixels in each bin, of those that were seen."""


def look_at_channel(pixels: Num[np.ndarray, "z y x"], values: BlankValues, key: Sequence[int]) -> ChannelLook:
    """Look at one channel of a frame.

    Parameters
    ----------
    values
        What a blank channel is full of.
    key
        Seeds the choice of pixels.
    """
    rng = np.random.default_rng([_TAG, *key])
    some = pixels.reshape(-1)[rng.integers(0, pixels.size, _VALUES)].astype(np.float32)
    return ChannelLook(
        blank=is_blank(pixels, values),
        constant=bool(pixels.min() == pixels.max()),
        nonfinite=count_nonfinite(pixels),
        values=some[np.isfinite(some)],
    )


def look_at_statistics(statistics: Float32[np.ndarray, " k"]) -> ChannelLook:
    """Take one channel of a frame from the statistics that a build has noted."""
    low, high = (statistics[STATISTICS.index(name)] for name in ("min", "max"))
    blank = bool(np.isnan(low))
    seen = np.array([statistics[STATISTICS.index(name)] for name in ("p1", "median", "p99")], np.float32)
    return ChannelLook(
        blank=blank,
        constant=not blank and bool(low == high),
        nonfinite=0,
        values=np.zeros(0, np.float32) if blank else seen,
    )


class ChannelSums:
    """Adds up what is seen of one channel of an experiment.

    Parameters
    ----------
    name
        Of the channel.
    """

    def __init__(self, name: str) -> None:
        self._name, self._places = name, list[str]()
        self._blank = self._constant = self._nonfinite = self._pixels = 0
        self._values: list[Float32[np.ndarray, " n"]] = []

    def add(self, look: ChannelLook, place: str) -> None:
        """Add a frame; `place` names it."""
        self._blank += look.blank
        self._constant += look.constant and not look.blank
        self._nonfinite += look.nonfinite > 0
        self._pixels += look.nonfinite
        if (look.blank or look.constant or look.nonfinite) and len(self._places) < _PLACES:
            self._places.append(place)
        if not look.blank:
            self._values.append(look.values)

    def finish(
        self, patches: Iterable[Float32[np.ndarray, "*shape"]] = (), known: Float32[np.ndarray, " k"] | None = None
    ) -> ChannelFacts:
        """Return what was found.

        Parameters
        ----------
        patches
            Where there are any, their pixels are counted in bins in place of those of the frames.
        known
            Statistics of all pixels, as `contract.STATISTICS`; None = those of the pixels that were seen.
        """
        given = [patch[np.isfinite(patch)] for patch in patches]
        values = np.concatenate(given or self._values or [np.zeros(0, np.float32)]).astype(np.float64)
        edges, counts = _count_values(values)
        return ChannelFacts(
            name=self._name,
            blank=self._blank,
            constant=self._constant,
            nonfinite=self._nonfinite,
            nonfinite_pixels=self._pixels,
            places=tuple(self._places),
            statistics=_summarise(values) if known is None else _name_statistics(known),
            edges=edges,
            counts=counts,
        )


_PLACES = 4
_SHOWN = ("p1", "median", "p99", "mean", "std")


def _summarise(values: Float64[np.ndarray, " n"]) -> dict[str, float | None]:
    if not values.size:
        return dict.fromkeys(_SHOWN)
    found = [*np.percentile(values, (1, 50, 99)).tolist(), float(values.mean()), float(values.std())]
    return {name: float(f"{value:.6g}") for name, value in zip(_SHOWN, found, strict=True)}


def _name_statistics(known: Float32[np.ndarray, " k"]) -> dict[str, float | None]:
    found = {name: float(known[STATISTICS.index(name)]) for name in _SHOWN}
    return {name: None if np.isnan(value) else float(f"{value:.6g}") for name, value in found.items()}


def _count_values(values: Float64[np.ndarray, " n"]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Count values in bins that reach from the dimmest to the brightest thousandth; the rest is in the outer bins."""
    if not values.size:
        return (), ()
    low, high = np.percentile(values, (0.1, 99.9)).tolist()
    if not high > low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.histogram(np.clip(values, low, high), edges)[0]
    return tuple(edges.tolist()), tuple(counts.tolist())
