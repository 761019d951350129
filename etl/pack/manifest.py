"""Writes the index files, arrays and parquet tables, and makes the manifest that comes last.

Every array of `contract.ARRAYS` is a plain `.npy` that readers memory-map; the parquet tables say the
same with names, for people and other tools. All are pure functions of the index and the joined parts, and written
whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import (
    ARRAYS,
    CODEC_ARRAYS,
    LABEL_DTYPE,
    LEVELS,
    OBSERVATIONS,
    PATCHES,
    STATISTICS,
    STATS,
    FileRecord,
    Manifest,
    SourceRecord,
    array_path,
    index_folder,
    label_array,
    npy_header,
)
from etl.index import Index
from etl.labels import label_codes
from etl.pack.joining import JoinedParts
from etl.run.output import naming_file, writing
from etl.source.experiments import BuildConfig
from etl.suspicious.report import Report

_INTERNAL = ("experiment_index", "fov_index", "partition_index")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedIndex:
    """An index in the folder that it has in the set."""

    folder: str
    """Relative to the set, named by a hash of what is in it."""
    files: tuple[FileRecord, ...]


def name_index(staged: Path, written: Path, files: Sequence[FileRecord]) -> NamedIndex:
    """Move the index that `write_index` has written to its place among staged files."""
    folder = index_folder({file.path: file.xxh3 for file in files})
    place = staged / folder
    with naming_file(place):
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        written.rename(place)
    return NamedIndex(folder=folder, files=tuple(replace(file, path=f"{folder}/{file.path}") for file in files))


def write_index(staged: Path, joined: JoinedParts, index: Index) -> tuple[FileRecord, ...]:
    """Write the arrays and tables of an index to a folder; return its files, with paths relative to it."""
    stored = {name: dtype for name, dtype in (ARRAYS | CODEC_ARRAYS).items() if name in joined.arrays}
    files = [_write_array(staged, array_path(name), joined.arrays[name], dtype) for name, dtype in stored.items()]
    files += [
        _write_array(staged, array_path(label_array(label.name)), label_codes(index.observations, label), LABEL_DTYPE)
        for label in index.labels
    ]
    files.append(_write_table(staged, OBSERVATIONS, index.observations.drop_columns(list(_INTERNAL))))
    files.append(_write_table(staged, PATCHES, _patches_table(joined)))
    files.append(_write_table(staged, STATS, _stats_table(joined)))
    return tuple(files)


def make_manifest(
    config: BuildConfig,
    joined: JoinedParts,
    index: Index,
    sources: Sequence[SourceRecord],
    named: NamedIndex,
    parts: Sequence[FileRecord],
    report: Report,
) -> Manifest:
    """Make the manifest of a set whose files are written.

    Parameters
    ----------
    sources
        Fingerprint of every FOV that was asked for.
    """
    return Manifest(
        config_hash=config.token,
        config=config.as_record(),
        tau_range_hours=config.tau_range_hours,
        experiments=joined.experiments,
        fovs=index.fovs,
        labels=index.labels,
        shard_by=config.shard_by,
        partitions=joined.partitions,
        shards=joined.shards,
        codec=config.codec,
        index=named.folder,
        files=(*named.files, *parts),
        sources=tuple(sources),
        dropped=report.dropped,
        facts=report.facts,
        suspicious=report.suspicious,
    )


def _patches_table(joined: JoinedParts) -> pa.Table:
    """One row per stored patch."""
    arrays, clip = joined.arrays, joined.arrays["patch_clip"]
    block = arrays["clip_block"][clip]
    size = np.array([experiment.patch_bytes for experiment in joined.experiments])[joined.fov_experiment]
    size = size[arrays["obs_fov"][arrays["patch_obs"]]]
    keys = [f"{key:016x}" for key in joined.clip_key.tolist()]
    return pa.table(
        {
            "observation": arrays["patch_obs"],
            "clip": _names(keys, clip),
            "shard": _names([shard.path for shard in joined.shards], arrays["block_shard"][block]),
            "block": block.astype(np.int32),
            "offset": arrays["patch_offset"],
            "bytes": arrays["patch_stored"].sum(axis=1, dtype=np.int64) if "patch_stored" in arrays else size,
            "t": arrays["patch_t"],
            "is_sample": arrays["patch_is_sample"],
            "has_candidate": arrays["patch_has_candidate"],
        }
    )


def _stats_table(joined: JoinedParts) -> pa.Table:
    """One row per (level, experiment, fov, t, channel)."""
    tables = [joined.arrays[f"stats_{level}"] for level in LEVELS]
    first, fovs = joined.arrays["fov_first_frame"], len(joined.fov_experiment)
    frames = np.diff(first)
    names = [experiment.name for experiment in joined.experiments]
    fov_of_frame = np.repeat(np.arange(fovs), frames)
    t = np.arange(first[-1]) - first[fov_of_frame]
    none = np.full(len(names), -1)
    experiment = np.concatenate([joined.fov_experiment[fov_of_frame], joined.fov_experiment, np.arange(len(names))])
    fov = np.concatenate([fov_of_frame, np.arange(fovs), none])
    frame = np.concatenate([t, np.full(fovs, -1), none])
    values = np.concatenate(tables)
    level = np.repeat(np.arange(len(LEVELS)), [len(table) for table in tables])
    width = values.shape[1]
    channels = sorted({name for record in joined.experiments for name in record.source_channel})
    named = [[channels.index(name) for name in record.source_channel] for record in joined.experiments]
    channel = np.array([row + [-1] * (width - len(row)) for row in named])  # -1 fills up
    wide = [np.repeat(column, width) for column in (level, experiment, fov, frame)]
    table = pa.table(
        {
            "level": _names(list(LEVELS), wide[0]),
            "experiment": _names(names, wide[1]),
            "fov_name": _names(list(joined.fov_names), wide[2]),
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
