"""Joins what the units noted to the arrays of the index, group after group: numbers of one follow those of the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt64

from dynaclr_wds.contract import ExperimentRecord, PartitionRecord, ShardRecord
from etl.cut.intensities import merge_summaries, plan_dataset_statistics, widen
from etl.cut.statistics import Summary
from etl.index import Index
from etl.layout.jobs import read_columns
from etl.source.config import BuildConfig
from etl.source.plates import Plate
from etl.unit.part import Part

_OBS_COLUMNS = {
    "obs_fov": "fov_index",
    "obs_track": "track_index",
    "obs_lineage": "lineage_index",
    **{f"obs_{name}": name for name in ("track_id", "parent_track_id", "id", "parent_id", "t", "z", "y", "x")},
    "obs_z_start": "z_start",
    "obs_z_focus": "z_focus",
}
"""Array → column of the observations."""
_SHIFTED = {
    "patch_obs": "observations",
    "clip_first": "patches",
    "clip_lineage": "lineages",
    "block_first": "clips",
    "block_shard": "shards",
}
"""Array of a part → what its numbers count."""
_PLAIN = ("patch_t", "patch_is_sample", "patch_has_candidate", "patch_offset", "block_begin", "block_end", "block_xxh3")
_CSR = ("clip_first", "block_first")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedParts:
    """The parts of a set, joined."""

    experiments: tuple[ExperimentRecord, ...]
    partitions: tuple[PartitionRecord, ...]
    shards: tuple[ShardRecord, ...]
    fov_experiment: Int[np.ndarray, " fovs"]
    """Row of `experiments` of each FOV that is left."""
    fov_names: tuple[str, ...]
    clip_key: UInt64[np.ndarray, " clips"]
    arrays: Mapping[str, Shaped[np.ndarray, ...]]
    """All of the contract but those of labels."""


def join_kept(parts: Sequence[Part]) -> Bool[np.ndarray, " obs"]:
    """Return which observations of the index are left when the pixels are known."""
    return np.concatenate([part.arrays["kept"] for part in parts])


def join_places(parts: Sequence[Part], name: str) -> Shaped[np.ndarray, " obs"]:
    """Return `z_start` or `z_focus` of the observations that are left."""
    joined: Shaped[np.ndarray, " obs"] = np.concatenate([part.arrays[name] for part in parts])
    return joined


def join_dropped(index: Index, experiments: Sequence[str], parts: Sequence[Part]) -> dict[str, dict[str, int]]:
    """Add what the units left out to what the index left out: experiment → reason → count.

    Parameters
    ----------
    experiments
        Name of the experiment of each part.
    """
    dropped = {name: dict(reasons) for name, reasons in index.dropped.items()}
    for name, part in zip(experiments, parts, strict=True):
        for reason, count in part.dropped.items():
            counts = dropped.setdefault(name, {})
            counts[reason] = counts.get(reason, 0) + count
    return dropped


def join_parts(
    config: BuildConfig,
    plates: Mapping[str, Plate],
    experiments: tuple[ExperimentRecord, ...],
    index: Index,
    parts: Sequence[tuple[str, Part]],
) -> JoinedParts:
    """Join the parts.

    Parameters
    ----------
    index
        What is left when the pixels are known.
    parts
        Name of the experiment and part of each group, in the order of the index.
    """
    groups = [part for _, part in parts]
    rows = {experiment.name: row for row, experiment in enumerate(experiments)}
    arrays = _join_arrays(groups, max(experiment.shape[0] for experiment in experiments))
    columns = read_columns(index.observations)
    arrays |= {name: columns[column] for name, column in _OBS_COLUMNS.items()}
    samples = np.flatnonzero(arrays["patch_is_sample"])
    arrays["obs_patch"] = np.full(columns["t"].size, -1, np.int64)
    arrays["obs_patch"][arrays["patch_obs"][samples]] = samples
    arrays["fov_first_frame"] = np.cumsum([0, *(fov.frames for fov in index.fovs)])
    arrays["stats_dataset"] = _join_dataset(config, plates, experiments, index, parts)
    numbers = {tuple(labels.values()): row for row, labels in enumerate(index.partitions)}
    return JoinedParts(
        experiments=experiments,
        partitions=_join_partitions(index, numbers, groups),
        shards=_join_shards(numbers, groups),
        fov_experiment=np.array([rows[fov.experiment] for fov in index.fovs], np.int64),
        fov_names=tuple(fov.fov_name for fov in index.fovs),
        clip_key=np.concatenate([part.arrays["clip_key"] for part in groups]),
        arrays=arrays,
    )


def _join_arrays(parts: Sequence[Part], channels: int) -> dict[str, Shaped[np.ndarray, ...]]:
    """Join the arrays of patches, clips, blocks and statistics."""
    before = dict.fromkeys(_SHIFTED.values(), 0)
    plain = [name for name in (*_PLAIN, "block_decoded") if name in parts[0].arrays]
    found: dict[str, list[Shaped[np.ndarray, ...]]] = {name: [] for name in (*_SHIFTED, *plain)}
    for part in parts:
        for name, kind in _SHIFTED.items():
            values = part.arrays[name][:-1] if name in _CSR else part.arrays[name]
            found[name].append(values + before[kind])
        for name in plain:
            found[name].append(part.arrays[name])
        before["observations"] += int(part.arrays["kept"].sum())
        before["patches"] += part.arrays["patch_t"].size
        before["lineages"] += part.lineages
        before["clips"] += part.arrays["clip_key"].size
        before["shards"] += len(part.shards)
    found["clip_first"].append(np.array([before["patches"]]))
    found["block_first"].append(np.array([before["clips"]]))
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    for name in ("patch_xxh3", "patch_stored"):
        if name in parts[0].arrays:  # lengths are there with a codec only
            wide = [np.pad(one, ((0, 0), (0, channels - one.shape[1]))) for one in (p.arrays[name] for p in parts)]
            arrays[name] = np.concatenate(wide)
    for name in ("timepoint", "fov"):
        arrays[f"stats_{name}"] = np.concatenate([widen(part.arrays[name], channels) for part in parts])
    for first, row in (("clip_first", "patch_clip"), ("block_first", "clip_block")):
        arrays[row] = np.repeat(np.arange(arrays[first].size - 1), np.diff(arrays[first]))
    return arrays


def _join_dataset(
    config: BuildConfig,
    plates: Mapping[str, Plate],
    experiments: Sequence[ExperimentRecord],
    index: Index,
    parts: Sequence[tuple[str, Part]],
) -> Shaped[np.ndarray, "experiments channels 8"]:
    """Merge the statistics of each experiment from all of its groups."""
    width, tables = max(experiment.shape[0] for experiment in experiments), []
    for experiment in experiments:
        merged: tuple[Summary, ...] = ()
        for name, part in parts:
            if name == experiment.name:
                merged = merge_summaries(merged, part.summaries)
        fovs = [plates[fov.experiment].fovs[fov.fov_name] for fov in index.fovs if fov.experiment == experiment.name]
        table = plan_dataset_statistics(fovs, merged, experiment.source_channel, fill_blank=config.on_blank == "keep")
        tables.append(widen(table[None], width))
    return np.concatenate(tables)


def _join_partitions(
    index: Index, numbers: Mapping[tuple[str | None, ...], int], parts: Sequence[Part]
) -> tuple[PartitionRecord, ...]:
    """Add up what the groups store of each partition."""
    counts = [dict.fromkeys(_COUNTS, 0) for _ in index.partitions]
    for part in parts:
        for record in part.partitions:
            of_all = counts[numbers[tuple(record.labels.values())]]
            for name in _COUNTS:
                of_all[name] += getattr(record, name)
    return tuple(
        PartitionRecord(labels=labels, **count) for labels, count in zip(index.partitions, counts, strict=True)
    )


_COUNTS = ("observations", "with_candidate", "lineages", "clips", "patches", "shards", "bytes")


def _join_shards(numbers: Mapping[tuple[str | None, ...], int], parts: Sequence[Part]) -> tuple[ShardRecord, ...]:
    """Give the shards the numbers of the set's partitions."""
    return tuple(
        replace(shard, partition=numbers[tuple(part.partitions[shard.partition].labels.values())])
        for part in parts
        for shard in part.shards
    )
