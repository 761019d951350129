"""Opens and reads track files: every tracked cell of a FOV, as written, checked row by row.

One file per FOV at `tracks_path/<row>/<col>/<fov>/`, under any name, in any format of `etl.source.track_formats`.
All files are found and their columns checked before the first is read. A missing parent is empty, NaN or -1;
0 is a valid track id. Columns that are neither known nor `label_columns` are not read. Spots of TrackMate that are in
no track are left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.column_names import check_columns, rename_columns
from etl.source.config import MORE_TRACK_COLUMNS, TRACK_COLUMNS, BuildConfig, ExperimentConfig
from etl.source.table_places import Tables
from etl.source.track_formats import TableFile, open_table, read_table
from etl.source.trackmate import DIVISIONS, name_unit

SCHEMA = pa.schema(
    [
        ("fov", pa.int32()),
        ("track_id", pa.int64()),
        ("t", pa.int64()),
        ("y", pa.float64()),
        ("x", pa.float64()),
        ("z", pa.float32()),
        ("id", pa.int64()),
        ("parent_track_id", pa.int64()),
        ("parent_id", pa.int64()),
    ]
)
"""One row per row of a track file. `fov` counts the FOVs asked for; absent ids are -1, an absent z is null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackFile:
    """The track file of one FOV, whose columns are checked and whose values are not read yet."""

    file: TableFile
    experiment: ExperimentConfig
    fov: int
    """Counts the FOVs asked for."""

    @property
    def rows(self) -> int:
        """Number of rows; of a text, a guess from its size."""
        if self.file.rows is not None:
            return self.file.rows
        return self.file.path.stat().st_size // _TEXT_BYTES_PER_ROW


@dataclass(frozen=True, slots=True, kw_only=True)
class FovTracks:
    """The rows of one track file."""

    rows: pa.Table
    """`SCHEMA`, and one dictionary-encoded column per label."""
    outside: int
    """Spots of TrackMate that are in no track; they have no row."""
    is_latin_1: bool
    """Whether labels were read from a text that is not UTF-8."""


_TEXT_BYTES_PER_ROW = 24


def open_track_files(config: BuildConfig, fovs: Mapping[str, Sequence[str]], tables: Tables) -> list[TrackFile]:
    """Open the track files of all FOVs, in the order in which `fov` counts them.

    Parameters
    ----------
    config
        Says what the files hold.
    fovs
        Experiment → FOV names (`row/col/fov`).
    tables
        Finds the files.

    Raises
    ------
    ConfigError
        A missing or doubled track file, a missing column, a unit that is not the one of the config, a damaged file.
    StorageError
        A file cannot be read.
    """
    files: list[TrackFile] = []
    for number, experiment in enumerate(config.experiments):
        where = f"{config.where}: experiments[{number}]"
        for place in tables.find_tracks(number, fovs.get(experiment.name, ())):
            file = rename_columns(open_table(place), experiment.columns, f"{where}.columns")
            check_columns(file, (*TRACK_COLUMNS, *experiment.label_columns), MORE_TRACK_COLUMNS, where, "columns")
            _check_units(file, experiment, where)
            files.append(TrackFile(file=file, experiment=experiment, fov=len(files)))
    return files


def is_latin_1(table: pa.Table) -> bool:
    """Whether a table was read from a text that is not UTF-8."""
    return bool((table.schema.metadata or {}).get(b"encoding") == b"latin-1")


def note_latin_1(names: Sequence[str]) -> tuple[str, ...]:
    """Say which files were read as Latin-1 because they are not UTF-8."""
    if not names:
        return ()
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"not UTF-8, and their labels were read as Latin-1: {', '.join(names[:3])}{more}. If a label looks "
        "wrong, save the table as UTF-8.",
    )


def _check_units(file: TableFile, experiment: ExperimentConfig, where: str) -> None:
    """Check the unit of positions: pixels, or micrometres that can be converted, and that a table says the same."""
    size = experiment.pixel_size_um
    if experiment.tracks_unit == "um" and size is None:
        raise ConfigError(
            f"{where}.tracks_unit='um', but the pixel size is not known: the plate does not say it. Give "
            "`pixel_size_um: [y, x]`, the micrometres per pixel."
        )
    for theirs, ours in zip(file.header, file.columns, strict=True):
        unit = file.units.get(theirs, "")
        if ours == "t" and unit not in ("", "frame", "frames"):
            raise ConfigError(
                f"{file}: {theirs} is in {unit!r}, but t must be frames. Map FRAME to t in {where}.columns."
            )
        if ours in ("y", "x") and unit:
            said = name_unit(unit)
            if said != experiment.tracks_unit:
                advice = f"Write `tracks_unit: {said}` there" if said in ("um", "pixel") else "Export it in pixels"
                given = f"{where}.tracks_unit={experiment.tracks_unit!r}"
                raise ConfigError(f"{file}: {theirs} is in {unit!r}, but {given}. {advice}.")


def parse_track_file(source: TrackFile) -> FovTracks:
    """Read one track file and check its values.

    Raises
    ------
    ConfigError
        A track id or frame that is not a whole number, a centroid that is not finite, a (track_id, t) that occurs
        twice, a damaged or cut file.
    StorageError
        The file cannot be read.
    """
    file, experiment = source.file, source.experiment
    labels = experiment.label_columns
    raw = read_table(file, [name for name in (*TRACK_COLUMNS, *MORE_TRACK_COLUMNS) if name in file.columns], labels)
    track_id = parse_integers(raw, "track_id", file, optional=bool(file.units))
    in_track = track_id != NO_ID if file.units else np.ones(len(raw), dtype=bool)
    t = parse_integers(raw, "t", file)
    refuse_rows(file, "track_id", in_track & (track_id < 0), track_id, "≥ 0")
    _refuse_repeats_in_tracks(file, track_id, t)
    z, y, x = _parse_positions(raw, experiment, file)
    columns = {
        "fov": np.full(len(t), source.fov, dtype=np.int32),
        "track_id": track_id,
        "t": t,
        "y": y,
        "x": x,
        "z": pa.array(z.astype(np.float32), mask=np.isnan(z)),
        **{name: parse_integers(raw, name, file, optional=True) for name in ("id", "parent_track_id", "parent_id")},
    }
    rows = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    for name in labels:
        rows = rows.append_column(name, raw[name])
    outside = int((~in_track).sum())
    if outside:
        rows = rows.filter(pa.array(in_track))
    return FovTracks(rows=rows, outside=outside, is_latin_1=bool(labels) and is_latin_1(raw))


def _parse_positions(
    raw: pa.Table, experiment: ExperimentConfig, file: TableFile
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Return z, y and x in pixels; z is NaN where it is not tracked."""
    z, y, x = (_parse_floats(raw, axis, file) for axis in "zyx")
    for axis, values in (("y", y), ("x", x)):
        refuse_rows(file, axis, ~np.isfinite(values), values, "a finite number of pixels")
    if experiment.tracks_unit == "pixel" or experiment.pixel_size_um is None:
        return z, y, x
    *depth, height, width = experiment.pixel_size_um
    if not depth:  # z of a flat movie is 0, in any unit
        advice = "0 where pixel_size_um has no z (give `pixel_size_um: [z, y, x]`)"
        refuse_rows(file, "z", ~np.isnan(z) & (z != 0), z, advice)
    return z / (depth or [1.0])[0], y / height, x / width


def _refuse_repeats_in_tracks(
    file: TableFile, track_id: Int64[np.ndarray, " rows"], t: Int64[np.ndarray, " rows"]
) -> None:
    """Refuse a (track_id, t) that was there in a row before; spots in no track are all different."""
    if file.units:
        track_id = np.where(track_id == NO_ID, NO_ID - np.arange(len(track_id)), track_id)
    try:
        refuse_repeats(file, "(track_id, t)", track_id, t)
    except ConfigError as error:
        if file.units:
            error.add_note(DIVISIONS)
        raise


def refuse_repeats(file: TableFile, name: str, *keys: Int64[np.ndarray, " rows"]) -> None:
    """Refuse rows whose key was there in a row before."""
    order = np.lexsort(keys[::-1])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        same &= np.diff(key[order]) == 0
    twice = np.zeros(len(order), dtype=bool)
    twice[order[1:]] = same
    if twice.any():
        refuse_rows(file, name, twice, np.stack(keys, axis=1), "in one row only")


def _parse_floats(raw: pa.Table, name: str, file: TableFile) -> Float[np.ndarray, " rows"]:
    """Return a column as float64, NaN where it is missing."""
    if name not in raw.column_names:
        return np.full(len(raw), np.nan)
    column = raw[name]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        values = np.array([str(value) for value in column.to_pylist()], dtype=object)
        refuse_rows(file, name, np.array([not _is_number(value) for value in values], dtype=bool), values, "a number")
        raise ConfigError(f"{file}: column {name!r} is of type {kind}, which is not a number. Write it as numbers.")
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy())


def parse_integers(raw: pa.Table, name: str, file: TableFile, *, optional: bool = False) -> Int64[np.ndarray, " rows"]:
    """Return a column as int64; `NO_ID` for what is missing where that may be."""
    if name in raw.column_names and pa.types.is_signed_integer(raw[name].type) and not raw[name].null_count:
        return np.asarray(raw[name].cast(pa.int64()).to_numpy())
    values = _parse_floats(raw, name, file)
    missing = np.isnan(values) & optional
    with np.errstate(invalid="ignore"):
        whole = (np.abs(values) <= 2**53) & (values == np.floor(values))
    refuse_rows(file, name, ~(whole | missing), values, "a whole number")
    return np.where(missing, NO_ID, values).astype(np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def refuse_rows(file: TableFile, name: str, bad: Bool[np.ndarray, " rows"], values: np.ndarray, rule: str) -> None:
    """Raise an error that names the rows where `bad` holds, if any."""
    rows = np.flatnonzero(bad)
    if len(rows):
        named = zip(file.name_rows(rows[:5].tolist()), values[rows[:5]], strict=True)
        shown = ", ".join(f"{row} ({value})" for row, value in named)
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        advice = "Correct these lines" if file.find_lines else "Correct these rows (the first is row 0)"
        raise ConfigError(f"{file}: {name} must be {rule}, but is not in {shown}{more}. {advice}.")
