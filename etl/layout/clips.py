"""Lays out the index: decides which clip, block and shard each patch goes to, and in what order.

A clip is a run of one lineage's observations, its samples, with the later patches that their positives need, so that
any triplet of those samples can be drawn from one member group of a tar. Guaranteed: every observation is a sample of
exactly one clip; one that has candidates has one there; every candidate on a sample's own line of descent is in its
clip; the same input gives the same layout. Not guaranteed: candidates on other branches of a long lineage; those left
out are counted.

Pure: numpy in, frozen arrays out. Long lineages are split along lines of descent, never by pairs,
so memory grows with the patches that are stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from dynaclr_wds.errors import ConfigError
from etl.layout.candidates import (
    ObservationColumns,
    concatenate_ranges,
    count_candidates,
    plan_own_line,
    tau_bounds,
    time_step,
)
from etl.layout.lineage_tree import Descent, plan_descent

Ints = Int[np.ndarray, " n"]

_NOWHERE = np.iinfo(np.int64).max

TAR_TAIL = 1024 + 10240
"""A tar ends with 1024 zeros and more, up to a multiple of 10240."""

MEMBER_HEADER = 512
"""Bytes of a tar member before its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """Clips and their patches, which are ordered by (clip, t, track)."""

    patch_obs: Int[np.ndarray, " patches"]
    patch_clip: Int[np.ndarray, " patches"]
    patch_t: Int[np.ndarray, " patches"]
    patch_is_sample: Bool[np.ndarray, " patches"]
    """True in one clip for every observation that may be a sample: the clip that holds its candidates."""
    patch_links: Int[np.ndarray, " patches"]
    """Candidates that the clip holds for a sample: its rows at t+τ. 0 where not a sample."""
    clip_first: Int[np.ndarray, " clips_and_one"]
    clip_lineage: Int[np.ndarray, " clips"]
    clip_partition: Int[np.ndarray, " clips"]
    clip_head: Int[np.ndarray, " clips"]
    """Observation that names the clip: its first sample."""
    obs_dropped: Int[np.ndarray, " obs"]
    """Candidates of an observation that the clip where it is a sample does not hold."""

    @property
    def patch_has_candidate(self) -> Bool[np.ndarray, " patches"]:
        """Whether a row is a sample whose candidates its clip holds."""
        return self.patch_links > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Runs of clips: shards, and blocks inside them."""

    shard_first: Int[np.ndarray, " shards_and_one"]
    """CSR: first clip."""
    shard_partition: Int[np.ndarray, " shards"]
    block_first: Int[np.ndarray, " blocks_and_one"]
    """CSR: first clip."""
    block_shard: Int[np.ndarray, " blocks"]


def member_bytes(data_bytes: int | Int[np.ndarray, " n"]) -> Any:
    """Size of a tar member: its header and its data, filled up to whole 512 bytes."""
    return MEMBER_HEADER + (data_bytes + 511) // 512 * 512


def plan_clips(observations: ObservationColumns) -> Clips:
    """Put every observation into clips; each is a sample of exactly one.

    The observations of a lineage that have candidates are ordered along lines of descent (depth first; a track by t,
    then its children) and cut into runs of at most `clip_anchors`. A lineage of one run is one clip with all of its
    observations. Each run of a longer one also gets all candidates on its samples' own lines of descent, and a sample
    with candidates on other lines only gets one per τ from its nearest relatives. An observation without candidates is
    a sample of the first clip that stores it; those that no clip needs share clips of their own. Those from
    `observations.end` on are no samples: clips hold them as candidates, or not at all.

    Returns
    -------
    Clips
        In the order of lineages; clips of observations that no other clip needs come last.
    """
    tree = plan_descent(observations.track_parent, observations.track_lineage)
    full = count_candidates(observations)
    assert np.array_equal(full > 0, observations.has_candidate), "the index marks what has a candidate"
    lineages = int(observations.track_lineage.max()) + 1 if observations.track.size else 0
    may_be_sample = observations.may_be_sample
    anchors = np.flatnonzero(observations.has_candidate & may_be_sample)
    home = np.full(observations.track.size, -1, np.int64)  # the clip where an observation is a sample
    home[anchors], runs = _runs(observations, tree, anchors, lineages)
    is_single, first_run = (runs == 1)[observations.lineage], (np.cumsum(runs) - runs)[observations.lineage]
    home = np.where(is_single & (home < 0) & may_be_sample, first_run, home)
    line = np.flatnonzero(is_single & ~may_be_sample)
    line_clip = first_run[line]
    is_long = (runs > 1)[observations.lineage]
    if is_long.any():
        own_clip, own_line = plan_own_line(observations, tree, home, is_long)
        line_clip, line = np.append(line_clip, own_clip), np.append(line, own_line)
    stored = np.full(home.size, _NOWHERE)
    np.minimum.at(stored, line, line_clip)
    home = np.where((home < 0) & (stored < _NOWHERE) & may_be_sample, stored, home)
    unneeded = np.flatnonzero((home < 0) & may_be_sample)
    home[unneeded] = _runs(observations, tree, unneeded, lineages)[0] + runs.sum()
    samples = np.flatnonzero(home >= 0)
    clip, t, obs = _sort_members(observations, [home[samples], line_clip], [samples, line])
    return _assemble(observations, clip, t, obs, home, full)


def _runs(
    observations: ObservationColumns, tree: Descent, rows: Ints, lineages: int
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " lineages"]]:
    """Cut each lineage's rows, in depth-first order, into runs of about equal length, at most `clip_anchors`.

    Returns
    -------
    tuple
        Run of each row, and runs of each lineage.
    """
    order = np.argsort(tree.begin[observations.track[rows]], kind="stable")  # a track is in order of t already
    lineage = observations.lineage[rows[order]].astype(np.int64)  # lineages are in depth-first order too
    size = np.bincount(lineage, minlength=lineages)
    rank = np.arange(rows.size) - (np.cumsum(size) - size)[lineage]
    longest = np.ones(lineages, np.int64)
    longest[lineage] = observations.clip_anchors[rows[order]]
    count = -(-size // longest)
    run = np.empty(rows.size, np.int64)
    run[order] = (np.cumsum(count) - count)[lineage] + rank * count[lineage] // size[lineage]
    return run, count


def _sort_members(
    observations: ObservationColumns, clips: list[np.ndarray], obs: list[np.ndarray]
) -> tuple[Int[np.ndarray, " patches"], Int[np.ndarray, " patches"], Int[np.ndarray, " patches"]]:
    """List each (clip, observation) once, with its frame, by (clip, t, track).

    The three make one number, so that what is in order already, as most of it is, is sorted in one pass.
    """
    clip, row = np.concatenate(clips).astype(np.int64), np.concatenate(obs).astype(np.int64)
    rows, frames = observations.t.size, int(observations.t.max(initial=0)) + 1
    assert (int(clip.max(initial=0)) + 1) * frames * rows < 2**63, "a layout is of part of a collection"
    key = (clip * frames + observations.t[row]) * rows + row  # rows are ordered by track
    key.sort(kind="stable")
    key = key[np.append(True, key[1:] != key[:-1])] if key.size else key
    frame, row = np.divmod(key, max(rows, 1))
    clip, t = np.divmod(frame, frames)
    return clip, t, row


def _assemble(
    observations: ObservationColumns,
    clip: Int[np.ndarray, " patches"],
    t: Int[np.ndarray, " patches"],
    obs: Int[np.ndarray, " patches"],
    home: Int[np.ndarray, " obs"],
    full: Int[np.ndarray, " obs"],
) -> Clips:
    """Count the candidates that each anchor has in its clip, and note where clips begin."""
    is_sample = home[obs] == clip
    key = clip * time_step(observations) + t
    low, high = tau_bounds(observations)
    links = np.searchsorted(key, key + high[obs], "right") - np.searchsorted(key, key + low[obs])
    links = np.where(is_sample, links, 0)
    assert ((links > 0) == (is_sample & (full[obs] > 0))).all(), "a sample with candidates has one in its clip"
    dropped = np.zeros(observations.track.size, np.int64)
    dropped[obs[is_sample]] = full[obs[is_sample]] - links[is_sample]
    clips = int(clip[-1]) + 1 if clip.size else 0
    first = np.searchsorted(clip, np.arange(clips + 1))
    samples = np.flatnonzero(is_sample)
    head = samples[np.searchsorted(samples, first[:-1])]  # every clip has a sample
    return Clips(
        patch_obs=obs.astype(np.int32),
        patch_clip=clip.astype(np.int32),
        patch_t=t.astype(np.int32),
        patch_is_sample=is_sample,
        patch_links=links,
        clip_first=first.astype(np.int64),
        clip_lineage=observations.lineage[obs[first[:-1]]].astype(np.int32),
        clip_partition=observations.partition[obs[first[:-1]]].astype(np.int32),
        clip_head=obs[head].astype(np.int32),
        obs_dropped=dropped,
    )


def plan_keys(
    seed: int,
    fovs: Sequence[tuple[str, str]],
    fov: Int[np.ndarray, " clips"],
    root: Sequence[str],
    head: Sequence[Int[np.ndarray, " clips"]],
) -> Shaped[np.ndarray, " clips"]:
    """Name clips: 16 hex digits of a hash (BLAKE2b) of the seed and what each is, uniform over clips.

    What is hashed is the JSON of `[seed, experiment, fov, root, track_id, t]`, without spaces; only its numbers differ
    between clips of a lineage, so the rest is made once.

    Parameters
    ----------
    fovs
        Experiment and name of each field of view.
    fov
        Place in `fovs` of each clip.
    root
        `track_id` of the root of each clip's lineage, as text.
    head
        `track_id` and `t` of each clip's first sample.
    """
    begins = [json.dumps([seed, *names, ""], separators=(",", ":"))[:-2] for names in fovs]
    columns = (fov.tolist(), root, *(numbers.tolist() for numbers in head))
    keys = [
        blake2b(f'{begins[place]}{name}",{track},{t}]'.encode(), digest_size=8).digest()
        for place, name, track, t in zip(*columns, strict=True)
    ]
    return np.frombuffer(b"".join(keys).hex().encode(), "S16").astype("U16")


def sort_clips(clips: Clips, keys: Shaped[np.ndarray, " clips"]) -> tuple[Clips, Shaped[np.ndarray, " clips"]]:
    """Put clips in stored order: by partition, then by key.

    Raises
    ------
    ConfigError
        Two clips have the same key (2⁻⁶⁴ a pair, unless two clips are the same).
    """
    ordered = np.sort(keys)
    if (ordered[1:] == ordered[:-1]).any():
        raise ConfigError("seed: two clips got the same key. Allowed: distinct keys. Build with another seed.")
    order = np.lexsort((keys, clips.clip_partition))
    size = np.diff(clips.clip_first)[order]
    rows = concatenate_ranges(clips.clip_first[:-1][order], clips.clip_first[1:][order])
    first = np.concatenate([[0], np.cumsum(size)])
    moved = replace(
        clips,
        patch_obs=clips.patch_obs[rows],
        patch_clip=np.repeat(np.arange(order.size, dtype=np.int32), size),
        patch_t=clips.patch_t[rows],
        patch_is_sample=clips.patch_is_sample[rows],
        patch_links=clips.patch_links[rows],
        clip_first=first,
        clip_lineage=clips.clip_lineage[order],
        clip_partition=clips.clip_partition[order],
        clip_head=clips.clip_head[order],
    )
    return moved, keys[order]


def plan_shards(
    clip_partition: Int[np.ndarray, " clips"], clip_bytes: Int[np.ndarray, " clips"], shard_bytes: int, block_bytes: int
) -> Shards:
    """Cut the clips, in stored order, into shards and blocks.

    A shard is filled up to `shard_bytes` (at least one clip, one partition only); a block inside it is
    closed as soon as it reaches `block_bytes`.
    """
    end = np.cumsum(clip_bytes)
    edges = np.append(np.flatnonzero(np.diff(clip_partition, prepend=-1)), clip_partition.size)
    shards: list[int] = []
    blocks: list[int] = []
    block_shard: list[int] = []
    clip = 0
    while clip < clip_partition.size:
        limit = int(edges[np.searchsorted(edges, clip, "right")])
        room = end[clip] - clip_bytes[clip] + shard_bytes - TAR_TAIL
        stop = min(max(int(np.searchsorted(end, room, "right")), clip + 1), limit)
        while clip < stop:
            blocks.append(clip)
            block_shard.append(len(shards))
            clip = min(int(np.searchsorted(end, end[clip] - clip_bytes[clip] + block_bytes)) + 1, stop)
        shards.append(stop)
    first = np.array([0, *shards], np.int64)
    return Shards(
        shard_first=first,
        shard_partition=clip_partition[first[:-1]].astype(np.int32),
        block_first=np.array([*blocks, clip_partition.size], np.int64),
        block_shard=np.array(block_shard, np.int32),
    )
