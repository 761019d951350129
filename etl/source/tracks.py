"""Track files to one table: every tracked cell of every FOV, as written, checked row by row.

One CSV or Parquet file per FOV at `tracks_path/<row>/<col>/<fov>/`, under any name. All files are
found and their columns checked before the first is read. A missing parent is empty, NaN or -1;
0 is a valid track id. Columns that are not known are not read.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Bool, Float, Int64

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.source.experiments import BuildConfig

REQUIRED = ("track_id", "t", "y", "x")
OPTIONAL = ("z", "id", "parent_track_id", "parent_id")
SUFFIXES = (".csv", ".parquet")

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


def parse_track_files(config: BuildConfig, fovs: Mapping[str, Sequence[str]]) -> pa.Table:
    """Read the track files of all FOVs.

    Parameters
    ----------
    config
        Says where the files are, and how many are read at a time.
    fovs
        Experiment → FOV names (`row/col/fov`), in the order in which `fov` counts them.

    Returns
    -------
    pa.Table
        `SCHEMA`, files one after the other in the order of `fovs`.

    Raises
    ------
    ConfigError
        A missing or doubled track file, a missing column, a track id or frame that is not a whole
        number, a centroid that is not finite, a (track_id, t) that occurs twice.
    """
    paths: list[Path] = []
    for number, experiment in enumerate(config.experiments):
        where = f"{config.where}: experiments[{number}].tracks_path={experiment.tracks_path!r}"
        for name in fovs.get(experiment.name, ()):
            path = _find_track_file(Path(experiment.tracks_path) / name, name, where)
            _check_columns(path)
            paths.append(path)
    with ThreadPoolExecutor(config.workers) as pool:
        tables = list(pool.map(_parse_track_file, paths, range(len(paths))))
    return pa.concat_tables([SCHEMA.empty_table(), *tables])


def _find_track_file(folder: Path, fov: str, where: str) -> Path:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if len(found) != 1:
        what = f"{len(found)} track files ({[file.name for file in found]})" if found else "no track file"
        raise ConfigError(
            f"{where} has {what} for FOV {fov!r}. Put exactly one .csv or .parquet into {folder}, "
            "or list the FOV in shards.exclude_fovs."
        )
    return found[0]


def _check_columns(path: Path) -> None:
    if path.suffix.lower() == ".parquet":
        columns = list(pa.parquet.read_schema(path).names)
    else:
        with path.open(newline="", encoding="utf-8-sig") as file:
            columns = next(csv.reader(file), [])
    for column in REQUIRED:
        if column not in columns:
            raise ConfigError(
                f"{path}: column {column!r} is missing; there are {columns}. "
                f"Needed are {list(REQUIRED)}, known too are {list(OPTIONAL)}."
            )
    for column in (*REQUIRED, *OPTIONAL):
        if columns.count(column) > 1:
            raise ConfigError(f"{path}: column {column!r} is there twice. Remove one.")


def _parse_track_file(path: Path, fov: int) -> pa.Table:
    """Read one file and check its values."""
    raw = _read_columns(path)
    track_id = _integers(raw, "track_id", path)
    t = _integers(raw, "t", path)
    _refuse(path, "track_id", track_id < 0, track_id, "≥ 0")
    order = np.lexsort((t, track_id))
    twice = np.zeros(len(t), dtype=bool)
    twice[order[1:]] = (np.diff(track_id[order]) == 0) & (np.diff(t[order]) == 0)
    pairs = np.stack([track_id, t], axis=1)
    _refuse(path, "(track_id, t)", twice, pairs, "in one row only")
    centre = {}
    for axis in ("y", "x"):
        values = _floats(raw, axis, path)
        _refuse(path, axis, ~np.isfinite(values), values, "a finite number of pixels")
        centre[axis] = values
    z = _floats(raw, "z", path)
    columns = {
        "fov": np.full(len(t), fov, dtype=np.int32),
        "track_id": track_id,
        "t": t,
        **centre,
        "z": pa.array(z.astype(np.float32), mask=np.isnan(z)),
        **{name: _integers(raw, name, path, optional=True) for name in ("id", "parent_track_id", "parent_id")},
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _read_columns(path: Path) -> dict[str, pa.ChunkedArray]:
    """Read the columns we know, with the types that the file has; column → values."""
    known = (*REQUIRED, *OPTIONAL)
    if path.suffix.lower() == ".parquet":
        names = [name for name in pa.parquet.read_schema(path).names if name in known]
        table = pa.parquet.read_table(path, columns=names, partitioning=None)
    else:
        # one block, so that the type of a column is inferred from all of it
        block = min(path.stat().st_size + 1, 2**31 - 1)
        try:
            table = pa.csv.read_csv(path, read_options=pa.csv.ReadOptions(block_size=block, use_threads=False))
        except pa.ArrowInvalid as error:
            raise ConfigError(f"{path}: is not a CSV table ({error}). Write it again.") from error
    return {name: table[name] for name in table.column_names if name in known}


def _floats(raw: Mapping[str, pa.ChunkedArray], name: str, path: Path) -> Float[np.ndarray, " rows"]:
    """Return a column as float64, NaN where it is missing."""
    if name not in raw:
        return np.full(len(raw["t"]), np.nan)
    column = raw[name]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        values = np.array([str(value) for value in column.to_pylist()], dtype=object)
        _refuse(path, name, np.array([not _is_number(value) for value in values], dtype=bool), values, "a number")
        raise ConfigError(f"{path}: column {name!r} is of type {kind}, which is not a number. Write it as numbers.")
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy())


def _integers(
    raw: Mapping[str, pa.ChunkedArray], name: str, path: Path, *, optional: bool = False
) -> Int64[np.ndarray, " rows"]:
    """Return a column as int64; `NO_ID` for what is missing where that may be."""
    if name in raw and pa.types.is_signed_integer(raw[name].type) and not raw[name].null_count:
        return np.asarray(raw[name].cast(pa.int64()).to_numpy())
    values = _floats(raw, name, path)
    missing = np.isnan(values) & optional
    with np.errstate(invalid="ignore"):
        whole = (np.abs(values) <= 2**53) & (values == np.floor(values))
    _refuse(path, name, ~(whole | missing), values, "a whole number")
    return np.where(missing, NO_ID, values).astype(np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse(path: Path, name: str, bad: Bool[np.ndarray, " rows"], values: np.ndarray, rule: str) -> None:
    """Raise an error that names the rows where `bad` holds, if any."""
    rows = np.flatnonzero(bad)
    if len(rows):
        shown = ", ".join(f"row {row} ({values[row]})" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise ConfigError(
            f"{path}: {name} must be {rule}, but is not in {shown}{more}. "
            "Correct these rows (the first below the header is row 0)."
        )
