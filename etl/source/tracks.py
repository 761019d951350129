"""Reads track files to one table: every tracked cell of every FOV, as written, checked row by row.

One file per FOV at `tracks_path/<row>/<col>/<fov>/`, under any name, in any format of `etl.source.track_formats`.
All files are found and their columns checked before the first is read. A missing parent is empty, NaN or -1;
0 is a valid track id. Columns that are neither known nor `label_columns` are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.config import BuildConfig
from etl.source.track_formats import READERS, TableFile, open_table, read_table

REQUIRED = ("track_id", "t", "y", "x")
OPTIONAL = ("z", "id", "parent_track_id", "parent_id")

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
class TrackRows:
    """The rows of all track files, one file after the other."""

    rows: pa.Table
    """`SCHEMA`, and `row`, the number of the row."""
    labels: pa.Table
    """One dictionary-encoded column per label of `label_columns`, null where an experiment has it not."""


def parse_track_files(config: BuildConfig, fovs: Mapping[str, Sequence[str]]) -> TrackRows:
    """Read the track files of all FOVs.

    Parameters
    ----------
    config
        Says where the files are, and how many are read at a time.
    fovs
        Experiment → FOV names (`row/col/fov`), in the order in which `fov` counts them.

    Raises
    ------
    ConfigError
        A missing or doubled track file, a missing column, a track id or frame that is not a whole
        number, a centroid that is not finite, a (track_id, t) that occurs twice, a damaged or cut file.
    StorageError
        A file cannot be read.
    """
    files: list[tuple[TableFile, tuple[str, ...]]] = []
    for number, experiment in enumerate(config.experiments):
        where = f"{config.where}: experiments[{number}].tracks_path={experiment.tracks_path!r}"
        for name in fovs.get(experiment.name, ()):
            file = open_table(find_track_file(Path(experiment.tracks_path) / name, name, where))
            labels = f"{config.where}: experiments[{number}].label_columns"
            check_columns(file, (*REQUIRED, *experiment.label_columns), OPTIONAL, labels)
            files.append((file, experiment.label_columns))
    with ThreadPoolExecutor(config.workers) as pool:
        tables = list(pool.map(_parse_track_file, files, range(len(files))))
    table = pa.concat_tables([SCHEMA.empty_table(), *tables], promote_options="default").unify_dictionaries()
    row = pa.array(np.arange(len(table), dtype=np.int32))
    return TrackRows(rows=table.select(SCHEMA.names).append_column("row", row), labels=table.drop_columns(SCHEMA.names))


def find_track_file(folder: Path, fov: str, where: str) -> Path:
    """Find the one track file in a FOV's folder; `where` is the YAML path, for errors.

    Raises
    ------
    ConfigError
        There is none, or more than one.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [file for file in files if file.suffix.lower() in READERS and not file.name.startswith(".")]
    if len(found) != 1:
        what = f"{len(found)} track files ({[file.name for file in found]})" if found else "no track file"
        raise ConfigError(
            f"{where} has {what} for FOV {fov!r}. Put exactly one {' or '.join(READERS)} into {folder}, "
            "or list the FOV in shards.exclude_fovs."
        )
    return found[0]


def check_columns(file: TableFile, required: Sequence[str], optional: Sequence[str], labels: str) -> None:
    """Check the names of the columns; `labels` is the YAML path that asks for those that are not well known.

    Raises
    ------
    ConfigError
        One is missing, or is there twice.
    """
    columns = list(file.columns)
    for column in required:
        if column not in columns:
            asked = "" if column in REQUIRED else f" {labels} asks for it."
            raise ConfigError(
                f"{file.path}: column {column!r} is missing; there are {columns}.{asked} "
                f"Needed are {list(required)}, known too are {list(optional)}."
            )
    for column in (*required, *optional):
        if columns.count(column) > 1:
            raise ConfigError(f"{file.path}: column {column!r} is there twice. Remove one.")


def _parse_track_file(file: tuple[TableFile, tuple[str, ...]], fov: int) -> pa.Table:
    """Read one file and check its values."""
    table, labels = file
    path = table.path
    raw = read_table(table, [name for name in table.columns if name in (*REQUIRED, *OPTIONAL)], labels)
    track_id = parse_integers(raw, "track_id", path)
    t = parse_integers(raw, "t", path)
    refuse_rows(path, "track_id", track_id < 0, track_id, "≥ 0")
    refuse_repeats(path, "(track_id, t)", track_id, t)
    centre = {}
    for axis in ("y", "x"):
        values = _parse_floats(raw, axis, path)
        refuse_rows(path, axis, ~np.isfinite(values), values, "a finite number of pixels")
        centre[axis] = values
    z = _parse_floats(raw, "z", path)
    columns = {
        "fov": np.full(len(t), fov, dtype=np.int32),
        "track_id": track_id,
        "t": t,
        **centre,
        "z": pa.array(z.astype(np.float32), mask=np.isnan(z)),
        **{name: parse_integers(raw, name, path, optional=True) for name in ("id", "parent_track_id", "parent_id")},
    }
    rows = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    for name in labels:
        rows = rows.append_column(name, raw[name])
    return rows


def refuse_repeats(path: Path, name: str, *keys: Int64[np.ndarray, " rows"]) -> None:
    """Refuse rows whose key was there in a row before."""
    order = np.lexsort(keys[::-1])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        same &= np.diff(key[order]) == 0
    twice = np.zeros(len(order), dtype=bool)
    twice[order[1:]] = same
    if twice.any():
        refuse_rows(path, name, twice, np.stack(keys, axis=1), "in one row only")


def _parse_floats(raw: pa.Table, name: str, path: Path) -> Float[np.ndarray, " rows"]:
    """Return a column as float64, NaN where it is missing."""
    if name not in raw.column_names:
        return np.full(len(raw), np.nan)
    column = raw[name]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        values = np.array([str(value) for value in column.to_pylist()], dtype=object)
        refuse_rows(path, name, np.array([not _is_number(value) for value in values], dtype=bool), values, "a number")
        raise ConfigError(f"{path}: column {name!r} is of type {kind}, which is not a number. Write it as numbers.")
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy())


def parse_integers(raw: pa.Table, name: str, path: Path, *, optional: bool = False) -> Int64[np.ndarray, " rows"]:
    """Return a column as int64; `NO_ID` for what is missing where that may be."""
    if name in raw.column_names and pa.types.is_signed_integer(raw[name].type) and not raw[name].null_count:
        return np.asarray(raw[name].cast(pa.int64()).to_numpy())
    values = _parse_floats(raw, name, path)
    missing = np.isnan(values) & optional
    with np.errstate(invalid="ignore"):
        whole = (np.abs(values) <= 2**53) & (values == np.floor(values))
    refuse_rows(path, name, ~(whole | missing), values, "a whole number")
    return np.where(missing, NO_ID, values).astype(np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def refuse_rows(path: Path, name: str, bad: Bool[np.ndarray, " rows"], values: np.ndarray, rule: str) -> None:
    """Raise an error that names the rows where `bad` holds, if any."""
    rows = np.flatnonzero(bad)
    if len(rows):
        shown = ", ".join(f"row {row} ({values[row]})" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise ConfigError(
            f"{path}: {name} must be {rule}, but is not in {shown}{more}. "
            "Correct these rows (the first below the header is row 0)."
        )
