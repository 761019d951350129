"""Holds the draws of a round in one table, and moves them to batches so that lineages stay distinct."""

from __future__ import annotations

from typing import cast

import numpy as np
from jaxtyping import Bool, Int64, Integer

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.index import PlanIndex

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
    ) -> None:
        self._index = index
        quota_group = quota_group.astype(np.min_scalar_type(int(quota_group.max(initial=0))))  # quickly sorted
        order = rng.permutation(len(anchor))  # those of equal HPI stay in random order
        hpi = index.hpi(cast(SampleIndex, anchor[order]))
        by_hpi = np.argsort(hpi, kind="stable")
        self.anchor = cast(SampleIndex, anchor[order[by_hpi]])
        self.quota_group = quota_group[order[by_hpi]]
        self.hpi = hpi[by_hpi]
        self.used = np.zeros(len(anchor), bool)
        self.due = len(anchor)
        """Draws that are due in the round; those behind are extra."""
        self._firsts = (_Firsts(), _Firsts(), _Firsts())

    def add(self, anchor: Int64[SampleIndex, " n"], quota_group: Int64[np.ndarray, " n"]) -> None:
        """Add extra draws, each of its quota group."""
        self.anchor = cast(SampleIndex, np.concatenate([self.anchor, anchor]))
        self.quota_group = np.concatenate([self.quota_group, quota_group.astype(self.quota_group.dtype)])
        self.hpi = np.concatenate([self.hpi, self._index.hpi(anchor)])
        self.used = np.concatenate([self.used, np.zeros(len(anchor), bool)])

    def choose(
        self,
        allowed: Int64[np.ndarray, " k"],
        taken: list[Int64[np.ndarray, " _"]],
        need: Int64[np.ndarray, " q"],
        level: int,
    ) -> Int64[np.ndarray, " q"]:
        """Move allowed draws, in their order, to a batch, up to `need` of each quota group; return what is missing.

        Parameters
        ----------
        taken
            What the batch holds; what it gets is added.
        level
            0 keeps lineages distinct, 1 tracks, 2 observations, 3 nothing.
        """
        at = allowed[~self.used[allowed] & (need > 0)[self.quota_group[allowed]]]
        if level < _REPLACEMENT:
            at = at[self._look_up(level).find(at, taken)]
        at = at[_first_of_group(self.quota_group[at], need)]
        if not len(at):
            return need
        self.used[at] = True
        taken.append(at)
        need = need - np.bincount(self.quota_group[at], minlength=len(need))
        # where lineages meet, a draw that was passed over may have kept another quota group from its lineage
        return self.choose(allowed, taken, need, level) if self._index.lineages_meet and need.any() else need

    def _look_up(self, level: int) -> _Firsts:
        """Return the lineages, tracks or observations of all draws, those that were added last looked up now."""
        firsts = self._firsts[level]
        new = cast(SampleIndex, self.anchor[len(firsts.value) :])
        if len(new):
            firsts.add(new if level == 2 else (self._index.lineage, self._index.track)[level](new))
        return firsts


class _Firsts:
    """Finds which draws are the first of their value, without a sort.

    The table has a place for every value there may be, and is never filled: each look writes the places that it reads.
    """

    def __init__(self) -> None:
        self.value = np.zeros(0, np.int64)
        self._table = np.empty(0, np.int64)

    def add(self, value: Integer[np.ndarray, " n"]) -> None:
        """Append the values of more draws."""
        self.value = np.concatenate([self.value, value])
        size = int(value.max()) + 1
        if size > len(self._table):
            self._table = np.empty(2 * size, np.int64)

    def find(self, at: Int64[np.ndarray, " k"], taken: list[Int64[np.ndarray, " _"]]) -> Bool[np.ndarray, " k"]:
        """Say which of the draws `at` are the first of their value, and not of a value that is taken."""
        value, place = self.value[at], np.arange(len(at))
        self._table[value[::-1]] = place[::-1]  # of equal values the last assignment stays: the first place
        for held in taken:
            self._table[self.value[held]] = -1
        return self._table[value] == place


def _first_of_group(quota_group: Integer[np.ndarray, " k"], need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " m"]:
    """Find the first `need` places of each quota group."""
    count = np.bincount(quota_group, minlength=len(need))
    begin = count.cumsum() - count
    rank = np.arange(len(quota_group)) - begin.repeat(count)
    return quota_group.argsort(kind="stable")[rank < need.repeat(count)]
