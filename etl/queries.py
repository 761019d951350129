"""Runs the queries of `etl/sql/` on the track files of some fields of view: the part of the index that DuckDB makes.

Lineages never leave their FOV, so FOVs are indexed batch by batch, and memory grows with the batch. Keys are integers;
texts stay outside, and row numbers lead to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from dynaclr_wds.contract import NO_ID
from dynaclr_wds.errors import ConfigError
from etl.column_files import Columns
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate
from etl.source.tracks import TrackFile
from etl.sql import read_query, read_sql
from etl.track_rows import TrackReader


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackTable:
    """What the track table of one FOV holds, before anything is left out: a row of `track_tables.sql`."""

    experiment: str
    fov_name: str
    condition: str
    frames: int
    height: int
    width: int
    rows: int
    tracks: int
    first_t: int | None
    last_t: int | None
    y_min: float | None
    y_max: float | None
    x_min: float | None
    x_max: float | None
    outside_time: int
    outside_image: int
    inside_swapped: int
    missing_parents: int
    zero_parents: int
    orphan: int | None
    missing_parent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What the queries found in some fields of view."""

    rows: Columns
    """Output of `observations.sql`, and of `annotated.sql` where there are annotations: all rows, in any order."""
    tracks: Columns
    """Output of `kept_tracks.sql`; numbers count from 0 in every batch."""
    dropped: list[tuple[str, str, int]]
    """(experiment, reason, observations left out)."""
    tables: tuple[TrackTable, ...]
    """One per FOV."""


def run_queries(
    con: duckdb.DuckDBPyConnection,
    reader: TrackReader,
    files: Sequence[TrackFile],
    fovs: pa.Table,
    annotations: pa.Table | None,
) -> BatchResult:
    """Read some track files and run the queries.

    Parameters
    ----------
    con
        What an earlier batch left in it is replaced.
    files
        Those of some FOVs.
    fovs
        Rows of `list_fovs`, those of these FOVs.
    annotations
        Rows of `etl.source.annotations.AnnotationRows.rows`, those about these FOVs; None without any.

    Raises
    ------
    ConfigError
        A track file is wrong, or tracks are their own ancestors.
    """
    con.register("fovs", fovs)
    reader.place(con, files)
    _make_table(con, "tracks")
    _refuse_conflicts(con)
    for name in ("links", "descent"):
        _make_table(con, name)
    _refuse_cycles(con)
    rows = read_query(con, "observations")
    if annotations is not None:
        con.register("annotations", annotations)
        rows.create_view("observations", replace=True)
        rows = read_query(con, "annotated")
    tables = read_query(con, "track_tables").to_arrow_table().to_pylist()
    return BatchResult(
        rows=_to_numpy(rows.to_arrow_table()),
        tracks=_to_numpy(read_query(con, "kept_tracks").to_arrow_table()),
        dropped=read_query(con, "dropped").fetchall(),
        tables=tuple(TrackTable(**row) for row in tables),
    )


def _to_numpy(table: pa.Table) -> Columns:
    """Take columns as arrays; a float that is null is NaN, an integer `NO_ID`."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        if column.null_count and pa.types.is_integer(column.type):
            column = pc.fill_null(column, pa.scalar(NO_ID, column.type))
        columns[name] = column.to_numpy()
    return columns


def list_fovs(config: BuildConfig, plates: Mapping[str, Plate], chosen: Mapping[str, Sequence[str]]) -> pa.Table:
    """Table of the FOVs asked for; `fov` counts them as `etl.source.tracks.open_track_files` does."""
    columns: dict[str, list[Any]] = {name: [] for name in _FOVS.names}
    for number, experiment in enumerate(config.experiments):
        for name in chosen[experiment.name]:
            fov = plates[experiment.name].fovs[name]
            condition = experiment.well_conditions[fov.well]
            row = {
                "fov": len(columns["fov"]),
                "experiment_index": number,
                "experiment": experiment.name,
                "fov_name": name,
                "well": fov.well,
                "condition": condition,
                "frames": fov.shape[0],
                "height": fov.shape[3],
                "width": fov.shape[4],
                **_bound_centres(config, experiment, fov),
                "start_hpi": experiment.start_hpi,
                "interval_minutes": experiment.minutes,
            }
            for key, value in row.items():
                columns[key].append(value)
    return pa.table(columns, schema=_FOVS)


def _bound_centres(config: BuildConfig, experiment: ExperimentConfig, fov: Fov) -> dict[str, int | float]:
    """Return the least and the greatest centre of a patch, and how far it may be behind and before the cell's pixel."""
    bounds: dict[str, int | float] = {}
    for axis, grid, length in zip("yx", config.grids_for(experiment), fov.shape[3:], strict=True):
        bounds[f"{axis}_low"], bounds[f"{axis}_high"] = grid.centres(length, beyond=config.border == "pad")
        shifts = (grid.image_pixels(most) for most in config.border_shifts_px)
        bounds[f"{axis}_forth"], bounds[f"{axis}_back"] = shifts
    return bounds


_BOUNDS = ("y_low", "y_high", "x_low", "x_high")
_FOVS = pa.schema(
    [(name, pa.int32()) for name in ("fov", "experiment_index", "frames", "height", "width", *_BOUNDS)]
    + [(name, pa.string()) for name in ("experiment", "fov_name", "well", "condition")]
    + [(name, pa.float64()) for name in ("y_forth", "y_back", "x_forth", "x_back", "start_hpi", "interval_minutes")]
)


def _refuse_conflicts(con: duckdb.DuckDBPyConnection) -> None:
    rows = read_query(con, "conflicts").limit(1).fetchall()
    if rows:
        experiment, fov, track, parent, other = rows[0]
        raise ConfigError(
            f"{experiment}/{fov}: track {track} has parents {parent} and {other} in different rows "
            "(-1 is none). Give all rows of a track the same parent_track_id."
        )


def _refuse_cycles(con: duckdb.DuckDBPyConnection) -> None:
    """Raise an error that names the tracks of the first cycle, if any."""
    rows = read_query(con, "unrooted").fetchall()
    if not rows:
        return
    parents = {(experiment, fov, track): parent for experiment, fov, track, parent in rows}
    experiment, fov, track, _ = rows[0]
    path: list[int] = []
    while track not in path:
        path.append(track)
        track = parents[experiment, fov, track]
    cycle = " → ".join(map(str, [*path[path.index(track) :], track]))
    raise ConfigError(
        f"{experiment}/{fov}: tracks are their own ancestors, each the daughter of the next: {cycle}. "
        "Correct parent_track_id; -1 is none."
    )


def _make_table(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Keep the rows of `etl/sql/<name>.sql` as the table of that name."""
    con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {read_sql(name)}")
