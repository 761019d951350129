"""Holds the draws of a round in one table, and moves them to batches so that lineages stay distinct."""

from __future__ import annotations

from collections.abc import Sequence
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

    def __init__(self, index: PlanIndex, anchors: Sequence[Int64[SampleIndex, " _"]], rng: np.random.Generator) -> None:
        self._index = index
        anchor, quota_group = _join(anchors)
        order = rng.permutation(len(anchor))  # those of equal HPI stay in random order
        hpi = index.hpi(cast(SampleIndex, anchor[order]))
        by_hpi = np.argsort(hpi, kind="stable")
        self.anchor = cast(SampleIndex, anchor[order[by_hpi]])
        self.quota_group = quota_group[order[by_hpi]]
        self.hpi = hpi[by_hpi]
        self.used = np.zeros(len(anchor), bool)
        self.due = len(anchor)
        """Draws that are due in the round; those behind are extra."""
        self._numbers = tuple(_Numbers() for _ in range(_REPLACEMENT))

    def add(self, anchors: Sequence[Int64[SampleIndex, " _"]], quota_groups: Int64[np.ndarray, " _"]) -> None:
        """Add extra draws of some quota groups."""
        anchor, number = _join(anchors)
        quota_group = quota_groups[number]
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
            code, count = self._number(level)
            at = at[_first_of_each(code[at], [code[t] for t in taken], count)]
        at = at[_first_of_group(self.quota_group[at], need)]
        if not len(at):
            return need
        self.used[at] = True
        taken.append(at)
        need = need - np.bincount(self.quota_group[at], minlength=len(need))
        # where lineages meet, a draw that was passed over may have kept another quota group from its lineage
        return self.choose(allowed, taken, need, level) if self._index.lineages_meet and need.any() else need

    def _number(self, level: int) -> tuple[Int64[np.ndarray, " n"], int]:
        """Number the lineages, tracks or observations of all draws; with the count of numbers."""
        numbers = self._numbers[level]
        new = cast(SampleIndex, self.anchor[len(numbers.code) :])
        if len(new):
            numbers.add(new if level == 2 else (self._index.lineage, self._index.track)[level](new))
        return numbers.code, len(numbers.value)


class _Numbers:
    """Numbers 0, 1, … for values, so that a table over all of them is small; a value keeps its number."""

    def __init__(self) -> None:
        self.code = np.zeros(0, np.int64)
        self.value = np.zeros(0, np.int64)
        self._number = np.zeros(0, np.int64)

    def add(self, value: Integer[np.ndarray, " n"]) -> None:
        """Number more values, behind those in `code`."""
        new = np.setdiff1d(value, self.value)
        place = self.value.searchsorted(new)
        self._number = np.insert(self._number, place, np.arange(len(self.value), len(self.value) + len(new)))
        self.value = np.insert(self.value, place, new)
        self.code = np.concatenate([self.code, self._number[self.value.searchsorted(value)]])


def _join(anchors: Sequence[Int64[SampleIndex, " _"]]) -> tuple[Int64[SampleIndex, " n"], Integer[np.ndarray, " n"]]:
    """Join the anchors of all quota groups; with the quota group of each, in a dtype that is quickly sorted."""
    kind = np.min_scalar_type(len(anchors))
    return cast(SampleIndex, np.concatenate(anchors)), np.repeat(
        np.arange(len(anchors), dtype=kind), [len(a) for a in anchors]
    )


def _first_of_each(
    code: Int64[np.ndarray, " k"], held: list[Int64[np.ndarray, " _"]], count: int
) -> Bool[np.ndarray, " k"]:
    """Say which numbers, of `count`, are the first of their value and not held."""
    place = np.arange(len(code))
    first = np.full(count, len(code))
    np.minimum.at(first, code, place)
    for other in held:
        first[other] = -1
    return first[code] == place


def _first_of_group(quota_group: Integer[np.ndarray, " k"], need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " m"]:
    """Find the first `need` places of each quota group."""
    count = np.bincount(quota_group, minlength=len(need))
    begin = count.cumsum() - count
    rank = np.arange(len(quota_group)) - begin.repeat(count)
    return quota_group.argsort(kind="stable")[rank < need.repeat(count)]
