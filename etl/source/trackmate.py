"""Knows what is special about TrackMate's tables: lines of units below the names, and tracks that hold whole trees."""

from __future__ import annotations

import re
from collections.abc import Sequence

_COLUMNS = {"TRACK_ID", "FRAME", "POSITION_X"}
_UNIT = re.compile(r"(\(.*\))?")
_MICROMETRES = ("micron", "microns", "um", "µm", "μm", "micrometer", "micrometre")

DIVISIONS = (
    "TrackMate gives daughters the TRACK_ID of their mother, so after a division one track has two spots in a frame. "
    "Give each branch between divisions a track_id of its own, and its mother's as parent_track_id (TrackMate's action "
    "`Branch hierarchy analysis` lists the branches); or track without segment splitting and export again."
)
"""What to do about a table that holds divisions."""


def parse_units(names: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the units of TrackMate's fourth line, one per column; nothing for any other table.

    Parameters
    ----------
    names
        The first line of the table.
    rows
        The lines below it.
    """
    if not set(names) >= _COLUMNS or len(rows) < 3:
        return ()
    units = [text.strip() for text in rows[2]]
    if not any(units) or not all(_UNIT.fullmatch(text) for text in units):
        return ()
    units += [""] * (len(names) - len(units))
    return tuple(text.strip("() ") for text in units[: len(names)])


def name_unit(unit: str) -> str:
    """Return `um` or `pixel` for a unit of positions, as `tracks_unit` has them; any other unit as it is."""
    return "um" if unit in _MICROMETRES else "pixel" if unit.startswith(("pixel", "px")) else unit
