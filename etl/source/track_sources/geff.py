"""Opens GEFF, the Graph Exchange File Format: a Zarr group of cells (nodes) and of links between them (edges).

Read with zarr, versions 2 and 3. Which node properties are t, z, y and x is said by the axes of its metadata. Axes that
leave that open are no columns of the table, until `columns:` names them. Written after the specification of GEFF 1.3.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from jaxtyping import Bool, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.track_formats import TableFile
from etl.source.track_sources.graph import NodeTracks, name_features, split_tracks
from etl.source.units import is_pixel

KIND = "GEFF"

_MADE = {"node id": "id", "track": "track_id", "track before": "parent_track_id"}
"""Columns that are made of nodes and edges → our names."""
_SPACE = re.compile(r"(?:.*[\W_])?([xyz])", re.IGNORECASE)
_HINTS = {"display_depth": "z", "display_vertical": "y", "display_horizontal": "x"}


def is_geff(folder: Path) -> bool:
    """Whether a folder is a GEFF: a Zarr group whose attributes say so."""
    documents = (folder / "zarr.json", folder / ".zattrs")
    return any(path.is_file() and b'"geff"' in path.read_bytes() for path in documents)


def open_geff(path: Path) -> TableFile:
    """Open a GEFF: its node properties are the columns, with ids and tracks."""
    group = zarr.open_group(str(path), mode="r")
    said = group.attrs["geff"]
    if not isinstance(said, Mapping):
        raise ConfigError(f"{path}: its metadata `geff`={said!r:.80} must be a mapping. Write the file again.")
    names = _list_properties(group)
    axes = _list_axes(said, names, path)
    ours, doubts = _name_axes(axes, said.get("display_hints"))
    units = {str(axis["name"]): _find_unit(axis, path) for axis in axes}
    header = (*_MADE, *names)
    return TableFile(
        path=path,
        header=header,
        columns=(*_MADE.values(), *name_features(names, {axis: ours.get(axis) for axis in units} | ours)),
        units={name: units.get(name, "") for name in header},
        converts=True,
        doubts=doubts,
        read=partial(_read, path, header, ours),
    )


def _list_properties(group: zarr.Group) -> tuple[str, ...]:
    """List the node properties that hold one value for each node."""
    if "nodes/props" not in group:
        return ()
    props = group["nodes/props"]
    assert isinstance(props, zarr.Group), "a path of groups"
    found = [(name, inside) for name, inside in sorted(props.groups()) if "data" not in inside]
    return tuple(name for name, inside in found if getattr(inside.get("values"), "ndim", 0) == 1)


def _list_axes(said: Mapping[str, Any], names: Collection[str], path: Path) -> list[Mapping[str, Any]]:
    raw = said.get("axes") or []
    good = isinstance(raw, list) and all(isinstance(axis, Mapping) and axis.get("name") in names for axis in raw)
    if not good:
        raise ConfigError(
            f"{path}: axes={raw!r:.300} must be a list of {{name: …}}, each the name of a node property; there are "
            f"{list(names)}. Write the file again."
        )
    return raw


def _name_axes(axes: Sequence[Mapping[str, Any]], hints: object) -> tuple[dict[str, str], dict[str, str]]:
    """Say which properties are t, z, y and x, and of which of these the metadata leave it open."""
    times = [str(axis["name"]) for axis in axes if axis.get("type") == "time"]
    ours = {times[0]: "t"} if len(times) == 1 else {}
    doubts = {} if ours else {"t": f"its metadata name {len(times)} axes of time, but there must be one."}
    space = [str(axis["name"]) for axis in axes if axis.get("type") == "space"]
    hinted = {str(name): _HINTS[key] for key, name in _as_mapping(hints).items() if key in _HINTS and name is not None}
    letters = {name: match[1].lower() for name in space if (match := _SPACE.fullmatch(name))}
    found = {name: letters.get(name) or hinted.get(name) for name in space}
    wrong = {name: hinted[name] for name in letters if hinted.get(name, letters[name]) != letters[name]}
    order = [letter for letter in found.values() if letter]
    if wrong:
        why = f"its axes seem to be swapped: display_hints say that {wrong} are meant."
    elif len(set(order)) != len(space) or not {"y", "x"} <= set(order):
        why = f"its axes of space are {space or 'not named'}, which does not say which is y and which is x."
    elif order != [axis for axis in "zyx" if axis in order] and not hinted:
        why = f"its axes of space are in the order {space}, not z, y, x as in images, so they may be swapped."
    else:
        return ours | {name: letter for name, letter in found.items() if letter}, doubts
    return ours, doubts | dict.fromkeys("yx", why)


def _as_mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _find_unit(axis: Mapping[str, Any], path: Path) -> str:
    """Return the unit that the values of an axis are in; empty where nothing says it."""
    if axis.get("offset"):
        raise ConfigError(
            f"{path}: axis {axis['name']!r} has offset={axis['offset']}, but positions must count from the first "
            "pixel of the image. Write the file again without an offset."
        )
    unit = str(axis.get("unit") or "")
    return "pixel" if is_pixel(unit) else unit


def _read(
    path: Path, header: Sequence[str], ours: Mapping[str, str], places: Sequence[int], text: Collection[int]
) -> pa.Table:
    """Read columns; tracks are made of the edges if they are asked for."""
    del text
    group = zarr.open_group(str(path), mode="r")
    ids = _read_ids(group, "nodes/ids", path)
    asked = {place: header[place] for place in places}
    made: dict[str, np.ndarray] = {"node id": ids}
    if any(name in _MADE and name != "node id" for name in asked.values()):
        tracks = _read_tracks(group, path, ids, ours)
        made |= {"track": tracks.track_id, "track before": tracks.parent_track_id}
    columns: dict[str, Any] = {}
    for place, name in asked.items():
        columns[str(place)] = made[name] if place < len(_MADE) else _read_property(group, name, path)
    return pa.table(columns)


def _read_ids(group: zarr.Group, name: str, path: Path) -> Int64[np.ndarray, "*axes"]:
    values = np.asarray(group[name][...])  # type: ignore[index]
    if values.dtype.kind not in "iu":
        raise ConfigError(f"{path}: {name} are {values.dtype}, but must be whole numbers. Write the file again.")
    return values.astype(np.int64)


def _read_property(group: zarr.Group, name: str, path: Path) -> pa.Array:
    """Read a property of all nodes, null where it is missing."""
    values: Any = np.asarray(group[f"nodes/props/{name}/values"][...])  # type: ignore[index]
    missing: Bool[np.ndarray, " nodes"] | None = None
    if f"nodes/props/{name}/missing" in group:
        missing = np.asarray(group[f"nodes/props/{name}/missing"][...]).astype(bool)  # type: ignore[index]
    if len(values) != group["nodes/ids"].shape[0]:  # type: ignore[union-attr]
        raise ConfigError(f"{path}: {name!r} has {len(values)} values, but not one for each node. Write it again.")
    if values.dtype.kind not in "iufb":
        values = values.astype(str).tolist()
    return pa.array(values, mask=missing)


def _read_tracks(
    group: zarr.Group, path: Path, ids: Int64[np.ndarray, " nodes"], ours: Mapping[str, str]
) -> NodeTracks:
    """Make tracks of the edges; they are called by the tracklets of the file, where it has them right."""
    edges = _read_ids(group, "edges/ids", path).reshape(-1, 2)
    time = next((name for name, column in ours.items() if column == "t"), None)
    said = _as_mapping(group.attrs["geff"])
    if time is None and said.get("directed") is False:
        raise ConfigError(
            f"{path}: its edges have no direction, and its metadata name no axis of time. Write it again with one."
        )
    t = None
    if time is not None:  # ranks, so that times need not be frames
        times = _read_property(group, time, path).to_numpy(zero_copy_only=False)
        t = np.unique(times, return_inverse=True)[1].astype(np.int64)
    tracks = split_tracks(ids, t, edges, str(path))
    name = _as_mapping(said.get("track_node_props")).get("tracklet")
    return tracks if name is None else _rename_tracks(tracks, ids, _read_property(group, str(name), path))


def _rename_tracks(tracks: NodeTracks, ids: Int64[np.ndarray, " nodes"], names: pa.Array) -> NodeTracks:
    """Call tracks by other numbers, if these are alike within each and differ between them."""
    if names.null_count or not pa.types.is_integer(names.type):
        return tracks
    given = names.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs = np.unique(np.stack([tracks.track_id, given], 1), axis=0)
    one_to_one = len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))
    if not one_to_one or given.min(initial=0) < 0:
        return tracks
    of_parent = pairs[np.minimum(np.searchsorted(pairs[:, 0], tracks.parent_track_id), max(len(pairs) - 1, 0)), 1]
    del ids
    return NodeTracks(track_id=given, parent_track_id=np.where(tracks.parent_track_id == NO_ID, NO_ID, of_parent))
