"""Says of an index what the user should know: annotations about no cell, tables too large, why nothing is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from dynaclr_wds.errors import ConfigError
from etl.queries import TrackTable
from etl.source.experiments import BuildConfig
from etl.source.table_places import Tables
from etl.source.track_formats import open_table
from etl.source.tracks import TrackFile
from etl.sql import read_query
from etl.suspicious.tables import find_in_tables
from etl.suspicious.words import write_bytes

_BYTES_PER_ROW = 320
"""Of memory, for a row of a table that is read as a whole: measured with tables of 3 million rows."""


def note_unmatched(
    config: BuildConfig, tables: Tables, annotations: pa.Table, annotated: Bool[np.ndarray, " annotations"]
) -> tuple[str, ...]:
    """Say how many annotations are about no observation; an error where all of an experiment are.

    Parameters
    ----------
    tables
        Finds the tables, to name their rows.
    annotations
        As `etl.source.annotations.AnnotationRows.rows`.
    annotated
        Whether each is about an observation.

    Raises
    ------
    ConfigError
        Not one row of a table is about a cell: it is of other tracks, and every label would be null.
    """
    notes = []
    with duckdb.connect() as con:
        con.register("annotations", annotations)
        con.register("annotated", pa.table({"annotation": np.flatnonzero(annotated).astype(np.int32)}))
        unmatched = read_query(con, "unmatched").fetchall()
    for number, lost, count, first in unmatched:
        experiment = config.experiments[number]
        file = open_table(tables.find_annotations(number))
        if lost == count:
            raise ConfigError(
                f"{file}: no row of {count:,} is about a cell of {experiment.name} that is built, so "
                "all its labels would be null. Perhaps tracks were numbered anew since it was written: compare its "
                f"fov_name, track_id and t with the track tables, or leave annotations out of {experiment.name}."
            )
        notes.append(
            f"{file}: rows about no cell of {experiment.name} that is built: {lost:,} of {count:,}; the "
            f"first is {file.name_rows([first])[0]}."
        )
    return tuple(notes)


def note_large_tables(files: Sequence[TrackFile], config: BuildConfig, room: int) -> tuple[str, ...]:
    """Say which tables took more memory than the index may take: each is read as a whole, whatever the limit.

    Parameters
    ----------
    room
        What the index may take, in bytes.
    """
    return tuple(
        f"{file.file}: has about {file.rows:,} rows and is read as a whole, in about {write_bytes(size)}, which is "
        f"more than --memory-limit {write_bytes(config.memory_limit)} leaves for it. Give a table for each field of "
        "view, or a larger limit."
        for file in files
        if (size := file.rows * _BYTES_PER_ROW) > room
    )


def explain_nothing_left(
    config: BuildConfig, dropped: Mapping[str, Mapping[str, int]], found: Sequence[TrackTable]
) -> ConfigError:
    """Make the error for an index without observations; what is suspicious in the track tables may be the reason."""
    near = any("near_border" in reasons for reasons in dropped.values())
    pad = "Lower yx_patch_size, or give --border pad to keep cells near the border. " if near else ""
    error = ConfigError(
        f"{config.where}: no observation is left; dropped were {dropped}. "
        f"{pad}Compare tracks_path, condition_wells, include_wells and exclude_fovs."
    )
    for experiment in config.experiments:
        tables = [table for table in found if table.experiment == experiment.name]
        for reason in find_in_tables(experiment, tables):
            error.add_note(reason.text)
    return error
