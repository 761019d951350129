"""Holds the draws of a round in one table, and moves them to batches so that lineages stay distinct."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, Shaped

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.relatives import list_rows

_REPLACEMENT = 3


class Draws:
    """Draws of a round, of all quota groups, sorted by HPI; behind them those that are added when they run out.

    A draw is named by its place in the table. Each is used once.
    """

    def __init__(
        self,
        index: PlanIndex,
        anchor: Int64[SampleIndex, " n"],
        quota_group: Integer[np.ndarray, " n"],
        rng: np.random.Generator,
        tables: FirstTables,
    ) -> None:
        self._index = index
        quota_group = quota_group.astype(np.min_scalar_type(int(quota_group.max(initial=0))))  # quickly sorted
        order = rng.permutation(len(anchor))  # those of equal HPI stay in random order
        hpi = index.hpi(cast(SampleIndex, anchor[order]))
        by_hpi = np.argsort(hpi, kind="stable")
        self.due = self._count = len(anchor)
        """Draws that are due in the round; those behind are extra."""
        self._anchor, self._quota_group = anchor[order[by_hpi]], quota_group[order[by_hpi]]
        self._used = np.zeros(len(anchor), bool)
        self._by_group: tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]] | None = None
        self._hpi, self._timed = hpi[by_hpi], len(anchor)
        self._firsts = tuple(_Firsts(table) for table in tables)

    @property
    def anchor(self) -> Int64[SampleIndex, " n"]:
        """Anchor of each draw."""
        return cast(SampleIndex, self._anchor[: self._count])

    @property
    def quota_group(self) -> Integer[np.ndarray, " n"]:
        """Quota group of each draw."""
        return self._quota_group[: self._count]

    @property
    def hpi(self) -> Float64[np.ndarray, " n"]:
        """HPI of each draw, those that were added last looked up now."""
        new = cast(SampleIndex, self.anchor[self._timed :])
        if len(new):
            self._hpi, self._timed = _append(self._hpi, self._timed, self._index.hpi(new)), self._count
        return self._hpi[: self._count]

    @property
    def used(self) -> Bool[np.ndarray, " n"]:
        """Whether each draw is in a batch."""
        return self._used[: self._count]

    def add(self, anchor: Int64[SampleIndex, " n"], quota_group: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Add extra draws, each of its quota group; return their places."""
        begin, self._count = self._count, self._count + len(anchor)
        self._anchor = _append(self._anchor, begin, anchor)
        self._quota_group = _append(self._quota_group, begin, quota_group)
        self._used = _append(self._used, begin, np.zeros(len(anchor), bool))
        return np.arange(begin, self._count)

    def of_groups(self, wanted: Int64[np.ndarray, " w"]) -> Int64[np.ndarray, " k"]:
        """Find the draws that are due and not used of some quota groups, group after group by HPI."""
        if self._by_group is None:
            group = self._quota_group[: self.due]
            by_group = np.argsort(group, kind="stable")
            self._by_group = by_group, np.concatenate([[0], np.cumsum(np.bincount(group))])
        by_group, first = self._by_group
        _, place = list_rows(wanted, first[wanted], first[wanted + 1])
        place = by_group[place]
        return place[~self.used[place]]

    def choose(
        self,
        allowed: Int64[np.ndarray, " k"],
        taken: list[Int64[np.ndarray, " _"]],
        need: Int64[np.ndarray, " q"],
        most: int,
        level: int,
    ) -> Int64[np.ndarray, " q"]:
        """Move allowed draws, in their order, to a batch, up to `need` of each quota group; return what is missing.

        Parameters
        ----------
        taken
            What the batch holds; what it gets is added.
        most
            Draws to move, at most.
        level
            0 keeps lineages distinct, 1 tracks, 2 observations, 3 nothing.
        """
        if not len(allowed) or not most:
            return need
        at = allowed[~self.used[allowed] & (need > 0)[self.quota_group[allowed]]]
        if level < _REPLACEMENT:
            at = at[self._look_up(level).find(at, taken)]
        if not len(at):
            return need
        place = _first_of_group(self.quota_group[at], need)
        at = at[place if len(place) <= most else np.sort(place)[:most]]
        self.used[at] = True
        taken.append(at)
        need = need - np.bincount(self.quota_group[at], minlength=len(need))
        # where lineages meet, a draw that was passed over may have kept another quota group from its lineage
        again = self._index.lineages_meet and need.any()
        return self.choose(allowed, taken, need, most - len(at), level) if again else need

    def _look_up(self, level: int) -> _Firsts:
        """Return the lineages, tracks or observations of all draws, those that were added last looked up now."""
        firsts = self._firsts[level]
        new = cast(SampleIndex, self.anchor[firsts.count :])
        if len(new):
            firsts.add(new if level == 2 else (self._index.lineage, self._index.track)[level](new))
        return firsts


class FirstTable:
    """A place for every value there may be, never filled: each look writes the places that it reads.

    It is as long as the set has lineages, tracks or observations, so the rounds of a pool share it.
    """

    def __init__(self) -> None:
        self.place = np.empty(0, np.int32)

    def grow(self, size: int) -> None:
        """Make it hold values below `size`."""
        if size > len(self.place):
            self.place = np.empty(2 * size, np.int32)


FirstTables = tuple[FirstTable, FirstTable, FirstTable]
"""Of lineages, tracks and observations."""


class _Firsts:
    """Finds which draws are the first of their value, without a sort."""

    def __init__(self, table: FirstTable) -> None:
        self.value = np.zeros(0, np.int64)
        self.count = 0
        self._table = table

    def add(self, value: Integer[np.ndarray, " n"]) -> None:
        """Append the values of more draws."""
        self.value = _append(self.value, self.count, value)
        self.count += len(value)
        self._table.grow(int(value.max()) + 1)

    def find(self, at: Int64[np.ndarray, " k"], taken: list[Int64[np.ndarray, " _"]]) -> Bool[np.ndarray, " k"]:
        """Say which of the draws `at` are the first of their value, and not of a value that is taken."""
        value, place, table = self.value[at], np.arange(len(at)), self._table.place
        table[value[::-1]] = place[::-1]  # of equal values the last assignment stays: the first place
        for held in taken:
            table[self.value[held]] = -1
        return table[value] == place


def _first_of_group(quota_group: Integer[np.ndarray, " k"], need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " m"]:
    """Find the first `need` places of each quota group."""
    order = quota_group.argsort(kind="stable")
    ordered = quota_group[order]
    begin = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    count = np.concatenate([begin[1:], [len(order)]]) - begin
    rank = np.arange(len(order)) - begin.repeat(count)
    return order[rank < need[ordered[begin]].repeat(count)]


def _append(
    values: Shaped[np.ndarray, " m"],
    count: int,
    more: Shaped[np.ndarray, " n"],
) -> Any:
    """Write values behind the first `count`; the array has room for as many again where it has to grow."""
    if count + len(more) > len(values):
        grown = np.empty(2 * (count + len(more)), values.dtype)
        grown[:count] = values[:count]
        values = grown
    values[count : count + len(more)] = more
    return values
