"""Takes the rows of some fields of view out of an index: a small index that depends on nothing else.

Observations, tracks and lineages of a FOV are adjacent, so a range of FOVs is a range of rows. All numbers begin at 0
again, and dictionaries hold only the values that are there: the same cells give the same small index, whatever else
the whole one holds, and it is small when it is sent to another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from etl.index import Index
from etl.labels import keep_present_values

_ORDERED = ("global_track_id", "lineage_id")
"""Columns whose dictionaries are in the order of the tracks, of a FOV so a range."""


def find_edges(index: Index) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the first row of the observations of each FOV, and one past the last row."""
    return np.searchsorted(index.observations["fov_index"].to_numpy(), np.arange(len(index.fovs) + 1))


def take_fovs(index: Index, first: int, last: int, rows: slice) -> Index:
    """Take a range of FOVs of one experiment.

    Parameters
    ----------
    first, last
        The first FOV, and one past the last.
    rows
        Their observations, as `find_edges` says.
    """
    taken = index.observations.slice(rows.start, rows.stop - rows.start)
    tracks = taken["track_index"].to_numpy()
    low, high = int(tracks[0]), int(tracks[-1]) + 1
    first_lineage = int(taken["lineage_index"].to_numpy().min())
    partitions, partition = _number_partitions(index, taken["partition_index"].to_numpy())
    numbers: dict[str, np.ndarray[Any, Any]] = {
        "observation": np.arange(len(taken), dtype=np.int32),
        "experiment_index": np.zeros(len(taken), np.int16),
        "fov_index": taken["fov_index"].to_numpy() - np.int32(first),
        "partition_index": partition,
        "track_index": tracks - np.int32(low),
        "lineage_index": taken["lineage_index"].to_numpy() - np.int32(first_lineage),
    }
    columns = {name: _localize(name, taken[name]) for name in taken.column_names if name not in numbers}
    observations = pa.table({name: numbers.get(name, columns.get(name)) for name in taken.column_names})
    parent = index.tracks["parent_track_index"].to_numpy()[low:high]
    own = {
        "track_index": np.arange(high - low, dtype=np.int32),
        "lineage_index": index.tracks["lineage_index"].to_numpy()[low:high] - np.int32(first_lineage),
        "parent_track_index": np.where(parent < 0, -1, parent - low).astype(np.int32),
    }
    return Index(
        observations=observations,
        tracks=pa.table(own),
        fovs=index.fovs[first:last],
        labels=keep_present_values(index.labels, observations),
        partitions=partitions,
        dropped={},
        tables=(),
    )


def _number_partitions(
    index: Index, column: np.ndarray[Any, np.dtype[np.int32]]
) -> tuple[tuple[Mapping[str, str | None], ...], np.ndarray[Any, np.dtype[np.int32]]]:
    """Number the partitions that are there in the order of their labels, which no other experiment decides."""
    there = np.flatnonzero(np.bincount(column, minlength=len(index.partitions))).tolist()
    there.sort(key=lambda number: [(value is not None, value or "") for value in index.partitions[number].values()])
    new = np.empty(len(index.partitions), np.int32)
    new[there] = np.arange(len(there))
    return tuple(index.partitions[number] for number in there), new[column]


def _localize(name: str, column: pa.ChunkedArray) -> pa.Array:
    """Copy a column, of a dictionary only the values that it uses, sorted, or in the order of the tracks."""
    whole = column.combine_chunks()
    if not pa.types.is_dictionary(whole.type):
        return pa.concat_arrays([whole])
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    if name in _ORDERED:
        low, high = (int(codes.min()), int(codes.max()) + 1) if codes.size else (0, 0)
        values, codes = pa.array(whole.dictionary.slice(low, high - low).to_pylist(), pa.string()), codes - low
    else:
        used = np.flatnonzero(np.bincount(codes[codes >= 0], minlength=len(whole.dictionary)))
        texts = whole.dictionary.take(pa.array(used)).to_pylist()
        order = sorted(range(len(texts)), key=texts.__getitem__)
        values = pa.array([texts[place] for place in order], pa.string())
        new = np.full(len(whole.dictionary) + 1, -1)
        new[used[order]] = np.arange(len(order))
        codes = new[codes]
    codes = codes.astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), values)
