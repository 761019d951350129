"""Window to streams: what each stream holds at a time, so that batches keep their laws in bounded memory.

Per stream: deal blocks (`streams`), decide how many experiments fit (`lanes`), split the window between their strata,
lay out the queues (`window`), and count what that needs; then give the rounds the same quotas as in exact mode. The
window is that of the whole job: a stream gets an equal share, so the plan doesn't depend on how many processes run it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex, Stratum
from dynaclr_wds.plan.lanes import Lanes, plan_lanes
from dynaclr_wds.plan.leak import plan_leaks
from dynaclr_wds.plan.rng import Tag, make_generator
from dynaclr_wds.plan.schedule import Group, plan_batch_counts, plan_groups, plan_schedule
from dynaclr_wds.plan.stream import StreamEpoch, round_batches
from dynaclr_wds.plan.streams import Part, plan_streams
from dynaclr_wds.plan.window import WindowPool, plan_blocks, plan_queue, plan_stays

_SPARE_LINEAGES = 1.25  # lineages within reach, over those that a batch takes of a stratum
_SPARE_BLOCKS = 3  # beside those: one that comes, one that goes, one that a round reaches into
_COMFORT = 2.0  # experiments share the window only as long as each has this times the least it needs
_ROUND_SHARE = 0.25  # of the window, at most, that one round draws
_SHRINK = 0.9


@dataclass(frozen=True, slots=True)
class Needs:
    """What a stratum asks of the window, per stream."""

    block_bytes: Float64[np.ndarray, " s"]
    block_anchors: Float64[np.ndarray, " s"]
    blocks: Int64[np.ndarray, " s"]
    """In all, per stream."""
    least: Int64[np.ndarray, " s"]
    """Blocks that hold a batch's worth of lineages."""


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
    ValueError
        The window can't hold a batch of distinct lineages of two experiments; says what would do.
    """

    def __init__(self, index: PlanIndex, config: SamplingConfig, window_bytes: int, num_streams: int) -> None:
        self.index = index
        self.config = config
        self.num_streams = num_streams
        self.share_bytes = window_bytes // num_streams
        groups = plan_groups(index.strata, index.sizes, config)
        self.batches = int(plan_batch_counts(groups, index.sizes // num_streams, config).sum())
        self._needs = plan_needs(index, groups, config, num_streams)
        self.active = plan_active(groups, self._needs, self.share_bytes, num_streams)
        self._parts: tuple[int, list[list[Part]]] | None = None

    def parts(self, epoch: int) -> list[list[Part]]:
        """Deal the blocks of an epoch, or recall the last deal."""
        if self._parts is None or self._parts[0] != epoch:
            self._parts = (epoch, plan_streams(self.index, self.num_streams, self.config.seed, epoch))
        return self._parts[1]

    def open_epoch(self, epoch: int, stream: int) -> StreamEpoch:
        """Lay out an epoch of one stream; the window shrinks until what is resident fits."""
        own = self.parts(epoch)[stream]
        sizes = np.array([len(p.anchors) for p in own])
        groups = plan_groups(self.index.strata, sizes, self.config)
        batches = _fit_batches(plan_batch_counts(groups, sizes, self.config), groups, sizes, self.batches, self.config)
        rng = make_generator(Tag.BATCH_ORDER, self.config.seed, epoch, stream)
        lanes = plan_lanes(rng, batches, self.active)
        pieces = plan_pieces(self.index.strata, groups, lanes, own)
        budget = self.share_bytes / min(self.active, len(groups))
        while True:
            opened = self._lay_out((epoch, stream), lanes, pieces, budget)
            assert opened.blocks is not None
            if opened.blocks.peak_bytes <= self.share_bytes:
                return opened
            budget *= _SHRINK * min(1.0, self.share_bytes / opened.blocks.peak_bytes + 0.1)
            if budget < self._needs.block_bytes.min():
                raise ValueError(
                    f"window: {opened.blocks.peak_bytes * self.num_streams:,} bytes are resident at a time with the "
                    f"least that a round needs, but the window is {self.share_bytes * self.num_streams:,}. "
                    f"Give window={opened.blocks.peak_bytes * self.num_streams:,}, or fewer num_streams."
                )

    def _lay_out(self, key: tuple[int, int], lanes: Lanes, pieces: Pieces, budget: float) -> StreamEpoch:
        config, index = self.config, self.index
        windows = np.ones(len(pieces.parts), np.int64)
        rounds = round_batches(index, config)
        for segment in pieces.groups:
            windows[segment.strata] = np.maximum(_split_window(segment, pieces, self._needs, budget), 1)
            drawn = segment.share * config.batch_size
            held = windows[segment.strata] * self._needs.block_anchors[pieces.origin[segment.strata]]
            open_ = windows[segment.strata] < [len(pieces.parts[s].blocks) for s in segment.strata]
            if open_.any():
                rounds = min(rounds, max(int((_ROUND_SHARE * held / drawn)[open_].min()), 1))
        sizes = np.array([len(p.anchors) for p in pieces.parts])
        leaks = plan_leaks(pieces.groups, lanes.order, lanes.reach, sizes, config)
        schedule = plan_schedule(tuple(pieces.groups), lanes.order, leaks, config, rounds)
        queues, stays = [], []
        for s, part in enumerate(pieces.parts):
            anchors = max(self._needs.block_anchors[pieces.origin[s]], 1.0)
            mine = next(g for g in pieces.groups if s in g.strata)
            # a round reaches ahead, and those of the others that take a leak from it do too
            ahead = 2 * rounds * float(mine.share[list(mine.strata).index(s)]) * config.batch_size / anchors
            whole = windows[s] >= len(part.blocks)
            window = int(windows[s]) if whole else max(int(windows[s] - ahead - 2), 1)
            rng = make_generator(Tag.BLOCKS, config.seed, *key, s)
            queues.append(plan_queue(rng, index, part, int(schedule.draws[s]), window))
            stays.append(plan_stays(queues[-1], s, schedule))
        blocks = plan_blocks(index, queues, stays, len(lanes.order))
        return StreamEpoch(WindowPool(index, pieces.strata, queues, stays, schedule), schedule, blocks)


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
    """The strata of the schedule: one for each segment and stratum of its group, with what it draws from."""

    groups: list[Group]
    """One per segment; `strata` counts the pieces."""
    parts: list[Part]
    strata: tuple[Stratum, ...]
    origin: Int64[np.ndarray, " s"]
    """Stratum of the set."""


def plan_pieces(strata: tuple[Stratum, ...], groups: tuple[Group, ...], lanes: Lanes, own: list[Part]) -> Pieces:
    """Give each segment blocks of its own, in proportion to its batches."""
    origin: list[int] = []
    parts, members = [], []
    for k, g in enumerate(lanes.group):
        same = np.flatnonzero(lanes.group == g)
        edge = np.concatenate([[0], np.cumsum(lanes.batches[same])]) / lanes.batches[same].sum()
        place = int(np.searchsorted(same, k))
        members.append(np.arange(len(origin), len(origin) + len(groups[g].strata)))
        for s in groups[g].strata:
            blocks = len(own[s].blocks)
            low, high = int(np.floor(edge[place] * blocks)), int(np.ceil(edge[place + 1] * blocks))
            if len(same) > 1 and place and high - low > 1 and edge[place] * blocks != low:
                low += 1
            parts.append(own[s].take(np.arange(low, high)))
            origin.append(int(s))
    named = tuple(strata[s] for s in origin)
    out = []
    for g, at in zip(lanes.group, members, strict=True):
        group = groups[g]
        balanced = (group.partner >= 0).any()
        conditions = [named[i].condition for i in at] if balanced else []
        partner = [conditions.index(s.condition) if s.condition in conditions else -1 for s in named]
        out.append(Group(name=group.name, strata=at, share=group.share, partner=np.array(partner, np.int64)))
    return Pieces(out, parts, named, np.array(origin, np.int64))


def plan_needs(index: PlanIndex, groups: tuple[Group, ...], config: SamplingConfig, num_streams: int) -> Needs:
    """Measure the blocks of each stratum, and count those that a batch needs."""
    strata = len(index.strata)
    size, anchors, blocks, least = (
        np.ones(strata),
        np.ones(strata),
        np.ones(strata, np.int64),
        np.ones(strata, np.int64),
    )
    share = np.zeros(strata)
    for group in groups:
        share[group.strata] = group.share
    for s in range(strata):
        at = np.arange(index.first[s], index.first[s + 1])
        found = np.unique(index.block(at))
        # lineages of a block, from the first few: blocks are random samples of their stratum
        some = at[np.isin(index.block(at[: 1 << 16]), found[:4])] if len(at) <= 1 << 16 else at[: 1 << 16]
        pairs = np.unique(np.stack([index.block(some), index.lineage(some)]), axis=1)
        lineages = pairs.shape[1] / len(np.unique(pairs[0]))
        size[s] = float(index.columns.block_bytes[found].max())
        anchors[s] = len(at) / len(found)
        blocks[s] = max(-(-len(found) // num_streams), 1)
        need = np.ceil(_SPARE_LINEAGES * share[s] * config.batch_size / lineages) + _SPARE_BLOCKS
        least[s] = min(blocks[s], int(need))
    return Needs(size, anchors, blocks, least)


def plan_active(groups: tuple[Group, ...], needs: Needs, share_bytes: int, num_streams: int) -> int:
    """Count the experiments that are within reach at a time: as many as the window holds in comfort, at least two."""
    need = np.sort([float((needs.least * needs.block_bytes)[g.strata].sum()) for g in groups])[::-1]
    wanted = min(2, len(groups))
    if need[0] * wanted > share_bytes:
        enough = int(np.ceil(need[0] * wanted)) * num_streams
        raise ValueError(
            f"window={share_bytes * num_streams:,} bytes can't hold one batch of distinct lineages of "
            f"{wanted} experiment{'s' * (wanted > 1)} in each of {num_streams} streams. {enough:,} would be enough; "
            "so would fewer num_streams, a smaller batch_size, or shards with a smaller block_bytes."
        )
    total = (needs.blocks * needs.block_bytes).sum()
    comfort = len(groups) if total <= share_bytes else int(share_bytes / (_COMFORT * need[0]))
    return int(np.clip(comfort, wanted, len(groups)))


def _fit_batches(
    batches: Int64[np.ndarray, " g"],
    groups: tuple[Group, ...],
    sizes: Int64[np.ndarray, " s"],
    total: int,
    config: SamplingConfig,
) -> Int64[np.ndarray, " g"]:
    """Make the batches of a stream's groups add up to what every stream yields, where it hurts coverage least."""
    out = batches.copy()
    own = np.array([sizes[g.strata].sum() for g in groups])
    while out.sum() != total:
        step = 1 if out.sum() < total else -1
        left = own - (out + (step > 0)) * config.batch_size
        if step > 0:
            out[int(left.argmax())] += 1
        else:
            out[int(np.where(out > 1, out, 0).argmax())] -= 1
    return out


def _split_window(group: Group, pieces: Pieces, needs: Needs, budget: float) -> Int64[np.ndarray, " g"]:
    """Split a lane's bytes between the strata of its segment: as they are drawn from, up to what each has.

    Returns blocks.
    """
    size = needs.block_bytes[pieces.origin[group.strata]]
    have = np.array([len(pieces.parts[s].blocks) for s in group.strata]) * size
    out, open_ = np.zeros(len(have)), np.ones(len(have), bool)
    while open_.any():
        weight = (group.share / np.maximum(needs.block_anchors[pieces.origin[group.strata]], 1) * size) * open_
        grant = (budget - out[~open_].sum()) * weight / weight.sum()
        full = open_ & (grant >= have)
        if not full.any():
            out[open_] = grant[open_]
            break
        out[full] = have[full]
        open_ &= ~full
    return np.floor(out / size + 1e-9).astype(np.int64)
