"""Laws of the layout: every cell stored, every anchor served, nothing lost uncounted."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.layout.candidates import ObservationColumns
from etl.layout.clips import TAR_TAIL, Clips, plan_clips, plan_keys, plan_shards, sort_clips
from etl.layout.lineage_tree import plan_descent
from etl.layout.segments import Segment, find_rows, plan_segments

# one cell: (lineage, track, t); tracks: {track: parent or -1}; written down, not computed
DIVIDING = ObservationColumns(
    partition=np.zeros(8, np.int32),
    lineage=np.zeros(8, np.int32),
    track=np.array([0, 0, 0, 1, 1, 2, 2, 2], np.int32),
    t=np.array([0, 1, 2, 3, 4, 3, 4, 6], np.int32),
    has_candidate=np.array([1, 1, 1, 1, 0, 1, 0, 0], bool),
    tau=np.tile(np.array([1, 1], np.int32), (8, 1)),
    clip_anchors=np.full(8, 2, np.int64),
    track_parent=np.array([-1, 0, 0], np.int32),
    track_lineage=np.array([0, 0, 0], np.int32),
)


def members(clips: Clips) -> list[list[tuple[int, bool]]]:
    """(observation, is anchor) of every patch, clip by clip."""
    edges = clips.clip_first.tolist()
    return [
        list(zip(clips.patch_obs[a:b].tolist(), clips.patch_is_sample[a:b].tolist(), strict=True))
        for a, b in itertools.pairwise(edges)
    ]


def test_a_dividing_lineage_is_cut_along_its_lines():
    clips = plan_clips(DIVIDING)
    # depth first, the anchors are rows 0 1 | 2 3 | 5; row 7 (t=6) is nobody's candidate
    assert members(clips) == [
        [(0, True), (1, True), (2, False)],
        [(2, True), (3, True), (5, False), (4, True)],
        [(5, True), (6, True)],
        [(7, True)],
    ]
    assert clips.patch_links.tolist() == [1, 1, 0, 2, 1, 0, 0, 1, 0, 0]
    # row 3 could have row 6 (its niece's frame), row 5 could have row 4
    assert clips.obs_dropped.tolist() == [0, 0, 0, 1, 0, 1, 0, 0]
    assert clips.clip_head.tolist() == [0, 2, 5, 7]
    assert clips.patch_has_candidate.tolist() == [True, True, False, True, True, False, False, True, False, False]


def test_an_anchor_without_descendants_gets_its_nearest_relative():
    # track 0 divides into 1 and 2; 1 ends at t=1, 2 divides into 3 and 4; aunt-side candidates at t=2
    cells = ObservationColumns(
        partition=np.zeros(6, np.int32),
        lineage=np.zeros(6, np.int32),
        track=np.array([0, 1, 2, 3, 4, 5], np.int32),
        t=np.array([0, 1, 1, 2, 2, 2], np.int32),
        has_candidate=np.array([1, 1, 1, 0, 0, 0], bool),
        tau=np.tile(np.array([1, 1], np.int32), (6, 1)),
        clip_anchors=np.ones(6, np.int64),
        track_parent=np.array([-1, 0, 0, 2, 2, 2], np.int32),
        track_lineage=np.zeros(6, np.int32),
    )
    clips = plan_clips(cells)
    assert members(clips) == [
        [(0, True), (1, False), (2, False)],
        [(1, True), (3, True)],
        [(2, True), (3, False), (4, True), (5, True)],
    ]
    assert clips.obs_dropped.tolist() == [0, 2, 0, 0, 0, 0]


def test_two_roots_of_one_lineage_are_relatives():
    # the root track was dropped whole: tracks 0 and 1 have no kept parent but one lineage
    cells = ObservationColumns(
        partition=np.zeros(3, np.int32),
        lineage=np.zeros(3, np.int32),
        track=np.array([0, 1, 1], np.int32),
        t=np.array([1, 1, 2], np.int32),
        has_candidate=np.array([1, 1, 0], bool),
        tau=np.tile(np.array([0, 1], np.int32), (3, 1)),
        clip_anchors=np.ones(3, np.int64),
        track_parent=np.array([-1, -1], np.int32),
        track_lineage=np.zeros(2, np.int32),
    )
    assert members(plan_clips(cells)) == [[(0, True), (2, True)], [(1, True), (2, False)]]


def test_descent_numbers_a_forest_depth_first():
    descent = plan_descent(np.array([-1, 0, -1, 0, 1]), np.array([0, 0, 1, 0, 0]))
    # lineage 0: node 5 > 0 > (1 > 4), 3; lineage 1: node 6 > 2
    assert descent.begin.tolist() == [1, 2, 6, 4, 3, 0, 5]
    assert descent.end.tolist() == [5, 4, 7, 5, 4, 5, 7]
    assert descent.parent.tolist() == [5, 0, 6, 0, 1, -1, -1]


@st.composite
def colonies(draw: st.DrawFn) -> ObservationColumns:
    """Up to 12 tracks in lineages of any shape, with gaps, and a τ range."""
    count = draw(st.integers(1, 12))
    parent = [draw(st.integers(-1, k - 1)) for k in range(count)]
    root = list(range(count))
    for k in range(count):
        root[k] = k if parent[k] < 0 else root[parent[k]]
    lineage_of = {r: n for n, r in enumerate(sorted(set(root)))}
    rows = []
    start = [0] * count
    for k in range(count):
        start[k] = draw(st.integers(0, 4)) if parent[k] < 0 else start[parent[k]] + draw(st.integers(0, 4))
        frames = draw(st.sets(st.integers(start[k], start[k] + 6), min_size=1, max_size=6))
        rows += [(k, t) for t in sorted(frames)]
    track, t = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    lineage = np.array([lineage_of[root[k]] for k in track], np.int32)
    low = draw(st.integers(0, 3))
    tau = (low, low + draw(st.integers(0, 4)))
    anchor = [
        any(lineage[j] == lineage[i] and t[j] != t[i] and tau[0] <= t[j] - t[i] <= tau[1] for j in range(len(t)))
        for i in range(len(t))
    ]
    return ObservationColumns(
        partition=(lineage % 2).astype(np.int32),
        lineage=lineage,
        track=track,
        t=t,
        has_candidate=np.array(anchor, bool),
        tau=np.tile(np.array(tau, np.int32), (len(t), 1)),
        clip_anchors=np.full(len(t), draw(st.integers(1, 12)), np.int64),
        track_parent=np.array(parent, np.int32),
        track_lineage=np.array([lineage_of[r] for r in root], np.int32),
    )


def slow_candidates(cells: ObservationColumns, anchor: int, rows: list[int]) -> list[int]:
    low, high = max(1, cells.tau[anchor, 0]), cells.tau[anchor, 1]
    return [
        row
        for row in rows
        if cells.lineage[row] == cells.lineage[anchor] and low <= cells.t[row] - cells.t[anchor] <= high
    ]


def ancestors(cells: ObservationColumns, track: int) -> list[int]:
    line = [track]
    while cells.track_parent[line[-1]] >= 0:
        line.append(int(cells.track_parent[line[-1]]))
    return line


def slow_runs(rows: list[int], longest: int) -> list[list[int]]:
    """Runs of about equal length, at most `longest`."""
    count = -(-len(rows) // longest)
    runs: list[list[int]] = [[] for _ in range(count)]
    for rank, row in enumerate(rows):
        runs[rank * count // len(rows)].append(row)
    return runs


def depth_first(cells: ObservationColumns, lineage: int) -> list[int]:
    """Rows of a lineage along its lines of descent."""
    children: dict[int, list[int]] = {}
    for track, parent in enumerate(cells.track_parent.tolist()):
        children.setdefault(parent, []).append(track)
    walk: list[int] = []

    def descend(track: int) -> None:
        walk.append(track)
        for child in children.get(track, []):
            descend(child)

    for track in children[-1]:
        if cells.track_lineage[track] == lineage:
            descend(track)
    return [row for track in walk for row in range(len(cells.t)) if cells.track[row] == track]


def slow_clips(cells: ObservationColumns) -> set[tuple[frozenset[int], frozenset[int]]]:
    """The definition, one clip at a time: {(samples, patches)}."""
    size = int(cells.clip_anchors[0])
    clips: list[tuple[set[int], set[int]]] = []
    unneeded: list[list[int]] = []
    for lineage in sorted(set(cells.lineage.tolist())):
        rows = depth_first(cells, lineage)
        runs = slow_runs([row for row in rows if cells.has_candidate[row]], size)
        mine: list[tuple[set[int], set[int]]] = []
        for run in runs:
            patches = set(rows) if len(runs) == 1 else set(run)
            for anchor in run if len(runs) > 1 else []:
                candidates = slow_candidates(cells, anchor, rows)
                own = {row for row in candidates if cells.track[anchor] in ancestors(cells, cells.track[row])}
                patches |= own or nearest(cells, anchor, candidates)
            mine.append((set(rows) if len(runs) == 1 else set(run), patches))
        taken = {row for samples, _ in mine for row in samples}
        for row in [row for row in rows if row not in taken]:
            if home := next((samples for samples, patches in mine if row in patches), None):
                home.add(row)
                taken.add(row)
        clips += mine
        unneeded += slow_runs([row for row in rows if row not in taken], size)
    clips += [(set(run), set(run)) for run in unneeded]
    return {(frozenset(samples), frozenset(patches)) for samples, patches in clips}


def nearest(cells: ObservationColumns, anchor: int, candidates: list[int]) -> set[int]:
    line = ancestors(cells, cells.track[anchor])

    def distance(row: int) -> int:
        theirs = ancestors(cells, cells.track[row])
        return next((k for k, track in enumerate(line) if track in theirs), len(line))

    chosen = set()
    for t in {int(cells.t[row]) for row in candidates}:
        chosen.add(min((r for r in candidates if cells.t[r] == t), key=lambda r: (distance(r), cells.track[r])))
    return chosen


@settings(max_examples=120, deadline=None)
@given(colonies())
def test_clips_equal_a_slow_obvious_computation(cells: ObservationColumns):
    clips = plan_clips(cells)
    got = {(frozenset(o for o, anchor in clip if anchor), frozenset(o for o, _ in clip)) for clip in members(clips)}
    assert got == slow_clips(cells)


def take_segment(cells: ObservationColumns, segment: Segment) -> tuple[ObservationColumns, list[int]]:
    """Take what a segment holds, and say which rows these are."""
    low, high = cells.tau[0].tolist()
    rows = np.flatnonzero(find_rows(cells.lineage, cells.t, segment, (low, high)))
    columns = ("partition", "lineage", "track", "t", "tau", "clip_anchors")
    has_candidate = np.array([bool(slow_candidates(cells, row, rows.tolist())) for row in rows.tolist()], bool)
    taken = {name: getattr(cells, name)[rows] for name in columns}
    return replace(cells, **taken, has_candidate=has_candidate, end=segment.last), rows.tolist()


@settings(max_examples=80, deadline=None)
@given(colonies(), st.integers(1, 9))
def test_each_observation_is_a_sample_in_one_segment_with_all_candidates_of_its_line(
    cells: ObservationColumns, segment_frames: int
):
    every, sampled = list(range(len(cells.t))), []
    for segment in plan_segments(int(cells.t.max()) + 1, segment_frames, int(cells.tau[0, 1])):
        taken, rows = take_segment(cells, segment)
        if not rows:
            continue
        for clip in members(plan_clips(taken)):
            held = [rows[place] for place, _ in clip]
            for anchor in (rows[place] for place, is_sample in clip if is_sample):
                assert cells.t[anchor] in range(segment.first, segment.last)
                candidates = slow_candidates(cells, anchor, every)
                own = {row for row in candidates if cells.track[anchor] in ancestors(cells, cells.track[row])}
                assert own <= set(held)
                assert bool(candidates) == bool(set(candidates) & set(held))
                sampled.append(anchor)
    assert sorted(sampled) == every


@settings(max_examples=60, deadline=None)
@given(colonies())
def test_every_observation_is_a_sample_once_and_its_candidates_are_held_or_counted(cells: ObservationColumns):
    clips = plan_clips(cells)
    assert sorted(clips.patch_obs[clips.patch_is_sample].tolist()) == list(range(len(cells.t)))
    dropped = np.zeros(len(cells.t), int)
    for number, clip in enumerate(members(clips)):
        rows = [obs for obs, _ in clip]
        assert len(set(rows)) == len(rows)
        assert rows == sorted(rows, key=lambda row: (cells.t[row], cells.track[row]))
        first = clips.clip_first[number]
        for place, (obs, is_sample) in enumerate(clip):
            held = slow_candidates(cells, obs, rows) if is_sample else []
            assert len(held) == clips.patch_links[first + place]
            assert bool(held) == clips.patch_has_candidate[first + place] == (is_sample and cells.has_candidate[obs])
            if is_sample:
                dropped[obs] = len(slow_candidates(cells, obs, list(range(len(cells.t))))) - len(held)
    assert clips.obs_dropped.tolist() == dropped.tolist()


def test_clips_are_stored_by_partition_then_key():
    cells = ObservationColumns(
        partition=np.array([1, 1, 0, 0], np.int32),
        lineage=np.array([0, 1, 2, 3], np.int32),
        track=np.arange(4, dtype=np.int32),
        t=np.array([5, 6, 7, 8], np.int32),
        has_candidate=np.zeros(4, bool),
        tau=np.tile(np.array([1, 2], np.int32), (4, 1)),
        clip_anchors=np.full(4, 8, np.int64),
        track_parent=np.full(4, -1, np.int32),
        track_lineage=np.arange(4, dtype=np.int32),
    )
    clips, keys = sort_clips(plan_clips(cells), np.array(["0b", "0a", "0d", "0c"]))
    assert keys.tolist() == ["0c", "0d", "0a", "0b"]
    assert clips.clip_partition.tolist() == [0, 0, 1, 1]
    assert clips.patch_t.tolist() == [8, 7, 6, 5]
    assert clips.patch_clip.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="two clips got the same key"):
        sort_clips(plan_clips(cells), np.array(["0b", "0b", "0d", "0c"]))


def test_a_key_is_a_hash_of_seed_and_identity():
    fovs, fov, root = [("µ", "A/1/0"), ("µ", "A/1/1")], np.array([0, 0, 1, 0]), ["4", "4", "4", "11"]
    head = [np.array([4, 4, 4, 2**40]), np.array([7, 8, 7, 7])]
    keys = plan_keys(0, fovs, fov, root, head)
    text = b'[0,"\\u00b5","A/1/0","4",4,7]'
    assert keys[0] == hashlib.blake2b(text, digest_size=8).hexdigest()
    assert keys.dtype == np.dtype("U16")
    assert len({*keys.tolist(), *plan_keys(1, fovs, fov, root, head).tolist()}) == 8


def test_shards_fill_up_and_blocks_close_when_full():
    sizes = np.array([4, 4, 4, 4, 30, 4, 4], np.int64)
    strata = np.array([0, 0, 0, 0, 0, 0, 1], np.int32)
    shards = plan_shards(strata, sizes, shard_bytes=13 + TAR_TAIL, block_bytes=7)
    assert shards.shard_first.tolist() == [0, 3, 4, 5, 6, 7]  # 12 bytes, then 4 (30 do not fit), 30 alone, ...
    assert shards.shard_partition.tolist() == [0, 0, 0, 0, 1]
    assert shards.block_first.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert shards.block_shard.tolist() == [0, 0, 1, 2, 3, 4]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(1, 50),
)
def test_shards_and_blocks_partition_the_clips(clips: list[tuple[int, int]], room: int, block_bytes: int):
    strata, sizes = (np.array(column) for column in zip(*sorted(clips), strict=True))
    shards = plan_shards(strata, sizes, shard_bytes=room + TAR_TAIL, block_bytes=block_bytes)
    edges, blocks = shards.shard_first, shards.block_first
    assert edges[0] == 0
    assert edges[-1] == blocks[-1] == len(sizes)
    assert (np.diff(edges) > 0).all()
    assert (np.diff(blocks) > 0).all()
    assert set(edges.tolist()) <= set(blocks.tolist())
    for shard, (a, b) in enumerate(itertools.pairwise(edges)):
        assert set(strata[a:b].tolist()) == {shards.shard_partition[shard]}
        assert sizes[a:b].sum() <= room or b - a == 1
        if b < len(sizes) and strata[b] == strata[a]:
            assert sizes[a : b + 1].sum() > room
    for a, b in itertools.pairwise(blocks):
        assert sizes[a : b - 1].sum() < block_bytes
        assert sizes[a:b].sum() >= block_bytes or b in edges
