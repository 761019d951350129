"""Movies to segments: runs of frames that are built apart, so that earlier shards stay when frames are added. Pure.

Every movie of an experiment is cut at the same frames, whatever there was before. The cells of a segment's own frames
are samples of its clips. It also holds those of the next frames that may be their positives: as many frames as the
longest τ has. So no clip needs another segment, and a segment is complete when these frames are there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from dynaclr_wds.tau import least_tau


@dataclass(frozen=True, slots=True)
class Segment:
    """Some frames of all movies of an experiment."""

    number: int = 0
    first: int = 0
    """The first frame whose cells are samples."""
    last: int = sys.maxsize
    """One past the last such frame."""
    reach: int = 0
    """Frames behind these in which their positives may be."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole movie, so that none follows."""
        return self.last == sys.maxsize

    def own(self, frames: int) -> range:
        """Return the frames of a movie whose cells are samples; `frames` says how long it is."""
        return range(min(self.first, frames), min(self.last, frames))

    def read(self, frames: int) -> range:
        """Return the frames of a movie that are read."""
        return range(min(self.first, frames), min(self.last + self.reach, frames) if frames > self.first else frames)


WHOLE = Segment()


def plan_segments(frames: int, segment_frames: int | None, reach: int) -> list[Segment]:
    """Cut movies into segments.

    Parameters
    ----------
    frames
        Of the longest movie.
    segment_frames
        Of a segment; None makes one of the whole movie.
    reach
        The longest τ in frames.
    """
    if segment_frames is None:
        return [WHOLE]
    starts = range(0, max(frames, 1), segment_frames)
    return [Segment(number, first, first + segment_frames, reach) for number, first in enumerate(starts)]


def find_rows(
    lineage: Int[np.ndarray, " obs"], t: Int[np.ndarray, " obs"], segment: Segment, tau_frames: tuple[int, int]
) -> Bool[np.ndarray, " obs"]:
    """Say which observations a segment holds: those of its own frames, and what may be their positive.

    Parameters
    ----------
    tau_frames
        τ range, both ends included.
    """
    own = (t >= segment.first) & (t < segment.last)
    ahead = np.flatnonzero((t >= segment.last) & (t < segment.last + segment.reach))
    if not ahead.size or not own.any():
        return own
    low, high = int(least_tau(tau_frames[0])), tau_frames[1]
    key = lineage.astype(np.int64) * (int(t.max()) + high + 2) + t
    known = np.sort(key[own])
    place = np.searchsorted(known, key[ahead] - high)
    own[ahead] = known[np.minimum(place, known.size - 1)] <= key[ahead] - low
    own[ahead] &= place < known.size
    return own
