"""Says what some frames of a field of view depend on of its metadata, without what changes when frames are added."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zarr.core.buffer import default_buffer_prototype

from etl.source.plate_metadata import as_mapping
from etl.source.plates import Fov

_GROWING = ("normalization", "focus_slice")
"""Attributes with an entry for each frame, and with statistics of all of them."""


def describe_frames(fov: Fov, channels: Sequence[str], frames: range) -> dict[str, Any]:
    """Return what the patches of some frames depend on, as JSON types.

    Statistics of a whole movie and of an experiment are not among it: they stand in the index, which is always made
    anew. The slices in focus are in the plan of the stack.

    Parameters
    ----------
    channels
        Those that are stored.
    """
    documents = fov.stored.metadata.to_buffer_dict(default_buffer_prototype())
    array = {name: json.loads(document.to_bytes()) for name, document in documents.items()}
    for document in array.values():
        if "t" in fov.axes and "shape" in document:
            document["shape"][fov.axes.index("t")] = None
    said = fov.normalization or {}
    timepoints = {channel: as_mapping(said.get(channel, {}).get("timepoint_statistics")) for channel in channels}
    return {
        "array": array,
        "image": {key: value for key, value in fov.attributes.items() if key not in _GROWING},
        "timepoint": {channel: _take_frames(table, frames) for channel, table in timepoints.items()},
    }


def _take_frames(table: Mapping[str, Any], frames: range) -> dict[str, Any]:
    return {str(t): table[str(t)] for t in frames if str(t) in table}
