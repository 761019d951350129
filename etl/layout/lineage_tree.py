"""Numbers track trees depth first, so that comparing integers tells who descends from whom.

A lineage is a tree of tracks (a forest where a root was dropped). Numbered depth first, a track's
descendants are one range of numbers, so "on its own line of descent" needs no walking. Pure numpy;
work grows with the tracks and the number of generations, not with generations times tracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

Ints = Int[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Tracks and, after them, one node per lineage that stands above the lineage's roots."""

    parent: Int[np.ndarray, " nodes"]
    """Node above, -1 above a lineage's node."""
    begin: Int[np.ndarray, " nodes"]
    """Depth-first number: lineages in order, a node before its children, children in order."""
    end: Int[np.ndarray, " nodes"]
    """Node m descends from node k (or is it) when begin[k] <= begin[m] < end[k]."""


def plan_descent(track_parent: Int[np.ndarray, " tracks"], track_lineage: Int[np.ndarray, " tracks"]) -> Descent:
    """Number the nodes depth first.

    Parameters
    ----------
    track_parent
        Row of the parent track, -1 without one. Free of cycles.
    track_lineage
        Dense number of the lineage.

    Returns
    -------
    Descent
        `n_tracks + n_lineages` nodes; node `n_tracks + k` is lineage k.
    """
    tracks = track_parent.size
    lineages = int(track_lineage.max()) + 1 if tracks else 0
    above_root = tracks + track_lineage.astype(np.int64)
    parent = np.full(tracks + lineages, -1, np.int64)
    parent[:tracks] = np.where(track_parent < 0, above_root, track_parent)
    levels = _levels(parent)
    size = np.ones(parent.size, np.int64)
    for level in reversed(levels[1:]):
        np.add.at(size, parent[level], size[level])
    begin = np.zeros(parent.size, np.int64)
    roots = np.arange(tracks, tracks + lineages)
    begin[roots] = np.cumsum(size[roots]) - size[roots]
    for level in levels[1:]:
        nodes = level[np.argsort(parent[level], kind="stable")]  # children stay in track order
        before = np.cumsum(size[nodes]) - size[nodes]
        first_of_parent = np.searchsorted(parent[nodes], parent[nodes])
        begin[nodes] = begin[parent[nodes]] + 1 + before - before[first_of_parent]
    return Descent(parent=parent, begin=begin, end=begin + size)


def _levels(parent: Ints) -> list[Int[np.ndarray, " _"]]:
    """Nodes by generation, ascending inside each; depth by pointer doubling."""
    depth = (parent >= 0).astype(np.int64)
    ancestor = parent.copy()
    rounds = 0
    while (live := np.flatnonzero(ancestor >= 0)).size:
        depth[live] += depth[ancestor[live]]
        ancestor[live] = ancestor[ancestor[live]]
        rounds += 1
        assert rounds <= 64, "the index rejects cycles of parents"
    order = np.argsort(depth, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(depth[order])) + 1) if order.size else []


def last_frame_above(descent: Descent, last_t: Int[np.ndarray, " tracks"]) -> Int[np.ndarray, " tracks"]:
    """Return the last frame of each track or of any track above it: when to stop climbing."""
    tracks = last_t.size
    latest = np.full(descent.parent.size, -1, np.int64)
    latest[:tracks] = last_t
    for level in _levels(descent.parent)[1:]:
        latest[level] = np.maximum(latest[level], latest[descent.parent[level]])
    return latest[:tracks]
