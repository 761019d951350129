"""Quotas and queues to batches: plans the batches of one round together.

A round is the unit of planning: some tens of batches of one group whose draws are known from the schedule alone. So
lineages can be kept distinct and focal windows filled without remembering earlier rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.draws import Draws
from dynaclr_wds.plan.compose.focal_batches import DrawMore, assemble_focused
from dynaclr_wds.plan.compose.focal_window import focal_sizes, sample_focal_hpi
from dynaclr_wds.plan.compose.group_quotas import MANY, GroupQuotas, RoundDraws
from dynaclr_wds.plan.compose.hpi_table import WindowDraws
from dynaclr_wds.plan.compose.lineages import deal, separate
from dynaclr_wds.plan.compose.negatives import Offer, make_offer, sample_negatives
from dynaclr_wds.plan.compose.pool import Pool
from dynaclr_wds.plan.compose.positives import Positives, draw_positives
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.compose.schedule import Schedule
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
    draws = schedule.round_draws[round_id]
    rng = make_generator(Tag.ROUND, config.seed, *key, round_id)
    quota = quotas.of_round(rng, ordinal, draws)
    due = pool.due(draws.strata, schedule.queue_start[round_id], draws.count)
    if config.temporal_enrichment:
        first = int(quotas.round_first[ordinal])
        strata = QuotaGroups.of_round(quotas, draws)
        anchor, focal_hpi = _assemble_focused(rng, pool, strata, due, quota, config, (round_id, first))
    else:
        focal_hpi = np.full(len(quota), np.nan)
        anchor = assemble_dealt(rng, pool.index, due, quota)
    anchor = cast(SampleIndex, rng.permuted(anchor, axis=1))
    rng = make_generator(Tag.POSITIVE, config.seed, *key, round_id)
    partners = pool.partners(round_id, schedule.strata)
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
    due: Int64[SampleIndex, " n"],
    quota: Int64[np.ndarray, "r k"],
) -> Int64[SampleIndex, "r b"]:
    """Share out the draws of each stratum so that lineages stay distinct.

    Parameters
    ----------
    due
        The draws of the round, stratum after stratum.
    quota
        Samples of each of the k strata in each of r batches; every batch has b.
    """
    lineage = index.lineage(due)
    batch = deal(rng, quota, lineage, index.track(due), due)
    if index.lineages_meet:
        batch = separate(rng, batch, np.repeat(np.arange(quota.shape[1]), quota.sum(0)), lineage)
    # (r · b) sorted by batch → (r, b)
    return cast(SampleIndex, due[np.argsort(batch, kind="stable")].reshape(len(quota), -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaGroups:
    """Strata of a round that share a quota.

    Each main stratum is a quota group, or each of the group's values where there are many strata. Leaked strata of one
    value are one, since no quota says which of them a batch gets.
    """

    draws: RoundDraws
    number: Int64[np.ndarray, " k"]
    """Quota group of each stratum of the round, the main ones first."""
    main: int
    """How many are the group's own."""

    @classmethod
    def of_round(cls, quotas: GroupQuotas, draws: RoundDraws) -> QuotaGroups:
        """Put the strata of a round together."""
        strata, group = draws.strata, quotas.group
        at = np.searchsorted(group.strata, strata).clip(max=len(group.strata) - 1)
        mine = group.strata[at] == strata
        many = len(group.strata) > MANY
        key = np.where(mine, group.value[at] if many else np.arange(len(strata)), quotas.value_of[strata])
        number = np.empty(len(strata), np.int64)
        main, number[mine] = np.unique(key[mine], return_inverse=True)
        _, number[~mine] = np.unique(key[~mine], return_inverse=True)
        number[~mine] += len(main)
        return cls(draws=draws, number=number, main=len(main))

    def members(self, quota_group: int) -> Int64[np.ndarray, " j"]:
        """Places of its strata among those of the round."""
        return np.flatnonzero(self.number == quota_group)


def _assemble_focused(
    rng: np.random.Generator,
    pool: Pool,
    groups: QuotaGroups,
    due: Int64[SampleIndex, " n"],
    quota: Int64[np.ndarray, "r k"],
    config: SamplingConfig,
    at: tuple[int, int],
) -> tuple[Int64[SampleIndex, "r b"], Float64[np.ndarray, " r"]]:
    """Share out the draws around focal HPIs; `at` is the round's id and its first batch of the group."""
    round_id, first_occurrence = at
    draws = Draws(pool.index, due, np.repeat(groups.number, groups.draws.count), rng, pool.tables)
    by_number = np.argsort(groups.number, kind="stable")
    number = groups.number[by_number]
    by_group = np.add.reduceat(quota[:, by_number], np.searchsorted(number, np.arange(number[-1] + 1)), axis=1)
    half_width = config.temporal_window_hours
    main = draws.quota_group < groups.main
    few = groups.main <= MANY
    hpi = [draws.hpi[draws.quota_group == g] for g in range(groups.main)] if few else [draws.hpi[main]]
    focal_hpi = sample_focal_hpi(rng, hpi, half_width, len(quota))
    focal_size = focal_sizes(len(quota), first_occurrence, config)
    more: DrawMore | WindowDraws = _make_drawer(rng, pool, round_id, groups)
    if by_group.shape[1] > MANY:
        strata, count = groups.draws.strata.astype(np.int64), groups.draws.count
        more = WindowDraws(rng, *pool.by_hpi(round_id, strata), groups.number, count)
    anchor = assemble_focused(rng, draws, more, by_group, focal_size, focal_hpi, half_width)
    return anchor, focal_hpi


def _make_drawer(rng: np.random.Generator, pool: Pool, round_id: int, groups: QuotaGroups) -> DrawMore:
    """Make what draws more for quota groups: from their strata in proportion to their draws in the round."""
    strata, weight = groups.draws.strata.astype(np.int64), groups.draws.count

    def draw_one(quota_group: int, count: int) -> Int64[SampleIndex, " n"]:
        at = groups.members(quota_group)
        count = min(count, 4 * int(pool.reach(round_id, strata[at]).sum()))
        drawn = pool.draw(rng, round_id, strata[at], largest_remainder(count, weight[at]))
        return cast(SampleIndex, rng.permutation(drawn))

    def draw_more(
        wanted: Int64[np.ndarray, " w"], count: Int64[np.ndarray, " w"]
    ) -> tuple[Int64[SampleIndex, " n"], Int64[np.ndarray, " n"]]:
        parts = [draw_one(g, n) for g, n in zip(wanted.tolist(), count.tolist(), strict=True)]
        return cast(SampleIndex, np.concatenate(parts)), np.repeat(wanted, [len(part) for part in parts])

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
    drawn = schedule.strata
    own = pool.index.group_of[pool.origin[drawn]]

    def draw(group: int, count: int) -> Offer:
        strata = drawn[own == group]
        share = pool.reach(round_id, strata).astype(np.float64)
        return make_offer(pool.index, pool.draw(rng, round_id, strata, rng.multinomial(count, share / share.sum())))

    return sample_negatives(rng, pool.index, anchor, focal_hpi, config.temporal_window_hours, draw)
