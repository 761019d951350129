"""Opens and reads track files: every tracked cell of every FOV, as written, checked row by row.

One source per FOV, or one table for an experiment whose rows name their FOV (`etl.source.track_places`), in any format
of `etl.source.track_formats` and `etl.source.track_sources`. All files are found and their columns checked before the
first is read. A missing parent is empty, NaN or -1; 0 is a valid track id. Columns that are neither known nor
`label_columns` are not read. Spots of TrackMate that are in no track are left out and counted. Positions and times are
converted to pixels and frames where YAML or file say that they are something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.column_names import check_columns, rename_columns
from etl.source.config import FOV_COLUMN, MORE_TRACK_COLUMNS, TRACK_COLUMNS, BuildConfig, ExperimentConfig
from etl.source.table_places import Tables
from etl.source.table_values import parse_integers, refuse_repeats, refuse_rows
from etl.source.track_formats import TableFile, read_table
from etl.source.track_places import TracksPlace
from etl.source.track_units import check_units, parse_frames, parse_positions
from etl.source.trackmate import DIVISIONS

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
    """A track file that is open: its columns are checked, and its values are not read yet."""

    file: TableFile
    experiment: ExperimentConfig
    fovs: Mapping[str, int]
    """FOVs that it is about → `fov`, which counts those asked for."""
    labels: tuple[str, ...]
    """Columns to read as labels; with the FOV, where rows name it."""

    @property
    def rows(self) -> int:
        """Number of rows; where the file doesn't say it, a guess from its size."""
        path = self.file.path
        if self.file.rows is not None:
            return self.file.rows
        return path.stat().st_size // _TEXT_BYTES_PER_ROW if path.is_file() else _ROWS_OF_FOLDER * len(self.fovs)


_TEXT_BYTES_PER_ROW = 24
_ROWS_OF_FOLDER = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FovTracks:
    """The rows of one track file."""

    rows: pa.Table
    """`SCHEMA`, and one dictionary-encoded column per label."""
    outside: int
    """Spots in no track, which are left out."""
    is_latin_1: bool
    """Whether labels were read from a text that is not UTF-8."""


def open_track_files(config: BuildConfig, fovs: Mapping[str, Sequence[str]], tables: Tables) -> list[TrackFile]:
    """Open the track files of all FOVs.

    Parameters
    ----------
    config
        Says what the files hold.
    fovs
        Experiment → FOV names (`row/col/fov`), in the order in which `fov` counts them.
    tables
        Finds the files.

    Raises
    ------
    ConfigError
        A missing or doubled track file, a missing column, a unit that is not the one of the config, a damaged file.
    StorageError
        A file cannot be read.
    """
    sources: list[TrackFile] = []
    first = 0
    for number, experiment in enumerate(config.experiments):
        chosen = fovs.get(experiment.name, ())
        numbers = {fov: first + place for place, fov in enumerate(chosen)}
        first += len(chosen)
        where = f"{config.where}: experiments[{number}]"
        sources += [_open(place, experiment, numbers, where) for place in tables.find_tracks(number, chosen)]
    return sources


def _open(place: TracksPlace, experiment: ExperimentConfig, numbers: Mapping[str, int], where: str) -> TrackFile:
    """Open a source and check its columns and units."""
    file = rename_columns(place.open(), experiment.columns, f"{where}.columns")
    if place.is_shared and FOV_COLUMN not in file.columns and "fov" in file.header:
        columns = [FOV_COLUMN if name == "fov" else name for name in file.columns]
        file = dataclasses.replace(file, columns=tuple(columns))
    needed = (FOV_COLUMN,) if len(place.fovs) > 1 else ()
    check_columns(file, (*needed, *TRACK_COLUMNS, *experiment.label_columns), MORE_TRACK_COLUMNS, where, "columns")
    _refuse_row_parents(file, where)
    check_units(file, experiment, where)
    named = (FOV_COLUMN,) if place.is_shared and FOV_COLUMN in file.columns else ()
    return TrackFile(
        file=file,
        experiment=experiment,
        fovs={fov: numbers[fov] for fov in place.fovs},
        labels=(*experiment.label_columns, *named),
    )


def _refuse_row_parents(file: TableFile, where: str) -> None:
    """Refuse a table that names parents by rows only: lineages would silently end at every division."""
    if "parent_id" in file.columns and "parent_track_id" not in file.columns:
        theirs = file.header[file.columns.index("parent_id")]
        raise ConfigError(
            f"{file}: {theirs!r} is taken for `parent_id`, the `id` of a row, but lineages are made from "
            f"`parent_track_id`, the track of the mother, which is missing. If {theirs!r} holds numbers of tracks, say "
            f"so in {where}: `columns: {{{theirs}: parent_track_id}}`; else add a column parent_track_id (-1 without a "
            "mother)."
        )


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
    names = [name for name in (*TRACK_COLUMNS, *MORE_TRACK_COLUMNS) if name in file.columns]
    raw = read_table(file, names, source.labels)
    track_id = parse_integers(raw, "track_id", file, optional=bool(file.units))
    in_track = track_id != NO_ID if file.units else np.ones(len(raw), dtype=bool)
    t = parse_frames(raw, file, experiment)
    refuse_rows(file, "track_id", in_track & (track_id < 0), track_id, "≥ 0")
    code, fov = _find_fovs(raw, source)
    _refuse_repeats_in_tracks(file, code, track_id, t)
    z, y, x = parse_positions(raw, experiment, file)
    columns = {
        "fov": fov,
        "track_id": track_id,
        "t": t,
        "y": y,
        "x": x,
        "z": pa.array(z.astype(np.float32), mask=np.isnan(z)),
        **{name: parse_integers(raw, name, file, optional=True) for name in ("id", "parent_track_id", "parent_id")},
    }
    rows = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    for name in experiment.label_columns:
        rows = rows.append_column(name, raw[name])
    asked = fov >= 0
    if not (in_track & asked).all():
        rows = rows.filter(pa.array(in_track & asked))
    outside = int((~in_track & asked).sum())
    return FovTracks(rows=rows, outside=outside, is_latin_1=bool(source.labels) and is_latin_1(raw))


def list_tracked(source: TrackFile) -> tuple[str, ...] | None:
    """List the fields of view that the rows of a table name; None where rows don't name any."""
    if FOV_COLUMN not in source.file.columns:
        return None
    column = read_table(source.file, [], (FOV_COLUMN,))[FOV_COLUMN].combine_chunks()
    return tuple(column.dictionary.to_pylist())


def _find_fovs(raw: pa.Table, source: TrackFile) -> tuple[Int32[np.ndarray, " rows"], Int32[np.ndarray, " rows"]]:
    """Say which FOV each row is of: a number that only tells FOVs apart, and `fov`, −1 for those that are not built.

    Raises
    ------
    ConfigError
        A row without a FOV, or a FOV without a row.
    """
    file, fovs = source.file, source.fovs
    if FOV_COLUMN not in raw.column_names:
        (fov,) = fovs.values()
        return (same := np.full(len(raw), fov, dtype=np.int32)), same
    column = raw[FOV_COLUMN].combine_chunks()
    code = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    refuse_rows(file, FOV_COLUMN, code < 0, np.full(code.size, "empty"), "row/col/fov")
    names = column.dictionary.to_pylist()
    lost = [fov for fov in fovs if fov not in names]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        alike = {_without_zeros(lost[0])} & {_without_zeros(name) for name in names}
        asked = "with the zeros that the plate's names have" if alike else "as row/col/fov"
        raise ConfigError(
            f"{file}: no row is of FOV {', '.join(lost[:3])}{more}; its FOVs are {names[:8]}. Write FOVs {asked} "
            "there, list those without a cell in shards.exclude_fovs, or leave out what is not tracked yet with "
            "on_bad_fov: skip."
        )
    return code, np.array([fovs.get(name, -1) for name in names], dtype=np.int32)[code]


def _without_zeros(fov: str) -> str:
    """Write A/01/0 as A/1/0."""
    return "/".join(part.lstrip("0") or "0" for part in fov.split("/"))


def _refuse_repeats_in_tracks(
    file: TableFile,
    fov: Int32[np.ndarray, " rows"],
    track_id: Int64[np.ndarray, " rows"],
    t: Int64[np.ndarray, " rows"],
) -> None:
    """Refuse a (track_id, t) of a FOV that was there in a row before; spots in no track are all different."""
    if file.units:
        track_id = np.where(track_id == NO_ID, NO_ID - np.arange(len(track_id)), track_id)
    try:
        if (fov == fov[:1]).all():
            refuse_repeats(file, "(track_id, t)", track_id, t)
        else:
            refuse_repeats(file, f"({FOV_COLUMN}, track_id, t)", fov.astype(np.int64), track_id, t)
    except ConfigError as error:
        if file.units:
            error.add_note(DIVISIONS)
        raise
