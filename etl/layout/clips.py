"""Index rows to shards: which clip, block and shard each patch goes to, in what order.

A clip is a run of one lineage's anchors with the patches that their positives need, so that any
triplet of those anchors can be drawn from one sample. Guaranteed: every anchor is an anchor in one
clip and has a candidate there; every candidate on an anchor's own line of descent is in its clip;
every observation is stored at least once; the same input gives the same layout. Not guaranteed:
candidates on other branches of a long lineage; those left out are counted.

Pure: numpy in, frozen arrays out. Long lineages are split along lines of descent, never by pairs,
so memory grows with the patches that are stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, Shaped

from dynaclr_wds.errors import ConfigError
from etl.layout.candidates import Cells, concatenate_ranges, count_candidates, plan_own_line, tau_bounds, time_step
from etl.layout.lineage_tree import Descent, plan_descent

Ints = Int[np.ndarray, " n"]

TAR_TAIL = 1024 + 10240
"""A tar ends with 1024 zeros and more, up to a multiple of 10240."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """Clips and their patches, which are ordered by (clip, t, track)."""

    patch_obs: Int[np.ndarray, " patches"]
    patch_clip: Int[np.ndarray, " patches"]
    patch_t: Int[np.ndarray, " patches"]
    patch_is_anchor: Bool[np.ndarray, " patches"]
    patch_links: Int[np.ndarray, " patches"]
    """Candidates that the clip holds for an anchor: its rows at t+τ. 0 where not an anchor."""
    clip_first: Int[np.ndarray, " clips_and_one"]
    clip_lineage: Int[np.ndarray, " clips"]
    clip_stratum: Int[np.ndarray, " clips"]
    clip_head: Int[np.ndarray, " clips"]
    """Observation that names the clip: its first anchor, or its first patch where it has none."""
    obs_dropped: Int[np.ndarray, " obs"]
    """Candidates of an anchor that its clip does not hold."""

    @property
    def clip_has_anchors(self) -> Bool[np.ndarray, " clips"]:
        """Whether a clip is there for its anchors, or only so that its cells are stored."""
        return np.logical_or.reduceat(self.patch_is_anchor, self.clip_first[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Runs of clips: shards, and blocks inside them."""

    shard_first: Int[np.ndarray, " shards_and_one"]
    """CSR: first clip."""
    shard_stratum: Int[np.ndarray, " shards"]
    block_first: Int[np.ndarray, " blocks_and_one"]
    """CSR: first clip."""
    block_shard: Int[np.ndarray, " blocks"]


def plan_clips(cells: Cells) -> Clips:
    """Put every observation into clips.

    A lineage of at most `clip_anchors` anchors is one clip, with every candidate. The anchors of a
    longer one are ordered along lines of descent (depth first; a track by t, then its children) and
    cut into runs; each run gets all candidates on its anchors' own lines, and an anchor without any
    gets one per τ from its nearest relatives. What is in no clip then is stored in clips without anchors.

    Returns
    -------
    Clips
        In the order of lineages, those with anchors before those without.
    """
    descent = plan_descent(cells.track_parent, cells.track_lineage)
    full, needed = count_candidates(cells)
    assert np.array_equal(full > 0, cells.is_anchor), "the index marks as anchors what has a candidate"
    lineages = int(cells.track_lineage.max()) + 1 if cells.track.size else 0
    anchors = np.flatnonzero(cells.is_anchor)
    anchor_clip, count = _runs(cells, descent, anchors, cells.clip_anchors, lineages)
    home = np.full(cells.track.size, -1, np.int64)  # the clip where an observation is an anchor
    home[anchors] = anchor_clip
    is_long = np.bincount(cells.lineage[anchors], minlength=lineages)[cells.lineage] > cells.clip_anchors
    short = np.flatnonzero(~is_long & (needed > 0))
    short_clip = (np.cumsum(count) - count)[cells.lineage[short]]
    line_clip, line = plan_own_line(cells, descent, home, is_long)
    clip, obs = _unique_members([anchor_clip, short_clip, line_clip], [anchors, short, line])
    stored = np.zeros(cells.track.size, bool)
    stored[obs] = True
    rest = np.flatnonzero(~stored)
    rest_clip, _ = _runs(cells, descent, rest, 2 * cells.clip_anchors, lineages)
    return _assemble(cells, np.append(clip, rest_clip + count.sum()), np.append(obs, rest), home, full)


def _runs(
    cells: Cells, descent: Descent, rows: Ints, longest: Int[np.ndarray, " obs"], lineages: int
) -> tuple[Ints, Int[np.ndarray, " lineages"]]:
    """Cut each lineage's rows, in depth-first order, into runs; return their run and the runs per lineage."""
    order = np.lexsort((cells.t[rows], descent.begin[cells.track[rows]]))
    lineage = cells.lineage[rows[order]].astype(np.int64)  # lineages are in depth-first order too
    size = np.bincount(lineage, minlength=lineages)
    rank = np.arange(rows.size) - (np.cumsum(size) - size)[lineage]
    number = rank // longest[rows[order]]
    count = np.zeros(lineages, np.int64)
    np.maximum.at(count, lineage, number + 1)
    run = np.empty(rows.size, np.int64)
    run[order] = (np.cumsum(count) - count)[lineage] + number
    return run, count


def _unique_members(clips: list[np.ndarray], obs: list[np.ndarray]) -> tuple[Ints, Ints]:
    """Each (clip, observation) once."""
    clip, row = np.concatenate(clips).astype(np.int64), np.concatenate(obs).astype(np.int64)
    step = int(row.max(initial=0)) + 1
    key = np.unique(clip * step + row)
    return key // step, key % step


def _assemble(
    cells: Cells, clip: Ints, obs: Ints, home: Int[np.ndarray, " obs"], full: Int[np.ndarray, " obs"]
) -> Clips:
    """Order the patches, count the candidates that each anchor has in its clip."""
    order = np.lexsort((obs, cells.t[obs], clip))  # rows are ordered by track
    clip, obs = clip[order], obs[order]
    t, is_anchor = cells.t[obs].astype(np.int64), home[obs] == clip
    key = clip * time_step(cells) + t
    low, high = tau_bounds(cells)
    links = np.searchsorted(key, key + high[obs], "right") - np.searchsorted(key, key + low[obs])
    links = np.where(is_anchor, links, 0)
    assert (links[is_anchor] > 0).all(), "every anchor has a candidate in its clip"
    dropped = np.zeros(cells.track.size, np.int64)
    dropped[obs[is_anchor]] = full[obs[is_anchor]] - links[is_anchor]
    clips = int(clip[-1]) + 1 if clip.size else 0
    first = np.searchsorted(clip, np.arange(clips + 1))
    anchors_before = np.concatenate([[0], np.cumsum(is_anchor)])
    first_anchor = np.searchsorted(anchors_before, anchors_before[first[:-1]], "right") - 1
    head = np.where(anchors_before[first[1:]] > anchors_before[first[:-1]], first_anchor, first[:-1])
    return Clips(
        patch_obs=obs.astype(np.int32),
        patch_clip=clip.astype(np.int32),
        patch_t=t.astype(np.int32),
        patch_is_anchor=is_anchor,
        patch_links=links,
        clip_first=first.astype(np.int64),
        clip_lineage=cells.lineage[obs[first[:-1]]].astype(np.int32),
        clip_stratum=cells.stratum[obs[first[:-1]]].astype(np.int32),
        clip_head=obs[head].astype(np.int32),
        obs_dropped=dropped,
    )


def plan_key(seed: int, identity: Iterable[str | int]) -> str:
    """Name a clip: 16 hex digits of a hash (BLAKE2b) of the seed and its identity, uniform over clips."""
    text = json.dumps([seed, *identity], ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def sort_clips(clips: Clips, keys: Shaped[np.ndarray, " clips"]) -> tuple[Clips, Shaped[np.ndarray, " clips"]]:
    """Put clips in stored order: by stratum, then by key.

    Raises
    ------
    ConfigError
        Two clips have the same key (2⁻⁶⁴ a pair, unless two clips are the same).
    """
    if np.unique(keys).size != keys.size:
        raise ConfigError("seed: two clips got the same key. Allowed: distinct keys. Build with another seed.")
    order = np.lexsort((keys, clips.clip_stratum))
    size = np.diff(clips.clip_first)[order]
    rows = concatenate_ranges(clips.clip_first[:-1][order], clips.clip_first[1:][order])
    first = np.concatenate([[0], np.cumsum(size)])
    moved = replace(
        clips,
        patch_obs=clips.patch_obs[rows],
        patch_clip=np.repeat(np.arange(order.size, dtype=np.int32), size),
        patch_t=clips.patch_t[rows],
        patch_is_anchor=clips.patch_is_anchor[rows],
        patch_links=clips.patch_links[rows],
        clip_first=first,
        clip_lineage=clips.clip_lineage[order],
        clip_stratum=clips.clip_stratum[order],
        clip_head=clips.clip_head[order],
    )
    return moved, keys[order]


def plan_shards(
    clip_stratum: Int[np.ndarray, " clips"], clip_bytes: Int[np.ndarray, " clips"], shard_bytes: int, block_bytes: int
) -> Shards:
    """Cut the clips, in stored order, into shards and blocks.

    A shard is filled up to `shard_bytes` (at least one clip, one stratum only); a block inside it is
    closed as soon as it reaches `block_bytes`.
    """
    end = np.cumsum(clip_bytes)
    strata = np.append(np.flatnonzero(np.diff(clip_stratum, prepend=-1)), clip_stratum.size)
    shards: list[int] = []
    blocks: list[int] = []
    block_shard: list[int] = []
    clip = 0
    while clip < clip_stratum.size:
        limit = int(strata[np.searchsorted(strata, clip, "right")])
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
        shard_stratum=clip_stratum[first[:-1]].astype(np.int32),
        block_first=np.array([*blocks, clip_stratum.size], np.int64),
        block_shard=np.array(block_shard, np.int32),
    )
