"""Cells to candidates: who may be whose positive, counted and found without listing pairs.

A candidate of an anchor is an observation of its lineage at t+τ, τ in the experiment's range and not
0. All it takes is sorting by (lineage, t), and depth-first numbers for "on its own line of descent".
Pure numpy; memory grows with what is returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from etl.layout.lineage_tree import Descent, last_frame_above

Ints = Int[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """What the layout needs to know of the kept observations, which are ordered by (track, t)."""

    stratum: Int[np.ndarray, " obs"]
    lineage: Int[np.ndarray, " obs"]
    track: Int[np.ndarray, " obs"]
    t: Int[np.ndarray, " obs"]
    is_anchor: Bool[np.ndarray, " obs"]
    tau: Int[np.ndarray, "obs 2"]
    """τ range in frames, both ends included."""
    clip_anchors: Int[np.ndarray, " obs"]
    """Most anchors in a clip."""
    track_parent: Int[np.ndarray, " tracks"]
    """Nearest kept ancestor, -1 without one."""
    track_lineage: Int[np.ndarray, " tracks"]


def count_candidates(cells: Cells) -> tuple[Ints, Ints]:
    """How many candidates each observation has, and of how many it is one."""
    step = time_step(cells)
    order = np.sort(cells.lineage.astype(np.int64) * step + cells.t)
    here = cells.lineage.astype(np.int64) * step + cells.t
    low, high = tau_bounds(cells)
    forward = np.searchsorted(order, here + high, "right") - np.searchsorted(order, here + low)
    since = here - np.minimum(high, cells.t)
    back = np.searchsorted(order, here - low, "right") - np.searchsorted(order, since)
    return np.maximum(forward, 0), np.where(low <= cells.t, np.maximum(back, 0), 0)


def time_step(cells: Cells) -> int:
    """So large that (group * step + t) never runs into the next group, at any t + τ."""
    return int(cells.t.max(initial=0)) + max(int(cells.tau.max(initial=0)), 0) + 2


def tau_bounds(cells: Cells) -> tuple[Ints, Ints]:
    """Least and greatest τ of each observation; τ = 0 never counts."""
    return np.maximum(cells.tau[:, 0], 1).astype(np.int64), cells.tau[:, 1].astype(np.int64)


def plan_own_line(
    cells: Cells, descent: Descent, home: Int[np.ndarray, " obs"], is_long: Bool[np.ndarray, " obs"]
) -> tuple[Ints, Ints]:
    """Clips and members that the anchors of long lineages need: on their own line, then from relatives.

    Climbs from every candidate: in each track above it, the anchors in reach are one run of rows,
    and their clips one run of clips.
    """
    step, (low, high), n = time_step(cells), tau_bounds(cells), cells.track.size
    row_key = cells.track.astype(np.int64) * step + cells.t
    last_t = np.full(cells.track_parent.size, -1, np.int64)
    np.maximum.at(last_t, cells.track, cells.t)
    latest = last_frame_above(descent, last_t)
    reach = np.zeros(n + 1, np.int64)  # differences of the candidates found per anchor
    clips, members = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    row = np.flatnonzero(is_long & (cells.t >= low))
    track = cells.track[row].astype(np.int64)
    while row.size:
        t = cells.t[row].astype(np.int64)
        first = np.searchsorted(row_key, track * step + np.maximum(t - high[row], 0))
        stop = np.searchsorted(row_key, track * step + t - low[row], "right")
        hit = np.flatnonzero(stop > first)
        reach += np.bincount(first[hit], minlength=n + 1) - np.bincount(stop[hit], minlength=n + 1)
        clip_first, clip_last = home[first[hit]], home[stop[hit] - 1]
        clips.append(concatenate_ranges(clip_first, clip_last + 1))
        members.append(np.repeat(row[hit], clip_last + 1 - clip_first))
        track = descent.parent[track]
        go_on = track < cells.track_parent.size  # below the lineage's node
        go_on[go_on] = latest[track[go_on]] >= (t - high[row])[go_on]
        row, track = row[go_on], track[go_on]
    alone = np.flatnonzero(is_long & cells.is_anchor & (np.cumsum(reach[:-1]) == 0))
    anchor, relative = _nearest_relatives(cells, descent, alone)
    return np.concatenate([*clips, home[anchor]]), np.concatenate([*members, relative])


def _nearest_relatives(
    cells: Cells, descent: Descent, alone: Ints
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """One candidate per (anchor, τ): that of the closest common ancestor, then of the first track."""
    low, high = tau_bounds(cells)
    width = np.maximum(high[alone] - low[alone] + 1, 0)
    anchor, tau = np.repeat(alone, width), concatenate_ranges(low[alone], low[alone] + width)
    nodes, t = descent.begin.size, cells.t[anchor] + tau
    order = np.lexsort((descent.begin[cells.track], cells.t))
    key = cells.t[order].astype(np.int64) * nodes + descent.begin[cells.track[order]]
    node = descent.parent[cells.track[anchor]]
    found_anchor, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    while anchor.size:
        first = np.searchsorted(key, t * nodes + descent.begin[node])
        stop = np.searchsorted(key, t * nodes + descent.end[node])
        hit = stop > first
        found_anchor.append(anchor[hit])
        found.append(_range_min(order, first[hit], stop[hit]))  # rows are ordered by track
        go_on = ~hit & (descent.parent[node] >= 0)
        anchor, t, node = anchor[go_on], t[go_on], descent.parent[node[go_on]]
    return np.concatenate(found_anchor), np.concatenate(found)


def _range_min(values: Ints, first: Int[np.ndarray, " m"], stop: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Smallest value of each non-empty range, by a sparse table."""
    result = np.empty(first.size, values.dtype)
    level = np.frexp((stop - first).astype(np.float64))[1] - 1  # 2**level <= length < 2**(level + 1)
    table = values
    for k in range(int(level.max(initial=-1)) + 1):
        at = np.flatnonzero(level == k)
        result[at] = np.minimum(table[first[at]], table[stop[at] - (1 << k)])
        table = np.minimum(table[: table.size - (1 << k)], table[1 << k :])
    return result


def concatenate_ranges(first: Ints, stop: Ints) -> Int[np.ndarray, " total"]:
    """Concatenate the ranges [first, stop)."""
    size = stop - first
    return np.arange(size.sum()) + np.repeat(first - (np.cumsum(size) - size), size)
