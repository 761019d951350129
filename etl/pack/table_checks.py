"""Checks the Parquet tables of a set against its index arrays: every column says what the arrays say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from dynaclr_wds.contract import (
    LEVELS,
    NO_CODEC,
    OBSERVATIONS,
    PATCHES,
    STATISTICS,
    STATS,
    Manifest,
    label_array,
)
from dynaclr_wds.file_checks import PARQUET_ERRORS
from etl.pack.read_back import Finding

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]
Columns = Mapping[str, Shaped[np.ndarray, " rows"]]


def check_tables(folder: Path, manifest: Manifest, arrays: Arrays) -> Iterator[Finding]:
    """Compare the tables that the manifest lists with the arrays, which fit each other; `folder` holds the index."""
    listed = {file.path for file in manifest.files}
    for name, expect in ((OBSERVATIONS, _expect_observations), (PATCHES, _expect_patches), (STATS, _expect_stats)):
        path = manifest.index_file(name)
        if path not in listed:
            yield Finding(path="manifest.json", what=f"does not list {path}")
        elif (folder / path).is_file():
            try:
                table = _read_table(folder / path, expect(manifest, arrays))
                found = list(_compare(path, table, expect(manifest, arrays)))
                if name == OBSERVATIONS:
                    found += _check_lineages(path, table, arrays)
            except PARQUET_ERRORS as error:  # also when a column is looked at: its dictionary may be forged
                yield Finding(path=path, what=f"can't be read ({error})")
            else:
                yield from found


def _read_table(path: Path, expected: Columns) -> Any:
    """Read a table if it has as many rows as are expected; else none of its columns, which tells how many it has."""
    with pq.ParquetFile(path) as file:
        rows = len(next(iter(expected.values())))
        return file.read() if file.metadata.num_rows == rows else file.read(columns=[])


def _compare(path: str, table: Any, expected: Columns) -> Iterator[Finding]:
    for name, values in expected.items():
        if table.num_rows != len(values):
            yield Finding(path=path, what=f"has {table.num_rows:,} rows, the index says {len(values):,}")
            return
        if name not in table.column_names:
            yield Finding(path=path, what=f"has no column {name!r}")
        elif not _equal(table[name], values):
            yield Finding(path=path, what=f"column {name!r} is not what the index arrays and the manifest say")


def _equal(column: Any, values: Shaped[np.ndarray, " rows"]) -> bool:
    """Whether a column holds these values; None stands for null."""
    try:
        if values.dtype == object:
            wanted = pa.array(values.tolist(), pa.string())
            return bool(column.cast(pa.string()).combine_chunks().equals(wanted))
        found = column.to_numpy()
        same_kind = found.dtype.kind == values.dtype.kind
        return same_kind and np.array_equal(found, values, equal_nan=values.dtype.kind == "f")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # of another type, so not these values: a finding
        return False


def _expect_observations(manifest: Manifest, arrays: Arrays) -> dict[str, Shaped[np.ndarray, " rows"]]:
    fov = arrays["obs_fov"]
    experiments = {experiment.name: experiment for experiment in manifest.experiments}
    clocks = np.array(
        [(experiments[f.experiment].start_hpi, experiments[f.experiment].interval_minutes) for f in manifest.fovs]
    ).reshape(-1, 2)
    names = ("track_id", "parent_track_id", "t", "z", "y", "x", "id", "parent_id", "z_start", "z_focus")
    start, minutes = clocks[fov].T
    return {
        "observation": np.arange(len(fov)),
        "fov_name": _take([record.fov_name for record in manifest.fovs], fov),
        **{name: arrays[f"obs_{name}"] for name in names},
        "track_index": arrays["obs_track"],
        "lineage_index": arrays["obs_lineage"],
        "hpi": (start + arrays["obs_t"] * minutes / 60).astype(np.float32),
        "has_candidate": arrays["patch_has_candidate"][arrays["obs_patch"]],
        **{label.name: _take(label.values, arrays[label_array(label.name)]) for label in manifest.labels},
    }


def _check_lineages(path: str, table: Any, arrays: Arrays) -> Iterator[Finding]:
    """Check that every lineage has one `lineage_id` of its own, which the loader reads from the table."""
    if "lineage_id" not in table.column_names:
        yield Finding(path=path, what="has no column 'lineage_id'")
        return
    names = table["lineage_id"].combine_chunks()
    codes = names.indices if pa.types.is_dictionary(names.type) else names.dictionary_encode().indices
    if len(codes) != len(arrays["obs_lineage"]):
        return
    pairs = np.unique(np.stack([arrays["obs_lineage"], codes.fill_null(-1).to_numpy(zero_copy_only=False)]), axis=1)
    if any(len(np.unique(side)) != pairs.shape[1] for side in pairs) or (pairs[1] < 0).any():
        yield Finding(path=path, what="column 'lineage_id' does not name each lineage once")


def _expect_patches(manifest: Manifest, arrays: Arrays) -> dict[str, Shaped[np.ndarray, " rows"]]:
    block = arrays["clip_block"][arrays["patch_clip"]]
    return {
        "observation": arrays["patch_obs"],
        "shard": _take([shard.path for shard in manifest.shards], arrays["block_shard"][block]),
        "block": block,
        "offset": arrays["patch_offset"],
        "bytes": size_patches(manifest, arrays),
        "t": arrays["patch_t"],
        "is_sample": arrays["patch_is_sample"],
        "has_candidate": arrays["patch_has_candidate"],
    }


def size_patches(manifest: Manifest, arrays: Arrays) -> Shaped[np.ndarray, " patches"]:
    """Return the bytes that the data of each patch take in its shard."""
    if manifest.codec != NO_CODEC:
        return arrays["patch_stored"].sum(axis=1, dtype=np.int64)
    sizes = {experiment.name: experiment.patch_bytes for experiment in manifest.experiments}
    fov_bytes = np.array([sizes[fov.experiment] for fov in manifest.fovs], np.int64)
    return fov_bytes[arrays["obs_fov"][arrays["patch_obs"]]]


def _expect_stats(manifest: Manifest, arrays: Arrays) -> dict[str, Shaped[np.ndarray, " rows"]]:
    """One row per (level, experiment, FOV, t, channel), as `etl.pack.manifest` writes them."""
    names = [experiment.name for experiment in manifest.experiments]
    of_fov = np.array([names.index(fov.experiment) for fov in manifest.fovs], np.int64)
    of_frame = np.repeat(of_fov, np.diff(arrays["fov_first_frame"]))
    experiment = np.concatenate([of_frame, of_fov, np.arange(len(names))])
    values = np.concatenate([arrays[f"stats_{level}"] for level in LEVELS])
    counts = np.array([e.shape[0] for e in manifest.experiments])
    stored = np.arange(values.shape[1]) < counts[experiment][:, None]
    level = np.repeat(np.arange(len(LEVELS)), [len(arrays[f"stats_{level}"]) for level in LEVELS])
    channels = [channel for e in experiment.tolist() for channel in manifest.experiments[e].source_channel]
    return {
        "level": _take(LEVELS, level[np.nonzero(stored)[0]]),
        "experiment": _take(names, experiment[np.nonzero(stored)[0]]),
        "channel": np.array(channels, object),
        **{name: values[stored][:, column] for column, name in enumerate(STATISTICS)},
    }


def _take(names: Any, codes: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
    """Make a column of names; None where the code is negative."""
    return np.array([*names, None], object)[np.where(codes < 0, len(names), codes)]
