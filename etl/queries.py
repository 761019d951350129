"""Runs the queries of `etl/sql/` on the track files: the part of the index that DuckDB makes.

Keys are integers; texts stay outside, and row numbers lead to them. Tables that other queries need are kept in the
connection under the name of their query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import duckdb
import pyarrow as pa

from dynaclr_wds.errors import ConfigError
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate
from etl.source.table_places import Tables
from etl.source.track_formats import open_table
from etl.source.tracks import parse_track_files


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
class QueryResult:
    """What the queries found."""

    observations: pa.Table
    """Output of `observations.sql`."""
    tracks: pa.Table
    """Output of `kept_tracks.sql`."""
    fovs: list[dict[str, Any]]
    """Rows of `kept_fovs.sql`."""
    track_labels: pa.Table
    """As `etl.source.tracks.TrackRows.labels`."""
    dropped: dict[str, dict[str, int]]
    """Experiment → reason → observations left out."""
    tables: tuple[TrackTable, ...]
    """One per FOV that was asked for."""
    notes: tuple[str, ...]
    """As `etl.index.Index.notes`."""


def run_queries(
    config: BuildConfig,
    plates: Mapping[str, Plate],
    chosen: Mapping[str, Sequence[str]],
    annotations: pa.Table,
    tables: Tables,
) -> QueryResult:
    """Read the track files and run the queries.

    Parameters
    ----------
    config
        Experiments and build options.
    plates
        Experiment → plate.
    chosen
        Experiment → names of the FOVs that are built.
    annotations
        As `etl.source.annotations.AnnotationRows.rows`.
    tables
        Finds track files, and annotations to name their rows.

    Raises
    ------
    ConfigError
        A track file is wrong, or tracks are their own ancestors.
    """
    parsed = parse_track_files(config, chosen, tables)
    track_labels, rows = parsed.labels, parsed.rows
    dropped = {experiment: {"outside_tracks": count} for experiment, count in parsed.outside_tracks.items()}
    notes = parsed.notes
    del parsed
    with duckdb.connect(config={"threads": config.workers}) as con:
        con.register("rows", rows)
        del rows
        con.register("fovs", _list_fovs(config, plates, chosen))
        con.register("annotations", annotations)
        _make_placed(con)
        con.unregister("rows")  # nothing else holds them, and they are half of the memory
        for name in ("links", "descent"):
            _make_table(con, name)
        _refuse_cycles(con)
        for name in ("kept_tracks", "kept_fovs", "annotated"):
            _make_table(con, name)
        for experiment, reason, count in read_query(con, "dropped").fetchall():
            dropped.setdefault(experiment, {})[reason] = count
        return QueryResult(
            observations=read_query(con, "observations").to_arrow_table(),
            tracks=con.table("kept_tracks").to_arrow_table(),
            fovs=con.table("kept_fovs").to_arrow_table().to_pylist(),
            track_labels=track_labels,
            dropped=dropped,
            tables=tuple(TrackTable(**row) for row in read_query(con, "track_tables").to_arrow_table().to_pylist()),
            notes=(*notes, *_note_unmatched(con, config, tables)),
        )


def _make_placed(con: duckdb.DuckDBPyConnection) -> None:
    """Make the tables that need the rows of the track files."""
    _make_table(con, "tracks")
    _refuse_conflicts(con)
    _make_table(con, "placed")


def _note_unmatched(con: duckdb.DuckDBPyConnection, config: BuildConfig, tables: Tables) -> tuple[str, ...]:
    """Say how many annotations are about no observation."""
    notes = []
    for number, unmatched, count, first in read_query(con, "unmatched").fetchall():
        experiment = config.experiments[number]
        file = open_table(tables.find_annotations(number))
        notes.append(
            f"{file}: rows about no cell of {experiment.name} that is built: {unmatched:,} of {count:,}; the "
            f"first is {file.name_rows([first])[0]}."
        )
    return tuple(notes)


def _list_fovs(config: BuildConfig, plates: Mapping[str, Plate], chosen: Mapping[str, Sequence[str]]) -> pa.Table:
    """Table of the FOVs asked for; `fov` counts them as `parse_track_files` does."""
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


def read_query(con: duckdb.DuckDBPyConnection, name: str, **params: Any) -> duckdb.DuckDBPyRelation:
    """Run `etl/sql/<name>.sql`."""
    query = resources.files("etl").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    return con.sql(query, params=params) if params else con.sql(query)


def _make_table(con: duckdb.DuckDBPyConnection, name: str, **params: Any) -> None:
    """Keep the rows of `etl/sql/<name>.sql` as the table of that name."""
    read_query(con, name, **params).create(name)
