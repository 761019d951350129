"""Draws to batches around a focal HPI: temporal enrichment, jointly with every other quota.

The draws of a round are shared out among its batches, each of which has its own focal HPI: first every batch's focal
part, from the draws inside its window, then the rest from those outside. Where the round's own draws run out, more are
drawn from what is within reach; these anchors repeat and the ledger counts them, because composition comes before
coverage. The focal HPIs of a round are spread over the HPIs that its draws have in all main strata at once, so that
together the windows use up the draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex

_EDGE_HOURS = 1e-6  # frames at the window's very edge belong to it
_TRIES = 3
_MOST_EXTRA = 1 << 14

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


@dataclass(slots=True)
class BatchSlots:
    """What one batch holds, with the three things that should not repeat.

    Where no lineage is in two strata, each quota group of a batch has slots of its own, which are quicker to compare.
    """

    anchors: list[Int64[SampleIndex, " _"]] = field(default_factory=list)
    keys: tuple[list[Int64[np.ndarray, " _"]], ...] = field(default_factory=lambda: ([], [], []))

    def take(self, draws: Draws, at: Int64[np.ndarray, " k"]) -> None:
        """Add the draws at these places."""
        self.anchors.append(cast(SampleIndex, draws.anchor[at]))
        for held, key in zip(self.keys, (draws.lineage, draws.track, draws.anchor), strict=True):
            held.append(key[at])


@dataclass(slots=True, kw_only=True)
class Draws:
    """Draws of one quota group."""

    anchor: Int64[SampleIndex, " n"]
    lineage: Int64[np.ndarray, " n"]
    track: Int64[np.ndarray, " n"]
    hpi: Float64[np.ndarray, " n"]
    used: Bool[np.ndarray, " n"]

    def choose(self, slots: BatchSlots, allowed: Int64[np.ndarray, " k"], need: int, level: int) -> int:
        """Move up to `need` allowed draws, in their order, to a batch; return how many were moved.

        Level 0 keeps lineages distinct, 1 tracks, 2 observations, 3 nothing.
        """
        at = allowed[~self.used[allowed]]
        if level < 3:
            held = slots.keys[level]
            before = sum(len(h) for h in held)
            first = _first_of_each(np.concatenate([*held, (self.lineage, self.track, self.anchor)[level][at]]))
            at = at[first[first >= before] - before]
        at = at[:need]
        self.used[at] = True
        slots.take(self, at)
        return len(at)


def _first_of_each(key: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " k"]:
    """Find the first place of each value, in the order of places."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    new = np.ones(len(key), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.sort(order[new])


def make_sorted_draws(index: PlanIndex, anchor: Int64[SampleIndex, " n"]) -> Draws:
    """Look up lineage, track and HPI of each draw, and sort them by HPI; those of equal HPI stay in order."""
    return make_draws(index, cast(SampleIndex, anchor[np.argsort(index.hpi(anchor), kind="stable")]))


def make_draws(index: PlanIndex, anchor: Int64[SampleIndex, " n"]) -> Draws:
    """Look up lineage, track and HPI of each draw."""
    return Draws(
        anchor=anchor,
        lineage=index.lineage(anchor).astype(np.int64),
        track=index.track(anchor).astype(np.int64),
        hpi=index.hpi(anchor),
        used=np.zeros(len(anchor), bool),
    )


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
    draws: dict[int, Draws],
    draw_more: DrawMore,
    quota: Int64[np.ndarray, "r q"],
    focal: Int64[np.ndarray, "r q"],
    focal_hpi: Float64[np.ndarray, " r"],
    index: PlanIndex,
    half_width_hours: float,
) -> Int64[SampleIndex, "r b"]:
    """Share out the draws of a round.

    Parameters
    ----------
    draws
        By quota group, the round's draws, sorted by HPI and in random order where it is the same.
    draw_more
        Draws more for a quota group.
    quota, focal
        Samples of each quota group in each batch, in all and inside its window.
    focal_hpi
        Of each batch, in hours.
    """
    batches = rng.permutation(len(quota))
    slots = [{g: BatchSlots() for g in draws} for _ in quota]
    if index.lineages_meet:
        slots = [dict.fromkeys(draws, BatchSlots()) for _ in quota]
    short = np.zeros_like(quota)
    # (quota group, batch) → begin and end of the window among the draws, which are sorted by HPI
    edge = {g: np.searchsorted(d.hpi, np.stack(focal_edges(focal_hpi, half_width_hours))).T for g, d in draws.items()}
    waiting = {g: _least_covered_first(rng, d, focal_hpi, half_width_hours) for g, d in draws.items()}
    for b, g in ((b, g) for b in batches for g in draws if focal[b, g]):
        begin, end = edge[g][b]
        near = begin + np.flatnonzero(~draws[g].used[begin:end])
        share = max((end - begin) / max(len(draws[g].anchor), 1), 0.02)
        extra = _Extra(draw_more, index, g, _window(focal_hpi[b], half_width_hours, inside=True), share)
        short[b, g] = _fill(draws[g], rng.permutation(near), extra, slots[b][g], int(focal[b, g]), levels=(0, 1, 2))
    rest = quota - focal + short
    for b, g in ((b, g) for b in rng.permutation(batches) for g in draws if rest[b, g]):
        begin, end = edge[g][b]
        waiting[g] = waiting[g][~draws[g].used[waiting[g]]]
        far = waiting[g][(waiting[g] < begin) | (waiting[g] >= end)]
        extra = _Extra(draw_more, index, g, _window(focal_hpi[b], half_width_hours, inside=False), 0.5)
        left = _fill(draws[g], far, extra, slots[b][g], int(rest[b, g]), levels=(0,))
        if left:
            anywhere = _Extra(draw_more, index, g, _everything, 1.0)
            _fill(draws[g], waiting[g], anywhere, slots[b][g], left, levels=(0, 1, 2, 3))
    held = [list({id(own): own for own in of.values()}.values()) for of in slots]
    return cast(SampleIndex, np.stack([np.concatenate([a for own in of for a in own.anchors]) for of in held]))


def _least_covered_first(
    rng: np.random.Generator, draws: Draws, focal_hpi: Float64[np.ndarray, " r"], half_width_hours: float
) -> Int64[np.ndarray, " n"]:
    """Order draws by how many windows reach them: the first can best be spared for the part without a window."""
    centres = np.sort(focal_hpi)
    low, high = focal_edges(draws.hpi, half_width_hours)
    cover = np.searchsorted(centres, high, "right") - np.searchsorted(centres, low, "left")
    return np.lexsort((rng.random(len(cover)), cover))


def _window(focal_hpi: float, half_width_hours: float, *, inside: bool) -> Callable[[Draws], Bool[np.ndarray, " n"]]:
    return lambda draws: in_focal_window(draws.hpi, focal_hpi, half_width_hours) == inside


def _everything(draws: Draws) -> Bool[np.ndarray, " n"]:
    return np.ones(len(draws.anchor), bool)


@dataclass(frozen=True, slots=True)
class _Extra:
    """More draws for a quota group, of the kind that is wanted."""

    draw_more: DrawMore
    index: PlanIndex
    quota_group: int
    wanted: Callable[[Draws], Bool[np.ndarray, " n"]]
    share: float
    """Of the draws, about, that are of that kind."""

    def draws(self, need: int) -> tuple[Draws, Int64[np.ndarray, " k"]]:
        """Draw more, and say which of them are wanted."""
        count = min(int(4 * need / self.share) + 16, _MOST_EXTRA)
        draws = make_draws(self.index, self.draw_more(self.quota_group, count))
        return draws, np.flatnonzero(self.wanted(draws))


def _fill(
    draws: Draws,
    allowed: Int64[np.ndarray, " k"],
    extra: _Extra,
    slots: BatchSlots,
    need: int,
    levels: tuple[int, ...],
) -> int:
    """Fill a batch from the draws that are due, else from what is within reach, relaxing as far as `levels` says.

    Returns what is still missing.
    """
    for level in levels:
        few = 3 * need + 32  # mostly enough, and cheaper to look through
        need -= draws.choose(slots, allowed[:few], need, level)
        if need and len(allowed) > few:
            need -= draws.choose(slots, allowed[few:], need, level)
        for _ in range(_TRIES):
            if not need:
                return 0
            more, wanted = extra.draws(need)
            found = more.choose(slots, wanted, need, level)
            need -= found
            if not found:
                break
    return need
