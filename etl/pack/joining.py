"""Joins what the units noted, run of FOVs after run: numbers of one follow those of the last.

Twice through the parts: `join_parts` reads what they say of fields of view, shards and partitions, which is small, and
counts rows; `read_rows` hands out the rows of one run after the other (`fov_runs.py`), so that those of all are never
in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from jaxtyping import Float64, Int, Int32, Shaped

from dynaclr_wds.contract import (
    NO_ID,
    STATISTICS,
    ExperimentRecord,
    FovRecord,
    LabelRecord,
    PartitionRecord,
    ShardRecord,
)
from dynaclr_wds.errors import ConfigError
from etl.cut.intensities import Summaries, merge_summaries, plan_dataset_statistics, widen
from etl.index import Index
from etl.layout.groups import Group
from etl.layout.jobs import Columns, read_columns
from etl.pack.fov_runs import GroupParts, RunHead, RunRows, read_head, read_kept, read_run
from etl.unit.part import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedParts:
    """What all parts together say, but the rows of observations, patches, clips and blocks."""

    experiments: tuple[ExperimentRecord, ...]
    fovs: tuple[FovRecord, ...]
    """Those that have observations left."""
    labels: tuple[LabelRecord, ...]
    """With the values that are left."""
    label_place: Mapping[str, Int32[np.ndarray, " values_and_one"]]
    """Label → place of each value of the index's record in that of `labels`; the last is `NO_ID`."""
    partitions: tuple[PartitionRecord, ...]
    shards: tuple[ShardRecord, ...]
    dropped: Mapping[str, Mapping[str, int]]
    """Experiment → reason → observations left out."""
    counts: Mapping[str, int]
    """Rows of all arrays that begin with `obs`, `patch`, `clip` and `block`."""
    is_whole: bool
    """Whether all observations of the index are left."""
    fov_experiment: Int[np.ndarray, " fovs"]
    """Row of `experiments` of each FOV that is left."""
    arrays: Mapping[str, Shaped[np.ndarray, ...]]
    """The arrays of the contract that have no such rows: statistics, and `fov_first_frame`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRows:
    """The rows of one run of FOVs: of one group, or of the groups of its segments."""

    experiment: int
    """Row of the config's experiments."""
    index: Index
    """What is left of it when the pixels are known; numbers count within the run."""
    columns: Columns
    """Its numeric columns."""
    labels: Mapping[str, Int32[np.ndarray, " obs"]]
    """Label → place of each observation's value in the record of the whole set."""
    part: Part
    before: Mapping[str, int]
    """`obs`, `track`, `lineage`, `fov`, `patch`, `clip`, `block` and `shard` → how many the runs before it have."""


def join_parts(parts: GroupParts) -> JoinedParts:
    """Join what the parts say of fields of view, shards and partitions.

    Raises
    ------
    ConfigError
        No observation is left.
    """
    runs, dataset = _read_heads(parts)
    heads = [head for run in runs for head in run.parts]
    counts = _count_rows(heads)
    given = parts.index.observations.rows
    if not counts["obs"]:
        raise ConfigError(f"no observation is left: all {given} are dropped as 'blank_channel'. Look at the images.")
    is_whole = counts["obs"] == given
    fov_kept = np.concatenate([run.fov_kept for run in runs])
    fovs = [fov for fov, is_left in zip(parts.index.fovs, fov_kept, strict=True) if is_left]
    rows = {experiment.name: row for row, experiment in enumerate(parts.experiments)}
    width = max(experiment.shape[0] for experiment in parts.experiments)
    partitions = _join_partitions(parts.index.partitions, runs)
    labels, place = _find_labels(parts, is_whole=is_whole)
    return JoinedParts(
        experiments=parts.experiments,
        fovs=tuple(fovs),
        labels=labels,
        label_place=place,
        partitions=partitions,
        shards=_join_shards(partitions, heads),
        dropped=_join_dropped(parts, heads),
        counts=counts,
        is_whole=is_whole,
        fov_experiment=np.array([rows[fov.experiment] for fov in fovs], np.int64),
        arrays={
            "fov_first_frame": np.cumsum([0, *(fov.frames for fov in fovs)]),
            **{
                f"stats_{level}": np.concatenate([widen(getattr(run, level), width) for run in runs])
                for level in ("timepoint", "fov")
            },
            "stats_dataset": np.concatenate([widen(table[None], width) for table in dataset]),
        },
    )


def read_rows(parts: GroupParts, joined: JoinedParts) -> Iterator[GroupRows]:
    """Read the rows of one run of FOVs after the other, the next one while the caller works on one."""
    before = dict.fromkeys(("obs", "track", "lineage", "fov", "patch", "clip", "block", "shard"), 0)
    runs = parts.list_runs()

    def read(groups: Sequence[Group]) -> tuple[RunRows, Columns, dict[str, Int32[np.ndarray, " obs"]]]:
        rows, fovs = read_run(parts, groups), groups[0].run
        codes = parts.index.take_labels(fovs.start, fovs.stop)
        labels = {name: joined.label_place[name][values[rows.kept]] for name, values in codes.items()}
        return rows, read_columns(rows.index.observations), labels

    with ThreadPoolExecutor(1, thread_name_prefix="join") as pool:
        ahead = deque(pool.submit(read, groups) for groups in runs[:1])
        for number, groups in enumerate(runs):
            ahead.extend(pool.submit(read, later) for later in runs[number + 1 : number + 2])
            rows, columns, labels = ahead.popleft().result()
            index, part, place = rows.index, rows.part, groups[0].experiment
            del rows
            yield GroupRows(
                experiment=place, index=index, columns=columns, labels=labels, part=part, before=dict(before)
            )
            sizes = {"obs": len(index.observations), "track": len(index.tracks), "fov": len(index.fovs)}
            sizes |= {"lineage": part.lineages, "shard": len(part.shards), "patch": part.arrays["patch_t"].size}
            sizes |= {"clip": part.arrays["clip_key"].size, "block": part.arrays["block_shard"].size}
            before = {name: count + sizes[name] for name, count in before.items()}


def _read_heads(parts: GroupParts) -> tuple[list[RunHead], list[Float64[np.ndarray, "channels 8"]]]:
    """Read the parts without their rows, and merge the statistics of each experiment, of which there are none then."""
    heads: list[RunHead] = []
    dataset = [np.full((experiment.shape[0], len(STATISTICS)), np.nan) for experiment in parts.experiments]
    for number, runs in groupby(parts.list_runs(), lambda groups: groups[0].experiment):
        merged: Summaries = ()
        fovs, name = [], parts.experiments[number].name
        for groups in runs:
            head = read_head(parts, groups)
            merged = merge_summaries(merged, head.summaries)
            left = np.flatnonzero(head.fov_kept) + groups[0].run.start
            fovs += [parts.plates[name].fovs[parts.index.fovs[fov].fov_name] for fov in left.tolist()]
            heads.append(replace(head, summaries=()))
        fill_blank = parts.config.on_blank == "keep"
        channels = parts.experiments[number].source_channel
        dataset[number] = plan_dataset_statistics(fovs, merged, channels, fill_blank=fill_blank)
    return heads, dataset


def _count_rows(heads: Sequence[Part]) -> dict[str, int]:
    """Count the rows of arrays, by how their names begin."""
    partitions = [partition for head in heads for partition in head.partitions]
    return {
        "obs": sum(partition.observations for partition in partitions),
        "patch": sum(partition.patches for partition in partitions),
        "clip": sum(partition.clips for partition in partitions),
        "block": sum(shard.blocks for head in heads for shard in head.shards),
    }


def _join_dropped(parts: GroupParts, heads: Sequence[Part]) -> dict[str, dict[str, int]]:
    """Add what the units left out to what the index left out: experiment → reason → count."""
    dropped = {name: dict(reasons) for name, reasons in parts.index.dropped.items()}
    for group, head in zip(parts.groups, heads, strict=True):
        for reason, count in head.dropped.items():
            counts = dropped.setdefault(parts.experiments[group.experiment].name, {})
            counts[reason] = counts.get(reason, 0) + count
    return dropped


def _join_partitions(known: Sequence[Mapping[str, str | None]], runs: Sequence[RunHead]) -> tuple[PartitionRecord, ...]:
    """Add up what the groups store of each partition; one of which nothing is left is none."""
    counts = {tuple(labels.values()): dict.fromkeys(_COUNTS, 0) for labels in known}
    for values, lineages in (pair for run in runs for pair in run.lineages.items()):
        counts[values]["lineages"] += lineages
    for record in (record for run in runs for head in run.parts for record in head.partitions):
        of_all = counts[tuple(record.labels.values())]
        for name in _COUNTS:
            of_all[name] += getattr(record, name)
    records = (PartitionRecord(labels=labels, **counts[tuple(labels.values())]) for labels in known)
    return tuple(record for record in records if record.observations)


_COUNTS = ("observations", "with_candidate", "lineages", "clips", "patches", "shards", "bytes")


def _join_shards(partitions: Sequence[PartitionRecord], heads: Sequence[Part]) -> tuple[ShardRecord, ...]:
    """Give the shards the numbers of the set's partitions."""
    numbers = {tuple(partition.labels.values()): row for row, partition in enumerate(partitions)}
    return tuple(
        replace(shard, partition=numbers[tuple(head.partitions[shard.partition].labels.values())])
        for head in heads
        for shard in head.shards
    )


def _find_labels(
    parts: GroupParts, *, is_whole: bool
) -> tuple[tuple[LabelRecord, ...], dict[str, Int32[np.ndarray, " values_and_one"]]]:
    """Find the values of labels that are left, and the new place of each."""
    labels = parts.index.labels
    there = {label.name: np.full(len(label.values) + 1, is_whole) for label in labels}
    for groups in () if is_whole else parts.list_runs():
        kept, fovs = read_kept(parts, groups), groups[0].run
        for name, codes in parts.index.take_labels(fovs.start, fovs.stop).items():
            there[name][codes[kept]] = True
    left, place = [], {}
    for label in labels:
        is_left = there[label.name]
        is_left[-1] = False  # stands for null
        place[label.name] = np.where(is_left, np.cumsum(is_left) - 1, NO_ID).astype(np.int32)
        values = tuple(value for value, stays in zip(label.values, is_left[:-1].tolist(), strict=True) if stays)
        left.append(LabelRecord(name=label.name, values=values))
    return tuple(left), place
