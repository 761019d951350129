"""Writes the index files, arrays and parquet tables, and makes the manifest that comes last.

Every array of `contract.ARRAYS` is a plain `.npy` that readers memory-map; the parquet tables say the
same with names, for people and other tools. All are pure functions of the contents and the packed shards, and written
whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import (
    ARRAYS,
    LABEL_DTYPE,
    OBSERVATIONS,
    PATCHES,
    STATISTICS,
    STATS,
    FileRecord,
    Manifest,
    PartitionRecord,
    array_path,
    label_array,
    npy_header,
)
from etl.index import Index
from etl.pack.contents import SetContents
from etl.pack.tars import PackedShard
from etl.run.output import writing
from etl.source.experiments import BuildConfig
from etl.suspicious.report import Report

_INTERNAL = ("experiment_index", "fov_index", "partition_index")


def write_index(
    staged: Path, contents: SetContents, packed: Sequence[PackedShard], index: Index
) -> tuple[FileRecord, ...]:
    """Write `index/` under a folder; return its files."""
    arrays = make_arrays(contents, packed)
    files = [_write_array(staged, array_path(name), arrays[name], dtype) for name, dtype in ARRAYS.items()]
    files += [
        _write_array(staged, array_path(label_array(name)), codes, LABEL_DTYPE)
        for name, codes in contents.label_codes.items()
    ]
    files.append(_write_table(staged, OBSERVATIONS, index.observations.drop_columns(list(_INTERNAL))))
    files.append(_write_table(staged, PATCHES, _patches_table(contents, arrays)))
    files.append(_write_table(staged, STATS, _stats_table(contents)))
    return tuple(files)


def make_arrays(contents: SetContents, packed: Sequence[PackedShard]) -> dict[str, Shaped[np.ndarray, "*shape"]]:
    """Make every array of the contract."""
    columns, clips, shards = contents.columns, contents.clips, contents.shards
    samples = np.flatnonzero(clips.patch_is_sample)
    obs_patch = np.full(columns["t"].size, -1, np.int64)
    obs_patch[clips.patch_obs[samples]] = samples
    return {
        "obs_fov": columns["fov_index"],
        "obs_track": columns["track_index"],
        "obs_lineage": columns["lineage_index"],
        "obs_track_id": columns["track_id"],
        "obs_parent_track_id": columns["parent_track_id"],
        "obs_id": columns["id"],
        "obs_parent_id": columns["parent_id"],
        "obs_t": columns["t"],
        "obs_z": columns["z"],
        "obs_y": columns["y"],
        "obs_x": columns["x"],
        "obs_z_start": columns["z_start"],
        "obs_z_focus": columns["z_focus"],
        "obs_patch": obs_patch,
        "patch_obs": clips.patch_obs,
        "patch_clip": clips.patch_clip,
        "patch_t": clips.patch_t,
        "patch_offset": np.concatenate([shard.patch_offset for shard in packed]),
        "patch_is_sample": clips.patch_is_sample,
        "patch_has_candidate": clips.patch_has_candidate,
        "patch_xxh3": _join_channels(contents, packed),
        "clip_first": clips.clip_first,
        "clip_lineage": clips.clip_lineage,
        "clip_block": _clip_block(contents),
        "block_first": shards.block_first,
        "block_shard": shards.block_shard,
        "block_begin": np.concatenate([shard.block_begin for shard in packed]),
        "block_end": np.concatenate([shard.block_end for shard in packed]),
        "block_xxh3": np.concatenate([shard.block_xxh3 for shard in packed]),
        "fov_first_frame": contents.intensities.fov_first_frame,
        "stats_timepoint": contents.intensities.timepoint,
        "stats_fov": contents.intensities.fov,
        "stats_dataset": contents.intensities.dataset,
    }


def make_manifest(
    config: BuildConfig,
    contents: SetContents,
    packed: Sequence[PackedShard],
    files: tuple[FileRecord, ...],
    report: Report,
) -> Manifest:
    """Make the manifest of a set whose files are written.

    Parameters
    ----------
    report
        What is known of the data; candidates that no clip holds are added here.
    """
    reasons = {name: dict(counts) for name, counts in report.dropped.items()}
    for row, experiment in enumerate(contents.experiments):
        candidates = int(contents.clips.obs_dropped[contents.columns["experiment_index"] == row].sum())
        if candidates:
            reasons.setdefault(experiment.name, {})["candidates_dropped"] = candidates
    return Manifest(
        config_hash=config.token,
        config=config.as_record(),
        tau_range_hours=config.tau_range_hours,
        experiments=contents.experiments,
        fovs=contents.fovs,
        labels=contents.labels,
        shard_by=contents.shard_by,
        partitions=_partitions(contents, packed),
        shards=tuple(shard.record for shard in packed),
        files=files,
        sources=tuple(contents.sources.values()),
        dropped=reasons,
        facts=report.facts,
        suspicious=report.suspicious,
    )


def _join_channels(contents: SetContents, packed: Sequence[PackedShard]) -> Shaped[np.ndarray, "patches channels"]:
    """Join the checksums of channels; each shard says as many as an experiment of it, or of an earlier set, stores."""
    most = max(experiment.shape[0] for experiment in contents.experiments)
    parts = [shard.patch_xxh3[:, :most] for shard in packed]
    return np.concatenate([np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in parts])


def _clip_block(contents: SetContents) -> Int[np.ndarray, " clips"]:
    return np.repeat(np.arange(contents.shards.block_shard.size), np.diff(contents.shards.block_first))


def _partitions(contents: SetContents, packed: Sequence[PackedShard]) -> tuple[PartitionRecord, ...]:
    """Count what is stored of each partition."""
    count, columns, clips = len(contents.partitions), contents.columns, contents.clips
    partition = columns["partition_index"]
    lineage_partition = np.zeros(len(contents.lineage_ids), np.int64)
    lineage_partition[columns["lineage_index"]] = partition
    shard_bytes = np.zeros(count, np.int64)
    for shard in packed:
        shard_bytes[shard.record.partition] += shard.record.bytes
    table = {
        "observations": np.bincount(partition, minlength=count),
        "with_candidate": np.bincount(partition[columns["has_candidate"]], minlength=count),
        "lineages": np.bincount(lineage_partition, minlength=count),
        "clips": np.bincount(clips.clip_partition, minlength=count),
        "patches": np.bincount(partition[clips.patch_obs], minlength=count),
        "shards": np.bincount(contents.shards.shard_partition, minlength=count),
        "bytes": shard_bytes,
    }
    return tuple(
        PartitionRecord(labels=labels, **{name: int(values[row]) for name, values in table.items()})
        for row, labels in enumerate(contents.partitions)
    )


def _patches_table(contents: SetContents, arrays: dict[str, np.ndarray]) -> pa.Table:
    clip, block = arrays["patch_clip"], arrays["clip_block"]
    shard = arrays["block_shard"][block[clip]]
    fov_bytes = np.array([contents.experiments[row].patch_bytes for row in contents.fov_experiment])
    return pa.table(
        {
            "observation": arrays["patch_obs"],
            "clip": _names(contents.keys.tolist(), clip),
            "shard": _names(list(contents.paths), shard),
            "block": block[clip].astype(np.int32),
            "offset": arrays["patch_offset"],
            "bytes": fov_bytes[contents.clip_fov][clip],
            "t": arrays["patch_t"],
            "is_sample": arrays["patch_is_sample"],
            "has_candidate": arrays["patch_has_candidate"],
        }
    )


def _stats_table(contents: SetContents) -> pa.Table:
    """One row per (level, experiment, fov, t, channel)."""
    levels = contents.intensities
    frames = np.diff(levels.fov_first_frame)
    rows = {experiment.name: row for row, experiment in enumerate(contents.experiments)}
    fov_experiment = np.array([rows[fov.experiment] for fov in contents.fovs])
    fov_of_frame = np.repeat(np.arange(len(contents.fovs)), frames)
    t = np.arange(levels.fov_first_frame[-1]) - levels.fov_first_frame[fov_of_frame]
    none = np.full(len(rows), -1)
    experiment = np.concatenate([fov_experiment[fov_of_frame], fov_experiment, np.arange(len(rows))])
    fov = np.concatenate([fov_of_frame, np.arange(len(contents.fovs)), none])
    frame = np.concatenate([t, np.full(len(contents.fovs), -1), none])
    values = np.concatenate([levels.timepoint, levels.fov, levels.dataset])
    level = np.repeat([0, 1, 2], [len(levels.timepoint), len(levels.fov), len(levels.dataset)])
    width = values.shape[1]
    channels = sorted({name for record in contents.experiments for name in record.source_channel})
    named = [[channels.index(name) for name in record.source_channel] for record in contents.experiments]
    channel = np.array([row + [-1] * (width - len(row)) for row in named])  # -1 fills up
    wide = [np.repeat(column, width) for column in (level, experiment, fov, frame)]
    table = pa.table(
        {
            "level": _names(["timepoint", "fov", "dataset"], wide[0]),
            "experiment": _names(list(rows), wide[1]),
            "fov_name": _names([record.fov_name for record in contents.fovs], wide[2]),
            "t": pa.array(wide[3].astype(np.int32), mask=wide[3] < 0),
            "channel": _names(channels, channel[experiment].ravel()),
            **{name: values[..., column].ravel() for column, name in enumerate(STATISTICS)},
        }
    )
    return table.filter(pc.is_valid(table["channel"]))


def _names(names: Sequence[str], rows: Int[np.ndarray, " n"]) -> pa.Array:
    """Make a column of names; null where the row is negative."""
    values = pa.array(names, pa.string())
    return values.take(pa.array(rows.astype(np.int64), mask=rows < 0)).dictionary_encode()


def _write_array(staged: Path, path: str, array: Shaped[np.ndarray, "*shape"], dtype: str) -> FileRecord:
    data = np.ascontiguousarray(array, dtype=dtype)
    with writing(staged / path) as file:
        file.write(npy_header(dtype, data.shape))
        file.write(data.tobytes())
    return FileRecord(path=path, bytes=file.bytes, xxh3=file.xxh3)


def _write_table(staged: Path, path: str, table: pa.Table) -> FileRecord:
    encoded = [
        column.combine_chunks().dictionary_encode() if pa.types.is_string(column.type) else column
        for column in table.columns
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(encoded, names=table.column_names), sink, compression="zstd")
    with writing(staged / path) as file:
        file.write(memoryview(sink.getvalue()))
    return FileRecord(path=path, bytes=file.bytes, xxh3=file.xxh3)
