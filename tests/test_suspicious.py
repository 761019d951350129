"""What is wrong with the data of a build is said in words, and nothing is said of sound data."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from dynaclr_wds.contract import Manifest, manifest_checksum
from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.suspicions import SUSPICIONS, FactsRecord
from etl.build_shards import build_shards, main
from etl.indexing import store_index
from etl.run.progress import Progress, print_summary, summarize_dropped
from etl.simulate.__main__ import SimulationConfig, simulate_collection
from etl.source.experiments import parse_build_config
from etl.source.plates import Fov, open_plate
from etl.source.preflight import open_plates
from etl.source.scales import fill_in_from_plates
from etl.suspicious.cells import Census
from etl.suspicious.report import Report, make_report
from etl.suspicious.scales import find_between_experiments
from tests.plates import KEEP_ALL, Rows, write_experiments, write_plate, write_tracks
from tests.set_files import find_index

pytestmark = pytest.mark.usefixtures("without_fsync")

DATA = Path(__file__).parent.parent.parent / "shared/data"
FOVS = ("A/1/0", "B/2/0")
FRAMES, EDGE = 10, 64
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


def sound_tracks(seed: int = 0, tracks: int = 12) -> Rows:
    """Cells anywhere in the image that live as long as the movie; each moves by exactly one pixel a frame."""
    rng = np.random.default_rng([31, seed])
    rows: Rows = []
    for track, (y, x) in enumerate(rng.uniform(0, EDGE, (tracks, 2)).round(2).tolist()):
        for t in range(FRAMES):
            rows.append({"track_id": track, "t": t, "y": y, "x": abs(x - t % 2), "parent_track_id": -1})
    # one cell in each corner, so that the extent is known
    corners = [(0.5, 1.0), (0.5, 63.0), (63.0, 1.0), (63.0, 63.0)]
    rows += [
        {"track_id": 100 + k, "t": t, "y": y, "x": x, "parent_track_id": -1}
        for k, (y, x) in enumerate(corners)
        for t in range(FRAMES)
    ]
    return rows


def write_plates(
    root: Path,
    *changes: Mapping[str, Any],
    scales: Sequence[Mapping[str, Any]] = ({},),
    edit: Callable[[str, dict[str, Any]], dict[str, Any] | None] = lambda _fov, row: row,
    **options: Any,
) -> Path:
    """Write one experiment per change (a, b, …), with a FOV in each of two conditions; return experiments.yaml.

    `changes` are keys of its entry, `scales` its arguments of `set_scale`; `edit` changes each row of experiment a.
    """
    entries = []
    for number, change in enumerate(changes or ({},)):
        name = "abcdef"[number]
        scale = scales[min(number, len(scales) - 1)]
        write_plate(
            root / name / "plate.zarr", version="0.5" if number % 2 else "0.4", fovs=FOVS,
            shape=(FRAMES, 1, 1, EDGE, EDGE), dtype="uint8", channel_names=("Phase",),
            scales={fov: scale.get(fov, {}) if set(scale) & set(FOVS) else scale for fov in FOVS},
        )  # fmt: skip
        for seed, fov in enumerate(FOVS):
            rows = [edit(fov, dict(row)) if number == 0 else row for row in sound_tracks(seed)]
            write_tracks(root / name / "tracks", fov, [row for row in rows if row is not None])
        entry = {
            "name": name, "data_path": f"{name}/plate.zarr", "tracks_path": f"{name}/tracks",
            "channel_names": ["Phase"], "source_channel": ["Phase"], "interval_minutes": 30.0,
            "condition_wells": {"mock": ["A/1"], "virus": ["B/2"]},
        }  # fmt: skip
        entries.append({key: value for key, value in {**entry, **change}.items() if value is not None})
    return write_experiments(
        root / "experiments.yaml",
        entries,
        **({"yx_patch_size": [16, 16], "tau_range_hours": [0.5, 1.0]} | KEEP_ALL | options),
    )


def report_of(path: Path, **options: Any) -> Report:
    """Make the report of a build, without cutting."""
    config = parse_build_config(path, options)
    plates = open_plates(config)
    config = fill_in_from_plates(config, plates)
    with tempfile.TemporaryDirectory() as scratch:
        index = store_index(config, plates, Path(scratch))
        census = Census(config, index.tables)
        for fov, number in enumerate(index.experiment_index.tolist()):
            census.add(number, index.take(fov, fov + 1))
    return make_report(config, plates, census.finish(), index.dropped)


def said(path: Path, **options: Any) -> list[tuple[str, str | None, int, str]]:
    return [(found.code, found.place, found.count, found.text) for found in report_of(path, **options).suspicious]


def test_sound_data_raise_no_suspicion_and_are_counted(tmp_path: Path) -> None:
    report = report_of(write_plates(tmp_path, {}, {}))
    assert report.suspicious == ()
    assert report.facts[1] == FactsRecord(
        experiment="b", tracks=32, divisions=0, tracks_with_gaps=0, moved_patches=230, largest_move_px=8.0,
        padded_patches=0, empty_tables=0,
    )  # fmt: skip


def test_divisions_gaps_moves_and_empty_tables_are_counted(tmp_path: Path) -> None:
    path = write_plates(tmp_path)
    family = [(0, 0, -1, 32), (0, 2, -1, 32), (1, 3, 0, 32), (2, 3, 0, 60.5), (3, 4, 2, 32)]
    rows = [{"track_id": k, "t": t, "y": 32.0, "x": x, "parent_track_id": p} for k, t, p, x in family]
    write_tracks(tmp_path / "a/tracks", "A/1/0", rows)
    write_tracks(tmp_path / "a/tracks", "B/2/0", [])
    # track 0 divides, and misses a frame; track 2 has one daughter; the patch of one cell moves from 60.5 to 56
    assert report_of(path, include_wells=["A/1", "B/2"]).facts == (
        FactsRecord(
            experiment="a", tracks=4, divisions=1, tracks_with_gaps=1, moved_patches=1, largest_move_px=4.0,
            padded_patches=0, empty_tables=1,
        ),
    )  # fmt: skip


def test_a_large_lineage_that_is_split_is_not_told_as_a_loss(tmp_path: Path) -> None:
    # a cell that divides at t = 3; with one anchor per clip, nieces lie in other clips
    family = [(0, t, -1) for t in range(3)] + [(k, t, 0) for k in (1, 2) for t in range(3, 10)]
    path = write_plates(tmp_path)
    for fov in FOVS:
        rows = [{"track_id": k, "t": t, "y": 32.0, "x": 32.0, "parent_track_id": p} for k, t, p in family]
        write_tracks(tmp_path / "a/tracks", fov, rows)
    manifest = build(path, tmp_path / "shards", clip_anchors=1)
    count = manifest.dropped["a"]["candidates_dropped"]
    assert count > 0
    assert summarize_dropped(manifest) == [
        "no cell was dropped",
        f"not paired in a: {count:,} pairs of cousins (cells on different branches of a lineage so large that it is "
        "stored in several clips); all cells, and the pairs along every line, are there (candidates_dropped)",
    ]


def scale_by(factor: float, only: str = "") -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    def edit(fov: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {axis: row[axis] * factor for axis in "yx"} if fov.startswith(only) else row

    return edit


def test_micrometres_for_pixels_are_suspected(tmp_path: Path) -> None:
    assert said(write_plates(tmp_path, edit=scale_by(0.3))) == [
        (
            "cells_in_corner", None, 320,
            "a: all 320 centroids lie in the corner of the image where y and x begin (y up to 18.9 of 64, x up to 18.9 "
            "of 64). y and x must be pixels, and these look like micrometres: multiplied by 3.4 they would just fill "
            "it. "
            "If so, give the experiment `tracks_unit: um`.",
        )
    ]  # fmt: skip


def test_the_plates_pixel_size_tells_the_factor_and_one_fov_is_enough(tmp_path: Path) -> None:
    scale = {"scale": [1, 1, 1, 0.3, 0.3], "units": UNITS}
    assert said(write_plates(tmp_path, scales=[scale], edit=scale_by(0.3, "B/2"))) == [
        (
            "cells_in_corner", "B/2/0", 160,
            "a: all 160 centroids of B/2/0 lie in the corner of the image where y and x begin (y up to 18.9 of 64, x "
            "up "
            "to 18.9 of 64). y and x must be pixels, and these look like micrometres: divided by the pixel size of "
            "0.3 µm they would reach 98% of the image. If so, give the experiment `tracks_unit: um`.",
        )
    ]  # fmt: skip


def test_few_cells_in_a_corner_are_chance(tmp_path: Path) -> None:
    def edit(_: str, row: dict[str, Any]) -> dict[str, Any] | None:
        return row | {"y": row["y"] * 0.6, "x": row["x"] * 0.6} if row["track_id"] < 5 else None

    assert said(write_plates(tmp_path, edit=edit)) == []


def test_many_centroids_outside_the_image_are_suspected(tmp_path: Path) -> None:
    found = said(write_plates(tmp_path, edit=scale_by(2.0)))
    assert [(code, place) for code, place, _, _ in found] == [("outside_image", None)]
    outside = sum(row["y"] >= 32 or row["x"] >= 32 for seed in (0, 1) for row in sound_tracks(seed))
    assert found[0][2] == outside
    assert found[0][3] == (
        f"a: {outside} centroids of 320 ({outside / 320:.0%}) lie outside the image and were left out (y up to 126 "
        "of 64, "
        "x up to 126 of 64). They may be pixels of a larger image, or another unit: multiplied by 0.51 they would just "
        "fill it. "
        "y and x must be pixels of the plate's full resolution: convert them."
    )


def test_swapped_axes_and_a_zero_in_the_middle_are_guessed(tmp_path: Path) -> None:
    path = write_plates(tmp_path, edit=lambda _, row: row | {"y": row["y"] - 32, "x": row["x"] - 32})
    assert "The smallest is -31.87: their zero may be in the middle of the image. y and x must be" in said(path)[0][3]
    rows = [{"track_id": k, "t": t, "y": 80.0, "x": 20.0 + t} for k in range(3) for t in range(4)]
    write_plate(tmp_path / "wide", fovs=FOVS, shape=(4, 1, 1, 64, 128), dtype="uint8", channel_names=("Phase",))
    write_tracks(tmp_path / "swapped", "A/1/0", [dict(row, y=20.0, x=40.0) for row in rows[:4]])
    write_tracks(tmp_path / "swapped", "B/2/0", rows)
    document = yaml.safe_load(path.read_text())
    document["experiments"][0] |= {"data_path": "wide", "tracks_path": "swapped"}
    path.write_text(yaml.safe_dump(document))
    (found,) = [text for code, _, _, text in said(path) if code == "outside_image"]
    assert "12 centroids of 16 (75%)" in found
    assert "All would lie inside if y and x changed places." in found


def test_frames_from_one_are_suspected(tmp_path: Path) -> None:
    assert said(write_plates(tmp_path, edit=lambda _, row: row | {"t": row["t"] + 1})) == [
        (
            "frames_from_one", None, 320,
            "a: frames seem to be counted from 1: the smallest t is 1, and the last is 10 where the movie's frames "
            "are 0 "
            "to 9. If so, every cell is cut from the frame after its own, and 32 rows past its end were left out. "
            "Subtract 1 from t in the track tables.",
        )
    ]  # fmt: skip


def test_frames_from_one_are_suspected_in_one_fov_and_without_the_last_frame(tmp_path: Path) -> None:
    path = write_plates(
        tmp_path / "fov", edit=lambda fov, row: row | {"t": row["t"] + 1} if fov == "A/1/0" else row
    )  # fmt: skip
    (found,) = said(path)
    assert found[:3] == ("frames_from_one", "A/1/0", 160)
    assert found[3].startswith("a: frames seem to be counted from 1: the smallest t of A/1/0 is 1, and the last is 10 ")
    path = write_plates(tmp_path / "short", edit=lambda _, row: row | {"t": row["t"] + 1} if row["t"] < 6 else None)
    assert said(path)[0][3] == (
        "a: frames seem to be counted from 1: the smallest t is 1. If so, every cell is cut from the frame after its "
        "own. "
        "Subtract 1 from t in the track tables."
    )


def test_times_that_are_no_frames_are_suspected(tmp_path: Path) -> None:
    assert said(write_plates(tmp_path, edit=lambda _, row: row | {"t": row["t"] * 3}), tau_range_hours=[0.5, 2]) == [
        (
            "outside_movie", None, 192,
            "a: 192 rows of 320 (60%) have a t that is no frame of the movie and were left out (t up to 27 in A/1/0, "
            "whose frames are 0 to 9). t must count frames from 0, not minutes: convert it.",
        )
    ]  # fmt: skip


def test_a_lost_parent_is_suspected_and_zero_explained(tmp_path: Path) -> None:
    def edit(_: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"parent_track_id": {3: 77, 5: 78}.get(row["track_id"], -1)}

    assert said(write_plates(tmp_path / "lost", edit=edit)) == [
        (
            "missing_parents", "A/1/0", 4,
            "a: 4 tracks of 32 name a parent that is not in the track table, as track 3 of A/1/0 names 77. Each "
            "starts a "
            "lineage of its own, so sisters may be taken for unrelated cells. Add the parents' rows if they were "
            "filtered "
            "out, or write -1.",
        )
    ]  # fmt: skip
    path = write_plates(
        tmp_path / "zero", edit=lambda _, row: None if row["track_id"] == 0 else row | {"parent_track_id": 0}
    )
    ((_, _, count, text),) = said(path)
    assert count == 30
    assert text == (
        "a: 30 tracks of 30 name parent 0, but there is no track 0, as track 1 of A/1/0. If 0 stands for no parent, "
        "write -1."
    )


def test_a_condition_that_is_gone_is_suspected_unless_it_was_left_out(tmp_path: Path) -> None:
    path = write_plates(tmp_path, edit=lambda fov, row: None if fov == "B/2/0" else row)
    expected = (
        "condition_gone", "virus", 0,
        "a: no cell of the condition 'virus' is left: there is no row in the track table of B/2. Compare "
        "condition_wells with the plate and its track tables, or remove the condition.",
    )  # fmt: skip
    assert said(path) == [expected]
    assert said(path, include_wells=["A/1"]) == []
    assert said(path, exclude_fovs=["B/2/0"]) == []
    path = write_plates(
        tmp_path / "dropped", edit=lambda fov, row: row | {"t": 50} if fov == "B/2/0" and row["track_id"] < 0 else row,
    )  # fmt: skip
    rows = [{"track_id": k, "t": 50, "y": 5.0, "x": 5.0} for k in range(3)]
    write_tracks(tmp_path / "dropped/a/tracks", "B/2/0", rows)
    assert [text for code, _, _, text in said(path) if code == "condition_gone"] == [
        "a: no cell of the condition 'virus' is left: all 3 rows of B/2 were left out; the summary says why. "
        "Compare condition_wells with the plate and its track tables, or remove the condition."
    ]


def test_a_jump_is_suspected_and_the_worst_named(tmp_path: Path) -> None:
    def edit(fov: str, row: dict[str, Any]) -> dict[str, Any]:
        jumps = fov == "B/2/0" and row["track_id"] == 100 and row["t"] >= 7
        return row | {"y": 30.5, "x": 41.0} if jumps else row

    assert said(write_plates(tmp_path, edit=edit)) == [
        (
            "tracks_jump", "B/2/0", 1,
            "a: 1 step of 288 from one frame to the next is longer than 20 px, where half of all steps are shorter "
            "than "
            "1 px. The longest is 50 px: B/2/0, track 100, from t = 6 to 7. Tracks that go on in another cell make "
            "wrong "
            "positives. Look at them, and cut the tracks there.",
        )
    ]  # fmt: skip


def test_patches_as_large_as_the_image_are_suspected(tmp_path: Path) -> None:
    path = write_plates(tmp_path)
    shape = open_plates(parse_build_config(path))["a"].fovs["A/1/0"].shape
    config = parse_build_config(path, {"yx_patch_size": list(shape[3:])})
    found = [record for record in build_shards(config, tmp_path / "out").suspicious if record.code == "patches_alike"]
    assert [(record.experiment, record.count) for record in found] == [("a", 320)]
    assert "320 of 320 cells have the same patch as another cell of their frame" in found[0].text


def test_an_experiment_without_anchors_is_suspected_among_others(tmp_path: Path) -> None:
    path = write_plates(tmp_path, {}, {}, edit=lambda _, row: row | {"track_id": 20 * row["track_id"] + row["t"]})
    assert said(path) == [
        (
            "no_anchors", None, 320,
            "a: none of its 320 cells has a positive, so none can be an anchor: the shortest τ of tau_range_hours="
            "[0.5, 1.0] is 1 frame at interval_minutes=30, and the last cell of its longest lineage comes 0 frames "
            "after "
            "the first. Correct interval_minutes, lower tau_range_hours, or leave the experiment out.",
        )
    ]  # fmt: skip


def build(path: Path, out: Path, **options: Any) -> Manifest:
    return build_shards(parse_build_config(path, options), out)


@pytest.mark.parametrize(
    ("edit", "tau", "why"),
    [
        (
            lambda _, row: row, [5.0, 8.0],
            r"a: the shortest τ of tau_range_hours=\[5\.0, 8\.0\] is 10 frames at interval_minutes=30, and its movies "
            r"have 10 frames",
        ),
        (
            lambda _, row: row if row["t"] < 3 else None, [2.0, 3.0],
            r"a: .* is 4 frames .*, and the last cell of its longest lineage comes 2 frames after the first",
        ),
        (
            lambda _, row: row if row["t"] in (0, 4) else None, [0.5, 1.0],
            r"a: .* and no lineage was seen at two times that are 1 to 2 frames apart",
        ),
    ],
    ids=["short movies", "short tracks", "gaps"],
)  # fmt: skip
def test_no_anchor_at_all_is_an_error_that_says_why(
    tmp_path: Path, edit: Callable[..., Any], tau: list[float], why: str
) -> None:
    path = write_plates(tmp_path, edit=edit, tau_range_hours=tau)
    match = (
        rf"experiments\.yaml: no cell has a positive, so nothing can be trained on its \d+ cells \({why}\)\. Correct "
        r"interval_minutes, lower tau_range_hours, track cells for longer, or give on_no_anchor: keep to build all"
    )
    with pytest.raises(ConfigError, match=match):
        build(path, tmp_path / "shards")
    assert not (tmp_path / "shards/manifest.json").exists()
    manifest = build(path, tmp_path / "shards", on_no_anchor="keep")
    assert [found.code for found in manifest.suspicious] == ["no_anchors"]


def test_no_anchor_left_by_the_pixels_is_an_error_too(tmp_path: Path) -> None:
    path = write_plates(tmp_path)
    pixels = np.zeros((FRAMES, 1, 1, EDGE, EDGE))
    pixels[0] = 1
    write_plate(
        tmp_path / "blank", fovs=FOVS, dtype="uint8", channel_names=("Phase",), pixels=dict.fromkeys(FOVS, pixels)
    )
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["data_path"] = "blank"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(
        ConfigError, match=r"no cell has a positive, so nothing can be trained on its 32 cells \(a: .* 0 f"
    ):
        build(path, tmp_path / "shards")


def test_nothing_left_is_an_error_with_what_is_suspicious(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_plates(tmp_path, edit=lambda _, row: row | {"t": 30 * row["t"] + 30})
    assert main([str(path), "--out", str(tmp_path / "shards"), "--quiet", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == (
        "a: 320 rows of 320 (100%) have a t that is no frame of the movie and were left out (t up to 300 in A/1/0, "
        "whose frames are 0 to 9). t must count frames from 0, not minutes: convert it."
    )


SAID = {"scale": [600.0, 1, 1, 0.5, 0.5], "units": UNITS}


def test_an_interval_that_the_plate_contradicts_is_suspected(tmp_path: Path) -> None:
    assert said(write_plates(tmp_path, scales=[SAID])) == [
        (
            "interval_differs", "A/1/0", 2,
            "a: interval_minutes=30, but the time axis of the plate says 10 minutes in A/1/0 and one more. If the "
            "plate "
            "is right, all hours (τ, HPI) are 3 times too long. Correct interval_minutes, or leave it out to take the "
            "plate's.",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scale", "minutes"),
    [
        ({"scale": [1.0, 1, 1, 1, 1], "units": UNITS}, None),
        ({"scale": [600.0, 1, 1, 1, 1]}, None),
        ({"scale": [600.0, 1, 1, 1, 1], "units": {"t": "parsec"}}, None),
        ({"scale": [600.0, 1, 1, 1, 1], "units": UNITS}, 10.0),
        ({"scale": [15.0, 1, 1, 1, 1], "units": {"t": "minute"}}, 15.0),
        ({"scale": [0.25, 1, 1, 1, 1], "units": {"t": "hour"}}, 15.0),
        ({"scale": [1.0, 1, 1, 1, 1], "whole": [900.0, 1, 1, 1, 1], "units": UNITS}, 15.0),
        ({"scale": [2.0, 1, 1, 1, 1], "whole": [450.0, 1, 1, 1, 1], "units": UNITS}, 15.0),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_interval_is_the_scale_of_the_time_axis(
    tmp_path: Path, version: str, scale: dict[str, Any], minutes: float | None
) -> None:
    write_plate(tmp_path / "p", version=version, shape=(2, 1, 1, 8, 8), channel_names=("P",), scales={"A/1/0": scale})
    (fov,) = open_plate_fovs(tmp_path / "p")
    assert fov.scale.interval_minutes == minutes


@pytest.mark.parametrize(
    ("scale", "units", "depth", "expected"),
    [
        ([1, 1, 1, 1, 1], UNITS, 3, (None, None, None)),
        ([1, 1, 2, 1, 1], UNITS, 3, (2.0, None, None)),
        ([1, 1, 1, 0.5, 0.5], UNITS, 3, (1.0, 0.5, 0.5)),
        ([1, 1, 1, 0.5, 0.5], UNITS, 1, (None, 0.5, 0.5)),
        ([1, 1, 1, 1, 0.5], UNITS, 1, (None, 1.0, 0.5)),
        ([1, 1, 1, 325, 325], {"y": "nanometer", "x": "nanometer"}, 1, (None, 0.325, 0.325)),
        ([1, 1, 1, 0.5, 0.5], {}, 1, (None, None, None)),
    ],
)
def test_the_pixel_size_is_the_scale_of_the_axes_of_space(
    tmp_path: Path, scale: list[float], units: dict[str, str], depth: int, expected: tuple[float | None, ...]
) -> None:
    shape, scales = (2, 1, depth, 8, 8), {"A/1/0": {"scale": scale, "units": units}}
    write_plate(tmp_path / "p", shape=shape, channel_names=("P",), scales=scales)
    (fov,) = open_plate_fovs(tmp_path / "p")
    assert fov.scale.pixel_size_um == expected


def open_plate_fovs(path: Path) -> list[Fov]:
    return list(open_plate(path).fovs.values())


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_an_interval_that_is_not_given_is_the_plates_and_is_said(tmp_path: Path) -> None:
    path = write_plates(tmp_path, {"interval_minutes": None}, {}, scales=[SAID, {}])
    config, progress = parse_build_config(path), Said()
    manifest = build_shards(config, tmp_path / "shards", progress=progress)
    assert progress.lines[0] == (
        "a: interval_minutes is not given; the time axis of the plate says 10 minutes, and that is used."
    )
    assert [e.interval_minutes for e in manifest.experiments] == [10.0, 30.0]
    assert [e.tau_frames for e in manifest.experiments] == [(3, 6), (1, 2)]
    assert [e["interval_minutes"] for e in manifest.config["experiments"]] == [None, 30.0]
    assert manifest.config_hash == config.token
    assert manifest.suspicious == ()
    hpi = pq.read_table(
        find_index(tmp_path / "shards") / "observations.parquet", columns=["experiment", "t", "hpi"]
    ).to_pylist()
    assert {row["hpi"] for row in hpi if row["experiment"] == "a" and row["t"] == 3} == {0.5}


def test_an_interval_that_nothing_gives_is_an_error(tmp_path: Path) -> None:
    path = write_plates(tmp_path / "none", {}, {"interval_minutes": None})
    match = (
        r"experiments\.yaml: experiments\[1\]\.interval_minutes is missing, and the time axis of \S+/b/plate\.zarr "
        r"does not say it either \(its scale is 1, or it has no unit of time\)\. Give the minutes between frames\."
    )
    with pytest.raises(ConfigError, match=match):
        build(path, tmp_path / "shards")
    scale = {"A/1/0": SAID, "B/2/0": SAID | {"scale": [60, 1, 1, 1, 1]}}
    path = write_plates(tmp_path / "two", {"interval_minutes": None}, scales=[scale])
    with pytest.raises(
        ConfigError, match=r"differ in what their time axes say \(10 min in A/1/0, 1 min in B/2/0; 0 is"
    ):
        build(path, tmp_path / "shards")


def test_one_error_names_every_experiment_without_an_interval(tmp_path: Path) -> None:
    path = write_plates(tmp_path, {"interval_minutes": None}, {"interval_minutes": None})
    match = (
        r"experiments\.yaml: interval_minutes is missing in experiments\[0\] \(a\), experiments\[1\] \(b\), and the "
        r"time axes .* put a line such as `interval_minutes: 30\.0` below the `name:` of each of these"
    )
    with pytest.raises(ConfigError, match=match):
        build(path, tmp_path / "shards")


def test_a_plate_that_says_another_interval_later_is_noticed(tmp_path: Path) -> None:
    path = write_plates(tmp_path, {"interval_minutes": None}, scales=[SAID])
    assert build(path, tmp_path / "shards").experiments[0].interval_minutes == 10.0
    for fov in FOVS:
        attributes = tmp_path / "a/plate.zarr" / fov / ".zattrs"
        attributes.write_text(attributes.read_text().replace("600.0", "900.0"))
    progress = Said()
    manifest = build_shards(parse_build_config(path), tmp_path / "shards", progress=progress)
    assert "changed since the set was built: a: metadata changed: A/1/0, B/2/0" in progress.lines
    assert manifest.experiments[0].interval_minutes == 15.0
    assert manifest.experiments[0].tau_frames == (2, 4)
    anew = replace(build(path, tmp_path / "anew"), set_version=2)
    assert anew.to_json() == (tmp_path / "shards/manifest.json").read_text()


def test_pixel_sizes_stand_in_the_manifest(tmp_path: Path) -> None:
    given = {"pixel_size_um": [2.0, 0.65, 0.65], "interval_minutes": 10.0}
    three = {"scale": [600.0, 1, 1, 0.65, 0.65], "units": UNITS}
    path = write_plates(tmp_path, {}, given, {"interval_minutes": 10.0}, scales=[{}, three, three])
    assert build(path, tmp_path / "shards").suspicious == ()
    assert ShardSet.open(tmp_path / "shards").pixel_sizes_um == {
        "a": (None, None, None),
        "b": (2.0, 0.65, 0.65),
        "c": (None, 0.65, 0.65),
    }


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (0.5, r"pixel_size_um=0\.5 must be a list of two or three numbers\. Write \[0\.325, 0\.325\] for y and x in"),
        ([0.5], r"pixel_size_um=\[0\.5\] must be a list of two or three numbers"),
        ([0.5, 0], r"pixel_size_um\[1\]=0 must be a number > 0\. Give micrometres per pixel"),
        (["a", 0.5], r"pixel_size_um\[0\]='a' must be a number > 0"),
    ],
)
def test_a_wrong_pixel_size_is_an_error(tmp_path: Path, value: object, match: str) -> None:
    with pytest.raises(ConfigError, match=r"experiments\[0\]\." + match):
        parse_build_config(write_plates(tmp_path, {"pixel_size_um": value}))


def test_a_pixel_size_that_the_plate_contradicts_is_suspected(tmp_path: Path) -> None:
    scale = {"scale": [1, 1, 1, 0.5, 0.5], "units": UNITS}
    assert said(write_plates(tmp_path, {"pixel_size_um": [0.325, 0.325]}, scales=[scale])) == [
        (
            "pixel_size_differs", "A/1/0", 2,
            "a: pixel_size_um is 0.325 µm, but the plate says 0.5 µm in A/1/0 and one more. Correct pixel_size_um, or "
            "leave it out to take the plate's.",
        )
    ]  # fmt: skip


def test_pixels_that_are_not_square_are_suspected(tmp_path: Path) -> None:
    assert said(write_plates(tmp_path, scales=[{"scale": [1, 1, 1, 1.0, 0.5], "units": UNITS}])) == [
        (
            "pixel_not_square", None, 1,
            "a: pixels are 1 µm along y and 0.5 µm along x. Cells look stretched, and turning a patch changes its "
            "shape. Correct the pixel size, or resample the plate to square pixels.",
        )
    ]  # fmt: skip


def test_experiments_and_fovs_that_differ_in_pixel_size_are_suspected(tmp_path: Path) -> None:
    small, large = ({"scale": [1, 1, 1, um, um], "units": UNITS} for um in (0.325, 0.65))
    path = write_plates(tmp_path, {}, {}, {}, scales=[small, large, {"A/1/0": small, "B/2/0": large}])
    assert said(path) == [
        (
            "pixel_sizes_vary", "B/2/0", 1,
            "c: fields of view differ in pixel size: the plate says 0.325 µm in A/1/0, but 0.65 µm in B/2/0. Correct "
            "the plate, or make two experiments of it.",
        ),
        (
            "pixel_sizes_vary", None, 2,
            "experiments differ in pixel size: 0.325 µm in a, c; 0.65 µm in b. Cells look larger in one than in "
            "another, and patches show more or less of their surroundings. Give reference_pixel_size_um to rescale "
            "them, or train on them apart.",
        ),
    ]  # fmt: skip


def test_channels_that_change_places_between_experiments_are_suspected(tmp_path: Path) -> None:
    def find(*orders: Sequence[str], **more: Any) -> list[tuple[str, int]]:
        entries = [{"channel_names": order, "source_channel": order} for order in orders]
        config = parse_build_config(write_plates(tmp_path, *entries[:-1], entries[-1] | more), {})
        shutil.rmtree(tmp_path / "a")
        return [(one.text, one.count) for one in find_between_experiments(config) if one.code == "channels_differ"]

    assert find(["Phase", "GFP"], ["Phase", "mCherry"], ["GFP"]) == []
    assert find(["Phase", "GFP"], ["GFP", "Phase"]) == [
        (
            "experiments differ in the order of channels: Phase is channel 0 in a, but 1 in b, and GFP moved "
            "too. A network that sees all channels of a cell would take one for the other. Write source_channel in the "
            "same order in all experiments; only with channels_per_sample: 1 it does not matter.",
            2,
        )
    ]
    ((text, count),) = find(["Phase", "GFP"], ["mCherry", "DIC"], channel_markers={"DIC": "Phase"})
    assert text.startswith(
        "experiments differ in the order of channels: Phase is channel 0 in a, but 1 in b. A network"
    )
    assert count == 1


def test_a_tau_that_cannot_be_had_is_suspected(tmp_path: Path) -> None:
    path = write_plates(tmp_path, {"interval_minutes": 60.0}, {}, tau_range_hours=[0.5, 2.0])
    assert said(path) == [
        (
            "tau_shortened", None, 2,
            "a: tau_range_hours asks for 0.5 to 2 h, but frames are 60 minutes apart, so 0.5 h can't be had: positives "
            "are drawn 1 to 2 frames = 1 to 2 h after their anchor. Give a tau_range_hours that all experiments can "
            "serve, or leave it if that is what you want.",
        )
    ]  # fmt: skip
    path = write_plates(tmp_path / "one", {"interval_minutes": 20.0}, tau_range_hours=[0.6, 0.7])
    assert "so the whole range is one frame: positives are drawn 2 frames = 0.667 h after" in said(path)[0][3]
    assert said(path, tau_range_hours=[0.7, 0.7]) == []
    assert said(path, tau_range_hours=[0.0, 0.7]) == []


def test_the_command_prints_suspicions_and_counts_them_when_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_plates(tmp_path, edit=scale_by(0.3))
    command = [str(path), "--out", str(tmp_path / "shards")]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("suspicious:") + 1].startswith("- a: all 320 centroids lie in the corner of the image")
    assert lines[lines.index(f"{tmp_path / 'shards'}: built. Next:") - 1].endswith(
        "If so, give the experiment `tracks_unit: um`."
    )
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == (
        f"{tmp_path / 'shards'}: 1 suspicious finding about its data, as said when it was built; "
        "--json shows them again, and all counts."
    )
    texts = []
    for more in ([], ["--quiet"], ["--overwrite"]):
        assert main([*command, "--json", *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    record = json.loads(texts[0])
    assert (record["out"], record["observations"], record["shards"]) == (str(tmp_path / "shards"), 320, 2)
    assert record["facts"][0]["tracks"] == 32
    assert record["suspicious"] == json.loads((tmp_path / "shards/manifest.json").read_text())["suspicious"]
    assert [found["code"] for found in record["suspicious"]] == ["cells_in_corner"]


def test_the_command_says_what_is_drawn_and_nothing_of_sound_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = {"scale": [1800.0, 1, 1, 0.325, 0.325], "units": UNITS}
    assert main([str(write_plates(tmp_path, scales=[scale])), "--out", str(tmp_path / "shards"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    main([str(tmp_path / "experiments.yaml"), "--out", str(tmp_path / "shards"), "--overwrite"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[: lines.index(f"{tmp_path / 'shards'}: built. Next:")][-2:] == [
        "a: 30 minutes a frame, positives 1 to 2 frames later (0.5 to 1 h), pixels of 0.325 µm; 32 tracks, 0 "
        "divisions, 230 patches near the border moved into the image (by 8 px at most)",
        "nothing was dropped",
    ]


def test_a_terminal_without_unicode_shows_the_summary_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = {"scale": [3600.0, 1, 1, 0.325, 0.325], "units": UNITS}
    path = write_plates(tmp_path, {"interval_minutes": None}, scales=[scale], tau_range_hours=[0.5, 2.0])
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_summary(build(path, tmp_path / "shards"))
        stream.seek(0)
        lines = stream.read().splitlines()
    assert "60 minutes a frame, positives 1 to 2 frames later (1 to 2 h), pixels of 0.325 um; " in lines[-4]
    assert lines[-1].startswith(
        "- a: tau_range_hours asks for 0.5 to 2 h, but frames are 60 minutes apart, so 0.5 h can't"
    )


@pytest.mark.slow
def test_an_update_of_one_experiment_keeps_what_is_said_of_the_others(tmp_path: Path) -> None:
    def edit(_: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"parent_track_id": 77 if row["track_id"] == 3 else -1}

    path = write_plates(tmp_path, {}, {"interval_minutes": 60.0}, edit=edit, tau_range_hours=[0.5, 2.0])
    first = build(path, tmp_path / "shards")
    assert [(found.code, found.experiment) for found in first.suspicious] == [
        ("missing_parents", "a"), ("tau_shortened", "b"),
    ]  # fmt: skip
    moved = [row | {"y": row["y"] * 0.3, "x": row["x"] * 0.3} for row in sound_tracks(0)]
    for fov in FOVS:
        write_tracks(tmp_path / "b/tracks", fov, moved)
    second = build(path, tmp_path / "shards")
    assert [found for found in second.suspicious if found.code != "cells_in_corner"] == list(first.suspicious)
    assert [found.experiment for found in second.suspicious if found.code == "cells_in_corner"] == ["b"]
    assert second.facts[0] == first.facts[0]
    anew = replace(build(path, tmp_path / "anew"), set_version=2)
    assert anew.to_json() == (tmp_path / "shards/manifest.json").read_text()


BAD = [
    ({"suspicious": {"code": "strange"}}, r"must have a code of \['cells_in_corner'"),
    ({"suspicious": {"count": -1}}, r"a count >= 0"),
    ({"suspicious": {"text": "\x1b[2J"}}, r"a text of one printable line"),
    ({"suspicious": {"text": ""}}, r"a text of one printable line"),
    ({"suspicious": {"experiment": "z"}}, r"facts or suspicions of \['z'\], which are none of the experiments"),
    ({"suspicious": {"more": 1}}, r"SuspicionRecord must have the keys"),
    ({"facts": {"tracks": -1}}, r"must be numbers >= 0"),
    ({"facts": {"tracks": 1.5}}, r"tracks=1\.5 is not of type int"),
    ({"facts": {"experiment": "z"}}, r"facts or suspicions of \['z'\]"),
    ({"experiments": {"pixel_size_um": [None, 0.0, 1.0]}}, r"pixel_size_um=.* must be > 0"),
    ({"experiments": {"pixel_size_um": [1, 1]}}, r"pixel_size_um=.* is not of type tuple"),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("manifest")
    return build(write_plates(root, edit=scale_by(0.3)), root / "shards")


@pytest.mark.parametrize(("change", "match"), BAD)
def test_a_manifest_with_other_findings_is_refused(manifest: Manifest, change: dict[str, Any], match: str) -> None:
    raw = json.loads(manifest.to_json())
    for key, values in change.items():
        raw[key][0] |= values
    with pytest.raises(FormatError, match=match):
        parse_manifest(json.dumps(raw | {"xxh3": manifest_checksum(raw)}))


def test_every_code_is_documented_with_what_it_counts() -> None:
    text = (Path(__file__).parent.parent / "docs/FORMAT.md").read_text()
    section = text[text.index("## What is suspicious") : text.index("## Shards")]
    assert re.findall(r"^\| `(\w+)` \| \S", section, re.MULTILINE) == list(SUSPICIONS)


def test_simulated_cells_raise_no_suspicion(tmp_path: Path) -> None:
    path = simulate_collection(
        tmp_path, SimulationConfig(experiments=4, fovs=1, frames=12, size=96, cells=6, cell_radius=7.0)
    )
    assert said(path) == []


@pytest.mark.skipif(not DATA.exists(), reason="the real plates are not beside this checkout")
def test_real_cells_raise_no_suspicion_and_divide_as_often_as_their_readme_says() -> None:
    report = report_of(DATA / "experiments.yaml", yx_patch_size=[96, 96])
    assert report.suspicious == ()
    assert {facts.experiment: (facts.tracks, facts.divisions, facts.tracks_with_gaps) for facts in report.facts} == {
        "ecoli_colony": (714, 356, 0), "hacat_fucci": (17, 6, 0), "mda231_qpi": (24, 0, 12),
    }  # fmt: skip
