"""Tracks to lines of descent: finds the parent of each track, and says which pairs of patches lie on one line.

Two patches lie on one line of descent if they are of one track, or if the later one's track descends from the
earlier one's. Parents are found by `parent_track_id` among the tracks of the set: a chain ends where a track has no
stored observation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64, Integer

from dynaclr_wds.errors import FormatError
from dynaclr_wds.plan.columns import PlanColumns

_MOST_GENERATIONS = 1000


def find_parents(columns: PlanColumns) -> Int64[np.ndarray, " tracks"]:
    """Find the number of each track's parent; −1 without one in the set."""
    first = np.flatnonzero(np.diff(columns.obs_track, prepend=-1))  # observations are stored by track
    if not len(first):
        return np.zeros(0, np.int64)
    fov, own = columns.obs_fov[first].astype(np.int64), columns.obs_track_id[first]
    above = columns.obs_parent_track_id[first]
    ids, number = np.unique(own, return_inverse=True)
    key = fov * len(ids) + number
    place = np.minimum(np.searchsorted(ids, above), len(ids) - 1)
    wanted = np.where(ids[place] == above, fov * len(ids) + place, -1)
    order = np.argsort(key)
    found = order[np.minimum(np.searchsorted(key[order], wanted), len(key) - 1)]
    return np.where(key[found] == wanted, found, -1)


def on_one_line(
    columns: PlanColumns,
    parent: Int64[np.ndarray, " tracks"],
    one: Integer[np.ndarray, " n"],
    other: Integer[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """Say of pairs of patch rows of a lineage which of them lie on one line of descent.

    Raises
    ------
    FormatError
        Parents go round in a circle.
    """
    is_later = columns.patch_t[one] > columns.patch_t[other]
    later, earlier = (
        columns.obs_track[columns.patch_obs[np.where(swap, one, other)]] for swap in (is_later, ~is_later)
    )
    found = later == earlier
    left = np.flatnonzero(~found)
    track = later[left]
    for _ in range(_MOST_GENERATIONS):
        track = parent[track]
        left, track = left[track >= 0], track[track >= 0]
        if not len(left):
            return found
        found[left] = track == earlier[left]
        left, track = left[~found[left]], track[~found[left]]
    raise FormatError("obs_parent_track_id: parents go round in a circle. Correct the track tables, and build again.")


def list_rows(
    owner: Int64[np.ndarray, " n"], first: Integer[np.ndarray, " n"], stop: Integer[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """List the rows `first … stop` of each owner, one after another."""
    count = stop - first
    start = np.cumsum(count) - count
    return np.repeat(owner, count), np.arange(int(count.sum())) + np.repeat(first - start, count)
