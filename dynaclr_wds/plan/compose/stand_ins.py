"""Samples that can't be read to others that take their place: which ones, in which order, is part of the plan.

Every sample of a batch has a row of stand-ins: anchors of its stratum that are within reach of its round, drawn by a
generator of its own, so by seed, epoch, batch and place. Whoever reads walks along the row to the first that can be
read. So the same faults give the same batches in every run, and nothing needs to be remembered for a restart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.compose.focal_window import in_focal_window
from dynaclr_wds.plan.compose.negatives import Offer, make_offer, sample_negatives
from dynaclr_wds.plan.compose.pool import Pool
from dynaclr_wds.plan.compose.positives import Positives, draw_positives
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.compose.schedule import Schedule
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.rng import Tag, make_generator

STAND_INS = 256
"""Draws for each sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """Samples for the place of one, the first that can be read is taken."""

    anchor: Int64[PatchRow, " n"]
    anchor_choice: Int64[np.ndarray, " n"] | None
    positive: Positives
    negative: Int64[PatchRow, " n"] | None
    negative_choice: Int64[np.ndarray, " n"] | None
    lineage: Int64[np.ndarray, " n"]
    """Of each anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacancy:
    """A sample that can't be read."""

    key: tuple[int, int, int, int]
    """Epoch, stream, batch of the stream, and place in the batch."""
    round_id: int
    anchor: int
    """Its `SampleIndex`."""
    focal_hpi: float


def plan_stand_ins(
    pool: Pool, schedule: Schedule, config: SamplingConfig, vacancy: Vacancy, taken: Collection[int]
) -> StandIns:
    """List stand-ins for a sample.

    Those whose lineage is in `taken`, the lineages of the batch, come last; before that, those that are not as near to
    the focal time as the sample was.
    """
    index, round_id = pool.index, vacancy.round_id
    rng = make_generator(Tag.STAND_IN, config.seed, *vacancy.key)
    own = cast(SampleIndex, np.array([vacancy.anchor]))
    strata = schedule.strata[pool.origin[schedule.strata] == index.stratum(own)[0]]
    reach = pool.reach(round_id, strata)
    drawn = pool.draw(rng, round_id, strata, largest_remainder(STAND_INS, reach)) if reach.any() else own[:0]
    drawn = cast(SampleIndex, drawn[np.sort(np.unique(drawn, return_index=True)[1])])
    drawn = cast(SampleIndex, rng.permutation(drawn))
    lineage = index.lineage(drawn).astype(np.int64)
    worse = 2 * np.isin(lineage, np.array(list(taken), np.int64))
    if config.temporal_enrichment:
        half = config.temporal_window_hours
        near, was = (in_focal_window(index.hpi(of), vacancy.focal_hpi, half) for of in (drawn, own))
        worse += near != was
    order = np.argsort(worse, kind="stable")
    drawn, lineage = cast(SampleIndex, drawn[order]), lineage[order]
    positive = draw_positives(rng, index, drawn, config.tau_decay_rate, pool.partners(round_id, schedule.strata))
    negative = _draw_negatives(rng, pool, schedule, config, vacancy, drawn)
    return StandIns(
        anchor=cast(PatchRow, index.row[drawn].astype(np.int64)),
        anchor_choice=index.choice_of(drawn),
        positive=positive,
        negative=None if negative is None else cast(PatchRow, index.row[negative].astype(np.int64)),
        negative_choice=None if negative is None else index.choice_of(negative),
        lineage=lineage,
    )


def _draw_negatives(
    rng: np.random.Generator,
    pool: Pool,
    schedule: Schedule,
    config: SamplingConfig,
    vacancy: Vacancy,
    anchors: Int64[SampleIndex, " n"],
) -> Int64[SampleIndex, " n"] | None:
    if not config.return_negative or not len(anchors):
        return None
    own = pool.index.group_of[pool.origin[schedule.strata]]

    def draw(group: int, count: int) -> Offer:
        strata = schedule.strata[own == group]
        share = pool.reach(vacancy.round_id, strata).astype(np.float64)
        count_of = rng.multinomial(count, share / share.sum())
        return make_offer(pool.index, pool.draw(rng, vacancy.round_id, strata, count_of))

    hpi = np.full(len(anchors), vacancy.focal_hpi)
    each = cast(SampleIndex, anchors[:, None])
    return cast(SampleIndex, sample_negatives(rng, pool.index, each, hpi, config.temporal_window_hours, draw)[:, 0])
