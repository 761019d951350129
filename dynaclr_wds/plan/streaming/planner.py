"""Pool to a sequence of batches: plans one logical stream, round by round."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.compose.group_quotas import MANY, Group
from dynaclr_wds.plan.compose.hpi_table import HpiTable, make_hpi_table
from dynaclr_wds.plan.compose.leak import plan_leaks
from dynaclr_wds.plan.compose.pool import Pool, WholePool
from dynaclr_wds.plan.compose.positives import Partners, make_partners
from dynaclr_wds.plan.compose.rounds import RoundPlan, plan_round
from dynaclr_wds.plan.compose.schedule import Schedule, fit_batches, plan_batch_counts, plan_groups, plan_schedule
from dynaclr_wds.plan.compose.stand_ins import StandIns, Vacancy, plan_stand_ins
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator

BATCHES_PER_ROUND = 32
_MOST_BATCHES_PER_ROUND = 128
_MANY_GROUPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSchedule:
    """Blocks that a stream reads in an epoch, in the order of reading."""

    block: Int64[np.ndarray, " v"]
    fetch: Int64[np.ndarray, " v"]
    """Batch of the stream during which each is read at the latest; −1 before the first."""
    admit: Int64[np.ndarray, " v"]
    """First batch that needs each."""
    retire: Int64[np.ndarray, " v"]
    """Last batch that needs each."""
    bytes: Int64[np.ndarray, " v"]
    peak_bytes: int
    """Most bytes between fetch and retirement at one time."""


@dataclass(frozen=True, slots=True)
class StreamEpoch:
    """One epoch of one stream: its quotas and what they are drawn from."""

    pool: Pool
    schedule: Schedule
    blocks: BlockSchedule | None = None
    """When each block must be at hand; None when all always are."""


@runtime_checkable
class StreamSource(Protocol):
    """Where the epochs of a stream come from."""

    def __len__(self) -> int:
        """Batches of an epoch: the same in each."""
        ...

    def open_epoch(self, epoch: int) -> StreamEpoch:
        """Lay out an epoch."""
        ...


class WholeStream:
    """Exact mode: one stream that has everything within reach."""

    def __init__(self, index: PlanIndex, config: SamplingConfig) -> None:
        self._index = index
        self._config = config
        for entry in config.of_entries():  # names are checked before the first epoch
            plan_groups(index, index.sizes, entry)
        # the epochs of a schedule are equally long: what any of them draws from makes their batches
        self._batches = int(plan_batch_counts(plan_groups(index, index.sizes, config), index.sizes, config).sum())
        self._per_round = batches_per_round(index, config)
        self._partners: tuple[bytes, Partners | None] | None = None
        self._times: HpiTable | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._batches

    def open_epoch(self, epoch: int) -> StreamEpoch:
        """Lay out an epoch: the groups' batches in random order."""
        index, config = self._index, self._config.of_epoch(epoch)
        groups = plan_groups(index, index.sizes, config)
        batches = fit_batches(groups, index.sizes, self._batches, config)
        rng = make_generator(Tag.BATCH_ORDER, config.seed, epoch)
        order = rng.permutation(np.repeat(np.arange(len(groups)), batches))
        reach = np.tile(np.array([0, len(order)]), (len(groups), 1))
        rng = make_generator(Tag.QUOTAS, config.seed, epoch)
        leaks = plan_leaks(rng, groups, order, reach, index.sizes, config)
        schedule = plan_schedule(rng, groups, order, leaks, index.value_of, config.batch_size, self._per_round)
        partners = self._find_partners(groups)
        pool = WholePool(self._index, self._config.seed, epoch, partners=partners, times=self._find_times)
        return StreamEpoch(pool, schedule)

    def _find_times(self) -> HpiTable:
        """Make the table of all anchors by time, or recall it."""
        if self._times is None:
            anchors = np.arange(len(self._index.row), dtype=self._index.row.dtype)
            self._times = make_hpi_table(
                self._index, cast(SampleIndex, anchors), self._index.sizes, np.arange(len(self._index.strata))
            )
        return self._times

    def _find_partners(self, groups: Sequence[Group]) -> Partners | None:
        """Make the table of what is drawn from, or recall it: weights may change it with the epoch."""
        strata = np.unique(np.concatenate([g.strata for g in groups]))
        if self._partners is None or self._partners[0] != strata.tobytes():
            self._partners = strata.tobytes(), make_partners(self._index, strata)
        return self._partners[1]


class StreamPlanner:
    """The batches of one stream, each a function of (source, config, epoch, stream, batch)."""

    def __init__(self, source: StreamSource, config: SamplingConfig, stream: int) -> None:
        self.source = source
        self.config = config
        self.stream = stream
        self._epoch: tuple[int, StreamEpoch] | None = None
        self._rounds: dict[int, tuple[int, RoundPlan]] = {}

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.source)

    def epoch(self, number: int) -> StreamEpoch:
        """Lay out an epoch, or recall the last one asked for."""
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = (number, self.source.open_epoch(number))
            self._rounds.clear()
        return self._epoch[1]

    def plan(self, epoch: int, batch: int, number: int) -> BatchPlan:
        """Plan one batch of the stream; `number` is its place in the global sequence."""
        at = self.epoch(epoch)
        group, ordinal, place = at.schedule.locate(batch)
        plan = self._round(epoch, at, group, ordinal)
        index, positive = at.pool.index, plan.positive
        own = slice(place * self.config.batch_size, (place + 1) * self.config.batch_size)
        anchor = plan.anchor[place]
        negative = None if plan.negative is None else plan.negative[place]
        return BatchPlan(
            number=number,
            anchor=cast(PatchRow, index.row[anchor].astype(np.int64)),
            positive=cast(PatchRow, positive.row[own]),
            negative=None if negative is None else cast(PatchRow, index.row[negative].astype(np.int64)),
            anchor_choice=index.choice_of(anchor),
            positive_choice=None if positive.choice is None else positive.choice[own],
            negative_choice=None if negative is None else index.choice_of(negative),
            group=at.schedule.groups[group].name,
            focal_hpi=float(plan.focal_hpi[place]),
        )

    def stand_ins(self, epoch: int, batch: int, plan: BatchPlan, place: int, taken: Collection[int]) -> StandIns:
        """List stand-ins for a sample of a batch of the stream; see `plan_stand_ins`."""
        at = self.epoch(epoch)
        group, ordinal, _ = at.schedule.locate(batch)
        own = cast(PatchRow, plan.anchor[place : place + 1])
        choice = None if plan.anchor_choice is None else plan.anchor_choice[place : place + 1]
        vacancy = Vacancy(
            key=(epoch, self.stream, batch, place),
            round_id=at.schedule.round_id[group] + ordinal,
            anchor=int(at.pool.index.find(own, choice)[0]),
            focal_hpi=plan.focal_hpi,
        )
        return plan_stand_ins(at.pool, at.schedule, self.config, vacancy, taken)

    def sample_batches(self, epoch: int, most: int) -> Int64[np.ndarray, " n"]:
        """Choose about so many batches of the stream, in whole rounds, evenly spread over those of all groups."""
        schedule = self.epoch(epoch).schedule
        rounds = np.concatenate([np.diff(q.round_first) for q in schedule.quotas])  # batches of each, by round id
        wanted = max(1, int(most / rounds.mean()))
        chosen = np.unique(np.linspace(0, len(rounds) - 1, min(wanted, len(rounds)) + 2)[1:-1].astype(np.int64))
        # by round id: a group's batches in their order, group after group
        by_group = np.argsort(schedule.order, kind="stable")
        return np.sort(by_group[np.isin(np.repeat(np.arange(len(rounds)), rounds), chosen)])

    def _round(self, epoch: int, at: StreamEpoch, group: int, ordinal: int) -> RoundPlan:
        """Plan a round, or recall it: the latest of each group is kept, as batches of groups alternate."""
        if group not in self._rounds or self._rounds[group][0] != ordinal:
            plan = plan_round(at.pool, at.schedule, self.config, (epoch, self.stream), group, ordinal)
            self._rounds[group] = (ordinal, plan)
        return self._rounds[group][1]


def batches_per_round(index: PlanIndex, config: SamplingConfig) -> int:
    """Count the batches that are planned together: enough for their focal windows to cover the HPIs about twice.

    Each group has its own rounds, so the first batches of an epoch wait for as many rounds as there are groups. Where
    these are many, as strata are, rounds are shorter.
    """
    if not config.temporal_enrichment or config.temporal_window_hours == 0:
        many = len(index.strata) > MANY and int(index.group_of.max()) >= _MANY_GROUPS
        return BATCHES_PER_ROUND // 2 if many else BATCHES_PER_ROUND
    some = np.linspace(index.first[:-1], index.first[1:] - 1, 64, axis=1).astype(np.int64)
    span = float(np.ptp(index.hpi(cast(SampleIndex, some)), axis=1).max())
    wanted = int(np.ceil(span / config.temporal_window_hours))
    return int(np.clip(wanted, BATCHES_PER_ROUND, _MOST_BATCHES_PER_ROUND))
