"""Quotas and queues to batches: plans the batches of one round together.

A round is the unit of planning: some tens of batches of one group whose draws are known from the schedule alone. So
lineages can be kept distinct and focal windows filled without remembering earlier rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.draws import Draws
from dynaclr_wds.plan.compose.focal_window import assemble_focused, focal_quota, sample_focal_hpi
from dynaclr_wds.plan.compose.lineages import deal, separate
from dynaclr_wds.plan.compose.negatives import Offer, make_offer, sample_negatives
from dynaclr_wds.plan.compose.pool import Pool
from dynaclr_wds.plan.compose.positives import Positives, draw_positives
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.compose.schedule import Group, Schedule
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """The batches of one round."""

    anchor: Int64[SampleIndex, "r b"]
    positive: Positives
    """Of all anchors, batch after batch."""
    negative: Int64[SampleIndex, "r b"] | None
    focal_hpi: Float64[np.ndarray, " r"]
    """In hours; NaN without temporal enrichment."""


def plan_round(
    pool: Pool, schedule: Schedule, config: SamplingConfig, key: tuple[int, int], group: int, ordinal: int
) -> RoundPlan:
    """Plan one round.

    Parameters
    ----------
    pool
        What the stream may draw from.
    schedule
        Of the epoch.
    key
        (epoch, stream).
    group, ordinal
        The group, and which of its rounds.
    """
    quotas, round_id = schedule.quotas[group], schedule.round_id[group] + ordinal
    batches = slice(quotas.round_first[ordinal], quotas.round_first[ordinal + 1])
    quota = quotas.main[batches] + quotas.leak[batches]
    start = schedule.queue_start[round_id]
    rng = make_generator(Tag.ROUND, config.seed, *key, round_id)
    due = {
        int(s): pool.due(int(s), int(start[s]), int(start[s] + quota[:, s].sum())) for s in np.flatnonzero(quota.any(0))
    }
    if config.temporal_enrichment:
        first = int(quotas.round_first[ordinal])
        anchor, focal_hpi = _assemble_focused(rng, pool, schedule.groups[group], due, quota, config, (round_id, first))
    else:
        focal_hpi = np.full(len(quota), np.nan)
        anchor = assemble_dealt(rng, pool.index, due, quota)
    anchor = cast(SampleIndex, rng.permuted(anchor, axis=1))
    rng = make_generator(Tag.POSITIVE, config.seed, *key, round_id)
    drawn = np.unique(np.concatenate([g.strata for g in schedule.groups]))
    partners = pool.partners(round_id, drawn)
    positive = draw_positives(rng, pool.index, cast(SampleIndex, anchor.ravel()), config.tau_decay_rate, partners)
    negative = _plan_negatives(pool, schedule, config, key, round_id, anchor, focal_hpi)
    return RoundPlan(
        anchor=anchor,
        positive=positive,
        negative=negative,
        focal_hpi=focal_hpi,
    )


def assemble_dealt(
    rng: np.random.Generator,
    index: PlanIndex,
    due: dict[int, Int64[SampleIndex, " _"]],
    quota: Int64[np.ndarray, "r s"],
) -> Int64[SampleIndex, "r b"]:
    """Share out the draws of each stratum so that lineages stay distinct.

    Parameters
    ----------
    due
        By stratum, its draws in the round.
    quota
        Samples of each stratum in each of r batches; every batch has b.
    """
    anchors, batches = [], []
    for s, own in due.items():
        anchors.append(own)
        batches.append(deal(rng, quota[:, s], index.lineage(own), index.track(own), own))
    anchor, batch = cast(SampleIndex, np.concatenate(anchors)), np.concatenate(batches)
    if index.lineages_meet:
        batch = separate(rng, batch, np.repeat(list(due), [len(a) for a in anchors]), index.lineage(anchor))
    # (r · b) sorted by batch → (r, b)
    return cast(SampleIndex, anchor[np.argsort(batch, kind="stable")].reshape(len(quota), -1))


def _assemble_focused(
    rng: np.random.Generator,
    pool: Pool,
    group: Group,
    due: dict[int, Int64[SampleIndex, " _"]],
    quota: Int64[np.ndarray, "r s"],
    config: SamplingConfig,
    at: tuple[int, int],
) -> tuple[Int64[SampleIndex, "r b"], Float64[np.ndarray, " r"]]:
    """Share out the draws around focal HPIs; `at` is the round's id and its first batch of the group."""
    round_id, first_occurrence = at
    members = [int(s) for s in group.strata if int(s) in due]
    quota_groups = _quota_groups(pool, members, list(due))
    draws = Draws(pool.index, [cast(SampleIndex, np.concatenate([due[s] for s in g])) for g in quota_groups], rng)
    by_group = np.stack([quota[:, strata].sum(1) for strata in quota_groups], axis=1)
    draw_more = _drawer(rng, pool, round_id, [{s: int(quota[:, s].sum()) for s in strata} for strata in quota_groups])
    half_width = config.temporal_window_hours
    hpi = [draws.hpi[draws.quota_group == g] for g in range(len(members))]
    focal_hpi = sample_focal_hpi(rng, hpi, half_width, len(quota))
    focal = focal_quota(by_group, first_occurrence, config)
    anchor = assemble_focused(rng, draws, draw_more, by_group, focal, focal_hpi, half_width)
    return anchor, focal_hpi


def _quota_groups(pool: Pool, members: list[int], strata: list[int]) -> list[list[int]]:
    """Put strata together that share a quota.

    Each main stratum is one quota group. Leaked strata of one value are one, since no quota says which of them a batch
    gets.
    """
    leaked: dict[str, list[int]] = {}
    for s in strata:
        if s not in members:
            leaked.setdefault(pool.strata[s].value_name, []).append(s)
    return [*([s] for s in members), *leaked.values()]


def _drawer(
    rng: np.random.Generator, pool: Pool, round_id: int, wanted: list[dict[int, int]]
) -> Callable[[int, int], Int64[SampleIndex, " n"]]:
    """Make what draws more for a quota group: from its strata in proportion to their draws in the round.

    Parameters
    ----------
    wanted
        By quota group: stratum → its draws in the round.
    """

    def draw_more(quota_group: int, count: int) -> Int64[SampleIndex, " n"]:
        strata = wanted[quota_group]
        count = min(count, 4 * sum(pool.reach(round_id, s) for s in strata))
        shares = largest_remainder(count, np.array(list(strata.values())))
        parts = [pool.draw(rng, round_id, s, int(n)) for s, n in zip(strata, shares, strict=True) if n]
        return cast(SampleIndex, rng.permutation(np.concatenate(parts)))

    return draw_more


def _plan_negatives(
    pool: Pool,
    schedule: Schedule,
    config: SamplingConfig,
    key: tuple[int, int],
    round_id: int,
    anchor: Int64[SampleIndex, "r b"],
    focal_hpi: Float64[np.ndarray, " r"],
) -> Int64[SampleIndex, "r b"] | None:
    if not config.return_negative:
        return None
    rng = make_generator(Tag.NEGATIVE, config.seed, *key, round_id)
    drawn = np.unique(np.concatenate([g.strata for g in schedule.groups])).tolist()
    reach = {s: pool.reach(round_id, s) for s in drawn}
    number = dict(zip((s.group_name for s in pool.index.strata), pool.index.group_of.tolist(), strict=True))

    def draw(group: int, count: int) -> Offer:
        own = [s for s in drawn if number[pool.strata[s].group_name] == group and reach[s]]
        share = np.array([reach[s] for s in own], np.float64)
        counts = rng.multinomial(count, share / share.sum())
        parts = [pool.draw(rng, round_id, s, int(n)) for s, n in zip(own, counts, strict=True)]
        return make_offer(pool.index, cast(SampleIndex, np.concatenate(parts)))

    return sample_negatives(rng, pool.index, anchor, focal_hpi, config.temporal_window_hours, draw)
