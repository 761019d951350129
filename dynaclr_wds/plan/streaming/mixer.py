"""Window to streams: lays out what each stream holds at a time, so that batches keep their laws in bounded memory.

Per stream: deal blocks (`partition`), decide how many groups fit (`needs`) and when (`rotation`), split the window
between their strata, lay out the queues (`residency`), and count what that takes; then give the rounds the same quotas
as in exact mode. The window is that of the whole job: a stream gets an equal share, so the plan doesn't depend on how
many processes run it.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.compose.group_quotas import Group
from dynaclr_wds.plan.compose.leak import plan_leaks
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.compose.schedule import (
    Schedule,
    StratumRounds,
    fit_batches,
    list_rounds,
    plan_batch_counts,
    plan_groups,
    plan_schedule,
)
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.plan.streaming.needs import Needs, plan_needs
from dynaclr_wds.plan.streaming.partition import Part, check_blocks, plan_streams
from dynaclr_wds.plan.streaming.planner import StreamEpoch, batches_per_round
from dynaclr_wds.plan.streaming.residency import Queue, ResidentPool, Stays, plan_blocks, plan_queue, plan_stays
from dynaclr_wds.plan.streaming.rotation import Lanes, plan_lanes
from dynaclr_wds.plan.streaming.window import Window, describe_overflow, plan_active

_ROUND_SHARE = 0.25  # a round draws at most this share of the resident blocks
_AHEAD = 2  # rounds that may be reading ahead at a time
_AIM = 0.97  # share of the window that a layout aims to use
_FULL = 0.9  # share of the window used at which no better layout is looked for
_NEXT_START = 0.99  # other streams start at this share of the first stream's budget
_TRIES = 6


class Mixer:
    """The streams of one shard set.

    Parameters
    ----------
    index, config
        As for `FlexibleBatchSampler`.
    window_bytes
        Most bytes of blocks within reach at a time, over all streams.
    num_streams
        Logical streams.

    Raises
    ------
    ConfigError
        The window can't hold a batch of distinct lineages of two groups, or blocks hold more than one stratum; says
        what would do.
    """

    def __init__(self, index: PlanIndex, config: SamplingConfig, window_bytes: int, num_streams: int) -> None:
        self.index = index
        self.config = config
        self.num_streams = num_streams
        self.share_bytes = window_bytes // num_streams
        check_blocks(index)
        for entry in config.of_entries():  # names are checked before the first epoch
            plan_groups(index, index.sizes, entry)
        groups = plan_groups(index, index.sizes, config)
        self.batches = int(plan_batch_counts(groups, index.sizes // num_streams, config).sum())
        self._needs = plan_needs(index, groups, config, num_streams)
        self._window = Window(index=index, groups=groups, config=config, bytes=window_bytes, num_streams=num_streams)
        self.active = plan_active(self._window, self._needs)
        self._all_fits = self._needs.total_bytes <= self.share_bytes
        self._per_round = batches_per_round(index, config)
        self._budget: float | None = None  # bytes of a group that the first stream of the first epoch found
        self._parts: tuple[int, list[list[Part]]] | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock out, so that a sampler can be copied and sent to another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def parts(self, epoch: int) -> list[list[Part]]:
        """Deal the blocks of an epoch, or recall the last deal."""
        with self._lock:
            if self._parts is None or self._parts[0] != epoch:
                self._parts = (epoch, plan_streams(self.index, self.num_streams, self.config.seed, epoch))
            return self._parts[1]

    def open_epoch(self, epoch: int, stream: int) -> StreamEpoch:
        """Lay out an epoch of one stream, with as much of the window used as fits."""
        own = self.parts(epoch)[stream]
        sizes = np.array([p.size for p in own])
        config = self.config.of_epoch(epoch)
        groups = plan_groups(self.index, sizes, config)
        batches = fit_batches(groups, sizes, self.batches, config)
        rng = make_generator(Tag.BATCH_ORDER, self.config.seed, epoch, stream)
        pieces = plan_pieces(self.index, groups, plan_lanes(rng, batches, self.active))
        layout = Layout(self.index, self.config, (epoch, stream), pieces, own)
        if (epoch, stream) != (0, 0):
            return self._fit(layout, self._first_budget(len(groups)))[0]
        with self._lock:  # others wait for the budget that is found
            best, self._budget = self._fit(layout, self.share_bytes / min(self.active, len(groups)))
        return best

    def _fit(self, layout: Layout, budget: float) -> tuple[StreamEpoch, float]:
        """Lay out an epoch with as much of the window used as fits; return the budget of a group, too."""
        best, most, before = None, 0, -1
        budget = float(self.share_bytes) if self._all_fits else budget
        for _ in range(_TRIES):
            opened = self._lay_out(layout, budget)
            peak = opened.blocks.peak_bytes if opened.blocks else 0
            use = peak / self.share_bytes
            if use <= 1 and peak > most:
                best, most = (opened, budget), peak
            if self._all_fits or (use <= 1 and (use >= _FULL or peak == before)):  # good enough, or no change
                break
            before = peak
            budget *= _AIM / use if use > 1 else min(_AIM / use, 2.0) ** 0.5
        if best is None:
            raise describe_overflow(self._window, peak)
        return best

    def _first_budget(self, groups: int) -> float:
        """Guess the bytes of a group: a little less than the first stream of the first epoch found."""
        with self._lock:
            if self._budget is None and not self._all_fits:
                self.open_epoch(0, 0)
        return self.share_bytes / groups if self._budget is None else _NEXT_START * self._budget

    def _lay_out(self, layout: Layout, budget: float) -> StreamEpoch:
        """Lay out an epoch with `budget` bytes for each group that is within reach."""
        config, needs, pieces = self.config, self._needs, layout.pieces
        resident = np.concatenate([_split_window(g, pieces, needs, budget) for g in pieces.groups])
        shares = np.concatenate([g.share for g in pieces.groups])
        drawn = shares * config.batch_size / needs.block_anchors[pieces.origin]  # blocks' worth, per batch
        whole = resident >= needs.blocks[pieces.origin]
        per_round = self._per_round
        if not whole.all():
            per_round = int(np.clip((_ROUND_SHARE * resident / drawn)[~whole].min(), 1, per_round))
        # a round keeps blocks for all of its batches, and so do rounds of other groups that leak from here
        left = np.maximum(resident - _AHEAD * per_round * drawn - 2, 1).astype(np.int64)
        return layout.lay_out(per_round, np.where(whole, resident, left))


class Layout:
    """The epoch of one stream, to be laid out with more or less of the window; what doesn't depend on that is kept.

    Parameters
    ----------
    index, config
        As for `FlexibleBatchSampler`.
    key
        (epoch, stream).
    pieces, own
        Strata of the schedule, and what the stream owns of each stratum of the set.
    """

    def __init__(
        self, index: PlanIndex, config: SamplingConfig, key: tuple[int, int], pieces: Pieces, own: list[Part]
    ) -> None:
        self._index, self._config, self._key = index, config, key
        self.pieces, self._own = pieces, own
        sizes = np.array([own[s].size for s in pieces.origin])
        self._rng = make_generator(Tag.QUOTAS, config.seed, *key)
        self._leaks = plan_leaks(self._rng, pieces.groups, pieces.lanes.order, pieces.lanes.reach, sizes, config)
        self._planned: tuple[int, Schedule, list[Part], list[StratumRounds]] | None = None
        self._queues: dict[int, tuple[int, Queue, Stays]] = {}

    def lay_out(self, per_round: int, blocks: Int64[np.ndarray, " s"]) -> StreamEpoch:
        """Lay out the epoch in rounds of so many batches, with so many blocks of each piece within reach."""
        schedule, parts, rounds = self._plan(per_round)
        for s, count in enumerate(blocks.tolist()):
            if s not in self._queues or self._queues[s][0] != count:
                rng = make_generator(Tag.BLOCKS, self._config.seed, *self._key, int(self.pieces.base_of[s]))
                queue = plan_queue(rng, self._index, parts[s], int(schedule.draws[s]), count)
                self._queues[s] = count, queue, plan_stays(queue, rounds[s])
        _, queues, stays = (list(of) for of in zip(*(self._queues[s] for s in range(len(parts))), strict=True))
        reads = plan_blocks(self._index, queues, stays, len(self.pieces.lanes.order))
        return StreamEpoch(ResidentPool(self._index, self.pieces.origin, queues, stays, schedule), schedule, reads)

    def _plan(self, per_round: int) -> tuple[Schedule, list[Part], list[StratumRounds]]:
        """Plan the schedule, or recall it; queues of another schedule are forgotten."""
        if self._planned is None or self._planned[0] != per_round:
            pieces, rng = self.pieces, copy.deepcopy(self._rng)
            order, value_of, groups = pieces.lanes.order, self._index.value_of[pieces.origin], tuple(pieces.groups)
            size = self._config.batch_size
            schedule = plan_schedule(rng, groups, order, self._leaks, value_of, size, per_round)
            parts = deal_pieces(pieces, self._own, schedule.draws)
            self._planned = per_round, schedule, parts, list_rounds(schedule)
            self._queues.clear()
        return self._planned[1:]


class MixerStream:
    """One stream of a mixer, as a `StreamSource`."""

    def __init__(self, mixer: Mixer, stream: int) -> None:
        self._mixer = mixer
        self._stream = stream

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._mixer.batches

    def open_epoch(self, epoch: int) -> StreamEpoch:
        """Lay out an epoch."""
        return self._mixer.open_epoch(epoch, self._stream)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The strata of the schedule: one for each segment and stratum of its group."""

    groups: list[Group]
    """One per segment; `strata` counts the pieces, all of a segment together."""
    lanes: Lanes
    origin: Int64[np.ndarray, " s"]
    """Stratum of the set."""
    base_of: Int64[np.ndarray, " s"]
    """First piece of the segment with the same patches: their blocks come and go in the same order."""


def plan_pieces(index: PlanIndex, groups: tuple[Group, ...], lanes: Lanes) -> Pieces:
    """Give each segment strata of its own."""
    origin = np.concatenate([groups[g].strata for g in lanes.group])
    out, base_of, first = [], [], 0
    for group in (groups[g] for g in lanes.group):
        at = np.arange(first, first + len(group.strata))
        base = index.base_of[group.strata]
        base_of.append(first + np.array([base.tolist().index(b) for b in base], np.int64))
        first += len(at)
        out.append(Group(name=group.name, strata=at, share=group.share, value=group.value, codes=group.codes))
    return Pieces(out, lanes, origin, np.concatenate(base_of))


def deal_pieces(pieces: Pieces, own: list[Part], draws: Int64[np.ndarray, " s"]) -> list[Part]:
    """Split each stratum of a stream between its pieces: what each draws, or in proportion where all draw more."""
    out: list[Part | None] = [None] * len(pieces.origin)
    by_origin = np.argsort(pieces.origin, kind="stable")
    strata, first = np.unique(pieces.origin[by_origin], return_index=True)
    for s, at in zip(strata.tolist(), np.split(by_origin, first[1:]), strict=True):
        size, want = own[s].size, draws[at]
        if len(at) > 1 and want.sum() > size:
            want = np.maximum(largest_remainder(size, want), 1)
        edge = np.minimum(np.concatenate([[0], np.cumsum(want)]), size)
        for place, piece in enumerate(at):
            # a piece for which nothing is left shares the last anchors; a piece alone has all of them
            low, high = (0, size) if len(at) == 1 else (min(edge[place], size - 1), max(edge[place + 1], 1))
            out[piece] = own[s].cut(int(low), int(high))
    return [p for p in out if p is not None]


def _split_window(group: Group, pieces: Pieces, needs: Needs, budget: float) -> Int64[np.ndarray, " g"]:
    """Split a lane's bytes between the strata of its segment: as they are drawn from, up to what each has.

    Returns blocks, at least one each.
    """
    origin = pieces.origin[group.strata]
    size, have = needs.block_bytes[origin], needs.blocks[origin] * needs.block_bytes[origin]
    out, open_ = np.zeros(len(have)), np.ones(len(have), bool)
    while open_.any():
        weight = group.share / needs.block_anchors[origin] * size * open_
        grant = (budget - out[~open_].sum()) * weight / weight.sum()
        full = open_ & (grant >= have)
        if not full.any():
            out[open_] = grant[open_]
            break
        out[full] = have[full]
        open_ &= ~full
    return np.maximum(np.floor(out / size + 1e-9), 1).astype(np.int64)
