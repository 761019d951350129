"""What was packed to index files: arrays, parquet tables, and the manifest that comes last.

Every array of `contract.ARRAYS` is a plain `.npy` that readers memory-map; the parquet tables say the
same with names, for people and other tools. All are pure functions of the index, the layout and the
packed shards, and written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import (
    ARRAYS,
    LABEL_DTYPE,
    MANIFEST,
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
from etl.pack.clip_json import PackJob
from etl.pack.tars import PackedShard
from etl.run.output import OutFolder
from etl.source.experiments import BuildConfig

_INTERNAL = ("experiment_index", "fov_index", "partition_index")


def write_index(folder: OutFolder, job: PackJob, packed: Sequence[PackedShard], index: Index) -> tuple[FileRecord, ...]:
    """Write `index/`; return its files."""
    arrays = make_arrays(job, packed)
    files = [_write_array(folder, array_path(name), arrays[name], dtype) for name, dtype in ARRAYS.items()]
    files += [
        _write_array(folder, array_path(label_array(name)), codes, LABEL_DTYPE)
        for name, codes in job.label_codes.items()
    ]
    files.append(_write_table(folder, OBSERVATIONS, index.observations.drop_columns(list(_INTERNAL))))
    files.append(_write_table(folder, PATCHES, _patches_table(job, arrays)))
    files.append(_write_table(folder, STATS, _stats_table(job)))
    return tuple(files)


def make_arrays(job: PackJob, packed: Sequence[PackedShard]) -> dict[str, Shaped[np.ndarray, "*shape"]]:
    """Make every array of the contract."""
    columns, clips, shards = job.columns, job.clips, job.shards
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
        "obs_patch": obs_patch,
        "patch_obs": clips.patch_obs,
        "patch_clip": clips.patch_clip,
        "patch_t": clips.patch_t,
        "patch_offset": np.concatenate([shard.patch_offset for shard in packed]),
        "patch_is_sample": clips.patch_is_sample,
        "patch_has_candidate": clips.patch_has_candidate,
        "clip_first": clips.clip_first,
        "clip_lineage": clips.clip_lineage,
        "clip_block": _clip_block(job),
        "block_first": shards.block_first,
        "block_shard": shards.block_shard,
        "block_begin": np.concatenate([shard.block_begin for shard in packed]),
        "block_end": np.concatenate([shard.block_end for shard in packed]),
        "block_xxh3": np.concatenate([shard.block_xxh3 for shard in packed]),
        "fov_first_frame": job.intensities.fov_first_frame,
        "stats_timepoint": job.intensities.timepoint,
        "stats_fov": job.intensities.fov,
        "stats_dataset": job.intensities.dataset,
    }


def write_manifest(
    folder: OutFolder,
    config: BuildConfig,
    job: PackJob,
    packed: Sequence[PackedShard],
    files: tuple[FileRecord, ...],
    index: Index,
) -> Manifest:
    """Write the manifest: with it the set is there."""
    dropped = {name: dict(reasons) for name, reasons in index.dropped.items()}
    for row, experiment in enumerate(job.experiments):
        candidates = int(job.clips.obs_dropped[job.columns["experiment_index"] == row].sum())
        if candidates:
            dropped.setdefault(experiment.name, {})["candidates_dropped"] = candidates
    manifest = Manifest(
        config_hash=config.token,
        config=config.as_record(),
        tau_range_hours=config.tau_range_hours,
        experiments=job.experiments,
        fovs=job.fovs,
        labels=job.labels,
        shard_by=job.shard_by,
        partitions=_partitions(job, packed),
        shards=tuple(shard.record for shard in packed),
        files=files,
        sources=(),
        dropped=dropped,
    )
    with folder.writing(MANIFEST) as file:
        file.write(manifest.to_json().encode())
    return manifest


def _clip_block(job: PackJob) -> Int[np.ndarray, " clips"]:
    return np.repeat(np.arange(job.shards.block_shard.size), np.diff(job.shards.block_first))


def _partitions(job: PackJob, packed: Sequence[PackedShard]) -> tuple[PartitionRecord, ...]:
    """Count what is stored of each partition."""
    count, columns, clips = len(job.partitions), job.columns, job.clips
    partition = columns["partition_index"]
    lineage_partition = np.zeros(len(job.lineage_ids), np.int64)
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
        "shards": np.bincount(job.shards.shard_partition, minlength=count),
        "bytes": shard_bytes,
    }
    return tuple(
        PartitionRecord(labels=labels, **{name: int(values[row]) for name, values in table.items()})
        for row, labels in enumerate(job.partitions)
    )


def _patches_table(job: PackJob, arrays: dict[str, np.ndarray]) -> pa.Table:
    clip, block = arrays["patch_clip"], arrays["clip_block"]
    shard = arrays["block_shard"][block[clip]]
    clip_bytes = np.array([job.clip_experiment(c).patch_bytes for c in range(job.keys.size)])
    return pa.table(
        {
            "observation": arrays["patch_obs"],
            "clip": _names(job.keys.tolist(), clip),
            "shard": _names(list(job.paths), shard),
            "block": block[clip].astype(np.int32),
            "offset": arrays["patch_offset"],
            "bytes": clip_bytes[clip],
            "t": arrays["patch_t"],
            "is_sample": arrays["patch_is_sample"],
            "has_candidate": arrays["patch_has_candidate"],
        }
    )


def _stats_table(job: PackJob) -> pa.Table:
    """One row per (level, experiment, fov, t, channel)."""
    levels = job.intensities
    frames = np.diff(levels.fov_first_frame)
    rows = {experiment.name: row for row, experiment in enumerate(job.experiments)}
    fov_experiment = np.array([rows[fov.experiment] for fov in job.fovs])
    fov_of_frame = np.repeat(np.arange(len(job.fovs)), frames)
    t = np.arange(levels.fov_first_frame[-1]) - levels.fov_first_frame[fov_of_frame]
    none = np.full(len(rows), -1)
    experiment = np.concatenate([fov_experiment[fov_of_frame], fov_experiment, np.arange(len(rows))])
    fov = np.concatenate([fov_of_frame, np.arange(len(job.fovs)), none])
    frame = np.concatenate([t, np.full(len(job.fovs), -1), none])
    values = np.concatenate([levels.timepoint, levels.fov, levels.dataset])
    level = np.repeat([0, 1, 2], [len(levels.timepoint), len(levels.fov), len(levels.dataset)])
    width = values.shape[1]
    channels = sorted({name for record in job.experiments for name in record.source_channel})
    named = [[channels.index(name) for name in record.source_channel] for record in job.experiments]
    channel = np.array([row + [-1] * (width - len(row)) for row in named])  # -1 fills up
    wide = [np.repeat(column, width) for column in (level, experiment, fov, frame)]
    table = pa.table(
        {
            "level": _names(["timepoint", "fov", "dataset"], wide[0]),
            "experiment": _names(list(rows), wide[1]),
            "fov_name": _names([record.fov_name for record in job.fovs], wide[2]),
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


def _write_array(folder: OutFolder, path: str, array: Shaped[np.ndarray, "*shape"], dtype: str) -> FileRecord:
    data = np.ascontiguousarray(array, dtype=dtype)
    with folder.writing(path) as file:
        file.write(npy_header(dtype, data.shape))
        file.write(data.tobytes())
    return FileRecord(path=path, bytes=file.bytes, xxh3=file.xxh3)


def _write_table(folder: OutFolder, path: str, table: pa.Table) -> FileRecord:
    encoded = [
        column.combine_chunks().dictionary_encode() if pa.types.is_string(column.type) else column
        for column in table.columns
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(encoded, names=table.column_names), sink, compression="zstd")
    with folder.writing(path) as file:
        file.write(memoryview(sink.getvalue()))
    return FileRecord(path=path, bytes=file.bytes, xxh3=file.xxh3)
