"""Annotation tables to labels of cells: `--labels annotations.csv`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.evaluate.cells import Cells, Text
from dynaclr_wds.words import count_of

_KEYS: Sequence[tuple[str, ...]] = (
    ("name",),
    ("experiment", "fov_name", "track_id", "t"),
    ("experiment", "fov_name", "track_id"),
    ("fov_name", "track_id", "t"),
    ("fov_name", "track_id"),
    ("global_track_id", "t"),
    ("global_track_id",),
    ("lineage_id",),
)
"""Columns that say which cells a row is about; the first of these that are all there."""
_IDENTITY = {"name", "experiment", "fov_name", "track_id", "t", "global_track_id", "lineage_id", "id", "x", "y", "z"}


def read_annotations(path: Path) -> pa.Table:
    """Read a table as text, from CSV (or tab-separated `.tsv`) or Parquet.

    Raises
    ------
    ConfigError
        It isn't there or can't be read.
    """
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return pacsv.read_csv(path, parse_options=pacsv.ParseOptions(delimiter=delimiter))
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(
            f"{path}: can't be read as a table ({str(error).splitlines()[0]:.200}). Give a .csv, .tsv or .parquet."
        ) from error


def annotate(cells: Cells, path: Path) -> tuple[Cells, tuple[str, ...], str]:
    """Add the labels of an annotation table; they replace labels of the same name.

    Returns
    -------
    Cells with more labels, the names of those, and a sentence about rows that label none of the cells; empty without.

    Raises
    ------
    ConfigError
        It doesn't say which cells it is about, labels nothing, or speaks of a cell twice and in two ways.
    """
    rows = read_annotations(path)
    key = next((key for key in _KEYS if set(key) <= set(rows.column_names)), None)
    if key is None:
        raise ConfigError(
            f"{path}: has the columns {', '.join(rows.column_names)}, which don't say which cells it labels. "
            "Needed are fov_name and track_id (and t, where labels change along a track), or name, "
            "global_track_id or lineage_id."
        )
    labels = tuple(column for column in rows.column_names if column not in _IDENTITY)
    if not labels:
        raise ConfigError(f"{path}: has no column besides {', '.join(rows.column_names)}. Add one with labels.")
    wanted = _keys_of(cells, key)
    _check_experiments(cells, key, wanted, path)
    added = {label: _join(rows, key, label, wanted, path) for label in labels}
    if not any((values != "").any() for values in added.values()):
        raise ConfigError(
            f"{path}: labels none of the {len(cells):,} cells that are judged. Its first row is about "
            f"{' '.join(str(rows[c][0]) for c in key) if len(rows) else 'nothing'}, but the first cell is "
            f"{' '.join(map(str, wanted[0]))}."
        )
    whole = {name: getattr(cells, name) for name in Cells.__slots__ if name != "labels"}
    return Cells(**whole, labels={**cells.labels, **added}), labels, _note_unmatched(rows, key, wanted, path)


def _note_unmatched(rows: pa.Table, key: tuple[str, ...], wanted: list[tuple[str, ...]], path: Path) -> str:
    """Say how many rows are about no cell, and name the first."""
    known = set(wanted)
    lost = [one for one in _read_keys(rows, key) if one not in known]
    if not lost:
        return ""
    return (
        f"{path}: {count_of(len(lost), 'row')} of {len(rows):,} {'is' if len(lost) == 1 else 'are'} about no cell that "
        f"is judged; the first is {' '.join(f'{c}={v}' for c, v in zip(key, lost[0], strict=True))}."
    )


def _read_keys(rows: pa.Table, key: tuple[str, ...]) -> list[tuple[str, ...]]:
    columns = [rows[c].to_pylist() for c in key]
    return [tuple(_plain(c, v) for c, v in zip(key, one, strict=True)) for one in zip(*columns, strict=True)]


def _keys_of(cells: Cells, key: tuple[str, ...]) -> list[tuple[str, ...]]:
    track = np.array([name.rpartition("/")[2] for name in cells.track], object)
    fov = np.array([f.removeprefix(f"{e}/") for e, f in zip(cells.experiment, cells.fov, strict=True)], object)
    columns: dict[str, Any] = {
        "name": cells.name,
        "experiment": cells.experiment,
        "fov_name": fov,
        "track_id": track,
        "t": cells.t,
        "global_track_id": cells.track,
        "lineage_id": cells.lineage,
    }
    return [tuple(map(str, one)) for one in zip(*(columns[c] for c in key), strict=True)]


def _check_experiments(cells: Cells, key: tuple[str, ...], wanted: list[tuple[str, ...]], path: Path) -> None:
    """Refuse names of FOVs that mean cells of two experiments."""
    if key[0] != "fov_name":
        return
    found: dict[tuple[str, ...], str] = {}
    for one, experiment in zip(wanted, cells.experiment, strict=True):
        if found.setdefault(one, experiment) != experiment:
            raise ConfigError(
                f"{path}: {' '.join(f'{c}={v}' for c, v in zip(key, one, strict=True))} is in {found[one]} and in "
                f"{experiment}. Add a column `experiment`."
            )


def _join(rows: pa.Table, key: tuple[str, ...], label: str, wanted: list[tuple[str, ...]], path: Path) -> Text:
    said: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for one, value in zip(_read_keys(rows, key), rows[label].to_pylist(), strict=True):
        if value is not None and str(value) != "":
            said[one].add(str(value))
    if twice := next((one for one, values in said.items() if len(values) > 1), None):
        raise ConfigError(
            f"{path}: says {label}={' and '.join(sorted(said[twice]))} of {' '.join(twice)}. Keep one of the rows, or "
            "add the column t where labels change along a track."
        )
    return np.array([next(iter(said.get(one, {""}))) for one in wanted], object)


def _plain(column: str, value: Any) -> str:
    """Write a key as our cells do: without a slash around FOVs, numbers without decimals."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip("/") if column == "fov_name" else str(value)
