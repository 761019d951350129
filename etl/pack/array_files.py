"""Writes the arrays of the index, group after group: the header of each `.npy` says its final length from the start.

Readers memory-map them. What is in memory is the rows of one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.contract import (
    ARRAYS,
    CODEC_ARRAYS,
    LABEL_DTYPE,
    NO_CODEC,
    FileRecord,
    array_path,
    label_array,
    npy_header,
)
from etl.pack.joining import GroupRows, JoinedParts
from etl.run.output import HashingFile, writing

_OBS_COLUMNS = {
    "obs_fov": "fov_index",
    "obs_track": "track_index",
    "obs_lineage": "lineage_index",
    **{f"obs_{name}": name for name in ("track_id", "parent_track_id", "id", "parent_id", "t", "z", "y", "x")},
    "obs_z_start": "z_start",
    "obs_z_focus": "z_focus",
}
"""Array → column of the observations."""

_COUNTED = {
    "obs_fov": "fov",
    "obs_track": "track",
    "obs_lineage": "lineage",
    "obs_patch": "patch",
    "patch_obs": "obs",
    "patch_clip": "clip",
    "clip_first": "patch",
    "clip_lineage": "lineage",
    "clip_block": "block",
    "block_first": "clip",
    "block_shard": "shard",
}
"""Array → what its numbers count."""

_RUNS = {"clip_first": ("patch_clip", "patch"), "block_first": ("clip_block", "clip")}
"""Array that says where runs begin → the one that says the same row by row, and what the last run ends with."""

CHANNEL_ARRAYS = ("patch_xxh3", "patch_stored")
"""Arrays with a column for each channel."""


class ArrayFiles:
    """The arrays of a set, open for writing.

    Parameters
    ----------
    files
        Name → file, whose header is written.
    joined
        Of all groups.
    """

    def __init__(self, files: Mapping[str, HashingFile], dtypes: Mapping[str, str], joined: JoinedParts) -> None:
        self._files, self._dtypes, self._joined = files, dtypes, joined

    def append(self, rows: GroupRows) -> None:
        """Append the rows of the next group."""
        for name, values in _list_rows(rows).items():
            self._write(name, values + rows.before[_COUNTED[name]] if name in _COUNTED else values)
        for name in (name for name in CHANNEL_ARRAYS if name in self._files):
            values = rows.part.arrays[name]
            missing = _most_channels(self._joined) - values.shape[1]
            self._write(name, np.pad(values, ((0, 0), (0, missing))) if missing else values)

    def finish(self) -> None:
        """Write what does not belong to one group, when all were appended."""
        for name, values in self._joined.arrays.items():
            self._write(name, values)
        for name, (_, rows) in _RUNS.items():
            self._write(name, np.array([self._joined.counts[rows]]))
        for name, file in self._files.items():
            shape, dtype = _shape(name, self._joined), np.dtype(self._dtypes[name])
            size = len(npy_header(dtype, shape)) + int(np.prod(shape)) * dtype.itemsize
            assert file.bytes == size, f"{name}: groups have as many rows as their parts say"

    def list_records(self) -> list[FileRecord]:
        """Return the records of all files."""
        return [FileRecord(path=array_path(n), bytes=file.bytes, xxh3=file.xxh3) for n, file in self._files.items()]

    def _write(self, name: str, values: Shaped[np.ndarray, "n ..."]) -> None:
        data = np.ascontiguousarray(values, self._dtypes[name])
        self._files[name].write(data.reshape(-1).view(np.uint8).data)


@contextmanager
def writing_arrays(staged: Path, joined: JoinedParts, codec: str) -> Iterator[ArrayFiles]:
    """Write all arrays below a folder; they get their names when the block ends."""
    stored = ARRAYS if codec == NO_CODEC else ARRAYS | CODEC_ARRAYS
    dtypes = stored | {label_array(label.name): LABEL_DTYPE for label in joined.labels}
    files = {}
    with ExitStack() as stack:
        for name, dtype in dtypes.items():
            files[name] = stack.enter_context(writing(staged / array_path(name)))
            files[name].write(npy_header(dtype, _shape(name, joined)))
        arrays = ArrayFiles(files, dtypes, joined)
        yield arrays
        arrays.finish()


def _shape(name: str, joined: JoinedParts) -> tuple[int, ...]:
    """Return the shape of an array of the set."""
    if name in joined.arrays:
        return joined.arrays[name].shape
    kind = name.partition("_")[0]
    count = joined.counts["obs" if kind == "label" else kind] + (name in _RUNS)
    return (count, _most_channels(joined)) if name in CHANNEL_ARRAYS else (count,)


def _most_channels(joined: JoinedParts) -> int:
    return max(experiment.shape[0] for experiment in joined.experiments)


def _list_rows(rows: GroupRows) -> dict[str, Shaped[np.ndarray, " n"]]:
    """Return the rows of one group of all arrays but those with a column for each channel."""
    part, columns = rows.part.arrays, rows.columns
    arrays = {name: columns[column] for name, column in _OBS_COLUMNS.items()}
    arrays |= {label_array(name): codes for name, codes in rows.labels.items()}
    arrays |= {n: part[n] for n in ARRAYS | CODEC_ARRAYS if n in part and n not in CHANNEL_ARRAYS}
    samples = np.flatnonzero(part["patch_is_sample"])
    arrays["obs_patch"] = np.full(columns["t"].size, -1, np.int64)
    arrays["obs_patch"][part["patch_obs"][samples]] = samples
    for name, (of_row, _) in _RUNS.items():
        arrays[name] = part[name][:-1]
        arrays[of_row] = np.repeat(np.arange(arrays[name].size), np.diff(part[name]))
    return arrays
