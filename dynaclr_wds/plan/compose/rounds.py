"""Quotas and queues to batches: plan the batches of one round together.

A round is the unit of planning: some tens of batches of one group whose draws are known from the schedule alone,
so that lineages can be kept apart and focal windows filled without remembering earlier rounds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.compose.focal_window import assemble_focused, focal_quota, make_sorted_cards, sample_focal_hpi
from dynaclr_wds.plan.compose.lineages import deal
from dynaclr_wds.plan.compose.negatives import Offer, make_offer, sample_negatives
from dynaclr_wds.plan.compose.pool import Pool
from dynaclr_wds.plan.compose.positives import sample_positives
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.compose.schedule import Group, Schedule
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.rng import Tag, make_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """The batches of one round."""

    anchor: Int64[np.ndarray, "r b"]
    """Positions in `PlanIndex.row`."""
    positive: Int64[np.ndarray, "r b"]
    """Patch rows."""
    negative: Int64[np.ndarray, "r b"] | None
    """Positions in `PlanIndex.row`."""
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
        Which round: the group's `ordinal`-th.
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
        anchor = _assemble_dealt(rng, pool, due, quota)
    anchor = rng.permuted(anchor, axis=1)
    rng = make_generator(Tag.POSITIVE, config.seed, *key, round_id)
    positive = sample_positives(rng, pool.index, anchor.ravel(), config.tau_decay_rate).reshape(anchor.shape)
    negative = _plan_negatives(pool, config, key, round_id, anchor, focal_hpi)
    return RoundPlan(anchor=anchor, positive=positive, negative=negative, focal_hpi=focal_hpi)


def _assemble_dealt(
    rng: np.random.Generator, pool: Pool, due: dict[int, Int64[np.ndarray, " _"]], quota: Int64[np.ndarray, "r s"]
) -> Int64[np.ndarray, "r b"]:
    """Deal the draws of each stratum; every batch is full because its quotas add up to its size."""
    index, anchors, seats = pool.index, [], []
    for s, anchor in due.items():
        anchors.append(anchor)
        seats.append(deal(rng, quota[:, s], index.lineage(anchor), index.track(anchor), anchor))
    # (r · b) sorted by batch → (r, b)
    order = np.argsort(np.concatenate(seats), kind="stable")
    return np.concatenate(anchors)[order].reshape(len(quota), -1)


def _assemble_focused(
    rng: np.random.Generator,
    pool: Pool,
    group: Group,
    due: dict[int, Int64[np.ndarray, " _"]],
    quota: Int64[np.ndarray, "r s"],
    config: SamplingConfig,
    at: tuple[int, int],
) -> tuple[Int64[np.ndarray, "r b"], Float64[np.ndarray, " r"]]:
    """Share out the draws around focal HPIs; `at` is the round's id and its first batch of the group.

    Strata are put together in piles: each main stratum is one, leaked strata of one condition are one, since
    which of them a batch gets is not a quota.
    """
    round_id, first_occurrence = at
    members = [int(s) for s in group.strata if int(s) in due]
    leaked: dict[str, list[int]] = {}
    for s in due:
        if s not in members:
            leaked.setdefault(pool.strata[s].condition, []).append(s)
    piles = [[s] for s in members] + list(leaked.values())
    cards = {
        p: make_sorted_cards(pool.index, rng.permutation(np.concatenate([due[s] for s in pile])))
        for p, pile in enumerate(piles)
    }
    by_pile = np.stack([quota[:, pile].sum(1) for pile in piles], axis=1)

    def draw(pile: int, count: int) -> Int64[np.ndarray, " n"]:
        count = min(count, 4 * sum(pool.reach(round_id, s) for s in piles[pile]))
        shares = largest_remainder(count, quota[:, piles[pile]].sum(0))
        parts = [pool.draw(rng, round_id, s, int(n)) for s, n in zip(piles[pile], shares, strict=True) if n]
        return rng.permutation(np.concatenate(parts))

    window = config.temporal_window_hours
    focal_hpi = sample_focal_hpi(rng, [cards[p].hpi for p in range(len(members))], window, len(quota))
    focal = focal_quota(by_pile, first_occurrence, config)
    return assemble_focused(rng, cards, draw, by_pile, focal, focal_hpi, pool.index, window), focal_hpi


def _plan_negatives(
    pool: Pool,
    config: SamplingConfig,
    key: tuple[int, int],
    round_id: int,
    anchor: Int64[np.ndarray, "r b"],
    focal_hpi: Float64[np.ndarray, " r"],
) -> Int64[np.ndarray, "r b"] | None:
    if not config.return_negative:
        return None
    rng = make_generator(Tag.NEGATIVE, config.seed, *key, round_id)
    strata = pool.strata
    reach = np.array([pool.reach(round_id, s) for s in range(len(strata))])

    @functools.cache  # the batches of a round choose from the same offer
    def draw(experiment: str, count: int) -> Offer:
        own = [i for i, s in enumerate(strata) if s.experiment == experiment and reach[i]]
        counts = rng.multinomial(count, reach[own] / reach[own].sum())
        parts = [pool.draw(rng, round_id, s, int(n)) for s, n in zip(own, counts, strict=True)]
        return make_offer(pool.index, np.concatenate(parts))

    window = config.temporal_window_hours
    return np.stack(
        [sample_negatives(rng, pool.index, a, float(f), window, draw) for a, f in zip(anchor, focal_hpi, strict=True)]
    )
