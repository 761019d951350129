"""Opens TrackMate's own files: XML that holds the spots of a movie and the edges between them.

Spots of the tracks that TrackMate's filters kept are read; all others are in no track. A track of ours is a branch of a
track of TrackMate, whose tracks hold whole lineages; its id is the ID of its first spot. Positions are in the unit
that the model says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa

from dynaclr_wds.errors import ConfigError
from etl.source.track_formats import TableFile
from etl.source.track_sources.graph import name_features, split_tracks

KIND = "TrackMate XML"

_MADE = {"branch": "track_id", "branch before": "parent_track_id"}
"""Columns that are made of spots and edges → our names."""
_OURS = {"ID": "id", "FRAME": "t", "POSITION_Z": "z", "POSITION_Y": "y", "POSITION_X": "x"}
"""Attributes of a spot → our names."""
_HEAD_BYTES = 1 << 12


def is_trackmate_xml(path: Path) -> bool:
    """Whether an XML file begins as TrackMate's do."""
    with path.open("rb") as file:
        return b"<TrackMate" in file.read(_HEAD_BYTES)


def open_trackmate_xml(path: Path) -> TableFile:
    """Open a TrackMate file: features of spots are the columns, with branches of tracks."""
    unit, features = _read_head(path)
    header = (*_MADE, *dict.fromkeys((*_OURS, *features)))
    units = dict.fromkeys(("POSITION_Z", "POSITION_Y", "POSITION_X"), unit)
    return TableFile(
        path=path,
        header=header,
        columns=name_features(header, {**_MADE, **_OURS}),
        units={name: units.get(name, "") for name in header},
        converts=True,
        read=partial(_read, path, header),
    )


def _walk(path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield (`start` or `end`, element) of a file; elements are emptied once they have ended."""
    try:
        for event, element in ElementTree.iterparse(path, events=("start", "end")):
            yield event, element
            if event == "end":
                element.clear()
    except ElementTree.ParseError as error:
        raise ConfigError(f"{path}: is not a whole XML file ({error}). Save it again in TrackMate.") from error


def _read_head(path: Path) -> tuple[str, list[str]]:
    """Return the unit of positions, and the names of the features of spots: those that are listed, and the first's."""
    unit, features, inside, has_model = "", list[str](), False, False
    for event, element in _walk(path):
        if element.tag == "Model":
            unit, has_model = element.get("spatialunits", ""), True
        elif element.tag == "SpotFeatures":
            inside = event == "start"
        elif element.tag == "Feature" and event == "start" and inside:
            features.append(element.get("feature", ""))
        elif element.tag == "Spot" or (element.tag == "AllSpots" and event == "end"):
            return unit, [*features, *element.keys()]
        if element.tag == "Model" and event == "end":
            break
    what = "no <AllSpots>" if has_model else "no <Model>"
    raise ConfigError(f"{path}: holds {what}, so there are no tracks in it. Save it in TrackMate after tracking.")


def _read(path: Path, header: Sequence[str], places: Sequence[int], text: Collection[int]) -> pa.Table:
    """Read columns; spots that are in no track of the model have no branch."""
    wanted = [header[place] for place in places]
    spots, edges = _read_model(path, [name for name in wanted if name not in _MADE])
    ids = _to_integers(spots["ID"], "ID", path)
    made = _follow(path, ids, _to_integers(spots["FRAME"], "FRAME", path), edges)
    columns: dict[str, Any] = {}
    for place, name in zip(places, wanted, strict=True):
        if name in _MADE:
            columns[str(place)] = made[name]
            continue
        column = pa.array(spots[name], pa.string())
        numeric = place not in text and name != "name"
        columns[str(place)] = column.cast(pa.float64()) if numeric else column
    return pa.table(columns)


def _read_model(path: Path, names: Sequence[str]) -> tuple[dict[str, list[str | None]], np.ndarray]:
    """Return attributes of all spots, and the edges (spots, 2) of the tracks that were kept."""
    spots: dict[str, list[str | None]] = {name: [] for name in dict.fromkeys(("ID", "FRAME", *names))}
    edges: dict[str, list[tuple[str, str]]] = {}
    kept: set[str] | None = None
    track = ""
    for event, element in _walk(path):
        tag = element.tag
        if event == "start":
            if tag == "Track":
                track = element.get("TRACK_ID", "")
                edges[track] = []
            elif tag == "FilteredTracks":
                kept = set()
        elif tag == "Spot":
            for name, values in spots.items():
                values.append(element.get(name))
        elif tag == "Edge":
            edges[track].append((element.get("SPOT_SOURCE_ID", ""), element.get("SPOT_TARGET_ID", "")))
        elif tag == "TrackID" and kept is not None:
            kept.add(element.get("TRACK_ID", ""))
    pairs = [pair for name, found in edges.items() if kept is None or name in kept for pair in found]
    ends = _to_integers([end for pair in pairs for end in pair], "an edge's spot", path)
    return spots, ends.reshape(-1, 2)


def _to_integers(values: Sequence[str | None], what: str, path: Path) -> np.ndarray:
    try:
        return np.array([int(float(value)) for value in values if value is not None], np.int64)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: {what} must be a whole number ({error}). Save it again in TrackMate.") from error


def _follow(path: Path, ids: np.ndarray, frames: np.ndarray, edges: np.ndarray) -> dict[str, pa.Array]:
    """Say which branch each spot is in, null for those in no track."""
    if len(ids) != len(frames):
        raise ConfigError(
            f"{path}: {len(ids)} spots have an ID, but {len(frames)} a FRAME. Save it again in TrackMate."
        )
    tracks = split_tracks(ids, frames, edges, str(path))
    alone = ~np.isin(ids, edges)
    return {
        "branch": pa.array(tracks.track_id, mask=alone),
        "branch before": pa.array(tracks.parent_track_id, mask=alone),
    }
