"""Writes an experiments.yaml for plates: what a plate says of itself is filled in, the rest is marked CHANGE."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.words import count_of
from etl.configure.templates import MARK, Value, fill_template, quote
from etl.source.column_names import is_in_micrometres, propose_columns, write_names
from etl.source.config import MORE_TRACK_COLUMNS, TRACK_COLUMNS
from etl.source.images import list_images, open_images, propose_wells
from etl.source.plates import Fov, Plate, open_plate
from etl.source.track_formats import READERS, TablePlace
from etl.source.track_places import OF_ALL
from etl.source.track_sources.formats import FORMATS, list_sources, open_source, recognise
from etl.source.track_sources.geff import is_geff

_LARGEST_PATCH, _SMALLEST_PATCH = 192, 32
_TABLES = "<row>/<col>/<fov>/*.csv, .tsv, .parquet or what a tracker wrote, one per FOV"
_NO_NAMES = (
    "plate",
    "data",
    "images",
    "image",
    "raw",
    "movie",
    "experiment",
    "new",
    "test",
    "tmp",
    "temp",
    "zarr",
    "work",
)
_SHORTEST_NAME = 3
"""Of an experiment that a folder's name tells apart from others."""


def write_experiments(template: str, plates: Sequence[tuple[Path, Path | None]], folder: Path) -> str:
    """Make the text of an experiments.yaml.

    Parameters
    ----------
    template
        `configs/experiments.yaml`, with one experiment.
    plates
        Plate and its folder of tracks, if that is known.
    folder
        Where the YAML will be: paths are relative to it.

    Raises
    ------
    ConfigError
        A plate is not there, or has no field of view.
    PlateError
        Not an OME-Zarr HCS plate.
    """
    found = [(*_open(path), tracks) for path, tracks in plates]
    opened = [(plate, tracks) for plate, _, tracks in found]
    first = template.index("  - name:")
    end = template.index("\nshards:")
    names = [_name_experiment(plate, folder) for plate, _ in opened]
    texts = [text for text, _ in names]
    shared = _list_shared([plate for plate, _ in opened])
    entries = [
        _add_wells(
            _write_entry(
                template[first:end], plate, _find_tracks(plate, tracks), _explain_name(name, texts), folder, shared
            ),
            wells,
        )
        for name, (plate, wells, tracks) in zip(names, found, strict=True)
    ]
    head = fill_template(template[:first], {}, "Filled in from the plates; lines marked CHANGE wait for you.")
    tail = fill_template(template[end:], {"shards.yx_patch_size": _choose_patch([plate for plate, _ in opened])}, "")
    return head + "\n".join(entries) + "\n" + tail


def _add_wells(entry: str, wells: Mapping[str, Sequence[str]]) -> str:
    """Add which image is of which well, where `data_path` is no plate."""
    if not wells:
        return entry
    lines = entry.splitlines()
    place = next(number for number, line in enumerate(lines, 1) if line.lstrip().startswith("data_path:"))
    text = ", ".join(f"{well}: [{', '.join(map(quote, images))}]" for well, images in wells.items())
    lines.insert(place, f"    wells: {{{text}}} # {MARK}: well (row/col) to its images below data_path")
    return "\n".join(lines)


def is_plate(path: Path) -> bool:
    """Whether a folder is a Zarr group, or holds images; its metadata may still be wrong."""
    is_group = any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))
    return (is_group and not is_geff(path)) or bool(list_images(path))


def _open(path: Path) -> tuple[Plate, dict[str, list[str]]]:
    """Open a plate; or images that are in none, each in a well of its own, and which well that is."""
    wells = propose_wells(list_images(path))
    try:
        plate = open_images(path, wells) if wells else open_plate(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} has no plate. Give the folder of an OME-Zarr HCS plate.") from error
    if not plate.fovs:
        raise ConfigError(f"{path}: the plate lists no field of view. Give a plate with images.")
    return plate, wells


def _name_experiment(plate: Plate, folder: Path) -> tuple[str, bool]:
    """Name an experiment by its plate, or by the folder around it where the plate's name says nothing.

    Also say whether that is the folder of the YAML, or one around it, which is named after other things.
    """
    path = Path(plate.path).resolve()
    if path.stem.lower() not in _NO_NAMES:
        return path.stem, False
    return path.parent.name, folder.resolve().is_relative_to(path.parent)


def _explain_name(name: tuple[str, bool], names: Sequence[str]) -> Value:
    text, is_around = name
    if is_around or len(text) < _SHORTEST_NAME or text.lower() in _NO_NAMES or names.count(text) > 1:
        return Value(quote(text), f"{MARK}: unique; embeddings and batches carry it; this is the name of a folder")
    return Value(quote(text), "unique; embeddings and batches carry it")


def _find_tracks(plate: Plate, tracks: Path | None) -> Path | None:
    """Return the tracks: the given ones, or the folder or table beside the plate."""
    if tracks is not None:
        return tracks
    beside = Path(plate.path).parent
    names = ("tracks", *(f"tracks{ending}" for ending in READERS))
    return next((beside / name for name in names if (beside / name).exists()), None)


def _write_entry(
    template: str, plate: Plate, tracks: Path | None, name: Value, folder: Path, shared: Sequence[str]
) -> str:
    """Fill in one experiment, and add what its tables need; `shared` are the channels that all plates have."""
    # the name stands behind the dash, in the item; so do the other keys
    values = {f"experiments.-.{key}": value for key, value in _describe_plate(plate, tracks, folder, shared).items()}
    values["experiments.-.name"] = name
    entry = fill_template("experiments:\n" + template, values, "").partition("\n")[2].rstrip("\n")
    lines = entry.splitlines()
    place = next(number for number, line in enumerate(lines, 1) if line.lstrip().startswith("tracks_path:"))
    more = [] if tracks is None else _describe_columns(plate, tracks)
    lines[place:place] = [f"    {key}: {value.text} # {value.comment}" for key, value in more]
    return "\n".join(lines)


def _find_table(plate: Plate, tracks: Path) -> tuple[Path, str] | None:
    """Return the first source of tracks of a plate, which may be `tracks` itself, and its format."""
    own = recognise(tracks)
    if own is not None:
        return tracks, own
    return next((source for fov in plate.fovs for source in list_sources(tracks / fov, None).items()), None)


def _describe_columns(plate: Plate, tracks: Path) -> list[tuple[str, Value]]:
    """Map the columns of the first table, where they have other names than ours."""
    source = _find_table(plate, tracks)
    if source is None:
        return []
    path, form = source
    file = open_source(TablePlace.of(path), form)
    wanted = [name for name in TRACK_COLUMNS if name not in file.columns]
    if not wanted:
        return []
    found, lost = propose_columns(file, TRACK_COLUMNS, MORE_TRACK_COLUMNS)
    shown = path.name if path == tracks else _relative(path, tracks)
    comment = f"{MARK}: a guess from the names in {shown}; name in the table: what it is"
    if lost:
        comment += f"; no column looks like {', '.join(lost)}"
    said = [("columns", Value(write_names(found), comment))]
    if is_in_micrometres(file, found):
        comment = "positions are micrometres, as the table says; pixel_size_um converts them, as the plate says it"
        if None in next(iter(plate.fovs.values())).scale.pixel_size_um[1:]:
            comment = (
                f"{MARK}: positions are micrometres, as the table says; add pixel_size_um: [y, x], micrometres a pixel"
            )
        said.append(("tracks_unit", Value("um", comment)))
    return said


def _describe_plate(plate: Plate, tracks: Path | None, folder: Path, shared: Sequence[str]) -> dict[str, Value]:
    """Fill in the keys of one experiment."""
    path = Path(plate.path)
    fov = next(iter(plate.fovs.values()))
    wells = [well for well in plate.wells if any(fov.well == well for fov in plate.fovs.values())]
    entry = {
        "data_path": Value(
            quote(_relative(path, folder)),
            f"{count_of(len(plate.fovs), 'field')} of view in {count_of(len(wells), 'well')}",
        ),
        "condition_wells": Value(
            "{all: [" + ", ".join(quote(well) for well in wells) + "]}",
            f"{MARK}: condition to wells, as {{uninfected: [A/1], infected: [A/2]}}",
        ),
        "interval_minutes": _read_interval(fov),
    }
    entry["tracks_path"] = _describe_tracks(plate, tracks, folder)
    given = _name_channels(fov)
    why = "all channels of the plate, in its order" if fov.channel_names else f"{MARK}: the plate names no channel"
    entry["channel_names"] = Value(_write_list(given), why)
    stored = [*shared, *(name for name in given if name not in shared)]
    why = "those to store, in the order that the network sees"
    entry["source_channel"] = Value(_write_list(stored), why if stored == given else f"{why}: as in the first plate")
    return entry


def _name_channels(fov: Fov) -> list[str]:
    return list(fov.channel_names) or [f"channel_{number}" for number in range(fov.shape[1])]


def _write_list(names: Sequence[str]) -> str:
    return "[" + ", ".join(map(quote, names)) + "]"


def _list_shared(plates: Sequence[Plate]) -> list[str]:
    """List the channels that all plates have, in the order of the first: they come first, in the same order, in all."""
    names = [_name_channels(next(iter(plate.fovs.values()))) for plate in plates]
    return [name for name in names[0] if all(name in others for others in names)] if len(names) > 1 else []


def _describe_tracks(plate: Plate, tracks: Path | None, folder: Path) -> Value:
    if tracks is None:
        beside = Path(plate.path).parent / "tracks"
        return Value(quote(_relative(beside, folder)), f"{MARK}: is not there; give the folder of {_TABLES}")
    found = _find_table(plate, tracks)
    if found is not None and found[0] == tracks:
        of = "all FOVs, which a column fov names" if found[1] in OF_ALL else "the only FOV"
        return Value(quote(_relative(tracks, folder)), f"{FORMATS[found[1]].what}, of {of}")
    if found is None:
        return Value(quote(_relative(tracks, folder)), f"{MARK}: has no table of this plate; it must hold {_TABLES}")
    return Value(quote(_relative(tracks, folder)), "one table per FOV at <row>/<col>/<fov>/")


def _read_interval(fov: Fov) -> Value:
    minutes = fov.scale.interval_minutes
    if fov.shape[0] == 1:
        return Value("0", "one frame, so there is no time")
    if minutes is None:
        return Value("null", f"{MARK}: minutes between frames; the plate does not say")
    return Value(f"{minutes:g}", "minutes between frames, as the plate says")


def _choose_patch(plates: Sequence[Plate]) -> Value:
    sides = [side for plate in plates for fov in plate.fovs.values() for side in fov.shape[3:]]
    side = min(_LARGEST_PATCH, max(min(sides) // 2, min(_SMALLEST_PATCH, *sides)) // 8 * 8)
    why = (
        ""
        if side == _LARGEST_PATCH
        else "; half of the image, because larger patches leave out more cells near the border"
    )
    return Value(str([side, side]), f"{MARK}: pixels around each cell; the network sees about half of each side{why}")


def _relative(path: Path, folder: Path) -> str:
    """Write a path relative to a folder; absolute where that would lead far up."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return relative if not relative.startswith("../..") else str(path.resolve())
