"""Reads annotation tables: labels of single cells, keyed by fov_name, track_id and, if it is there, t.

One file per experiment, in any format of `etl.source.track_formats`. Without a column t, a row is about all
observations of its track. Every other column is a label. Which observation a row belongs to is decided in
`etl/sql/annotated.sql`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dynaclr_wds.errors import ConfigError
from etl.source.column_names import check_columns, rename_columns
from etl.source.config import RESERVED, BuildConfig, ExperimentConfig
from etl.source.table_places import Tables
from etl.source.table_values import parse_integers, refuse_repeats, refuse_rows
from etl.source.track_formats import TableFile, open_table, read_table
from etl.source.tracks import is_latin_1, note_latin_1

KEYS = ("fov_name", "track_id")
MAYBE_KEYS = ("t",)

SCHEMA = pa.schema([("experiment_index", pa.int32()), ("fov", pa.int32()), ("track_id", pa.int64()), ("t", pa.int64())])
"""One row per row of an annotation table. `fov` counts the FOVs asked for, null for any other; `t` is null for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationRows:
    """The rows of all annotation tables, one file after the other."""

    rows: pa.Table
    """`SCHEMA`, and `annotation`, the number of the row."""
    labels: pa.Table
    """One dictionary-encoded column per label, null where an experiment has it not."""
    names: Mapping[str, tuple[str, ...]]
    """Experiment → labels of its table."""
    notes: tuple[str, ...]
    """What the user should be told: files that are not UTF-8."""


def parse_annotations(config: BuildConfig, fovs: Mapping[str, Sequence[str]], tables: Tables) -> AnnotationRows:
    """Read the annotation tables of all experiments that have one.

    Parameters
    ----------
    config
        Says what the tables hold.
    fovs
        Experiment → FOV names (`row/col/fov`), in the order in which `fov` counts them.
    tables
        Finds them.

    Raises
    ------
    ConfigError
        No such file, a missing key, a key that is there twice, a label that has another source or the name of a
        column of the index, a damaged or cut file.
    StorageError
        A file cannot be read.
    """
    files: list[tuple[int, TableFile, tuple[str, ...]]] = []
    for number, experiment in enumerate(config.experiments):
        if experiment.annotations is not None:
            where = f"{config.where}: experiments[{number}]"
            file = open_table(tables.find_annotations(number))
            file = rename_columns(file, experiment.annotation_columns, f"{where}.annotation_columns")
            files.append((number, file, _label_names(file, experiment, where)))
    numbers = _number_fovs(fovs)
    names = {config.experiments[number].name: labels for number, _, labels in files}
    parsed = [
        _parse_file(file, labels, number, numbers[config.experiments[number].name]) for number, file, labels in files
    ]
    table = pa.concat_tables([SCHEMA.empty_table(), *parsed], promote_options="default").unify_dictionaries()
    row = pa.array(np.arange(len(table), dtype=np.int32))
    return AnnotationRows(
        rows=table.select(SCHEMA.names).append_column("annotation", row),
        labels=table.drop_columns(SCHEMA.names),
        names=names,
        notes=note_latin_1([str(file) for (_, file, _), t in zip(files, parsed, strict=True) if is_latin_1(t)]),
    )


def _number_fovs(fovs: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Return experiment → FOV name → `fov`, counted over all experiments."""
    numbers: dict[str, dict[str, int]] = {}
    first = 0
    for name, chosen in fovs.items():
        numbers[name] = dict(zip(chosen, range(first, first + len(chosen)), strict=True))
        first += len(chosen)
    return numbers


def _label_names(file: TableFile, experiment: ExperimentConfig, where: str) -> tuple[str, ...]:
    """Return the columns that are labels, once their names are checked."""
    names = tuple(name for name in file.columns if name is not None and name not in (*KEYS, *MAYBE_KEYS))
    if names and not names[-1] and file.columns[-1] == "":
        names = names[:-1]  # the lines end with a delimiter; `_parse_file` checks that nothing follows it
    check_columns(file, KEYS, (*MAYBE_KEYS, *names), where, "annotation_columns")
    for name in names:
        if not name.strip():
            raise ConfigError(f"{file}: a column has no name; there are {list(file.header)}. Name or remove it.")
        if name in RESERVED:
            raise ConfigError(
                f"{file}: column {name!r} must be none of the index's own columns {list(RESERVED)}. "
                "Rename or remove it."
            )
        if name in experiment.label_names:
            raise ConfigError(
                f"{file}: label {name!r} must be given once, but {where} gives it too. Remove one of the two."
            )
    return names


def _parse_file(file: TableFile, labels: tuple[str, ...], number: int, fovs: Mapping[str, int]) -> pa.Table:
    """Read one table and check its keys."""
    keys = [name for name in (*KEYS, *MAYBE_KEYS) if name in file.columns]
    end = ("",) if file.columns[-1] == "" and "" not in labels else ()
    raw = read_table(file, [name for name in keys if name != "fov_name"], ("fov_name", *labels, *end))
    if end:
        values = np.array(raw[""].to_pylist(), dtype=object)
        there = values != np.array(None)
        refuse_rows(file, "the last column, which has no name,", there, values, "empty, or have a name")
    fov_name = raw["fov_name"].combine_chunks()
    code = fov_name.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if (code < 0).any():
        refuse_rows(file, "fov_name", code < 0, np.full(code.size, "empty"), "row/col/fov")
    track_id = parse_integers(raw, "track_id", file)
    t = [parse_integers(raw, "t", file)] if "t" in keys else []
    refuse_repeats(file, f"({', '.join(keys)})", code, track_id, *t)
    fov = np.array([fovs.get(name, -1) for name in fov_name.dictionary.to_pylist()], dtype=np.int32)[code]
    columns = {
        "experiment_index": np.full(len(raw), number, dtype=np.int32),
        "fov": pa.array(fov, mask=fov < 0),
        "track_id": track_id,
        "t": t[0] if t else pa.nulls(len(raw), pa.int64()),
    }
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    for name in labels:
        table = table.append_column(name, raw[name])
    return table.replace_schema_metadata(raw.schema.metadata)
