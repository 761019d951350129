"""Batches to lanes: says which groups are within reach at the same time, when the window can't hold all.

The batches of an epoch are laid out in as many lanes as groups fit, one group after another in each, all lanes about
equally long (McNaughton's wrap-around rule, 1959). A group that is cut at the end of a lane continues at the beginning
of the next, with blocks of its own for each piece. A step takes one batch of each lane, in random order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

_LEAST_SEGMENT = 16  # batches


@dataclass(frozen=True, slots=True)
class Lanes:
    """Segments and their order."""

    group: Int64[np.ndarray, " k"]
    """Group of each segment."""
    batches: Int64[np.ndarray, " k"]
    """Batches of each segment, all > 0."""
    order: Int64[np.ndarray, " n"]
    """Segment of every batch, in order."""
    reach: Int64[np.ndarray, "k 2"]
    """Batches (begin, end) of the order during which each segment is within reach."""


def plan_lanes(rng: np.random.Generator, batches: Int64[np.ndarray, " g"], active: int) -> Lanes:
    """Lay out the batches of each group in `active` lanes.

    Parameters
    ----------
    batches
        Number of batches of each group; a group without any is left out.
    active
        Groups within reach at a time; when it is all of them, there is one segment each and no lanes are needed.
    """
    total = int(batches.sum())
    if active >= len(batches):
        order = rng.permutation(np.repeat(np.arange(len(batches)), batches))
        kept = np.flatnonzero(batches)
        order = np.searchsorted(kept, order)
        return Lanes(kept, batches[kept], order, np.tile([0, total], (len(kept), 1)))
    group, length, lane_of = np.array(_wrap_around(rng, batches, active), np.int64).reshape(-1, 3).T
    numbers = np.arange(len(group))
    order = _interleave(rng, [np.repeat(numbers[lane_of == k], length[lane_of == k]) for k in range(active)])
    # a segment is within reach until the next one of its lane begins
    begin = np.array([np.flatnonzero(order == k)[0] for k in numbers])
    reach = np.stack([begin, np.full(len(group), total)], axis=1)
    for k in np.unique(lane_of):
        own = numbers[lane_of == k]
        reach[own[0], 0] = 0
        reach[own[:-1], 1] = begin[own[1:]]
    return Lanes(group, length, order, reach)


def _wrap_around(rng: np.random.Generator, batches: Int64[np.ndarray, " g"], active: int) -> list[tuple[int, int, int]]:
    """Lay groups out one after another, and cut the row into lanes; returns (group, batches, lane) of each segment.

    A segment draws from blocks of its own, and one of few batches has too few of them to keep lineages distinct around
    a focal HPI. So lanes may differ in length by a quarter, or by `_LEAST_SEGMENT` batches, where an equal cut would
    leave a shorter segment.
    """
    total = int(batches.sum())
    least = min(_LEAST_SEGMENT, total // active // 4)
    out: list[tuple[int, int, int]] = []
    at = lane = 0
    for g in rng.permutation(len(batches)).tolist():
        left = int(batches[g])
        while left:
            room = left if lane == active - 1 else max((lane + 1) * total // active - at, 0)
            if left - room < least:
                room = left
            elif room < least and out and out[-1][2] == lane:
                lane += 1
                continue
            piece = min(left, room)
            out += [(g, piece, lane)] * (piece > 0)
            at, left = at + piece, left - piece
            if lane < active - 1 and at >= (lane + 1) * total // active:
                lane += 1
    return out


def _interleave(rng: np.random.Generator, lanes: list[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " n"]:
    """Take the i-th batch of every lane, in random order, for i = 0, 1, … ."""
    longest = max(len(lane) for lane in lanes)
    table = np.full((longest, len(lanes)), -1)
    for k, lane in enumerate(lanes):
        table[: len(lane), k] = lane
    table = rng.permuted(table, axis=1)
    return table[table >= 0]
