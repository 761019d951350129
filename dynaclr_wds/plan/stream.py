"""Pool to a sequence of batches: one logical stream, planned round by round."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from dynaclr_wds.plan.batches import BatchPlan
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.pool import Pool, WholePool
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.plan.rounds import RoundPlan, plan_round
from dynaclr_wds.plan.schedule import (
    ROUND_BATCHES,
    Schedule,
    plan_batch_counts,
    plan_groups,
    plan_schedule,
)

_MOST_ROUND_BATCHES = 128


class StreamPlanner:
    """The batches of one stream, each a function of (index, config, epoch, stream, batch)."""

    def __init__(self, pool: Pool, config: SamplingConfig, stream: int) -> None:
        self.pool = pool
        self.config = config
        self.stream = stream
        self._groups = plan_groups(pool.index.strata, pool.sizes, config)
        self._batches = plan_batch_counts(self._groups, pool.sizes, config)
        self._schedule: tuple[int, Schedule] | None = None
        self._rounds: OrderedDict[tuple[int, int, int], RoundPlan] = OrderedDict()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return int(self._batches.sum())

    def schedule(self, epoch: int) -> Schedule:
        """Quotas of an epoch; the last one asked for is kept."""
        if self._schedule is None or self._schedule[0] != epoch:
            rng = make_generator(Tag.BATCH_ORDER, self.config.seed, epoch, self.stream)
            order = rng.permutation(np.repeat(np.arange(len(self._groups)), self._batches))
            schedule = plan_schedule(
                self._groups, self._batches, order, self.pool.sizes, self.config, _round_batches(self.pool, self.config)
            )
            self._schedule = (epoch, schedule)
        return self._schedule[1]

    def plan(self, epoch: int, batch: int, number: int) -> BatchPlan:
        """Plan one batch of the stream; `number` is its place in the global sequence."""
        schedule = self.schedule(epoch)
        group, ordinal, place = schedule.locate(batch)
        plan = self._round(epoch, schedule, group, ordinal)
        row = self.pool.index.row
        return BatchPlan(
            number=number,
            anchor=row[plan.anchor[place]].astype(np.int64),
            positive=plan.positive[place],
            negative=None if plan.negative is None else row[plan.negative[place]].astype(np.int64),
            group=schedule.groups[group].name,
            focal_hpi=float(plan.focal_hpi[place]),
        )

    def _round(self, epoch: int, schedule: Schedule, group: int, ordinal: int) -> RoundPlan:
        """Plan a round, or recall it: the latest of each group is kept, as batches of groups alternate."""
        key = (epoch, group, ordinal)
        if key not in self._rounds:
            for old in [k for k in self._rounds if k[1] == group]:
                del self._rounds[old]
            self._rounds[key] = plan_round(self.pool, schedule, self.config, (epoch, self.stream), group, ordinal)
        return self._rounds[key]


def make_planners(index: PlanIndex, config: SamplingConfig) -> list[StreamPlanner]:
    """Make the streams of exact mode: one, which holds everything."""
    return [StreamPlanner(WholePool(index, config.seed), config, 0)]


def _round_batches(pool: Pool, config: SamplingConfig) -> int:
    """Batches planned together: enough for their focal windows to cover the HPI range about twice."""
    if not config.temporal_enrichment or config.temporal_window_hours == 0:
        return ROUND_BATCHES
    index = pool.index
    span = max(float(np.ptp(index.hpi(np.linspace(a, b - 1, 64).astype(np.int64)))) for a, b in _ranges(index))
    wanted = int(np.ceil(span / config.temporal_window_hours))
    return int(np.clip(wanted, ROUND_BATCHES, _MOST_ROUND_BATCHES))


def _ranges(index: PlanIndex) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in zip(index.first[:-1], index.first[1:], strict=True)]
