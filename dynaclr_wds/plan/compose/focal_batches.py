"""Draws to batches around a focal HPI: temporal enrichment, jointly with every other quota.

The draws of a round are shared out among its batches, each of which has its own focal HPI: first every batch's focal
part, from the draws inside its window, then the rest from those outside. Where the round's own draws run out, more are
drawn from what is within reach; these anchors repeat and the ledger counts them, because composition comes before
coverage. Where quota groups are many, few draws of a group are in the window of a batch, if any: then only the groups
that the batch needs are looked at, and what is missing is found by time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.draws import Draws
from dynaclr_wds.plan.compose.focal_window import focal_edges, focal_quota, in_focal_window
from dynaclr_wds.plan.compose.hpi_table import WindowDraws

_TRIES = 3
_EXTRA_DRAWS = (1 << 9, 1 << 14)
_LEAST_SHARE = 0.02
_BY_TIME, _MORE_BY_TIME = 3, 24  # draws by time for each that is wanted, as its lineage may be in the batch

DrawMore = Callable[
    [Int64[np.ndarray, " w"], Int64[np.ndarray, " w"]], tuple[Int64[SampleIndex, " n"], Int64[np.ndarray, " n"]]
]
"""(quota groups, counts) → about so many anchors of their strata within reach, with replacement, those of each group in
random order; with the quota group of each."""


def assemble_focused(
    rng: np.random.Generator,
    draws: Draws,
    draw_more: DrawMore | WindowDraws,
    quota: Int64[np.ndarray, "r q"],
    focal_size: Int64[np.ndarray, " r"],
    focal_hpi: Float64[np.ndarray, " r"],
    half_width_hours: float,
) -> Int64[SampleIndex, "r b"]:
    """Share out the draws of a round.

    Parameters
    ----------
    draws
        The round's draws.
    draw_more
        Draws more for quota groups; by time where they are many.
    quota
        Samples of each quota group in each batch.
    focal_size
        Samples of each batch that are to be inside its window.
    focal_hpi
        Of each batch, in hours.
    """
    batches = rng.permutation(len(quota))
    taken: list[list[Int64[np.ndarray, " _"]]] = [[] for _ in quota]
    focal = focal_quota(quota, focal_size)
    rest = quota - focal
    begin, end = np.searchsorted(draws.hpi, np.stack(focal_edges(focal_hpi, half_width_hours)))
    waiting = _least_covered_first(rng, draws.hpi, focal_hpi, half_width_hours)
    due = _DueOfMany(draws, waiting) if isinstance(draw_more, WindowDraws) else _Due(draws, waiting)
    for b in batches:
        near = due.near(int(begin[b]), int(end[b]), focal[b])
        extra = _make_extra(draw_more, focal_hpi[b], half_width_hours, inside=True)
        near = rng.permutation(near)
        rest[b] += _fill(draws, near, extra, taken[b], focal[b], int(focal_size[b]), levels=(0, 1, 2))
    for b in rng.permutation(batches):
        unused = due.in_order(rest[b])
        far = unused[(unused < begin[b]) | (unused >= end[b])]
        extra = _make_extra(draw_more, focal_hpi[b], half_width_hours, inside=False)
        left = _fill(draws, far, extra, taken[b], rest[b], int(rest[b].sum()), levels=(0,))
        if left.any():
            anywhere = _make_extra(draw_more, np.nan, half_width_hours, inside=True)
            _fill(draws, unused, anywhere, taken[b], left, int(left.sum()), levels=(0, 1, 2, 3))
    return cast(SampleIndex, draws.anchor[np.stack([np.concatenate(own) for own in taken])])


class _Due:
    """The draws of a round that no batch has, all of them.

    Parameters
    ----------
    waiting
        In the order in which they are taken outside the window.
    """

    def __init__(self, draws: Draws, waiting: Int64[np.ndarray, " n"]) -> None:
        self._draws = draws
        self._waiting = waiting

    def near(self, begin: int, end: int, need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " k"]:
        """List those from place `begin` to `end`."""
        del need
        return begin + np.flatnonzero(~self._draws.used[begin:end])

    def in_order(self, need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " k"]:
        """List those that wait, in their order."""
        del need
        self._waiting = self._waiting[~self._draws.used[self._waiting]]
        return self._waiting


class _DueOfMany:
    """The same where quota groups are many: only those of the groups that a batch needs are looked at."""

    def __init__(self, draws: Draws, waiting: Int64[np.ndarray, " n"]) -> None:
        self._draws = draws
        self._rank = np.empty(len(waiting), np.int64)
        self._rank[waiting] = np.arange(len(waiting))

    def near(self, begin: int, end: int, need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " k"]:
        """List those from place `begin` to `end`."""
        place = self._draws.of_groups(np.flatnonzero(need))
        return place[(place >= begin) & (place < end)]

    def in_order(self, need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " k"]:
        """List those that wait, in their order."""
        place = self._draws.of_groups(np.flatnonzero(need))
        return place[np.argsort(self._rank[place])]


def _least_covered_first(
    rng: np.random.Generator,
    hpi: Float64[np.ndarray, " n"],
    focal_hpi: Float64[np.ndarray, " r"],
    half_width_hours: float,
) -> Int64[np.ndarray, " n"]:
    """Order draws by how many windows reach them: the first can best be spared for the part without a window."""
    centres = np.sort(focal_hpi)
    low, high = focal_edges(hpi, half_width_hours)
    cover = np.searchsorted(centres, high, "right") - np.searchsorted(centres, low, "left")
    return np.lexsort((rng.random(len(cover)), cover))


@dataclass(frozen=True, slots=True)
class _Extra:
    """Draws that are not due in the round, of the kind that a batch wants."""

    draw_more: DrawMore
    focal_hpi: float
    half_width_hours: float
    inside: bool
    """Whether they are to be inside the focal window, or outside."""

    def spare(self, draws: Draws, begin: int) -> Int64[np.ndarray, " k"]:
        """Find those from place `begin` on that are not used."""
        spare = begin + np.flatnonzero(~draws.used[begin:])
        return spare[self._of_kind(draws.hpi[spare])]

    def draw(self, draws: Draws, need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " k"]:
        """Draw more of each quota group that needs some, unless none of many draws before was of that kind."""
        begin, group = len(draws.anchor), draws.quota_group
        seen = np.bincount(group, minlength=len(need))
        of_kind = np.bincount(group[self._of_kind(draws.hpi)], minlength=len(need))
        share = np.maximum(of_kind / np.maximum(seen, 1), _LEAST_SHARE)
        wanted = np.flatnonzero((need > 0) & ((of_kind > 0) | (seen < _EXTRA_DRAWS[0])))
        count = np.clip(4 * need / share, *_EXTRA_DRAWS).astype(np.int64)
        if len(wanted):
            draws.add(*self.draw_more(wanted, count[wanted]))
        return self.spare(draws, begin)

    def _of_kind(self, hpi: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        return in_focal_window(hpi, self.focal_hpi, self.half_width_hours) == self.inside


@dataclass(slots=True)
class _ExtraOfMany:
    """The same where quota groups are many: they are found by time."""

    window_draws: WindowDraws
    focal_hpi: float
    half_width_hours: float
    inside: bool
    drawn: list[Int64[np.ndarray, " _"]] = field(default_factory=list)

    def spare(self, draws: Draws, begin: int) -> Int64[np.ndarray, " k"]:
        """Find those that were drawn for this batch and are not used: they may do where more is allowed."""
        del begin
        spare = np.concatenate([np.zeros(0, np.int64), *self.drawn])
        return spare[~draws.used[spare]]

    def draw(self, draws: Draws, need: Int64[np.ndarray, " q"]) -> Int64[np.ndarray, " k"]:
        """Draw more of each quota group that needs some, many where a few did not do."""
        wanted = np.flatnonzero(need)
        low, high = focal_edges(self.focal_hpi, self.half_width_hours)
        if np.isnan(self.focal_hpi):
            low, high = -np.inf, np.inf
        count = (_MORE_BY_TIME if self.drawn else _BY_TIME) * need[wanted]
        more = self.window_draws.draw(wanted, count, float(low), float(high), inside=self.inside)
        self.drawn.append(draws.add(*more))
        return self.drawn[-1]


def _make_extra(
    more: DrawMore | WindowDraws, focal_hpi: float, half_width_hours: float, *, inside: bool
) -> _Extra | _ExtraOfMany:
    if isinstance(more, WindowDraws):
        return _ExtraOfMany(more, focal_hpi, half_width_hours, inside)
    return _Extra(more, focal_hpi, half_width_hours, inside)


def _fill(
    draws: Draws,
    allowed: Int64[np.ndarray, " k"],
    extra: _Extra | _ExtraOfMany,
    taken: list[Int64[np.ndarray, " _"]],
    need: Int64[np.ndarray, " q"],
    most: int,
    levels: tuple[int, ...],
) -> Int64[np.ndarray, " q"]:
    """Fill a batch from the draws that are due, else from what is within reach, relaxing as far as `levels` says.

    Returns what is still missing of each quota group, when `most` draws are found or no more can be.
    """
    least = int(need.sum()) - most  # of what is needed, what may be missing
    for level in levels:
        few = 3 * (int(need.sum()) - least) + 64  # mostly enough, and cheaper to look through
        for part in (allowed[:few], allowed[few:]):
            need = draws.choose(part, taken, need, int(need.sum()) - least, level)
        if need.sum() > least:
            need = draws.choose(extra.spare(draws, draws.due), taken, need, int(need.sum()) - least, level)
        for _ in range(_TRIES):
            left = int(need.sum()) - least
            if not left:
                return need
            need = draws.choose(extra.draw(draws, need), taken, need, left, level)
            if need.sum() - least == left:
                break
    return need
