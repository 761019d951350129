"""Finds which observations may be whose positive, without listing pairs.

A candidate of an observation is another one of its lineage at t+τ, τ in the experiment's range and not 0. Sorting by
(lineage, t) finds them; depth-first numbers tell which are on its own line of descent. Pure numpy; memory grows with
what is returned.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from dynaclr_wds.tau import least_tau
from etl.layout.lineage_tree import Descent, last_frame_above

Ints = Int[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationColumns:
    """What the layout needs to know of the kept observations, which are ordered by (track, t)."""

    partition: Int[np.ndarray, " obs"]
    lineage: Int[np.ndarray, " obs"]
    track: Int[np.ndarray, " obs"]
    t: Int[np.ndarray, " obs"]
    has_candidate: Bool[np.ndarray, " obs"]
    tau: Int[np.ndarray, "obs 2"]
    """τ range in frames, both ends included."""
    clip_anchors: Int[np.ndarray, " obs"]
    """Most observations with candidates in a clip."""
    track_parent: Int[np.ndarray, " tracks"]
    """Nearest kept ancestor, -1 without one."""
    track_lineage: Int[np.ndarray, " tracks"]
    end: int = sys.maxsize
    """Observations from this frame on are no samples: they are there as candidates of earlier ones."""

    @property
    def may_be_sample(self) -> Bool[np.ndarray, " obs"]:
        """Whether an observation lies before `end`."""
        return self.t < self.end


def has_temporal(
    lineage: Ints, t: Int[np.ndarray, " n"], low: int, high: int
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Whether the lineage of each observation was seen low to high frames later, and so many frames before.

    Parameters
    ----------
    low, high
        τ range in frames, both ends included, the lower at least 1.
    """
    found = np.zeros((2, t.size), bool)
    if not t.size:
        return found[0], found[1]
    key = lineage.astype(np.int64) * (int(t.max()) + max(high, 0) + 2) + t
    order = np.argsort(key, kind="stable")  # a track is a run in order already
    key = key[order]
    later = np.searchsorted(key, key + low)
    found[0, order] = key[np.minimum(later, t.size - 1)] <= key + high
    found[0, order] &= later < t.size
    before = np.searchsorted(key, key - low, "right") - 1
    found[1, order] = key[np.maximum(before, 0)] >= key - high
    found[1, order] &= before >= 0
    return found[0], found[1]


def count_candidates(observations: ObservationColumns) -> Ints:
    """Count the candidates of each observation."""
    key = observations.lineage.astype(np.int64) * time_step(observations) + observations.t
    order = np.argsort(key, kind="stable")  # a track is a run in order already
    key = key[order]  # what is looked up is then in order, too, which is many times faster
    low, high = (bound[order] for bound in tau_bounds(observations))
    forward = np.empty(key.size, np.int64)
    forward[order] = np.searchsorted(key, key + high, "right") - np.searchsorted(key, key + low)
    return np.maximum(forward, 0)


def time_step(observations: ObservationColumns) -> int:
    """Return a step so large that (group * step + t + τ) never reaches the next group."""
    return int(observations.t.max(initial=0)) + max(int(observations.tau.max(initial=0)), 0) + 2


def tau_bounds(observations: ObservationColumns) -> tuple[Ints, Ints]:
    """Least and greatest τ of each observation."""
    return least_tau(observations.tau[:, 0]).astype(np.int64), observations.tau[:, 1].astype(np.int64)


def plan_own_line(
    observations: ObservationColumns, descent: Descent, home: Int[np.ndarray, " obs"], is_long: Bool[np.ndarray, " obs"]
) -> tuple[Ints, Ints]:
    """Find the (clip, member) pairs that long lineages need: candidates on the own line, then from relatives.

    Climbs the tree from every candidate. In each track above it, the anchors that reach it by τ are one run of rows,
    and their clips are one run of clips.
    """
    step, (low, high), n = time_step(observations), tau_bounds(observations), observations.track.size
    row_key = observations.track.astype(np.int64) * step + observations.t
    last_t = np.full(observations.track_parent.size, -1, np.int64)
    last_t[observations.track] = observations.t  # rows are ordered by (track, t): the last one stays
    latest = last_frame_above(descent, last_t)
    reach = np.zeros(n + 1, np.int64)  # differences of the candidates found per anchor
    clips, members = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    row = np.flatnonzero(is_long & (observations.t >= low))
    track = observations.track[row].astype(np.int64)
    while row.size:
        t = observations.t[row].astype(np.int64)
        first = np.searchsorted(row_key, track * step + np.maximum(t - high[row], 0))
        stop = np.searchsorted(row_key, track * step + np.minimum(t - low[row], observations.end - 1), "right")
        hit = np.flatnonzero(stop > first)
        reach += np.bincount(first[hit], minlength=n + 1) - np.bincount(stop[hit], minlength=n + 1)
        clip_first, clip_last = home[first[hit]], home[stop[hit] - 1]
        clips.append(concatenate_ranges(clip_first, clip_last + 1))
        members.append(np.repeat(row[hit], clip_last + 1 - clip_first))
        track = descent.parent[track]
        go_on = track < observations.track_parent.size  # below the lineage's node
        go_on[go_on] = latest[track[go_on]] >= (t - high[row])[go_on]
        row, track = row[go_on], track[go_on]
    alone = observations.has_candidate & observations.may_be_sample & (np.cumsum(reach[:-1]) == 0)
    anchor, relative = _nearest_relatives(observations, descent, np.flatnonzero(is_long & alone))
    return np.concatenate([*clips, home[anchor]]), np.concatenate([*members, relative])


def _nearest_relatives(
    observations: ObservationColumns, descent: Descent, alone: Ints
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Choose one candidate per (anchor, τ): that with the closest common ancestor, then that of the first track."""
    low, high = tau_bounds(observations)
    width = np.maximum(high[alone] - low[alone] + 1, 0)
    anchor, tau = np.repeat(alone, width), concatenate_ranges(low[alone], low[alone] + width)
    nodes, t = descent.begin.size, observations.t[anchor] + tau
    of_alone = np.zeros(int(observations.track_lineage.max(initial=-1)) + 1, bool)
    of_alone[observations.lineage[alone]] = True
    order = np.flatnonzero(of_alone[observations.lineage])
    order = order[np.lexsort((descent.begin[observations.track[order]], observations.t[order]))]
    key = observations.t[order].astype(np.int64) * nodes + descent.begin[observations.track[order]]
    node = descent.parent[observations.track[anchor]]
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
