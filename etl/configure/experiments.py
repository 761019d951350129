"""Writes an experiments.yaml for plates: what a plate says of itself is filled in, the rest is marked CHANGE."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.words import count_of
from etl.configure.choices import quote
from etl.configure.templates import MARK, Value, fill_template
from etl.source.plates import Fov, Plate, open_plate

_LARGEST_PATCH = 192


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
    opened = [(_open(path), tracks) for path, tracks in plates]
    first = template.index("  - name:")
    end = template.index("\nshards:")
    entries = [
        fill_template("experiments:\n" + template[first:end], values, "").partition("\n")[2].rstrip("\n")
        for values in (_describe_plate(plate, tracks, folder) for plate, tracks in opened)
    ]
    head = fill_template(template[:first], {}, "Filled in from the plates; lines marked CHANGE wait for you.")
    tail = fill_template(template[end:], {"shards.yx_patch_size": _choose_patch([plate for plate, _ in opened])}, "")
    return head + "\n".join(entries) + "\n" + tail


def is_plate(path: Path) -> bool:
    """Whether a folder is a Zarr group; its metadata may still be wrong."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _open(path: Path) -> Plate:
    try:
        plate = open_plate(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} has no plate. Give the folder of an OME-Zarr HCS plate.") from error
    if not plate.fovs:
        raise ConfigError(f"{path}: the plate lists no field of view. Give a plate with images.")
    return plate


def _describe_plate(plate: Plate, tracks: Path | None, folder: Path) -> Mapping[str, Value]:
    """Fill in one entry; the keys are paths in the template."""
    path = Path(plate.path)
    name = path.parent.resolve().name if path.stem in ("plate", "data", "images") else path.stem
    fov = next(iter(plate.fovs.values()))
    wells = [well for well in plate.wells if any(fov.well == well for fov in plate.fovs.values())]
    entry = {
        "name": Value(quote(name), "unique; embeddings and batches carry it"),
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
    if tracks is None and (path.parent / "tracks").is_dir():
        tracks = path.parent / "tracks"
    if tracks is not None:
        entry["tracks_path"] = Value(quote(_relative(tracks, folder)), "one table per FOV at <row>/<col>/<fov>/")
    if fov.channel_names:
        names = "[" + ", ".join(quote(channel) for channel in fov.channel_names) + "]"
        entry["channel_names"] = Value(names, "all channels of the plate, in its order")
        entry["source_channel"] = Value(names, "those to store, in the order that the network sees")
    # the name stands behind the dash, in the item; so do the other keys
    return {f"experiments.-.{key}": value for key, value in entry.items()}


def _read_interval(fov: Fov) -> Value:
    minutes = fov.scale.interval_minutes
    if minutes is None:
        return Value("null", f"{MARK}: minutes between frames; the plate does not say")
    return Value(f"{minutes:g}", "minutes between frames, as the plate says")


def _choose_patch(plates: Sequence[Plate]) -> Value:
    sides = [side for plate in plates for fov in plate.fovs.values() for side in fov.shape[3:]]
    side = min(_LARGEST_PATCH, min(sides) // 8 * 8)
    return Value(str([side, side]), f"{MARK}: pixels around each cell, so that it fits with a rim")


def _relative(path: Path, folder: Path) -> str:
    """Write a path relative to a folder; absolute where that would lead far up."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return relative if not relative.startswith("../..") else str(path.resolve())
