"""Blocks to streams: which part of every stratum each logical stream owns in an epoch.

Streams are what makes the order independent of the number of processes: each is planned for itself, and rank r of W
runs streams r, r + W, … . A stratum's blocks are dealt out whole; one that has fewer blocks than there are streams
is shared, and its clips are dealt out instead; one that has fewer clips even is repeated by all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator


@dataclass(frozen=True, slots=True)
class Part:
    """What one stream owns of one stratum."""

    blocks: Int64[np.ndarray, " k"]
    anchors: Integer[np.ndarray, " n"]
    """Positions in `PlanIndex.row`, grouped by block."""
    first: Int64[np.ndarray, " k1"]
    """CSR: anchors of the i-th block are `first[i]:first[i + 1]`."""

    def take(self, at: Int64[np.ndarray, " j"]) -> Part:
        """Keep some of the blocks, in this order."""
        count = np.diff(self.first)[at]
        first = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        anchors = self.anchors[np.arange(first[-1]) + np.repeat(self.first[at] - first[:-1], count)]
        return Part(self.blocks[at], anchors, first)

    def cut(self, begin: int, end: int) -> Part:
        """Keep the anchors `begin … end`; a block that is cut stays in both halves."""
        low, high = np.searchsorted(self.first, [begin, end - 1], "right") - 1
        first = np.clip(self.first[low : high + 2], begin, end) - begin
        return Part(self.blocks[low : high + 1], self.anchors[begin:end], first)


def make_part(index: PlanIndex, anchors: Integer[np.ndarray, " n"]) -> Part:
    """Group ascending anchors by block."""
    columns, row = index.columns, index.row[anchors]  # grouped by block already, so edges are looked up
    ends = columns.clip_block[columns.patch_clip[row[[0, -1]]]] if len(row) else np.array([0, -1])
    blocks = np.arange(ends[0], ends[1] + 1)
    first = np.searchsorted(row, columns.clip_first[columns.block_first[blocks]].astype(row.dtype))
    held = np.diff(first, append=len(row)) > 0
    return Part(blocks[held], anchors, np.append(first[held], len(row)))


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
    for s in range(len(index.strata)):
        rng = make_generator(Tag.STREAMS, seed, epoch, s)
        anchors = np.arange(index.first[s], index.first[s + 1]).astype(index.row.dtype)
        whole = make_part(index, anchors)
        if len(whole.blocks) >= num_streams:
            parts = [whole.take(at) for at in _deal_blocks(rng, whole, owed)]
        elif (number := _number_clips(index.clip(anchors)))[-1] + 1 >= num_streams:
            player = rng.permutation(num_streams)[number % num_streams]
            parts = [make_part(index, anchors[player == k]) for k in range(num_streams)]
        else:
            parts = [whole] * num_streams
        for stream, part in enumerate(parts):
            out[stream].append(part)
            owed[stream] += len(part.anchors)
    return out


def _number_clips(clip: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number the clips of ascending anchors 0, 1, … ."""
    return np.cumsum(np.diff(clip, prepend=clip[0]) != 0)


def _deal_blocks(
    rng: np.random.Generator, part: Part, owed: Integer[np.ndarray, " w"] | np.ndarray
) -> list[Int64[np.ndarray, " _"]]:
    """Deal whole blocks in random order, in turn; in the last, short turn to the streams that have least."""
    streams = len(owed)
    order = rng.permutation(len(part.blocks))
    full = len(order) // streams * streams
    hands = [order[:full][k::streams] for k in range(streams)]
    got = np.array([np.diff(part.first)[h].sum() for h in hands]) + owed
    poorest = np.argsort(got, kind="stable")
    for block, stream in zip(order[full:], poorest, strict=False):
        hands[stream] = np.append(hands[stream], block)
    return [rng.permutation(h) for h in hands]
