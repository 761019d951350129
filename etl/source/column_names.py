"""Gives the columns of a table our names, by the user's map; where a column is missing, says which map would do.

A guess is never applied: it is offered in the error, as a line for experiments.yaml.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping, Sequence

import yaml

from dynaclr_wds.errors import ConfigError
from etl.source.track_formats import TableFile
from etl.source.trackmate import name_unit

_MOST_SHOWN = 40

SYNONYMS: dict[str, tuple[str, ...]] = {
    "fov_name": ("fovname", "fov", "fovid", "position", "site", "image", "imagename"),
    "track_id": (
        *("trackid", "trackobjectslabel", "particle", "track", "tracknumber", "cellid", "cellnumber", "cell"),
        *("objectid", "id", "label", "objectnumber"),
    ),
    "t": ("frame", "framenumber", "frameid", "frames", "timepoint", "timeframe", "time", "imagenumber", "slice"),
    "y": (
        *("positiony", "locationcentery", "areashapecentery", "centroid0", "centroidy", "ycentroid", "centery"),
        *("posy", "ypos", "yposition", "ypx", "ypixel", "pxy", "ycoord", "ycoordinate"),
    ),
    "x": (
        *("positionx", "locationcenterx", "areashapecenterx", "centroid1", "centroidx", "xcentroid", "centerx"),
        *("posx", "xpos", "xposition", "xpx", "xpixel", "pxx", "xcoord", "xcoordinate"),
    ),
    "parent_track_id": ("parenttrackid", "parenttrack", "parent", "parentid", "mothertrackid", "motherid", "mother"),
}
"""Our name → names in other programs (TrackMate, btrack, ultrack, trackpy, CellProfiler, scikit-image), the most
telling first, in lower case, without units, and with letters and digits only."""

_IN_3D = {"y": "centroid1", "x": "centroid2"}
"""scikit-image numbers the axes, so its names mean other axes where there is a third."""

_LONG = 9
"""A name of this length is recognised inside a longer one, e.g. `Nuclei_TrackObjects_Label_50`."""


def rename_columns(file: TableFile, names: Mapping[str, str], where: str) -> TableFile:
    """Give columns other names; a column that has such a name already is not used any more.

    Parameters
    ----------
    names
        Name in the file → our name.
    where
        The YAML path of `names`, for errors.

    Raises
    ------
    ConfigError
        A name is not in the file, or there twice.
    """
    for theirs in names:
        if theirs not in file.header:
            there = {name.casefold(): name for name in file.header}
            close = difflib.get_close_matches(theirs.casefold(), there, n=1)
            advice = f"Did you mean {there[close[0]]!r}?" if close else "Correct it."
            raise ConfigError(
                f"{where}.{theirs} is no column of {file}; there are {_list_columns(file.header)}. {advice}"
            )
        if file.header.count(theirs) > 1:
            raise ConfigError(f"{file}: column {theirs!r} is there twice. Remove one.")
    taken = set(names.values())
    columns = [names.get(theirs, None if ours in taken else ours) for theirs, ours in _pairs(file)]
    return dataclasses.replace(file, columns=tuple(columns))


def _pairs(file: TableFile) -> list[tuple[str, str | None]]:
    return list(zip(file.header, file.columns, strict=True))


def check_columns(file: TableFile, required: Sequence[str], optional: Sequence[str], where: str, key: str) -> None:
    """Check the names of the columns.

    Parameters
    ----------
    required, optional
        Our names.
    where
        YAML path of the experiment.
    key
        Its key that holds the map of these columns.

    Raises
    ------
    ConfigError
        One is missing, or is there twice.
    """
    for column in (*required, *optional):
        if file.columns.count(column) > 1:
            raise ConfigError(f"{file}: column {column!r} is there twice. Remove one.")
    missing = [column for column in required if column not in file.columns]
    if doubtful := [column for column in missing if column in file.doubts]:
        raise ConfigError(
            f"{file}: {file.doubts[doubtful[0]]} Say in {where} which is which: {_offer(file, doubtful)}."
        )
    if missing:
        asked = "" if missing[0] in SYNONYMS else f" {where}.label_columns asks for it."
        raise ConfigError(
            f"{file}: column {missing[0]!r} is missing; there are {_list_columns(file.header)}.{asked} Needed are "
            f"{list(required)}, known too are {list(optional)}. {_advise(file, required, optional, where, key)}"
        )


def _offer(file: TableFile, wanted: Sequence[str]) -> str:
    """Write the line of experiments.yaml that would name columns, with what looks right."""
    found, lost = propose_columns(file, wanted, ())
    return f"`columns: {write_names({**found, **{f'<property for {ours}>': ours for ours in lost}})}`"


def _advise(file: TableFile, required: Sequence[str], optional: Sequence[str], where: str, key: str) -> str:
    """Say what to write into experiments.yaml."""
    if len(file.header) == 1:
        return "Only commas, semicolons and tabs separate columns. Write the table again with one of these."
    named = {theirs: ours for theirs, ours in _pairs(file) if ours is not None and ours != theirs}
    if "parent_track_id" not in file.columns:  # rows that name parents by rows only are refused
        named = {theirs: "parent_track_id" if ours == "parent_id" else ours for theirs, ours in named.items()}
    found, lost = propose_columns(file, required, optional)
    if not found or all(ours in optional for ours in found.values()):
        return f"Rename it in the table, or say in {where} which column it is: `{key}: {{<your name>: {lost[0]}}}`."
    line = f"`{key}: {write_names({**named, **found})}`"
    if key == "columns" and is_in_micrometres(file, found):
        line += " and `tracks_unit: um`"
    more = f" and add {lost}, for which no column looks right" if lost else ""
    return f"Look whether this would do, in {where}: {line}{more}."


def propose_columns(
    file: TableFile, required: Sequence[str], optional: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Guess which columns are those that no column is called.

    Returns
    -------
    tuple
        Name in the file → our name; and those of `required` for which no column looks right.
    """
    there = {ours for ours in file.columns if ours is not None}
    wanted = [column for column in (*required, *optional) if column not in there]
    found = guess_columns([theirs for theirs, ours in _pairs(file) if ours not in required], wanted)
    return found, [column for column in required if column not in there and column not in found.values()]


def is_in_micrometres(file: TableFile, names: Mapping[str, str]) -> bool:
    """Whether a table says that positions are micrometres; `names` are its names → ours."""
    return any(name_unit(file.units.get(theirs, "")) == "um" for theirs, ours in names.items() if ours in ("y", "x"))


def write_names(names: Mapping[str, str]) -> str:
    """Write a map of names as YAML, in one line."""
    text = yaml.safe_dump(dict(names), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.strip()


def _list_columns(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"{list(names[:_MOST_SHOWN])}{more}"


def guess_columns(header: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Guess which columns are the wanted ones.

    Returns
    -------
    dict
        Name in the file → our name, in the order of `wanted`; no column twice.
    """
    plain = {name: _simplify(name) for name in header}
    found: dict[str, str] = {}
    for ours in wanted:
        theirs = _find_synonym({name: text for name, text in plain.items() if name not in found}, ours, plain.values())
        if theirs is not None:
            found[theirs] = ours
    return found


def _find_synonym(plain: Mapping[str, str], ours: str, everything: Collection[str]) -> str | None:
    if "centroid2" in everything and ours in _IN_3D:
        return next((name for name, text in plain.items() if text == _IN_3D[ours]), None)
    for synonym in (_simplify(ours), *SYNONYMS.get(ours, ())):
        for name, text in plain.items():
            if text and (text == synonym or (len(synonym) >= _LONG and synonym in text)):
                return name
    close = difflib.get_close_matches(_simplify(ours), [text for text in plain.values() if text], n=1, cutoff=0.8)
    return next((name for name, text in plain.items() if close and text == close[0]), None)


def _simplify(name: str) -> str:
    """Keep letters and digits, in lower case, without what stands in brackets."""
    return re.sub(r"[\W_]", "", re.sub(r"\(.*?\)|\[.*?\]", "", name).casefold())
