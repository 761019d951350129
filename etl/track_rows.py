"""Track files to a table of DuckDB: it reads Parquet itself, and takes what Python has read of all other formats.

What a track file may hold is said in one place, `etl.source.tracks`. A Parquet file in which DuckDB meets anything
else is read again by that, which names file and rows, or finds that all is well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from dynaclr_wds.contract import NO_ID
from etl.labels import LabelCodes
from etl.source.config import MORE_TRACK_COLUMNS, TRACK_COLUMNS
from etl.source.tracks import SCHEMA, FovTracks, TrackFile, note_latin_1, parse_track_file
from etl.sql import read_sql

_KNOWN = (*TRACK_COLUMNS, *MORE_TRACK_COLUMNS)
_NOT_OF_FILES = (
    *(duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.InternalException),
    *(duckdb.OutOfMemoryException, duckdb.InterruptException),
)
"""Errors of DuckDB that are not about what a file holds."""
_PATTERN = set("*?[]{}")
"""Letters of a path that DuckDB would take for a pattern."""


_BYTES_PER_ROW = 1024
"""Of memory, for a row of a batch: what DuckDB and numpy hold of it, at most."""

_MOST_ROWS = 2_000_000
"""Of a batch of several FOVs; larger ones are not faster."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Fields of view that are read together."""

    fovs: range
    files: tuple[TrackFile, ...]
    """Their track files."""


def plan_batches(files: Sequence[TrackFile], memory_limit: int) -> list[Batch]:
    """Put track files into batches: as many as fit, at least one; a batch holds whole runs of FOVs."""
    most = min(max(memory_limit // _BYTES_PER_ROW, 1), _MOST_ROWS)
    batches: list[Batch] = []
    own: list[TrackFile] = []
    total, stop = 0, 0
    for file in sorted(files, key=lambda file: min(file.fovs.values())):
        first, rows = min(file.fovs.values()), file.rows
        if own and first >= stop and total + rows > most:
            batches.append(Batch(range(batches[-1].fovs.stop if batches else 0, stop), tuple(own)))
            own, total = [], 0
        own.append(file)
        total, stop = total + rows, max(stop, *(fov + 1 for fov in file.fovs.values()))
    return [*batches, Batch(range(batches[-1].fovs.stop if batches else 0, stop), tuple(own))] if own else []


class TrackReader:
    """Reads track files, a batch at a time.

    Parameters
    ----------
    labels
        Numbers the values of the labels that stand in track files.
    threads
        Files that Python reads at a time.
    """

    def __init__(self, labels: LabelCodes, threads: int) -> None:
        self._labels, self._threads = labels, threads
        self._outside: dict[str, int] = {}
        self._latin_1: dict[int, str] = {}

    @property
    def outside_tracks(self) -> Mapping[str, int]:
        """Experiment → spots of TrackMate that are in no track, where there are any; they have no row."""
        return self._outside

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should be told: files that are not UTF-8."""
        return note_latin_1([self._latin_1[fov] for fov in sorted(self._latin_1)])

    def place(self, con: duckdb.DuckDBPyConnection, files: Sequence[TrackFile]) -> None:
        """Make the table `placed` of some files, the output of `placed.sql`; needs `fovs`.

        Raises
        ------
        ConfigError
            A file holds what it may not.
        StorageError
            A file cannot be read.
        """
        direct = [file for file in files if is_direct(file)]
        parsed = self._parse([file for file in files if not is_direct(file)])
        while True:
            try:
                _place(con, direct, parsed)
                wrong = con.execute("SELECT DISTINCT fov FROM placed WHERE track_id IS NULL").fetchall()
            except _NOT_OF_FILES:
                raise
            except duckdb.Error:  # a damaged file among them
                wrong = [(fov,) for file in direct for fov in file.fovs.values()]
            if not wrong:
                return
            doubted = {fov for (fov,) in wrong}
            again = [file for file in direct if not doubted.isdisjoint(file.fovs.values())]
            parsed = pa.concat_tables([parsed, self._parse(again)], promote_options="default")
            direct = [file for file in direct if doubted.isdisjoint(file.fovs.values())]

    def _parse(self, files: Sequence[TrackFile]) -> pa.Table:
        """Read files in Python; labels become codes."""
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(parse_track_file, files))
        for file, tracks in zip(files, found, strict=True):
            if tracks.outside:
                name = file.experiment.name
                self._outside[name] = self._outside.get(name, 0) + tracks.outside
            if tracks.is_latin_1:
                self._latin_1[min(file.fovs.values())] = str(file.file)
        tables = [SCHEMA.empty_table(), *(self._encode(tracks) for tracks in found)]
        return pa.concat_tables(tables, promote_options="default")

    def _encode(self, tracks: FovTracks) -> pa.Table:
        rows = tracks.rows.select(SCHEMA.names)
        for name in tracks.rows.column_names[len(SCHEMA.names) :]:
            column = tracks.rows[name].combine_chunks()
            codes = np.append(self._labels.encode(name, column.dictionary.to_pylist()), np.int32(NO_ID))
            rows = rows.append_column(
                self._labels.column(name), pa.array(codes[column.indices.fill_null(NO_ID).to_numpy()])
            )
        return rows


def is_direct(source: TrackFile) -> bool:
    """Whether DuckDB can read a file: one of Parquet, of one FOV, with numbers only and without labels."""
    file = source.file
    types = [file.types.get(theirs) for theirs, ours in zip(file.header, file.columns, strict=True) if ours in _KNOWN]
    return (
        bool(file.types)
        and not (source.labels or file.units or file.converts)
        and not _PATTERN & set(str(file.path))
        and all(kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind)) for kind in types)
    )


def _place(con: duckdb.DuckDBPyConnection, direct: Sequence[TrackFile], parsed: pa.Table) -> None:
    con.register("parsed", parsed)
    rows = ["SELECT * FROM parsed"] if len(parsed) or not direct else []
    if direct:
        con.execute(f"CREATE OR REPLACE TEMP VIEW written AS {_select_written(direct)}")
        con.register("files", _list_files(direct))
        rows.append(read_sql("parquet_rows"))
    con.execute(f"CREATE OR REPLACE TEMP VIEW rows AS {' UNION ALL BY NAME '.join(f'({text})' for text in rows)}")
    con.execute(f"CREATE OR REPLACE TEMP TABLE placed AS {read_sql('placed')}")


def _list_files(files: Sequence[TrackFile]) -> pa.Table:
    """Make the table `files` of `parquet_rows.sql`."""
    sizes = [[1.0, 1.0, 1.0]] * 0
    for source in files:
        experiment = source.experiment
        size = experiment.pixel_size_um if experiment.tracks_unit != "pixel" else None
        sizes.append([1.0, 1.0, 1.0] if size is None else [*([None] * (3 - len(size))), *size])  # type: ignore[list-item]
    z, y, x = zip(*sizes, strict=True)
    columns = {
        "file": np.arange(len(files)),
        "fov": np.array([fov for f in files for fov in f.fovs.values()], np.int32),
    }
    floats = {name: pa.array(values, pa.float64()) for name, values in (("z_um", z), ("y_um", y), ("x_um", x))}
    return pa.table(columns | floats)


def _select_written(files: Sequence[TrackFile]) -> str:
    """Write the query that reads files with our names; those of one layout are read together."""
    layouts: dict[tuple[tuple[str, str | None, str], ...], list[int]] = {}
    for number, source in enumerate(files):
        file = source.file
        layout = tuple((t, o, str(file.types[t])) for t, o in zip(file.header, file.columns, strict=True))
        layouts.setdefault(layout, []).append(number)
    return " UNION ALL BY NAME ".join(_select_layout(files, numbers) for numbers in layouts.values())


def _select_layout(files: Sequence[TrackFile], numbers: Sequence[int]) -> str:
    file = files[numbers[0]].file
    ours = {ours: theirs for theirs, ours in zip(file.header, file.columns, strict=True) if ours in _KNOWN}
    columns = [f"{_quote(ours[name])} AS {name}" if name in ours else f"NULL AS {name}" for name in _KNOWN]
    paths = ", ".join("'" + str(files[number].file.path).replace("'", "''") + "'" for number in numbers)
    places = f"[{', '.join(map(str, numbers))}][(file_index + 1)::BIGINT]"
    return f"SELECT {places} AS file, {', '.join(columns)} FROM read_parquet([{paths}], hive_partitioning = false)"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
