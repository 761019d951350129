"""Blocks to streams: says which part of every stratum each logical stream owns in an epoch.

Each stream is planned by itself, and rank r of W runs streams r, r + W, …; so the order does not depend on the number
of processes. A stratum's blocks are dealt out whole. A stratum with fewer blocks than streams has its clips dealt out
instead, and its blocks are read by several. A stratum with fewer clips than streams is read whole by every stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64, Integer, Real

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator


@dataclass(frozen=True, slots=True)
class Part:
    """What one stream owns of one stratum; most parts hold no anchor by itself, as those of a block are a range."""

    blocks: Int64[np.ndarray, " k"]
    begin: Int64[np.ndarray, " k"]
    """Where the anchors of each block begin in `base`."""
    first: Int64[np.ndarray, " k1"]
    """CSR: anchors of the i-th block are `first[i]:first[i + 1]` of all."""
    base: Integer[SampleIndex, " n"] | None = None
    """None = all anchors of the set."""

    @property
    def size(self) -> int:
        """Number of anchors."""
        return int(self.first[-1])

    @property
    def anchors(self) -> Integer[SampleIndex, " n"]:
        """All of them, grouped by block."""
        return self.find(np.repeat(np.arange(len(self.blocks)), np.diff(self.first)), None)

    def find(self, block: Int64[np.ndarray, " n"], place: Int64[np.ndarray, " n"] | None) -> Integer[SampleIndex, " n"]:
        """Find the anchors at some places of blocks; None = all places of all blocks."""
        if place is None:
            place = np.arange(self.size) - self.first[block]
        at = self.begin[block] + place
        return cast(SampleIndex, at if self.base is None else self.base[at])

    def take(self, at: Int64[np.ndarray, " j"]) -> Part:
        """Keep some of the blocks, in this order."""
        first = np.concatenate([[0], np.cumsum(np.diff(self.first)[at])]).astype(np.int64)
        return Part(self.blocks[at], self.begin[at], first, self.base)

    def cut(self, begin: int, end: int) -> Part:
        """Keep the anchors `begin … end`; a block that is cut stays in both halves."""
        low, high = np.searchsorted(self.first, [begin, end - 1], "right") - 1
        own = slice(low, high + 1)
        first = np.clip(self.first[low : high + 2], begin, end) - begin
        return Part(self.blocks[own], self.begin[own] + np.maximum(begin - self.first[own], 0), first, self.base)


def make_part(index: PlanIndex, stratum: int, anchors: Integer[SampleIndex, " n"] | None = None) -> Part:
    """Group ascending anchors of one stratum by block; all of them when None."""
    begin, end = index.first[stratum : stratum + 2].tolist()
    row, shift = (index.row[begin:end], begin) if anchors is None else (index.row[anchors], 0)
    columns = index.columns  # rows are grouped by block already, so edges are looked up
    ends = columns.clip_block[columns.patch_clip[row[[0, -1]]]] if len(row) else np.array([0, -1])
    blocks = np.arange(ends[0], ends[1] + 1)
    first = np.searchsorted(row, columns.clip_first[columns.block_first[blocks]].astype(row.dtype))
    held = np.diff(first, append=len(row)) > 0
    return Part(blocks[held], first[held] + shift, np.append(first[held], len(row)), anchors)


def plan_streams(index: PlanIndex, num_streams: int, seed: int, epoch: int) -> list[list[Part]]:
    """Deal every stratum out to the streams.

    Parameters
    ----------
    index
        Anchors that may be drawn; blocks without any are not dealt, so they are never read.
    num_streams
        Logical streams.

    Returns
    -------
    Per stream, per stratum, what it owns. Streams differ by about a block in all.
    """
    out: list[list[Part]] = [[] for _ in range(num_streams)]
    owed = np.zeros(num_streams)  # anchors that each stream already has, so that left-over blocks even out
    for s, base in enumerate(index.base_of.tolist()):
        if base != s:  # the same patches, other channels: the same blocks, so that they are read once
            parts = [_copy_part(index, s, own[base]) for own in out]
            if _own_all(parts, int(index.sizes[s])):
                for own, part in zip(out, parts, strict=True):
                    own.append(part)
                continue
        parts = _deal_stratum(index, s, make_generator(Tag.STREAMS, seed, epoch, s), owed)
        for stream, part in enumerate(parts):
            out[stream].append(part)
            owed[stream] += part.size
    return out


def _deal_stratum(
    index: PlanIndex, stratum: int, rng: np.random.Generator, owed: Float64[np.ndarray, " w"]
) -> list[Part]:
    """Deal one stratum out: whole blocks, else clips, else all to every stream."""
    num_streams = len(owed)
    whole = make_part(index, stratum)
    if len(whole.blocks) >= num_streams:
        return [whole.take(at) for at in _deal_blocks(rng, whole, owed)]
    anchors = whole.anchors
    if (number := _number_clips(index.clip(anchors)))[-1] + 1 >= num_streams:
        stream_of = rng.permutation(num_streams)[number % num_streams]
        return [make_part(index, stratum, cast(SampleIndex, anchors[stream_of == k])) for k in range(num_streams)]
    return [whole] * num_streams


def _own_all(parts: list[Part], size: int) -> bool:
    """Whether every stream has a part, and every anchor a stream; not so where channels differ in who has a partner."""
    return all(p.size for p in parts) and len(np.unique(np.concatenate([p.anchors for p in parts]))) == size


def _copy_part(index: PlanIndex, stratum: int, base: Part) -> Part:
    """Own of a stratum what a stream owns of its base: the anchors with the same patches."""
    own = index.row[index.first[stratum] : index.first[stratum + 1]]
    rows = np.unique(index.row[base.anchors])
    at = np.flatnonzero(rows[np.searchsorted(rows, own).clip(max=len(rows) - 1)] == own) if len(rows) else rows
    part = make_part(index, stratum, cast(SampleIndex, (at + index.first[stratum]).astype(index.row.dtype)))
    place = {block: number for number, block in enumerate(part.blocks.tolist())}
    return part.take(np.array([place[b] for b in base.blocks.tolist() if b in place], np.int64))


def _number_clips(clip: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number the clips of ascending anchors 0, 1, … ."""
    return np.cumsum(np.diff(clip, prepend=clip[0]) != 0)


def _deal_blocks(rng: np.random.Generator, part: Part, owed: Real[np.ndarray, " w"]) -> list[Int64[np.ndarray, " _"]]:
    """Deal whole blocks in random order, in turn; in the last, short turn to the streams that have least."""
    streams = len(owed)
    order = rng.permutation(len(part.blocks))
    full = len(order) // streams * streams
    dealt = [order[:full][k::streams] for k in range(streams)]
    got = np.array([np.diff(part.first)[d].sum() for d in dealt]) + owed
    poorest = np.argsort(got, kind="stable")
    for block, stream in zip(order[full:], poorest, strict=False):
        dealt[stream] = np.append(dealt[stream], block)
    return [rng.permutation(d) for d in dealt]


def check_blocks(index: PlanIndex) -> None:
    """Check that every block lies in one stratum, so that what is resident says what can be drawn.

    Strata that differ in channels only may share blocks.

    Raises
    ------
    ConfigError
        A block holds anchors of two strata; names the label in which they differ.
    """
    owner = np.full(len(index.columns.block_bytes), -1)
    for s in range(len(index.strata)):
        blocks = index.blocks_of(s)
        mixed = np.flatnonzero((owner[blocks] >= 0) & (owner[blocks] != index.base_of[s]))
        if len(mixed):
            label, values = _find_difference(index, int(owner[blocks[mixed[0]]]), s)
            raise ConfigError(
                f"window_bytes: block {int(blocks[mixed[0]])} holds samples with {label}={values[0]!r} and {label}="
                f"{values[1]!r}, but streaming needs blocks whose samples agree in experiment, group and stratify "
                f"labels. Build the shards with {label!r} in shard_by, or use window_bytes=None (exact mode)."
            )
        owner[blocks] = index.base_of[s]


def _find_difference(index: PlanIndex, *strata: int) -> tuple[str, list[str | None]]:
    """Find the first label in which two strata differ, with its values."""
    labels = ("experiment", *index.batch_group_by, *index.stratify_by)
    one, other = ((of.experiment, *of.group, *of.value) for of in (index.strata[s] for s in strata))
    return next((label, pair) for label, *pair in zip(labels, one, other, strict=True) if pair[0] != pair[1])
