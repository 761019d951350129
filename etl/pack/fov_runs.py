"""Joins what the units noted of one run of FOVs: the segments of its movies become one index, and one part.

Rows of the index are ordered by track, so those of a segment do not stand together. A track, and a lineage, that goes
on in the next segment is numbered once. Where movies are whole, a run is one group, and its part is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped

from dynaclr_wds.contract import STATISTICS, ExperimentRecord, PartitionRecord
from dynaclr_wds.errors import BuildError
from etl.cut.intensities import Summaries, merge_summaries, plan_fov_statistics
from etl.index import Index, add_stack_places, keep_observations
from etl.layout.groups import Group
from etl.layout.segments import find_rows
from etl.source.config import BuildConfig
from etl.source.plates import Plate
from etl.stored_index import StoredIndex
from etl.unit.part import Part


@runtime_checkable
class ReadPart(Protocol):
    """Reads the part of a group, without its rows unless they are asked for."""

    def __call__(self, group: Group, *, rows: bool) -> Part:
        """Read it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupParts:
    """All groups of a set, which are built: run after run in the order of the index, of each segment after segment."""

    config: BuildConfig
    plates: Mapping[str, Plate]
    experiments: tuple[ExperimentRecord, ...]
    index: StoredIndex
    """What was known before a pixel was read."""
    groups: Sequence[Group]
    read: ReadPart

    def list_runs(self) -> list[list[Group]]:
        """List the groups of each run."""
        return [list(groups) for _, groups in groupby(self.groups, lambda group: group.run.start)]

    def tau_frames(self, groups: Sequence[Group]) -> dict[str, tuple[int, int]]:
        """Return the name of the experiment of some groups, and its τ range."""
        record = self.experiments[groups[0].experiment]
        return {record.name: record.tau_frames}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """What is left of a run of FOVs; numbers count within it."""

    kept: Bool[np.ndarray, " obs"]
    """Of the observations that the index had of it."""
    index: Index
    part: Part
    """Of all its groups, with the rows that stand in the arrays of a set."""


def read_run(parts: GroupParts, groups: Sequence[Group]) -> RunRows:
    """Read the rows of a run of FOVs."""
    index = parts.index.take(groups[0].run.start, groups[0].run.stop)
    if groups[0].segment.is_whole:
        (part,) = (parts.read(group, rows=True) for group in groups)
        kept, z_start, z_focus = (part.arrays[name] for name in ("kept", "z_start", "z_focus"))
        return RunRows(kept=kept, index=_take_left(parts, groups, index, kept, z_start, z_focus), part=part)
    lineage, t, fov = (index.observations[name].to_numpy() for name in ("lineage_index", "t", "fov_index"))
    (tau_frames,) = parts.tau_frames(groups).values()
    kept, places, own_parts = np.zeros(t.size, bool), [], []
    z_start, z_focus = np.full((2, t.size), np.nan, np.float32)
    for group in groups:
        part, first = parts.read(group, rows=True), group.run.start
        is_here = (fov >= group.first - first) & (fov < group.last - first)
        rows = np.flatnonzero(is_here & find_rows(lineage, t, group.segment, tau_frames))
        left = rows[part.arrays["kept"]]
        kept[left[t[left] < group.segment.last]] = True
        z_start[left], z_focus[left] = part.arrays["z_start"], part.arrays["z_focus"]
        places.append(left)
        own_parts.append(part)
    _refuse_others(parts, groups, [kept[left] for left in places])
    number = np.cumsum(kept) - 1
    index = _take_left(parts, groups, index, kept, z_start[kept], z_focus[kept])
    lineages = index.observations["lineage_index"].to_numpy()
    joined = _join_rows(own_parts, [number[left] for left in places], lineages)
    shards = tuple(shard for part in own_parts for shard in part.shards)
    part = replace(own_parts[0], arrays=joined, shards=shards, lineages=int(lineages.max(initial=-1)) + 1)
    return RunRows(kept=kept, index=index, part=part)


def read_kept(parts: GroupParts, groups: Sequence[Group]) -> Bool[np.ndarray, " obs"]:
    """Say which observations of a run are left."""
    if not groups[0].segment.is_whole:
        return read_run(parts, groups).kept
    kept: Bool[np.ndarray, " obs"] = parts.read(groups[0], rows=True).arrays["kept"]
    return kept


def _refuse_others(parts: GroupParts, groups: Sequence[Group], kept: Sequence[Bool[np.ndarray, " _"]]) -> None:
    """Refuse patches of a segment that the next one, which has them too, has left out: pixels changed in between."""
    for group, is_kept in zip(groups, kept, strict=True):
        if not is_kept.all():
            fovs = [fov.fov_name for fov in parts.index.fovs[group.first : group.last]]
            raise BuildError(
                f"experiment {parts.experiments[group.experiment].name}: pixels behind frame {group.segment.last - 1} "
                f"changed while {', '.join(fovs)} were read. Run the same command again when they are at rest."
            )


def _take_left(
    parts: GroupParts,
    groups: Sequence[Group],
    index: Index,
    kept: Bool[np.ndarray, " obs"],
    z_start: Float32[np.ndarray, " left"],
    z_focus: Float32[np.ndarray, " left"],
) -> Index:
    """Take the index of a run as its units left it."""
    if not kept.all():
        index = keep_observations(index, kept, parts.tau_frames(groups))
    return add_stack_places(index, z_start, z_focus)


_COUNTS = {"clip_first": "patch", "block_first": "clip", "block_shard": "shard"}
"""Array → what its numbers count."""


def _join_rows(
    own: Sequence[Part], places: Sequence[Int[np.ndarray, " _"]], lineages: Int[np.ndarray, " obs"]
) -> dict[str, Shaped[np.ndarray, ...]]:
    """Join the rows of parts, whose numbers count on; patches refer to observations of the run."""
    before = dict.fromkeys(_COUNTS.values(), 0)
    columns: dict[str, list[Shaped[np.ndarray, ...]]] = {}
    for number, (part, place) in enumerate(zip(own, places, strict=True)):
        rows = {name: values for name, values in part.arrays.items() if name.startswith(("patch_", "clip_", "block_"))}
        rows["patch_obs"] = place[rows["patch_obs"]].astype(np.int32)
        rows["clip_lineage"] = lineages[rows["patch_obs"][rows["clip_first"][:-1]]].astype(np.int32)
        for name, values in rows.items():
            shifted = values + values.dtype.type(before[_COUNTS[name]]) if name in _COUNTS else values
            is_last = number == len(own) - 1 or not name.endswith("_first")  # of CSR, the last entry is the next first
            columns.setdefault(name, []).append(shifted if is_last else shifted[:-1])
        sizes = {"patch": rows["patch_t"].size, "clip": rows["clip_key"].size, "shard": len(part.shards)}
        before = {name: count + sizes[name] for name, count in before.items()}
    return {name: np.concatenate(values) for name, values in columns.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """What is known of a run without its rows."""

    parts: tuple[Part, ...]
    """Of its groups, without rows."""
    fov_kept: Bool[np.ndarray, " fovs"]
    """Which FOVs have observations left."""
    timepoint: Float32[np.ndarray, "frames channels 8"]
    """Statistics of the frames of these FOVs."""
    fov: Float32[np.ndarray, "left channels 8"]
    summaries: Summaries
    """Of all their frames."""
    lineages: Mapping[tuple[str | None, ...], int]
    """Values of `shard_by` → lineages that are left, where the parts can't say it: a lineage may be in several."""


def read_head(parts: GroupParts, groups: Sequence[Group]) -> RunHead:
    """Read what the parts of a run say of FOVs, shards and partitions."""
    heads = tuple(parts.read(group, rows=False) for group in groups)
    if groups[0].segment.is_whole:
        (head,) = heads
        tables = {name: head.arrays[name] for name in ("fov_kept", "timepoint", "fov")}
        summaries = head.summaries[0] if head.summaries else ()
        return RunHead(parts=(replace(head, summaries=()),), summaries=summaries, lineages={}, **tables)
    index = read_run(parts, groups).index
    names = {fov.fov_name for fov in index.fovs}
    run = parts.index.fovs[groups[0].run.start : groups[0].run.stop]
    fov_kept = np.array([fov.fov_name in names for fov in run])
    frames, rows, merged = _join_statistics(parts, groups, heads, fov_kept)
    pairs = np.stack([index.observations[name].to_numpy() for name in ("partition_index", "lineage_index")])
    counts = np.bincount(np.unique(pairs, axis=1)[0], minlength=len(index.partitions)).tolist()
    return RunHead(
        parts=tuple(replace(head, summaries=(), partitions=_forget_lineages(head)) for head in heads),
        fov_kept=fov_kept,
        timepoint=frames,
        fov=rows,
        summaries=merged,
        lineages={tuple(labels.values()): n for labels, n in zip(index.partitions, counts, strict=True)},
    )


def _forget_lineages(head: Part) -> tuple[PartitionRecord, ...]:
    return tuple(replace(partition, lineages=0) for partition in head.partitions)


def _join_statistics(
    parts: GroupParts, groups: Sequence[Group], heads: Sequence[Part], fov_kept: Bool[np.ndarray, " fovs"]
) -> tuple[Float32[np.ndarray, "frames channels 8"], Float32[np.ndarray, "left channels 8"], Summaries]:
    """Join the statistics of the segments of each FOV that is left."""
    entry, first = parts.config.experiments[groups[0].experiment], groups[0].run.start
    frames = {n: list[Float32[np.ndarray, "frames channels 8"]]() for n in np.flatnonzero(fov_kept).tolist()}
    merged: dict[int, Summaries] = dict.fromkeys(frames, ())
    for group, head in zip(groups, heads, strict=True):
        row = 0
        for place, summaries in enumerate(head.summaries):
            fov = group.first + place
            count = len(group.segment.own(parts.index.fovs[fov].frames))
            if fov - first in frames:
                frames[fov - first].append(head.arrays["timepoint"][row : row + count])
                merged[fov - first] = merge_summaries(merged[fov - first], summaries)
            row += count
    nothing = np.empty((0, len(entry.source_channel), len(STATISTICS)), np.float32)
    total: Summaries = ()
    tables, rows = [nothing], [nothing]
    for number, own in frames.items():
        table, of_fov = plan_fov_statistics(
            parts.plates[entry.name].fovs[parts.index.fovs[first + number].fov_name],
            np.concatenate(own),
            merged[number],
            entry.source_channel,
            fill_blank=parts.config.on_blank == "keep",
        )
        tables.append(table)
        rows.append(of_fov[None].astype(np.float32))
        total = merge_summaries(total, merged[number])
    return np.concatenate(tables), np.concatenate(rows), total
