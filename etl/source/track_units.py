"""Converts positions and times of tracks to pixels and frames, by the units that YAML or file say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from dynaclr_wds.errors import ConfigError
from etl.source.config import ExperimentConfig
from etl.source.table_values import parse_floats, parse_integers, refuse_rows
from etl.source.track_formats import TableFile
from etl.source.trackmate import name_unit
from etl.source.units import find_micrometres, find_minutes, is_pixel

_FRAMES = ("", "frame", "frames")
_ALMOST = 1e-3
"""Of a frame, that rounding may be off."""


def check_units(file: TableFile, experiment: ExperimentConfig, where: str) -> None:
    """Check the unit of positions: pixels, or one that can be converted, and that a table says the same.

    Raises
    ------
    ConfigError
        It is not; `where` is the YAML path of the experiment.
    """
    if experiment.tracks_unit == "um" and experiment.pixel_size_um is None:
        raise ConfigError(
            f"{where}.tracks_unit='um', but the pixel size is not known: the plate does not say it. Give "
            "`pixel_size_um: [y, x]`, the micrometres per pixel."
        )
    for theirs, ours in zip(file.header, file.columns, strict=True):
        unit = file.units.get(theirs, "")
        if ours == "t" and unit not in _FRAMES and not (file.converts and find_minutes(unit)):
            raise ConfigError(
                f"{file}: {theirs} is in {unit!r}, but t must be frames. Map FRAME to t in {where}.columns."
            )
        if ours in ("y", "x") and unit:
            _check_position(file, theirs, unit, experiment, where)


def _check_position(file: TableFile, theirs: str, unit: str, experiment: ExperimentConfig, where: str) -> None:
    """Check the unit of one axis."""
    said = "um" if file.converts and find_micrometres(unit) else name_unit(unit)
    given = f"{where}.tracks_unit={experiment.tracks_unit!r}"
    if file.converts and said == "um":
        if experiment.pixel_size_um is None:
            raise ConfigError(
                f"{file}: {theirs} is in {unit!r}, but the pixel size is not known: the plate does not say it. Give "
                f"`pixel_size_um: [y, x]` in {where}, the micrometres per pixel."
            )
    elif said != experiment.tracks_unit:
        advice = f"Write `tracks_unit: {said}` there" if said in ("um", "pixel") else "Export it in pixels"
        raise ConfigError(f"{file}: {theirs} is in {unit!r}, but {given}. {advice}.")


def parse_frames(raw: pa.Table, file: TableFile, experiment: ExperimentConfig) -> Int64[np.ndarray, " rows"]:
    """Return frames; times that a format says in another unit are divided by the frame interval."""
    unit = _find_unit(file, "t")
    minutes = find_minutes(unit)
    if minutes is None or not file.converts:
        return parse_integers(raw, "t", file)
    times = parse_floats(raw, "t", file)
    frames = times * minutes / experiment.minutes if experiment.has_time else times
    whole = np.abs(frames - np.round(frames)) <= _ALMOST
    refuse_rows(file, "t", ~whole, times, f"a multiple of interval_minutes={experiment.minutes:g} (it is in {unit!r})")
    return np.round(frames).astype(np.int64)


def parse_positions(
    raw: pa.Table, experiment: ExperimentConfig, file: TableFile
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Return z, y and x in pixels; z is NaN where it is not tracked."""
    z, y, x = (parse_floats(raw, axis, file) for axis in "zyx")
    for axis, values in (("y", y), ("x", x)):
        refuse_rows(file, axis, ~np.isfinite(values), values, "a finite number of pixels")
    factors = [_find_factor(file, axis, experiment) for axis in "zyx"]
    if experiment.pixel_size_um is None or factors == [None] * 3:
        return z, y, x
    *depth, height, width = experiment.pixel_size_um
    if not depth and factors[0] is not None:  # z of a flat movie is 0, in any unit
        advice = "0 where pixel_size_um has no z (give `pixel_size_um: [z, y, x]`)"
        refuse_rows(file, "z", ~np.isnan(z) & (z != 0), z, advice)
    sizes = ((depth or [1.0])[0], height, width)
    z, y, x = (
        values if factor is None else values * factor / size
        for values, factor, size in zip((z, y, x), factors, sizes, strict=True)
    )
    return z, y, x


def _find_factor(file: TableFile, axis: str, experiment: ExperimentConfig) -> float | None:
    """Return micrometres per unit of an axis; None where it is pixels."""
    unit = _find_unit(file, axis)
    if file.converts and unit:
        return None if is_pixel(unit) else find_micrometres(unit)
    return 1.0 if experiment.tracks_unit == "um" else None


def _find_unit(file: TableFile, ours: str) -> str:
    place = file.columns.index(ours) if ours in file.columns else None
    return "" if place is None else file.units.get(file.header[place], "")
