"""Anchors within reach by time: finds those of many strata in a window at once, without looking at the others.

The anchors are sorted by stratum and frame, so what lies in a window is a slice of each stratum. Held beside the index:
8 bytes for each anchor, at most (12 where strata times frames exceed 2³¹).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64, Integer

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.relatives import list_rows
from dynaclr_wds.plan.rng import sort_small

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class HpiTable:
    """Anchors of some rows, each of them a stratum or what is within reach of it, by frame."""

    anchor: Integer[SampleIndex, " n"]
    place: Integer[np.ndarray, " e"]
    """CSR: anchors of frame t of row i begin at `place[frames · i + t]`; where strata have fewer anchors than frames,
    `frames · i + t` of each anchor."""
    first: Int64[np.ndarray, " k1"]
    """CSR: anchors of row i are `first[i]:first[i + 1]`."""
    frames: int
    """Above all frames."""
    clock: Float64[np.ndarray, "k 2"]
    """Hours of frame 0 and hours per frame, of each row."""

    def slices(
        self, rows: Int64[np.ndarray, " m"], low: float, high: float
    ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """Find where the anchors from `low` to `high` hours begin and end in each row."""
        start, hours = self.clock[rows].T
        frame = np.stack([np.ceil((low - start) / hours), np.floor((high - start) / hours) + 1])
        edges = rows * self.frames + np.clip(frame, 0, self.frames).astype(np.int64)
        if len(self.place) == len(self.first[1:]) * self.frames + 1:
            begin, end = self.place[edges].astype(np.int64)
        else:
            begin, end = np.searchsorted(self.place, edges.astype(self.place.dtype))
        return begin, np.maximum(begin, end)


def make_hpi_table(
    index: PlanIndex,
    anchors: Integer[SampleIndex, " n"],
    sizes: Int64[np.ndarray, " k"],
    strata: Int64[np.ndarray, " k"],
) -> HpiTable:
    """Sort anchors by row and frame.

    Parameters
    ----------
    anchors
        Row after row.
    sizes, strata
        Anchors of each row, and its stratum in the index.
    """
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    frames = int(index.columns.patch_t.max(initial=0)) + 1
    kind = np.int32 if len(sizes) * frames < 1 << 31 else np.int64
    order, key = np.empty(len(anchors), anchors.dtype), np.empty(len(anchors), kind)
    for rows in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(first[1:] // _CHUNK)) + 1):
        own = slice(first[rows[0]], first[rows[-1] + 1]) if len(rows) else slice(0)
        t = index.columns.patch_t[index.row[anchors[own]]]
        row = np.repeat(np.arange(len(rows)), sizes[rows])
        by_frame = sort_small(t)
        by_row = by_frame[sort_small(row[by_frame])]
        order[own] = anchors[own][by_row]
        key[own] = (rows[row[by_row]] if len(rows) else row) * frames + t[by_row]
    if len(sizes) * frames < len(anchors):
        key = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=len(sizes) * frames))]).astype(kind)
    return HpiTable(cast(SampleIndex, order), key, first, frames, index.clock[strata])


class WindowDraws:
    """Draws more of quota groups from a table: just those that are wanted, so none are drawn in vain.

    Parameters
    ----------
    table
        What is within reach.
    rows, group, weight
        Row of each stratum of a round, its quota group, and its draws in the round: a group draws from its strata in
        proportion to these, as far as they have anchors at the time that is asked for.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        table: HpiTable,
        rows: Int64[np.ndarray, " k"],
        group: Int64[np.ndarray, " k"],
        weight: Integer[np.ndarray, " k"],
    ) -> None:
        self._rng = rng
        self._table = table
        order = np.argsort(group, kind="stable")
        self._rows, self._weight = rows[order], weight[order].astype(np.float64)
        self._first = np.searchsorted(group[order], np.arange(int(group.max(initial=-1)) + 2))

    def draw(
        self, wanted: Int64[np.ndarray, " w"], count: Int64[np.ndarray, " w"], low: float, high: float, *, inside: bool
    ) -> tuple[Int64[SampleIndex, " n"], Int64[np.ndarray, " n"]]:
        """Draw so many anchors of each quota group, with replacement, from `low` to `high` hours or from outside.

        Returns
        -------
        The anchors in random order, none of groups that have none there; and the quota group of each.
        """
        table = self._table
        of, at = list_rows(np.arange(len(wanted)), self._first[wanted], self._first[wanted + 1])
        rows = self._rows[at]
        begin, end = table.slices(rows, low, high)
        first, size = table.first[rows], table.first[rows + 1] - table.first[rows]
        offered = end - begin if inside else size - (end - begin)
        total = np.cumsum(self._weight[at] * offered / np.maximum(size, 1))
        last = np.searchsorted(of, np.arange(len(wanted)), "right") - 1
        before = np.concatenate([[0.0], total[last[:-1]]])
        count = np.where(total[last] > before, count, 0)
        share = before.repeat(count) + self._rng.random(int(count.sum())) * (total[last] - before).repeat(count)
        share = np.minimum(share, np.nextafter(total[last], 0.0).repeat(count))
        chosen = np.searchsorted(total, share, "right")  # never a row that offers nothing
        place = (self._rng.random(len(chosen)) * offered[chosen]).astype(np.int64)
        if inside:
            place += begin[chosen]
        else:
            place += first[chosen]
            place += np.where(place >= begin[chosen], (end - begin)[chosen], 0)
        mixed = self._rng.permutation(len(place))
        return cast(SampleIndex, table.anchor[place[mixed]].astype(np.int64)), wanted.repeat(count)[mixed]
