"""Every query of the index on about six rows, which a person can check."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from etl.source.patch_grid import PatchGrid
from etl.sql import read_query
from tests.plates import Rows, table


def query(name: str, inputs: dict[str, Rows], **params: Any) -> list[tuple[Any, ...]]:
    with duckdb.connect() as con:
        for key, rows in inputs.items():
            con.register(key, pa.Table.from_pylist(rows))
        return read_query(con, name, **params).fetchall()


# FOV 0: 5 divides into 0 and 7; 7's parent is written in both rows. FOV 1: 5 again, a daughter of 9, which is nowhere.
SIX = table(
    "fov track_id t parent_track_id",
    (0, 5, 0, -1),
    (0, 5, 1, -1),
    (0, 7, 2, 5),
    (0, 7, 3, 5),
    (0, 0, 2, 5),
    (1, 5, 0, 9),
)
TRACKS = table(
    "track fov track_id parent_track_id other_parent_track_id kept",
    (0, 0, 0, 5, 5, True),
    (1, 0, 5, -1, -1, False),
    (2, 0, 7, 5, 5, True),
    (3, 1, 5, 9, 9, True),
)
NAMES = table("fov experiment_index experiment fov_name", (0, 0, "a", "A/1/0"), (1, 0, "a", "A/1/1"))


def test_tracks_are_numbered_by_fov_and_id() -> None:
    placed = [row | {"reason": None} for row in SIX]
    placed[0]["reason"] = placed[1]["reason"] = placed[2]["reason"] = "outside_image"
    # track 5 of FOV 0 has lost both rows, track 7 one of two
    assert query("tracks", {"placed": placed}) == [
        (0, 0, 0, 5, 5, True),
        (1, 0, 5, -1, -1, False),
        (2, 0, 7, 5, 5, True),
        (3, 1, 5, 9, 9, True),
    ]


def test_rows_that_disagree_on_the_parent_are_found() -> None:
    tracks = [*TRACKS[:3], TRACKS[3] | {"parent_track_id": -1}]
    assert query("conflicts", {"tracks": tracks, "fovs": NAMES}) == [("a", "A/1/1", 5, -1, 9)]


def test_centres_are_clamped_and_cells_without_a_patch_have_a_reason() -> None:
    # image 20 x 30 with 4 frames, patch 8 x 5: y_clamp in 4..16, x_clamp in 2..27 (2 before, 3 from the centre on)
    rows = table(
        "row fov track_id t y x z id parent_id",
        (0, 0, 0, 0, 10.9, 15.2, None, -1, -1),
        (1, 0, 1, 3, 0.0, 29.9, 1.5, -1, -1),
        (2, 0, 2, 0, 19.9, 0.0, None, -1, -1),
        (3, 0, 3, 0, -0.1, 15.0, None, -1, -1),
        (4, 0, 4, 0, 10.0, 30.0, None, -1, -1),
        (5, 0, 5, 4, 10.0, 15.0, None, -1, -1),
    )
    # patches of 8 x 5
    bounds = "fov frames height width y_low y_high x_low x_high y_forth y_back x_forth x_back"

    def place(*most: float) -> list[Any]:
        return query("placed", {"rows": rows, "fovs": table(bounds, (0, 4, 20, 30, 4, 16, 2, 27, *most))})

    placed = [(row[2], *row[-3:]) for row in place(9.0, 9.0, 9.0, 9.0)]
    assert placed[:3] == [(0, 10, 15, None), (1, 4, 27, None), (2, 16, 2, None)]
    assert [(row[0], row[-1]) for row in placed[3:]] == [
        (3, "outside_image"),
        (4, "outside_image"),
        (5, "outside_time"),
    ]
    # row 0 does not move (0.9 of a pixel is truncation), row 1 moves by 4 forth and 2 back, row 2 by 3 back and 2 forth
    far = "near_border"
    assert [row[-1] for row in place(4.0, 3.0, 2.0, 2.0)[:3]] == [None, None, None]
    assert [row[-1] for row in place(3.9, 3.0, 2.0, 2.0)[:3]] == [None, far, None]
    assert [row[-1] for row in place(4.0, 2.9, 2.0, 2.0)[:3]] == [None, None, far]
    assert [row[-1] for row in place(4.0, 3.0, 1.9, 2.0)[:3]] == [None, None, far]
    assert [row[-1] for row in place(4.0, 3.0, 2.0, 1.9)[:3]] == [None, far, None]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 19, 20])
def test_clamped_patch_lies_inside_the_image(size: int) -> None:
    low, high = PatchGrid(size=size, scale=1.0).centres(20, beyond=False)
    names = "fov frames height width y_low y_high x_low x_high y_forth y_back x_forth x_back"
    fovs = table(names, (0, 1, 20, 20, low, high, low, high, *[20.0] * 4))
    centres = np.arange(0, 20, 0.25)
    rows = [
        {"row": k, "fov": 0, "track_id": k, "t": 0, "y": v, "x": v, "z": None, "id": -1, "parent_id": -1}
        for k, v in enumerate(centres.tolist())
    ]
    placed = query("placed", {"rows": rows, "fovs": fovs})
    starts = np.array([row[9] for row in placed]) - size // 2
    assert starts.min() == 0
    assert starts.max() == 20 - size
    assert all(row[9] == row[10] for row in placed)


def test_dropped_are_counted_by_experiment_and_reason() -> None:
    placed = table("fov reason", (0, None), (0, "x"), (1, "x"), (1, "y"), (2, "x"), (2, None))
    names = [*NAMES, {"fov": 2, "experiment_index": 1, "experiment": "b", "fov_name": "A/1/0"}]
    assert query("dropped", {"placed": placed, "fovs": names}) == [("a", "x", 2), ("a", "y", 1), ("b", "x", 1)]


def test_track_tables_are_summed_before_anything_is_left_out() -> None:
    # image 20 x 30, 4 frames. FOV 0: a row past the end, one past the lower edge, which swapping would mend
    placed = table(
        "fov track_id t y x", (0, 5, 0, 1.5, 2.0), (0, 7, 4, 3.0, 4.0), (0, 0, 1, 25.0, 15.0), (2, 5, 1, 0.0, 0.0)
    )
    tracks = [row | {"fov": 2 if row["fov"] == 1 else 0} for row in TRACKS]
    tracks.append({"track": 4, "fov": 2, "track_id": 6, "parent_track_id": 0, "other_parent_track_id": 0, "kept": True})
    links = table("track parent", (0, 1), (1, None), (2, 1), (3, None), (4, None))
    header = "fov experiment fov_name condition frames height width"
    fovs = table(header, *[(k, "a", f"A/1/{k}", "mock", 4, 20, 30) for k in range(3)])
    found = query("track_tables", {"placed": placed, "tracks": tracks, "links": links, "fovs": fovs})
    image = ("mock", 4, 20, 30)
    assert found == [
        ("a", "A/1/0", *image, 3, 3, 0, 4, 1.5, 25.0, 2.0, 15.0, 1, 1, 3, 0, 0, None, None),
        ("a", "A/1/1", *image, 0, 0, None, None, None, None, None, None, 0, 0, 0, 0, 0, None, None),
        ("a", "A/1/2", *image, 1, 2, 1, 1, 0.0, 0.0, 0.0, 0.0, 0, 0, 1, 2, 1, 5, 9),
    ]


def test_links_stay_inside_a_fov_and_an_absent_parent_makes_a_root() -> None:
    links = query("links", {"tracks": TRACKS})
    assert sorted(links) == [(0, 1, True), (1, None, False), (2, 1, True), (3, None, True)]


def test_descent_reaches_the_root_past_tracks_that_are_dropped() -> None:
    # 0 -> 1 -> 2 -> 3, of which 1 and 2 are dropped; 4 and 5 are each other's daughters
    rows = ((0, None, True), (1, 0, False), (2, 1, False), (3, 2, True), (4, 5, True), (5, 4, True))
    descent = query("descent", {"links": table("track parent kept", *rows)})
    assert sorted(descent) == [(0, 0, None, True), (1, 0, 0, False), (2, 0, 0, False), (3, 0, 0, True)]


def test_tracks_without_a_root_are_found() -> None:
    descent = table("track", (0,), (1,), (3,))
    assert query("unrooted", {"tracks": TRACKS, "descent": descent, "fovs": NAMES}) == [("a", "A/1/0", 7, 5)]


def test_kept_tracks_are_numbered_without_gaps() -> None:
    # track 1 (5 of FOV 0) is the root of 0 and 2 but not kept: no parent row, and still the lineage's name
    descent = table(
        "track root ancestor kept", (0, 1, None, True), (1, 1, None, False), (2, 1, 0, True), (3, 3, None, True)
    )
    assert query("kept_tracks", {"tracks": TRACKS, "descent": descent}) == [
        (0, 0, 0, 5, 0, -1, 5),
        (1, 0, 7, 5, 0, 0, 5),
        (2, 1, 5, 9, 1, -1, 5),
    ]


def test_observations_have_their_types_and_know_what_is_kept() -> None:
    header = "fov track_id t z y x id parent_track_id parent_id label_0 y_clamp x_clamp reason"
    placed = table(
        header,
        (0, 7, 3, None, 1.5, 2.5, -1, 5, -1, 2, 4, 4, None),
        (0, 7, 1 << 40, 0.5, 1e300, 2.5, 8, 5, 7, 0, 4, 4, "outside_time"),
    )
    assert query("observations", {"placed": placed}) == [
        (0, 7, 3, None, 1.5, 2.5, -1, -1, 2, 4, 4, True),
        (0, 7, 1 << 40, 0.5, None, 2.5, 8, 7, 0, 4, 4, False),
    ]


def test_parquet_rows_become_pixels_and_what_may_not_be_has_no_track() -> None:
    header = "file track_id t y x z id parent_track_id parent_id"
    nan = float("nan")
    written = table(
        header,
        (0, 5.0, 1, 3.0, 4.0, None, None, nan, 2.0),
        (0, 5.5, 2, 3.0, 4.0, None, None, nan, 2.0),
        (0, -1.0, 2, 3.0, 4.0, None, None, nan, 2.0),
        (0, nan, 2, 3.0, 4.0, None, None, nan, 2.0),
        (0, 6.0, 2, nan, 4.0, None, None, nan, 2.0),
        (0, 6.0, 3, 3.0, 4.0, None, None, 0.5, 2.0),
        (0, 2.0**60, 4, 3.0, 4.0, None, None, nan, 2.0),
        (1, 6.0, 5, 3.0, 4.0, 1.0, 9, nan, nan),
        (2, 6.0, 6, 3.0, 4.0, 1.0, 9, nan, nan),
    )
    files = table("file fov z_um y_um x_um", (0, 10, 1.0, 1.0, 1.0), (1, 11, 2.0, 0.5, 0.25), (2, 12, None, 0.5, 0.5))
    found = query("parquet_rows", {"written": written, "files": files})
    assert found[0] == (10, 5, 1, 3.0, 4.0, None, -1, -1, 2)
    assert [row[1] for row in found] == [5, *[None] * 6, 6, None]
    assert found[7] == (11, 6, 5, 6.0, 16.0, 0.5, 9, -1, -1)


def test_an_annotation_is_of_one_frame_or_of_a_whole_track() -> None:
    observations = table("fov track_id t", (0, 5, 0), (0, 5, 1), (1, 5, 0), (1, 6, 0))
    annotations = table(
        "annotation experiment_index fov track_id t",
        (0, 0, 0, 5, 1),
        (1, 0, 0, 5, 9),
        (2, 0, 0, 7, 0),
        (3, 1, 1, 5, None),
        (4, 1, None, 5, None),
    )
    found = query("annotated", {"observations": observations, "annotations": annotations})
    assert sorted(found, key=lambda row: row[:3]) == [(0, 5, 0, None), (0, 5, 1, 0), (1, 5, 0, 3), (1, 6, 0, None)]
    # rows 1 and 2 of the first table: a frame that was not tracked, a cell that is dropped; row 1 of the second: no FOV
    annotated = table("annotation", (0,), (3,))
    unmatched = query("unmatched", {"annotations": annotations, "annotated": annotated})
    assert unmatched == [(0, 2, 3, 1), (1, 1, 2, 1)]
