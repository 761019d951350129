"""Lineages as trees: which are the largest, and where their tracks are drawn. Pure.

Time goes across. A track is a line from its first to its last cell; where it divides, a fork leads to its daughters,
and it stands in the middle of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64

from etl.inspect.collection import Run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """A lineage."""

    experiment: int
    fov: int
    """Place in the collection."""
    cells: int
    track_id: Int64[np.ndarray, " n"]
    """Of its tracks, by name."""
    parent: Int64[np.ndarray, " n"]
    """Place of each track's parent among them, −1 without one."""
    begin: Float64[np.ndarray, " n"]
    """Hours at the first cell of each track."""
    end: Float64[np.ndarray, " n"]
    """Hours at the last."""

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """Order: the most tracks, then the most cells, first."""
        return -len(self.track_id), -self.cells, self.fov, int(self.track_id[0])


def list_trees(run: Run, most: int, start_hpi: float, hours: float) -> list[Tree]:
    """List the lineages with most tracks, and of those that have as many, with most cells.

    Parameters
    ----------
    hours
        Per frame.
    """
    first = run.first
    if not len(first):
        return []
    last = np.append(first[1:], len(run)) - 1
    of_track = run.lineage[first].astype(np.int64)
    tracks = np.bincount(of_track)
    cells = np.bincount(run.lineage, minlength=len(tracks))
    chosen = np.lexsort((np.arange(len(tracks)), -cells, -tracks))[:most]
    trees = []
    for lineage in chosen[tracks[chosen] > 0].tolist():
        own = np.flatnonzero(of_track == lineage)
        place = np.full(len(first) + 1, -1, np.int64)
        place[own] = np.arange(len(own))
        trees.append(
            Tree(
                experiment=run.experiment,
                fov=int(run.fov[first[own[0]]]),
                cells=int(cells[lineage]),
                track_id=run.track_id[own].astype(np.int64),
                parent=place[run.parent[own]],
                begin=start_hpi + run.t[first[own]] * hours,
                end=start_hpi + run.t[last[own]] * hours,
            )
        )
    return trees


def plan_heights(parent: Int[np.ndarray, " n"], begin: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Give each track a height: tracks without daughters count from the top, others lie in the middle of theirs.

    Parameters
    ----------
    begin
        Orders daughters, and trees whose common root isn't there.
    """
    children: dict[int, list[int]] = {}
    for track in np.lexsort((np.arange(len(parent)), begin)).tolist():
        children.setdefault(int(parent[track]), []).append(track)
    order, waiting = [], children.get(-1, [])[::-1]
    while waiting:
        track = waiting.pop()
        order.append(track)
        waiting += children.get(track, [])[::-1]
    height, leaves = np.zeros(len(parent)), 0
    for track in order:
        if track not in children:
            height[track], leaves = leaves, leaves + 1
    for track in reversed(order):
        if track in children:
            own = height[children[track]]
            height[track] = (own[0] + own[-1]) / 2
    return height


def list_generations(parent: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Count the divisions above each track."""
    generation = np.zeros(len(parent), np.int64)
    above = parent.copy()
    while (above >= 0).any():
        generation += above >= 0
        above = np.where(above >= 0, parent[above], -1)
    return generation
