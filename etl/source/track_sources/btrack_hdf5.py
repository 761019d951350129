"""Opens btrack's HDF5 files: objects, and the tracks that they are in.

Objects that btrack put in where a cell was not seen (dummies) are part of their tracks, as in all that btrack exports.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.track_formats import TableFile
from etl.source.track_sources.optional import import_for

KIND = "btrack HDF5"

_MADE = ("track_id", "t", "z", "y", "x", "parent_track_id")
_AXES = {"t": 0, "x": 1, "y": 2, "z": 3}
"""Columns of btrack's coordinates."""
_FILTER = re.compile(r"(?P<name>\w+)(?P<compare>[<>=]+)(?P<value>[0-9]+)")
_COMPARE = {"<": np.less, ">": np.greater, "<=": np.less_equal, ">=": np.greater_equal, "==": np.equal}


def open_btrack(path: Path) -> TableFile:
    """Open a btrack file: tracks are the columns, with the properties of objects."""
    h5py = import_for("h5py", "btrack", str(path))
    with h5py.File(path, "r") as file:
        kind = _find_type(file, path)
        inside = file[f"objects/{kind}"].get("properties", {})
        names = tuple(sorted(name for name in inside if name not in _MADE and inside[name].ndim == 1))
    header = (*_MADE, *names)
    return TableFile(path=path, header=header, columns=header, read=partial(_read, path, header))


def _find_type(file: Any, path: Path) -> str:
    """Return the one type of objects that has tracks."""
    types = sorted(file.get("tracks", {}))
    if len(types) != 1 or f"objects/{types[0]}" not in file:
        raise ConfigError(
            f"{path}: has tracks of {len(types)} types of objects ({types}), but must have those of one, beside the "
            "objects themselves. Export it again with btrack's HDF5FileHandler (write_tracks)."
        )
    return str(types[0])


def _read(path: Path, header: tuple[str, ...], places: list[int], text: Collection[int]) -> pa.Table:
    del text
    h5py = import_for("h5py", "btrack", str(path))
    with h5py.File(path, "r") as file:
        kind = _find_type(file, path)
        tracks, objects = file[f"tracks/{kind}"], file[f"objects/{kind}"]
        refs = tracks["tracks"][:].astype(np.int64)
        ends, branches = tracks["map"][:].astype(np.int64), tracks["LBEPR"][:].astype(np.int64)
        coords = objects["coords"][:, :4]
        kept = np.flatnonzero(_filter(tracks.attrs.get("f_expr"), objects, len(coords), path))
        dummies = tracks["dummies"][:, :4] if "dummies" in tracks else coords[:0]
        row = np.repeat(np.arange(len(ends)), ends[:, 1] - ends[:, 0])
        if len(row) != len(refs) or len(branches) != len(ends):
            raise ConfigError(f"{path}: map, LBEPR and tracks do not belong together. Export it again with btrack.")
        if len(refs) and not (-len(dummies) <= refs.min() and refs.max() < len(kept)):
            raise ConfigError(f"{path}: tracks name objects that are not there. Export it again with btrack.")
        places_of = np.concatenate([kept[refs[refs >= 0]]])
        columns = _make_columns(refs, coords[kept], dummies, branches[row])
        for place in places:
            name = header[place]
            if name not in columns:
                values = np.full(len(refs), np.nan)
                values[refs >= 0] = objects[f"properties/{name}"][:][places_of]
                columns[name] = values
    return pa.table({str(place): columns[header[place]] for place in places})


def _make_columns(
    refs: Int64[np.ndarray, " rows"], coords: np.ndarray, dummies: np.ndarray, branches: Int64[np.ndarray, "rows n"]
) -> dict[str, np.ndarray]:
    """Make our columns; negative references are dummies, and a track without a parent is its own."""
    where = np.concatenate([coords, dummies]).astype(np.float64)
    rows = where[np.where(refs >= 0, refs, len(coords) - refs - 1)]
    columns: dict[str, np.ndarray] = {name: rows[:, column] for name, column in _AXES.items()}
    track, parent = branches[:, 0], branches[:, 3]
    has_none = (parent == track) | (parent == 0)
    return columns | {"track_id": track, "parent_track_id": np.where(has_none, NO_ID, parent)}


def _filter(said: object, objects: Any, count: int, path: Path) -> Bool[np.ndarray, " objects"]:
    """Say which objects were tracked: btrack can leave out some by a property, and then counts the others."""
    if said is None:
        return np.ones(count, bool)
    match = _FILTER.fullmatch(str(said))
    if match is None or match["compare"] not in _COMPARE or match["name"] not in objects.get("properties", {}):
        raise ConfigError(
            f"{path}: its objects were filtered by {said!r}, which can't be repeated. Export the tracks again without "
            "a filter (f_expr)."
        )
    values = objects[f"properties/{match['name']}"][:]
    return np.asarray(_COMPARE[match["compare"]](values, int(match["value"])))
