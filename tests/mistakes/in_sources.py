"""Mistakes in plates, track tables and annotations."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable

from tests.mistakes.in_experiments_yaml import BUILD
from tests.mistakes.world import Mistake, World

Lines = list[str]
Rows = list[dict[str, str]]


def _lines(change: Callable[[Lines], Lines]):
    def make(world: World) -> list[str]:
        world.edit_tracks(change)
        return BUILD

    return make


def _rows(change: Callable[[dict[str, str]], dict[str, str]]):
    def make(world: World) -> list[str]:
        world.each_tracks(lambda rows: [{**row, **change(row)} for row in rows])
        return BUILD

    return make


def _put(line: str, column: int, text: str) -> str:
    """Put a text into a column of a line."""
    cells = line.split(",")
    return ",".join([*cells[:column], text, *cells[column + 1 :]])


def _divisions(world: World) -> list[str]:
    for path in sorted((world.root / "e0" / "tracks").rglob("*.csv")):
        _, *rows = path.read_text().splitlines()
        names = "Track ID,Frame,Y,X,Parent"
        header = ["TRACK_ID,FRAME,POSITION_Y,POSITION_X,PARENT", names, names, ",,(pixel),(pixel),"]
        path.write_text("\n".join([*header, *rows, rows[0]]) + "\n")
    return _mapped(world, {"TRACK_ID": "track_id", "FRAME": "t", "POSITION_Y": "y", "POSITION_X": "x"})


def _lost_parent(world: World) -> list[str]:
    world.each_tracks(
        lambda rows: [{**row, "parent_track_id": "977"} if row["track_id"] == "0" else row for row in rows]
    )
    return BUILD


def _no_table(world: World) -> list[str]:
    world.tracks().unlink()
    return BUILD


def _two_tables(world: World) -> list[str]:
    shutil.copy(world.tracks(), world.tracks().with_name("old.csv"))
    return BUILD


def _excel(world: World) -> list[str]:
    world.tracks().write_bytes(b"PK\x03\x04\x14\x00\x06\x00\x08\x00" + bytes(100))
    return BUILD


def _cut_gzip(world: World) -> list[str]:
    packed = gzip.compress(world.tracks().read_bytes())
    world.tracks().with_name("tracks.csv.gz").write_bytes(packed[: len(packed) // 2])
    world.tracks().unlink()
    return BUILD


def _empty_condition(world: World) -> list[str]:
    world.edit_tracks(lambda lines: lines[:1], "B/2/0")
    return BUILD


def _no_chunks(world: World) -> list[str]:
    shutil.rmtree(world.root / "e0/plate.zarr/A/1/0/0/3")
    return BUILD


def _cut_chunk(world: World) -> list[str]:
    chunk = next(path for path in sorted((world.root / "e0/plate.zarr/A/1/0/0/3").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:50])
    return BUILD


def _annotations(text: str):
    def make(world: World) -> list[str]:
        (world.root / "cells.csv").write_text(text)
        world.set_experiment(annotations="cells.csv")
        return BUILD

    return make


IN_SOURCES = [
    Mistake(what="Has a FOV without a track table", make=_no_table),
    Mistake(what="Has two track tables in a FOV's folder", make=_two_tables),
    Mistake(
        what="Names columns as TrackMate does",
        make=_lines(lambda lines: ["TRACK_ID,FRAME,POSITION_Y,POSITION_X,PARENT", *lines[1:]]),
    ),
    Mistake(
        what="Maps a column that is not there",
        make=lambda world: _mapped(world, {"TRACK": "track_id"}),
    ),
    Mistake(
        what="Maps a column to a name that nothing uses",
        make=lambda world: _mapped(world, {"track_id": "cell"}),
    ),
    Mistake(
        what="Has text where a number should be",
        make=_lines(lambda lines: [*lines[:3], _put(lines[3], 2, "left"), *lines[4:]]),
    ),
    Mistake(what="Has half frames", make=_lines(lambda lines: [*lines[:3], _put(lines[3], 1, "2.5"), *lines[4:]])),
    Mistake(what="Has a cell twice in a frame", make=_lines(lambda lines: [*lines, lines[1]])),
    Mistake(what="Has divisions in a table of TrackMate", make=_divisions),
    Mistake(
        what="Has frames beyond the end of the movie",
        make=_rows(lambda row: {"t": str(int(row["t"]) + 50)}),
        status=0,
    ),
    Mistake(what="Has an empty file as a table", make=_lines(lambda _: [])),
    Mistake(what="Renames an Excel workbook to .csv", make=_excel),
    Mistake(what="Has a .csv.gz that was cut off", make=_cut_gzip),
    Mistake(
        what="Gives micrometres for pixels",
        make=_rows(lambda row: {"y": str(float(row["y"]) * 0.2), "x": str(float(row["x"]) * 0.2)}),
        status=0,
    ),
    Mistake(what="Counts frames from 1", make=_rows(lambda row: {"t": str(int(row["t"]) + 1)}), status=0),
    Mistake(
        what="Has parents that are in no row",
        make=_lost_parent,
        status=0,
    ),
    Mistake(what="Has a condition whose table is empty", make=_empty_condition, status=0),
    Mistake(
        what="Has centroids outside of the image",
        make=_rows(lambda row: {"y": str(float(row["y"]) + 500)}),
        status=0,
    ),
    Mistake(what="Lost the chunks of a frame", make=_no_chunks, status=0),
    Mistake(what="Has a damaged chunk", make=_cut_chunk),
    Mistake(
        what="Annotates a cell that is not tracked",
        make=_annotations("fov_name,track_id,cell_type\nA/1/0,0,round\nA/1/0,9999,round\n"),
        status=0,
    ),
    Mistake(
        what="Annotates cells of other tracks, and no other",
        make=_annotations("fov_name,track_id,cell_type\nA/1/0,9999,round\n"),
    ),
    Mistake(what="Annotates without `track_id`", make=_annotations("fov_name,track,cell_type\nA/1/0,0,round\n")),
]


def _mapped(world: World, columns: dict[str, str]) -> list[str]:
    world.set_experiment(columns=columns)
    return BUILD
