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
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.draws import Draws
from dynaclr_wds.plan.compose.group_quotas import MANY
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.config import SamplingConfig

_EDGE_HOURS = 1e-6  # frames at the window's very edge belong to it
_TRIES = 3
_EXTRA_DRAWS = (1 << 9, 1 << 14)
_LEAST_SHARE = 0.02
_PRIOR_DRAWS = 16

FEW_WANTED = 16
"""Quota groups up to which each draws more by itself."""
_FEW_DRAWS = 16
"""Least extra draws of a quota group where these are many, so that each is rarely in need."""

DrawMore = Callable[
    [Int64[np.ndarray, " w"], Int64[np.ndarray, " w"]], tuple[Int64[SampleIndex, " n"], Int64[np.ndarray, " n"]]
]
"""(quota groups, counts) → about so many anchors of their strata within reach, with replacement, those of each group in
random order; with the quota group of each."""


def check_time(config: SamplingConfig, still: Sequence[str]) -> None:
    """Check that there are times to draw batches near to, if that is asked for.

    Parameters
    ----------
    still
        Experiments of one frame, where there is no time.

    Raises
    ------
    ConfigError
        There are some.
    """
    if config.temporal_enrichment and still:
        raise ConfigError(
            f"temporal_enrichment=True draws cells near one time, but experiment {still[0]!r} has one frame and no "
            "time (interval_minutes is 0). Set temporal_enrichment: false, or leave its wells out."
        )


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
        # where groups are many, one that has shown few draws is taken for like the others
        prior = _PRIOR_DRAWS if len(need) > MANY else 0
        share = of_kind + prior * of_kind.sum() / max(int(seen.sum()), 1)
        share = np.maximum(share / np.maximum(seen + prior, 1), _LEAST_SHARE)
        wanted = np.flatnonzero((need > 0) & ((of_kind > 0) | (seen < _EXTRA_DRAWS[0])))
        least = _EXTRA_DRAWS[0] if len(need) <= MANY else _FEW_DRAWS
        count = np.clip(4 * need / share, least, _EXTRA_DRAWS[1]).astype(np.int64)
        if len(wanted):
            draws.add(*self.draw_more(wanted, count[wanted]))
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
