"""Blocks to queues: orders anchors as they come up when only some of the blocks are resident at a time.

Blocks are visited in random order, `resident_blocks` of them at a time, and each anchor is placed at random in the
time that its block stays: this shuffles as widely as the window allows, is laid out without playing it through, and
reaches every anchor of a pass exactly once. Rounds then say when each block is needed first and last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.draws import FirstTable
from dynaclr_wds.plan.compose.group_quotas import MANY
from dynaclr_wds.plan.compose.hpi_table import HpiTable, make_hpi_table
from dynaclr_wds.plan.compose.positives import Partners
from dynaclr_wds.plan.compose.schedule import Schedule, StratumRounds
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.streaming.partition import Part
from dynaclr_wds.plan.streaming.planner import BlockSchedule
from dynaclr_wds.plan.streaming.stays import find_spans, order_stays

_RATE = 2.0  # reading is planned at up to this times the average rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Draws of one stratum over an epoch, and the visits to blocks that they need."""

    anchor: Integer[SampleIndex, " d"]
    """Anchor of every draw."""
    visit: Int32[np.ndarray, " d"]
    """Visit that each draw falls in."""
    part: Part
    """Visits as a part: the block and the anchors of each."""


@dataclass(frozen=True, slots=True)
class Stays:
    """When the visits of one stratum are within reach, in batches of the stream; both ends included."""

    admit: Int64[np.ndarray, " v"]
    retire: Int64[np.ndarray, " v"]


def plan_queue(rng: np.random.Generator, index: PlanIndex, part: Part, draws: int, resident_blocks: int) -> Queue:
    """Lay out the draws of one stratum.

    Parameters
    ----------
    part
        Blocks and anchors to draw from.
    draws
        Number of draws in the epoch. The part is passed through again and again until there are enough.
    resident_blocks
        Blocks within reach at a time.
    """
    visits, got, size = [], 0, part.size
    full = draws // max(size, 1) * len(part.blocks)  # visits of whole passes
    while got < draws:
        order = rng.permutation(len(part.blocks))
        if got + size > draws:
            total = np.cumsum(np.diff(part.first)[order])
            order = order[: int(np.searchsorted(total, draws - got)) + 1]
        visits.append(order)
        got += int(np.diff(part.first)[order].sum())
    visited = part.take(np.concatenate(visits) if visits else np.zeros(0, np.int64))
    begin, length = _stay(len(visited.blocks), resident_blocks)
    span = np.stack([begin, length]) / (begin + length).max(initial=0)
    anchors, visit = order_stays(rng, index, visited, span)
    if got > draws:  # what is too many comes off the last pass, so that anchors come up equally often
        surplus = np.flatnonzero(visit >= full)[draws - got :]
        anchors, visit = cast(SampleIndex, np.delete(anchors, surplus)), np.delete(visit, surplus)
    return Queue(anchor=anchors, visit=visit, part=visited)


def _stay(visits: int, resident: int) -> tuple[Float64[np.ndarray, " v"], Float64[np.ndarray, " v"]]:
    """Say when each of a row of visits begins and how long it stays, never more than `resident` at a time.

    In every unit of time one visit begins and one ends, so a visit stays for w = `resident` units. The first w visits
    begin together and the last w end together. Both ends are longer by μ = w / (e − 1) units, in which none of these
    visits ends or begins: so draws are as dense at the ends as in between (the density is Σ 1/stay ≈ ln((μ + w)/μ)
    = 1), and no stay is much shorter than the others.
    """
    if visits <= resident:
        return np.zeros(visits), np.ones(visits)
    v, mu = np.arange(visits), resident / (np.e - 1)
    begin = np.where(v < resident, 0.0, mu + v - resident + 1)
    end = np.where(v < visits - resident, mu + v + 1, visits - resident + 2 * mu)
    return begin, end - begin


def plan_stays(queue: Queue, rounds: StratumRounds) -> Stays:
    """Find when each visit is needed: from the start of the first round that draws on it to the end of the last."""
    visits = len(queue.part.blocks)
    first, last = find_spans(queue.visit, visits)
    low = np.searchsorted(rounds.stop, first, "right")
    high = np.searchsorted(rounds.start, last, "right")
    admit, retire = np.full(visits, -1), np.full(visits, -2)
    drawn = np.flatnonzero(last >= 0)
    admit[drawn] = rounds.span[low[drawn], 0]
    # the largest of each slice low … high, as pairs of edges; a slice may end where the rounds do
    edges = np.stack([low[drawn], high[drawn]], axis=1).reshape(-1)
    retire[drawn] = np.maximum.reduceat(np.append(rounds.span[:, 1], -1), edges)[::2]
    return Stays(admit, retire)


class ResidentPool:
    """What is within reach of one stream in one epoch, round by round."""

    def __init__(
        self,
        index: PlanIndex,
        origin: Int64[np.ndarray, " s"],
        queues: list[Queue],
        stays: list[Stays],
        schedule: Schedule,
    ) -> None:
        self.index = index
        self.origin = origin
        self.tables = FirstTable(), FirstTable(), FirstTable()
        self._queues = queues
        self._stays = stays
        self._span = schedule.round_span
        self._gathered: tuple[tuple[int, bytes], Integer[SampleIndex, " n"], Int64[np.ndarray, " k1"]] | None = None

    def due(
        self, strata: Integer[np.ndarray, " k"], start: Integer[np.ndarray, " k"], count: Integer[np.ndarray, " k"]
    ) -> Int64[SampleIndex, " n"]:
        """Anchors that draws `start … start + count` of each stratum fall on, stratum after stratum."""
        each = zip(strata.tolist(), start.tolist(), (start.astype(np.int64) + count).tolist(), strict=True)
        parts = [self._queues[s].anchor[begin:end] for s, begin, end in each]
        return cast(SampleIndex, np.concatenate(parts).astype(np.int64))

    def reach(self, round_id: int, strata: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """Count the anchors of the visits that last the whole round."""
        if len(strata) > MANY:
            return np.diff(self._gather(round_id, strata)[1])
        here = ((self._queues[s].part, self._here(round_id, s)) for s in strata.tolist())
        return np.array([np.diff(part.first)[stays].sum() for part, stays in here], np.int64)

    def draw(
        self, rng: np.random.Generator, round_id: int, strata: Int64[np.ndarray, " k"], count: Int64[np.ndarray, " k"]
    ) -> Int64[SampleIndex, " n"]:
        """Draw from the visits that last the whole round."""
        if len(strata) > MANY:
            anchors, first = self._gather(round_id, strata)
            place = rng.integers(np.repeat(first[:-1], count), np.repeat(first[1:], count))
            return cast(SampleIndex, anchors[place].astype(np.int64))
        each = zip(strata.tolist(), count.tolist(), strict=True)
        parts = [self._draw_one(rng, round_id, stratum, n) for stratum, n in each if n]
        return cast(SampleIndex, np.concatenate([np.zeros(0, np.int64), *parts]))

    def _draw_one(
        self, rng: np.random.Generator, round_id: int, stratum: int, count: int
    ) -> Int64[SampleIndex, " count"]:
        part = self._queues[stratum].part
        here = np.flatnonzero(self._here(round_id, stratum))
        sizes = np.diff(part.first)[here]
        total = np.cumsum(sizes)
        at = rng.integers(0, total[-1], count)
        visit = np.searchsorted(total, at, "right")
        anchors = part.find(here[visit], at - (total - sizes)[visit])
        return cast(SampleIndex, anchors.astype(np.int64))

    def by_hpi(self, round_id: int, strata: Int64[np.ndarray, " k"]) -> tuple[HpiTable, Int64[np.ndarray, " k"]]:
        """Make a table of the anchors of the visits that last the whole round, whose rows are these strata in turn."""
        anchors, first = self._gather(round_id, strata)
        return make_hpi_table(self.index, anchors, np.diff(first), self.origin[strata]), np.arange(len(strata))

    def partners(self, round_id: int, strata: Int64[np.ndarray, " d"]) -> Partners | None:
        """Make a table of the anchors of the visits that last the whole round."""
        if self.index.match is None:
            return None
        parts = [np.zeros(0, np.int64), *(self._stay(round_id, s) for s in strata.tolist())]
        return Partners(self.index, cast(SampleIndex, np.unique(np.concatenate(parts))))

    def _gather(
        self, round_id: int, strata: Int64[np.ndarray, " k"]
    ) -> tuple[Integer[SampleIndex, " n"], Int64[np.ndarray, " k1"]]:
        """List the anchors of the visits that last the whole round, stratum after stratum, and where each begins.

        The last list is kept, as a round asks for the same strata again.
        """
        key = round_id, strata.tobytes()
        if self._gathered is None or self._gathered[0] != key:
            parts = [self._stay(round_id, s) for s in strata.tolist()]
            first = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
            anchors = cast(SampleIndex, np.concatenate([np.zeros(0, self.index.row.dtype), *parts]))
            self._gathered = key, anchors, first
        return self._gathered[1:]

    def _stay(self, round_id: int, stratum: int) -> Integer[SampleIndex, " n"]:
        """List the anchors of the visits that last the whole round."""
        part = self._queues[stratum].part
        return part.take(np.flatnonzero(self._here(round_id, stratum))).anchors

    def _here(self, round_id: int, stratum: int) -> Bool[np.ndarray, " v"]:
        begin, end = self._span[round_id]
        stays = self._stays[stratum]
        return (stays.admit <= begin) & (stays.retire >= end)


def plan_blocks(index: PlanIndex, queues: list[Queue], stays: list[Stays], batches: int) -> BlockSchedule:
    """Put the visits of all strata in the order of reading, at an even rate, and find the most that is resident."""
    block = np.concatenate([q.part.blocks for q in queues])
    admit = np.concatenate([s.admit for s in stays])
    retire = np.concatenate([s.retire for s in stays])
    block, admit, retire = _merge(block, admit, retire)
    size = np.asarray(index.columns.block_bytes[block], np.int64)
    rate = max(_RATE * size.sum() / max(batches, 1), 1.0)
    # a block is read at the latest one batch before it is needed, and so early that later blocks keep to that rate
    done = np.cumsum(size) / rate
    due = np.minimum.accumulate((admit - 1 - done)[::-1])[::-1] + done
    fetch = np.clip(np.floor(due + 1e-6).astype(np.int64), -1, admit - 1)
    change = np.zeros(batches + 2, np.int64)
    np.add.at(change, fetch + 1, size)
    np.add.at(change, retire + 2, -size)
    peak = int(np.cumsum(change).max(initial=0))
    return BlockSchedule(block=block, fetch=fetch, admit=admit, retire=retire, bytes=size, peak_bytes=peak)


def _merge(
    block: Int64[np.ndarray, " v"], admit: Int64[np.ndarray, " v"], retire: Int64[np.ndarray, " v"]
) -> tuple[Int64[np.ndarray, " w"], Int64[np.ndarray, " w"], Int64[np.ndarray, " w"]]:
    """Join visits to the same block that touch in time, and order all visits by when they are needed."""
    order = np.lexsort((admit, block))
    order = order[admit[order] >= 0]
    block, admit, retire = block[order], admit[order], retire[order]
    span = int(retire.max(initial=0)) + 2  # block · span + batch: later blocks come after all batches of earlier ones
    until = np.maximum.accumulate(block * span + retire)
    new = np.flatnonzero(np.append(True, block[1:] * span + admit[1:] > until[:-1] + 1)[: len(block)])
    block, admit, retire = block[new], admit[new], np.maximum.reduceat(retire, new) if len(new) else retire
    order = np.lexsort((block, retire, admit))
    return block[order], admit[order], retire[order]
