"""The index: six rows that a person can check for each query, anchors against a slow re-computation, real plates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynaclr_wds.contract import FovRecord
from etl.experiments import BuildConfig, ConfigError, ExperimentConfig, parse_build_config
from etl.index import Index, _read, build_index, drop_observations, mark_anchors
from etl.preflight import open_plates
from tests.plates import make_collection, random_tracks, write_plate, write_tracks

DATA = Path(__file__).parents[2] / "shared" / "data"

Rows = list[dict[str, Any]]


def table(header: str, *rows: tuple[Any, ...]) -> Rows:
    return [dict(zip(header.split(), row, strict=True)) for row in rows]


def query(name: str, inputs: dict[str, Rows], **params: Any) -> list[tuple[Any, ...]]:
    with duckdb.connect() as con:
        for key, rows in inputs.items():
            con.register(key, pa.Table.from_pylist(rows))
        return _read(con, name, **params).fetchall()


# One query at a time ------------------------------------------------------------------------------

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
    "track fov track_id parent_track_id other_parent_track_id",
    (0, 0, 0, 5, 5),
    (1, 0, 5, -1, -1),
    (2, 0, 7, 5, 5),
    (3, 1, 5, 9, 9),
)
NAMES = table("fov experiment_index experiment fov_name", (0, 0, "a", "A/1/0"), (1, 0, "a", "A/1/1"))


def test_tracks_are_numbered_by_fov_and_id() -> None:
    assert query("tracks", {"rows": SIX}) == [(0, 0, 0, 5, 5), (1, 0, 5, -1, -1), (2, 0, 7, 5, 5), (3, 1, 5, 9, 9)]


def test_rows_that_disagree_on_the_parent_are_found() -> None:
    tracks = [*TRACKS[:3], TRACKS[3] | {"parent_track_id": -1}]
    assert query("conflicts", {"tracks": tracks, "fovs": NAMES}) == [("a", "A/1/1", 5, -1, 9)]


def test_centres_are_clamped_and_cells_without_a_patch_have_a_reason() -> None:
    # image 20 x 30 with 4 frames, patch 8 x 5: y_clamp in 4..16, x_clamp in 2..27 (2 before, 3 from the centre on)
    rows = table(
        "fov track_id t y x z id parent_id",
        (0, 0, 0, 10.9, 15.2, None, -1, -1),
        (0, 1, 3, 0.0, 29.9, 1.5, -1, -1),
        (0, 2, 0, 19.9, 0.0, None, -1, -1),
        (0, 3, 0, -0.1, 15.0, None, -1, -1),
        (0, 4, 0, 10.0, 30.0, None, -1, -1),
        (0, 5, 4, 10.0, 15.0, None, -1, -1),
    )
    inputs = {"rows": rows, "fovs": table("fov frames height width", (0, 4, 20, 30))}
    placed = [(row[1], *row[-3:]) for row in query("placed", inputs, patch_height=8, patch_width=5, max_shift=None)]
    assert placed[:3] == [(0, 10, 15, None), (1, 4, 27, None), (2, 16, 2, None)]
    assert [(row[0], row[-1]) for row in placed[3:]] == [
        (3, "outside_image"),
        (4, "outside_image"),
        (5, "outside_time"),
    ]
    # row 0 does not move (0.9 of a pixel is truncation), row 1 moves by 4 and 2.9, row 2 by 3.9 and 2
    limited = query("placed", inputs, patch_height=8, patch_width=5, max_shift=3.9)
    assert [row[-1] for row in limited[:3]] == [None, "border_shift", None]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 19, 20])
def test_clamped_patch_lies_inside_the_image(size: int) -> None:
    fovs = table("fov frames height width", (0, 1, 20, 20))
    centres = np.arange(0, 20, 0.25)
    rows = [
        {"fov": 0, "track_id": k, "t": 0, "y": v, "x": v, "z": None, "id": -1, "parent_id": -1}
        for k, v in enumerate(centres.tolist())
    ]
    placed = query("placed", {"rows": rows, "fovs": fovs}, patch_height=size, patch_width=size, max_shift=None)
    starts = np.array([row[8] for row in placed]) - size // 2
    assert starts.min() == 0
    assert starts.max() == 20 - size
    assert all(row[8] == row[9] for row in placed)


def test_dropped_are_counted_by_experiment_and_reason() -> None:
    placed = table("fov reason", (0, None), (0, "x"), (1, "x"), (1, "y"), (2, "x"), (2, None))
    names = [*NAMES, {"fov": 2, "experiment_index": 1, "experiment": "b", "fov_name": "A/1/0"}]
    assert query("dropped", {"placed": placed, "fovs": names}) == [("a", "x", 2), ("a", "y", 1), ("b", "x", 1)]


def test_links_stay_inside_a_fov_and_an_absent_parent_makes_a_root() -> None:
    placed = [{"fov": row["fov"], "track_id": row["track_id"], "reason": None} for row in SIX]
    placed[0]["reason"] = placed[1]["reason"] = placed[2]["reason"] = "outside_image"
    links = query("links", {"tracks": TRACKS, "placed": placed})
    # track 1 (5 of FOV 0) has lost both rows, track 2 (7) one of two
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
    assert query("kept_tracks", {"tracks": TRACKS, "descent": descent, "fovs": NAMES}) == [
        (0, 0, 0, 5, 0, -1, "a/A/1/0/0", "a/A/1/0/5"),
        (1, 0, 7, 5, 0, 0, "a/A/1/0/7", "a/A/1/0/5"),
        (2, 1, 5, 9, 1, -1, "a/A/1/1/5", "a/A/1/1/5"),
    ]


def test_kept_fovs_and_strata_are_numbered_without_gaps() -> None:
    header = "fov experiment_index experiment condition_index condition"
    fovs = table(header, (0, 0, "a", 1, "v"), (1, 0, "a", 0, "m"), (2, 0, "a", 2, "x"), (3, 1, "b", 0, "m"))
    kept = query("kept_fovs", {"fovs": fovs, "kept_tracks": table("fov", (3,), (0,), (1,), (1,))})
    # strata: (a, m), (a, v), (b, m); (a, x) has nothing
    assert [row[:3] for row in kept] == [(0, 1, 0), (1, 0, 1), (2, 2, 3)]


def test_observations_are_sorted_and_know_their_hours() -> None:
    header = "fov track_id t z y x id parent_id y_clamp x_clamp reason"
    rows = [(0, 7, 3), (0, 7, 2), (1, 5, 0), (0, 0, 2), (0, 5, 0), (0, 5, 1)]
    placed = table(header, *[(*row, None, 1.5, 2.5, -1, -1, 4, 4, None) for row in rows])
    placed[-1]["reason"] = placed[-2]["reason"] = "outside_image"
    tracks = table(
        "fov track_id parent_track_id track_index lineage_index", (0, 0, 5, 0, 0), (0, 7, 5, 1, 0), (1, 5, -1, 2, 1)
    )
    fovs = table(
        "fov fov_index stratum_index experiment_index start_hpi interval_minutes",
        (0, 0, 0, 0, 3.0, 20.0),
        (1, 1, 1, 0, 3.0, 20.0),
    )
    found = query("observations", {"placed": placed, "kept_tracks": tracks, "kept_fovs": fovs})
    # track_id, t, hpi = 3 h + t * 20 min, fov, track, lineage
    short = [(row[0], row[2], round(row[10], 4), row[12], row[14], row[15]) for row in found]
    assert short == [(0, 2, 3.6667, 0, 0, 0), (7, 2, 3.6667, 0, 1, 0), (7, 3, 4.0, 0, 1, 0), (5, 0, 3.0, 1, 2, 1)]


def test_anchors_of_six_rows() -> None:
    # lineage 0: seen at 0, 1, 4 (twice), 9; lineage 1: at 1. τ of 2 to 4 frames: 0 → 4, 1 → 4; 4 → 9 is too far
    rows = ((0, 0), (0, 1), (0, 4), (0, 4), (0, 9), (1, 1))
    observations = [
        {"observation": k, "experiment_index": 0, "lineage_index": i, "t": t} for k, (i, t) in enumerate(rows)
    ]
    flags = query(
        "anchors", {"observations": observations, "tau": table("experiment_index tau_min tau_max", (0, 2, 4))}
    )
    assert [anchor for anchor, _ in flags] == [True, True, False, False, False, False]
    assert [candidate for _, candidate in flags] == [False, False, True, True, False, False]
    # τ from 0: two cells of one lineage in one frame are no pair
    flags = query(
        "anchors", {"observations": observations, "tau": table("experiment_index tau_min tau_max", (0, 0, 1))}
    )
    assert flags == [(True, False), (False, True)] + [(False, False)] * 4


# Anchors against a slow, obvious re-computation --------------------------------------------------


@st.composite
def forests(draw: st.DrawFn) -> tuple[pa.Table, dict[str, tuple[int, int]]]:
    cells = st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 12))
    rows = draw(st.lists(cells, max_size=40))
    ranges = st.integers(0, 4).flatmap(lambda low: st.tuples(st.just(low), st.integers(max(low, 1), 8)))
    tau = {"a": draw(ranges), "b": draw(ranges)}
    columns = {
        "experiment": ["ab"[e] for e, _, _ in rows],
        "experiment_index": pa.array([e for e, _, _ in rows], pa.int16()),
        "lineage_index": pa.array([10 * e + i for e, i, _ in rows], pa.int32()),
        "t": pa.array([t for _, _, t in rows], pa.int32()),
    }
    return pa.table(
        columns, schema=pa.schema({"experiment": pa.string()} | {k: v.type for k, v in list(columns.items())[1:]})
    ), tau


@settings(max_examples=60, deadline=None)
@given(forests())
def test_anchors_equal_a_slow_recomputation(forest: tuple[pa.Table, dict[str, tuple[int, int]]]) -> None:
    observations, tau = forest
    rows = observations.to_pylist()
    anchors, candidates = [False] * len(rows), [False] * len(rows)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            low, high = tau[one["experiment"]]
            gap = other["t"] - one["t"]
            if one["lineage_index"] == other["lineage_index"] and gap != 0 and low <= gap <= high:
                anchors[i] = candidates[j] = True
    marked = mark_anchors(observations, tau)
    assert marked["is_anchor"].to_pylist() == anchors
    assert marked["is_candidate"].to_pylist() == candidates


@pytest.mark.parametrize("tau", [(-1, 3), (3, 2), (0, 0)])
def test_a_tau_range_without_a_frame_is_an_error(tau: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"tau_frames\['a'\]=.* must be \(shortest, longest\), 0 ≤ shortest ≤ longest"):
        mark_anchors(pa.table({}), {"a": tau})


def test_marking_needs_the_range_of_every_experiment() -> None:
    columns = {"experiment": ["a"], "experiment_index": [0], "lineage_index": [0], "t": [0]}
    with pytest.raises(ValueError, match=r"tau_frames has \['b'\], but no \['a'\]\. Give all experiments"):
        mark_anchors(pa.table(columns), {"b": (1, 2)})


# From track files --------------------------------------------------------------------------------


def one_fov(tmp_path: Path, rows: Rows, name: str = "tracks.csv", **options: Any) -> BuildConfig:
    """One experiment `a` with one FOV A/1/0 of 10 frames of 32 x 32, patches 8 x 8, τ of 1 to 2 frames."""
    if not (tmp_path / "plate").exists():
        write_plate(tmp_path / "plate", shape=(10, 1, 1, 32, 32), dtype="uint8", channel_names=("Phase",))
    write_tracks(tmp_path / "tracks", "A/1/0", rows, name)
    experiment = ExperimentConfig(
        name="a",
        data_path=str(tmp_path / "plate"),
        tracks_path=str(tmp_path / "tracks"),
        channel_names=("Phase",),
        source_channel=("Phase",),
        condition_wells={"mock": ("A/1",)},
    )
    settings = {"yx_patch_size": (8, 8), "tau_range_hours": (0.5, 1.0)} | options
    return BuildConfig(experiments=(experiment,), **settings)


def index_of(config: BuildConfig) -> Index:
    return build_index(config, open_plates(config))


def cells(*rows: tuple[Any, ...], header: str = "track_id t parent_track_id") -> Rows:
    return [{"y": 16.0, "x": 16.0} | row for row in table(header, *rows)]


def lineages(index: Index) -> dict[int, str]:
    rows = index.observations.select(["track_id", "lineage_id"]).to_pylist()
    return {row["track_id"]: row["lineage_id"] for row in rows}


@pytest.mark.parametrize("name", ["tracks.csv", "any.CSV", "tracks.parquet"])
def test_lineage_follows_divisions_from_track_zero(tmp_path: Path, name: str) -> None:
    # 0 divides into 1 and 2, 2 into 3 and 4; 8 stands alone
    rows = cells((0, 0, -1), (1, 1, 0), (2, 1, 0), (3, 2, 2), (4, 2, 2), (8, 0, -1))
    if name == "any.CSV":
        (tmp_path / "tracks/A/1/0").mkdir(parents=True)
        (tmp_path / "tracks/A/1/0/._any.CSV").write_text("left by a copy")
    index = index_of(one_fov(tmp_path, rows, name))
    family = "a/A/1/0/0"
    assert lineages(index) == {0: family, 1: family, 2: family, 3: family, 4: family, 8: "a/A/1/0/8"}
    assert index.tracks.to_pydict() == {
        "track_index": [0, 1, 2, 3, 4, 5],
        "lineage_index": [0, 0, 0, 0, 0, 1],
        "parent_track_index": [-1, 0, 0, 2, 2, -1],
    }
    # τ of 1 and 2 frames: 0 is an anchor through its daughters; 1 through its niece; 3 and 4 come last
    assert index.observations["is_anchor"].to_pylist() == [True, True, True, False, False, False]
    assert index.observations["is_candidate"].to_pylist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("missing", [-1, None, "NaN", -1.0], ids=["minus-one", "empty", "NaN", "float"])
def test_a_missing_parent_makes_a_root(tmp_path: Path, missing: Any) -> None:
    config = one_fov(tmp_path, cells((0, 0, missing), (1, 1, 0)))
    assert lineages(index_of(config)) == {0: "a/A/1/0/0", 1: "a/A/1/0/0"}
    config = one_fov(tmp_path, cells((0, 0, missing), (1, 1, missing)))
    assert lineages(index_of(config)) == {0: "a/A/1/0/0", 1: "a/A/1/0/1"}
    assert index_of(config).observations["parent_track_id"].to_pylist() == [-1, -1]


def test_a_table_without_parents_has_roots_only(tmp_path: Path) -> None:
    index = index_of(one_fov(tmp_path, cells((3, 0), (3, 1), (5, 0), header="track_id t")))
    assert lineages(index) == {3: "a/A/1/0/3", 5: "a/A/1/0/5"}


def test_a_parent_that_is_not_in_the_table_makes_a_root(tmp_path: Path) -> None:
    index = index_of(one_fov(tmp_path, cells((3, 0, 99), (5, 0, 3))))
    assert lineages(index) == {3: "a/A/1/0/3", 5: "a/A/1/0/3"}
    assert index.observations["parent_track_id"].to_pylist() == [99, 3]


def test_optional_columns_are_kept(tmp_path: Path) -> None:
    rows = cells((0, 1, 0.5, 41, 40), (0, 0, None, 40, None), header="track_id t z id parent_id")
    observations = index_of(one_fov(tmp_path, rows)).observations
    assert observations["t"].to_pylist() == [0, 1]
    assert observations["z"].to_pylist() == [None, 0.5]
    assert observations["id"].to_pylist() == [40, 41]
    assert observations["parent_id"].to_pylist() == [-1, 40]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (cells((3, 0, 3)), r"a/A/1/0: tracks are their own ancestors, each the daughter of the next: 3 → 3\."),
        (cells((1, 0, 2), (2, 1, 3), (3, 2, 2)), r"each the daughter of the next: 2 → 3 → 2\. Correct parent_track_id"),
        (cells((3, 0, 1), (3, 1, 2)), r"a/A/1/0: track 3 has parents 1 and 2 in different rows"),
        (cells((3, 0, None), (3, 1, 2)), r"track 3 has parents -1 and 2 in different rows \(-1 is none\)"),
        (
            cells((3, 0, -1), (4, 0, -1), (3, 0, -1)),
            r"tracks\.csv: \(track_id, t\) must be in one row only, but .* row 2 \(\[3 0\]\)",
        ),
        (
            cells((3, 0.5, -1)),
            r"tracks\.csv: t must be a whole number, but is not in row 0 \(0\.5\)\. Correct these rows",
        ),
        (cells((1, 0, -1), (1.5, 0, -1)), r"track_id must be a whole number, but is not in row 1 \(1\.5\)"),
        (cells((None, 0, -1), (1, 0, -1)), r"track_id must be a whole number, but is not in row 0 \(nan\)"),
        (cells((-1, 0, -1)), r"track_id must be ≥ 0, but is not in row 0 \(-1\)"),
        (cells((1, 0, "x"), (2, 0, 1)), r"parent_track_id must be a number, but is not in row 0 \(x\)"),
        (cells((1, 0, 0.5)), r"parent_track_id must be a whole number, but is not in row 0 \(0\.5\)"),
        (
            cells((1, 0, "nan"), header="track_id t y"),
            r"y must be a finite number of pixels, but is not in row 0 \(nan\)",
        ),
        (cells(*[(1, t, "inf") for t in range(7)], header="track_id t x"), r"row 4 \(inf\) and 2 more\."),
        (cells((1, 0), header="track_id frame"), r"column 't' is missing; there are \['y', 'x', 'track_id', 'frame'\]"),
    ],
)
def test_wrong_tracks_are_an_error_that_names_them(tmp_path: Path, rows: Rows, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        index_of(one_fov(tmp_path, rows))


def test_wrong_files_are_errors_that_name_them(tmp_path: Path) -> None:
    config = one_fov(tmp_path, cells((1, 0, -1)))
    folder = tmp_path / "tracks/A/1/0"
    (folder / "more.parquet").touch()
    with pytest.raises(
        ConfigError, match=r"experiments\[0\]\.tracks_path=.* has 2 track files \(\['more\.parquet', 'tracks"
    ):
        index_of(config)
    (folder / "more.parquet").unlink()
    (folder / "tracks.csv").write_text("track_id,t,y,x\n1,2\n")
    with pytest.raises(ConfigError, match=r"tracks\.csv: is not a CSV table \(.*Expected 4 columns, got 2"):
        index_of(config)
    (folder / "tracks.csv").write_text("track_id,t,y,x,t\n")
    with pytest.raises(ConfigError, match=r"tracks\.csv: column 't' is there twice\. Remove one"):
        index_of(config)
    (folder / "tracks.csv").write_text("")
    with pytest.raises(ConfigError, match=r"tracks\.csv: column 'track_id' is missing; there are \[\]"):
        index_of(config)
    (folder / "tracks.csv").unlink()
    with pytest.raises(
        ConfigError, match=r"has no track file for FOV 'A/1/0'\. Put exactly one \.csv or \.parquet into"
    ):
        index_of(config)
    table = pa.table({"track_id": [1], "t": [True], "y": [1.0], "x": [1.0]})
    pq.write_table(table, folder / "tracks.parquet")
    with pytest.raises(ConfigError, match=r"tracks\.parquet: t must be a number, but is not in row 0 \(True\)"):
        index_of(config)


def test_cells_without_a_patch_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = table(
        "track_id t y x", (0, 0, 16, 16), (0, 1, -1, 16), (0, 2, 16, 32), (0, 10, 16, 16), (0, 3, 1, 16), (0, 4, 3, 3)
    )
    index = index_of(one_fov(tmp_path, rows, max_border_shift_px=2.0))
    assert index.observations["t"].to_pylist() == [0, 4]
    assert index.observations["y_clamp"].to_pylist() == [16, 4]
    assert index.dropped == {"a": {"outside_image": 2, "outside_time": 1, "border_shift": 1}}
    assert index.observations["is_anchor"].to_pylist() == [False, False]


def test_lineage_goes_through_a_track_that_is_dropped(tmp_path: Path) -> None:
    rows = [
        {"track_id": track, "t": t, "y": y, "x": 16.0, "parent_track_id": parent}
        for track, t, y, parent in [
            (0, 0, 16.0, -1),
            (1, 1, -5.0, 0),
            (2, 2, 16.0, 1),
            (7, 0, -5.0, -1),
            (8, 1, 9.0, 7),
        ]
    ]
    index = index_of(one_fov(tmp_path, rows))
    assert lineages(index) == {0: "a/A/1/0/0", 2: "a/A/1/0/0", 8: "a/A/1/0/7"}
    assert index.tracks["parent_track_index"].to_pylist() == [-1, 0, -1]
    assert index.observations["is_anchor"].to_pylist() == [True, False, False]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no observation is left; dropped were \{'a': \{'outside_time': 1\}\}"):
        index_of(one_fov(tmp_path, cells((0, 99, -1))))
    with pytest.raises(ConfigError, match=r"no observation is left; dropped were \{\}"):
        index_of(one_fov(tmp_path, []))
    config = one_fov(tmp_path, cells((0, 0, -1)), exclude_fovs=("A/1/0",))
    with pytest.raises(ConfigError, match=r"no observation is left"):
        index_of(config)


# Whole collections -------------------------------------------------------------------------------


def test_index_of_a_collection_is_sorted_dense_and_named(tmp_path: Path) -> None:
    fovs = ("B/2/0", "A/1/2", "A/1/10", "C/3/0")
    config = parse_build_config(make_collection(tmp_path, fovs=fovs), {"exclude_fovs": ["C/3/0"]})
    index = index_of(config)
    rows = index.observations.to_pylist()
    key = [(row["experiment_index"], row["fov_name"], row["track_id"], row["t"]) for row in rows]
    assert key == sorted(key)
    assert [row["observation"] for row in rows] == list(range(len(rows)))
    assert [(fov.experiment, fov.fov_name) for fov in index.fovs] == [
        (experiment, fov) for experiment in ("experiment0", "experiment1") for fov in ("A/1/10", "A/1/2", "B/2/0")
    ]
    assert index.fovs[2] == FovRecord(
        experiment="experiment0", fov_name="B/2/0", well="B/2", condition="infected", frames=8, height=64, width=64
    )
    assert index.strata == (
        ("experiment0", "control"),
        ("experiment0", "infected"),
        ("experiment1", "control"),
        ("experiment1", "infected"),
    )
    for row in rows:
        fov = index.fovs[row["fov_index"]]
        names = (row["experiment"], row["fov_name"], row["well"], row["condition"])
        assert names == (fov.experiment, fov.fov_name, fov.well, fov.condition)
        assert index.strata[row["stratum_index"]] == (row["experiment"], row["condition"])
        assert row["global_track_id"] == f"{row['experiment']}/{row['fov_name']}/{row['track_id']}"
        assert row["hpi"] == row["experiment_index"] + row["t"] * 0.5
    tracks = index.tracks.to_pydict()
    assert tracks["track_index"] == sorted({row["track_index"] for row in rows})
    assert {(row["track_index"], row["lineage_index"]) for row in rows} == set(
        zip(tracks["track_index"], tracks["lineage_index"], strict=True)
    )


def test_index_is_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    path = make_collection(tmp_path, experiments=1)
    one, four = (index_of(parse_build_config(path, {"workers": workers})) for workers in (1, 4))
    assert one.observations.equals(four.observations)
    assert one.tracks.equals(four.tracks)
    assert one.fovs == four.fovs


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16))
def test_lineages_and_parents_equal_a_walk_to_the_root(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng([3, seed])
    rows = random_tracks(rng, frames=10, height=32, width=32, lineages=4)
    for row in rows:
        if rng.random() < 0.2:
            row["y"] = -1.0
    parents = {row["track_id"]: row["parent_track_id"] for row in rows}
    kept = sorted({row["track_id"] for row in rows if row["y"] >= 0})

    def climb(track: int, stop: set[int]) -> int:
        while track not in stop and parents[track] in parents:
            track = parents[track]
        return track

    index = index_of(one_fov(tmp_path, rows))
    assert lineages(index) == {track: f"a/A/1/0/{climb(track, set())}" for track in kept}
    expected = []
    for track in kept:
        parent = parents[track]
        while parent in parents and parent not in kept:
            parent = parents[parent]
        expected.append(kept.index(parent) if parent in kept else -1)
    assert index.tracks["parent_track_index"].to_pylist() == expected


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16))
def test_dropping_later_equals_never_having_had_them(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng([4, seed])
    rows = random_tracks(rng, frames=8, height=32, width=32, lineages=4)
    # cells that go are outside the image when dropped at once, and dropped by number otherwise
    gone = {(row["track_id"], row["t"]) for row in rows if rng.random() < 0.4 and (row["track_id"], row["t"]) != (0, 0)}
    config = one_fov(tmp_path, rows)
    index = index_of(config)
    ids = index.observations.select(["track_id", "t"]).to_pylist()
    keep = np.array([(row["track_id"], row["t"]) not in gone for row in ids])
    if not keep.any():
        return
    later = drop_observations(index, keep, "zero_frame", {"a": config.tau_frames(config.experiments[0])})
    at_once = index_of(
        one_fov(tmp_path, [row | {"y": -1.0} if (row["track_id"], row["t"]) in gone else row for row in rows])
    )
    assert later.observations.to_pylist() == at_once.observations.to_pylist()
    assert later.tracks.to_pydict() == at_once.tracks.to_pydict()
    assert (later.fovs, later.strata) == (at_once.fovs, at_once.strata)
    assert later.dropped == ({"a": {"zero_frame": int((~keep).sum())}} if not keep.all() else {})


def test_dropping_a_whole_fov_renumbers_what_is_left(tmp_path: Path) -> None:
    config = parse_build_config(make_collection(tmp_path))
    index = index_of(config)
    tau = {experiment.name: config.tau_frames(experiment) for experiment in config.experiments}
    keep = index.observations["fov_index"].to_numpy() >= 2
    later = drop_observations(
        drop_observations(index, keep, "zero_frame", tau), np.ones(keep.sum(), bool), "again", tau
    )
    assert later.fovs == index.fovs[2:]
    assert later.strata == index.strata[1:]
    assert later.dropped == {"experiment0": {"zero_frame": int((~keep).sum())}}
    rows = later.observations.to_pylist()
    assert [row["observation"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert later.fovs[row["fov_index"]].fov_name == row["fov_name"]
        assert later.strata[row["stratum_index"]] == (row["experiment"], row["condition"])
    with pytest.raises(ConfigError, match=r"no observation is left: all \d+ are dropped as 'zero_frame'"):
        drop_observations(index, np.zeros(len(keep), bool), "zero_frame", tau)


@pytest.mark.skipif(not DATA.exists(), reason="the real plates are not beside this checkout")
def test_real_collection_has_the_tracks_that_its_readme_says() -> None:
    config = parse_build_config(DATA / "experiments.yaml", {"z_range": [0, 1], "yx_patch_size": 96})
    index = index_of(config)
    rows = index.observations.to_pylist()
    ecoli = [row for row in rows if row["experiment"] == "ecoli_colony"]
    assert len(ecoli) == 3519
    assert len({row["global_track_id"] for row in ecoli}) == 714
    assert {row["lineage_id"] for row in ecoli} == {"ecoli_colony/A/1/0/1", "ecoli_colony/A/1/0/2"}
    children = [row["parent_track_id"] for row in {row["track_id"]: row for row in ecoli}.values()]
    assert len({parent for parent in children if parent >= 0 and children.count(parent) == 2}) == 356
    hacat = [row for row in rows if row["experiment"] == "hacat_fucci"]
    assert (len(hacat), len({row["track_id"] for row in hacat})) == (810, 17)
    mda = [row for row in rows if row["experiment"] == "mda231_qpi"]
    assert len({row["track_id"] for row in mda}) == len({row["lineage_id"] for row in mda})
    for fov in index.fovs:
        for row in (row for row in rows if row["experiment"] == fov.experiment):
            assert 48 <= row["y_clamp"] <= fov.height - 48
            assert 48 <= row["x_clamp"] <= fov.width - 48
    assert index.dropped == {}
