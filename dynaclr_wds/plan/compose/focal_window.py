"""Draws to batches around a focal HPI: temporal enrichment, jointly with every other quota.

The draws of a round are shared out among its batches, each of which has its own focal HPI: first every batch's focal
part, from the draws inside its window, then the rest from those outside. Where the round's own draws run out, more are
drawn from what is within reach; these anchors repeat and the ledger counts them, because composition comes before
coverage. The focal HPIs of a round are spread over the HPIs that its draws have in all main strata at once, so that
together the windows use up the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex

_EDGE_HOURS = 1e-6  # frames at the window's very edge belong to it
_TRIES = 3
_EXTRA_DRAWS = (1 << 9, 1 << 14)
_LEAST_SHARE = 0.02
_REPLACEMENT = 3

DrawMore = Callable[[int, int], Int64[SampleIndex, " n"]]
"""(quota group, count) → up to so many anchors of its strata within reach, with replacement, in random order."""


def focal_edges(
    focal_hpi: Float64[np.ndarray, "*n"] | float, half_width_hours: float
) -> tuple[Float64[np.ndarray, "*n"] | float, Float64[np.ndarray, "*n"] | float]:
    """Where a focal window begins and ends in hours; what lies in between, ends included, is in it."""
    reach = half_width_hours + _EDGE_HOURS
    return focal_hpi - reach, focal_hpi + reach


def in_focal_window(
    hpi: Float64[np.ndarray, "*n"], focal_hpi: float, half_width_hours: float
) -> Bool[np.ndarray, "*n"]:
    """Say which HPIs are in the focal window; all of them when `focal_hpi` is NaN, which means no window."""
    if np.isnan(focal_hpi):
        return np.ones(hpi.shape, bool)
    low, high = focal_edges(focal_hpi, half_width_hours)
    return (hpi >= low) & (hpi <= high)


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


def sample_focal_hpi(
    rng: np.random.Generator, hpi: list[Float64[np.ndarray, " _"]], half_width_hours: float, count: int
) -> Float64[np.ndarray, " count"]:
    """Draw focal HPIs evenly over the HPIs at which all strata have draws, with the whole window inside their range.

    Parameters
    ----------
    hpi
        Of the draws of each main stratum.
    count
        Batches in the round.
    """
    values, weight = np.unique(np.concatenate(hpi), return_counts=True)
    begin, end = focal_edges(values, half_width_hours)
    density = np.empty((len(hpi), len(values)))
    for s, own in enumerate(hpi):
        ordered = np.sort(own)
        inside = np.searchsorted(ordered, end, "right") - np.searchsorted(ordered, begin, "left")
        density[s] = inside / max(len(own), 1)
    joint = weight * density.min(0) / density.mean(0)
    total = np.cumsum(joint if joint.any() else weight)
    even = (np.arange(count) + rng.random(count)) / count
    at = np.minimum(np.searchsorted(total, even * total[-1], "right"), len(values) - 1)
    low, high = values[0] + half_width_hours, values[-1] - half_width_hours
    return rng.permutation(np.clip(values[at], min(low, high), max(low, high)))


def focal_quota(
    quota: Int64[np.ndarray, "r q"], first_occurrence: int, config: SamplingConfig
) -> Int64[np.ndarray, "r q"]:
    """Split the focal part of each batch over its quota groups; its size is exact over the epoch.

    Parameters
    ----------
    quota
        Samples of each quota group in each batch of the round.
    first_occurrence
        Which of its group's batches the first one is.
    """
    each = config.temporal_global_fraction * config.batch_size
    until = np.floor(np.arange(first_occurrence, first_occurrence + len(quota) + 1) * each + 1e-9)
    elsewhere = np.diff(until).astype(np.int64)
    return np.stack([largest_remainder(int(row.sum() - n), row) for row, n in zip(quota, elsewhere, strict=True)])


def assemble_focused(
    rng: np.random.Generator,
    draws: Draws,
    draw_more: DrawMore,
    quota: Int64[np.ndarray, "r q"],
    focal: Int64[np.ndarray, "r q"],
    focal_hpi: Float64[np.ndarray, " r"],
    half_width_hours: float,
) -> Int64[SampleIndex, "r b"]:
    """Share out the draws of a round.

    Parameters
    ----------
    draws
        The round's draws.
    draw_more
        Draws more for a quota group.
    quota, focal
        Samples of each quota group in each batch, in all and inside its window.
    focal_hpi
        Of each batch, in hours.
    """
    batches = rng.permutation(len(quota))
    taken: list[list[Int64[np.ndarray, " _"]]] = [[] for _ in quota]
    rest = quota - focal
    begin, end = np.searchsorted(draws.hpi, np.stack(focal_edges(focal_hpi, half_width_hours)))
    waiting = _least_covered_first(rng, draws.hpi, focal_hpi, half_width_hours)
    for b in batches:
        near = begin[b] + np.flatnonzero(~draws.used[begin[b] : end[b]])
        extra = _Extra(draw_more, focal_hpi[b], half_width_hours, inside=True)
        rest[b] += _fill(draws, rng.permutation(near), extra, taken[b], focal[b], levels=(0, 1, 2))
    for b in rng.permutation(batches):
        waiting = waiting[~draws.used[waiting]]
        far = waiting[(waiting < begin[b]) | (waiting >= end[b])]
        extra = _Extra(draw_more, focal_hpi[b], half_width_hours, inside=False)
        left = _fill(draws, far, extra, taken[b], rest[b], levels=(0,))
        if left.any():
            anywhere = _Extra(draw_more, np.nan, half_width_hours, inside=True)
            _fill(draws, waiting, anywhere, taken[b], left, levels=(0, 1, 2, 3))
    return cast(SampleIndex, draws.anchor[np.stack([np.concatenate(own) for own in taken])])


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
        count = np.clip(4 * need / share, *_EXTRA_DRAWS).astype(np.int64)
        wanted = np.flatnonzero((need > 0) & ((of_kind > 0) | (seen < _EXTRA_DRAWS[0])))
        if len(wanted):
            draws.add([self.draw_more(g, int(count[g])) for g in wanted.tolist()], wanted)
        return self.spare(draws, begin)

    def _of_kind(self, hpi: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        return in_focal_window(hpi, self.focal_hpi, self.half_width_hours) == self.inside


def _fill(
    draws: Draws,
    allowed: Int64[np.ndarray, " k"],
    extra: _Extra,
    taken: list[Int64[np.ndarray, " _"]],
    need: Int64[np.ndarray, " q"],
    levels: tuple[int, ...],
) -> Int64[np.ndarray, " q"]:
    """Fill a batch from the draws that are due, else from what is within reach, relaxing as far as `levels` says.

    Returns what is still missing of each quota group.
    """
    for level in levels:
        few = 3 * int(need.sum()) + 64  # mostly enough, and cheaper to look through
        need = draws.choose(allowed[:few], taken, need, level)
        if need.any() and len(allowed) > few:
            need = draws.choose(allowed[few:], taken, need, level)
        if need.any():
            need = draws.choose(extra.spare(draws, draws.due), taken, need, level)
        for _ in range(_TRIES):
            if not need.any():
                return need
            missing, need = need, draws.choose(extra.draw(draws, need), taken, need, level)
            if (need == missing).all():
                break
    return need
