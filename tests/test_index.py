"""The index: lineages through divisions, candidates against a slow re-computation, real tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.errors import ConfigError
from etl.index import Index, drop_observations, mark_candidates
from etl.indexing import build_index
from etl.layout.candidates import has_temporal
from etl.source.experiments import BuildConfig, parse_build_config
from etl.source.preflight import open_plates
from tests.plates import cells, make_collection, make_fov, random_tracks, table

DATA = Path(__file__).parents[2] / "shared" / "data"


def index_of(config: BuildConfig) -> Index:
    return build_index(config, open_plates(config))


def lineages(index: Index) -> dict[int, str]:
    rows = index.observations.select(["track_id", "lineage_id"]).to_pylist()
    return {row["track_id"]: row["lineage_id"] for row in rows}


@pytest.mark.parametrize("name", ["tracks.csv", "any.CSV", "tracks.parquet", "tracks.tsv"])
def test_lineage_follows_divisions_from_track_zero(tmp_path: Path, name: str) -> None:
    # 0 divides into 1 and 2, 2 into 3 and 4; 8 stands alone
    rows = cells((0, 0, -1), (1, 1, 0), (2, 1, 0), (3, 2, 2), (4, 2, 2), (8, 0, -1))
    if name == "any.CSV":
        (tmp_path / "tracks/A/1/0").mkdir(parents=True)
        (tmp_path / "tracks/A/1/0/._any.CSV").write_text("left by a copy")
    index = index_of(make_fov(tmp_path, rows, name))
    family = "a/A/1/0/0"
    assert lineages(index) == {0: family, 1: family, 2: family, 3: family, 4: family, 8: "a/A/1/0/8"}
    assert index.tracks.to_pydict() == {
        "track_index": [0, 1, 2, 3, 4, 5],
        "lineage_index": [0, 0, 0, 0, 0, 1],
        "parent_track_index": [-1, 0, 0, 2, 2, -1],
    }
    # τ of 1 and 2 frames: 0 has its daughters; 1 its nieces; 3 and 4 come last
    assert index.observations["has_candidate"].to_pylist() == [True, True, True, False, False, False]
    assert index.observations["is_candidate"].to_pylist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("missing", [-1, None, "NaN", -1.0], ids=["minus-one", "empty", "NaN", "float"])
def test_a_missing_parent_makes_a_root(tmp_path: Path, missing: Any) -> None:
    config = make_fov(tmp_path, cells((0, 0, missing), (1, 1, 0)))
    assert lineages(index_of(config)) == {0: "a/A/1/0/0", 1: "a/A/1/0/0"}
    config = make_fov(tmp_path, cells((0, 0, missing), (1, 1, missing)))
    assert lineages(index_of(config)) == {0: "a/A/1/0/0", 1: "a/A/1/0/1"}
    assert index_of(config).observations["parent_track_id"].to_pylist() == [-1, -1]


def test_a_table_without_parents_has_roots_only(tmp_path: Path) -> None:
    index = index_of(make_fov(tmp_path, cells((3, 0), (3, 1), (5, 0), header="track_id t")))
    assert lineages(index) == {3: "a/A/1/0/3", 5: "a/A/1/0/5"}


def test_a_parent_that_is_not_in_the_table_makes_a_root(tmp_path: Path) -> None:
    index = index_of(make_fov(tmp_path, cells((3, 0, 99), (5, 0, 3))))
    assert lineages(index) == {3: "a/A/1/0/3", 5: "a/A/1/0/3"}
    assert index.observations["parent_track_id"].to_pylist() == [99, 3]


def test_optional_columns_are_kept(tmp_path: Path) -> None:
    rows = cells(
        (0, 1, 0.5, -1, 41, 40), (0, 0, None, -1, 40, None), header="track_id t z parent_track_id id parent_id"
    )
    observations = index_of(make_fov(tmp_path, rows)).observations
    assert observations["t"].to_pylist() == [0, 1]
    assert observations["z"].to_pylist() == [None, 0.5]
    assert observations["id"].to_pylist() == [40, 41]
    assert observations["parent_id"].to_pylist() == [-1, 40]


def test_cells_without_a_patch_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = table(
        "track_id t y x", (0, 0, 16, 16), (0, 1, -1, 16), (0, 2, 16, 32), (0, 10, 16, 16), (0, 3, 1, 16), (0, 4, 3, 3)
    )
    index = index_of(make_fov(tmp_path, rows, max_border_shift_px=2.0))
    assert index.observations["t"].to_pylist() == [0, 4]
    assert index.observations["y_clamp"].to_pylist() == [16, 4]
    assert index.dropped == {"a": {"outside_image": 2, "outside_time": 1, "near_border": 1}}
    assert index.observations["has_candidate"].to_pylist() == [False, False]


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
    index = index_of(make_fov(tmp_path, rows))
    assert lineages(index) == {0: "a/A/1/0/0", 2: "a/A/1/0/0", 8: "a/A/1/0/7"}
    assert index.tracks["parent_track_index"].to_pylist() == [-1, 0, -1]
    assert index.observations["has_candidate"].to_pylist() == [True, False, False]


def test_a_lineage_keeps_the_name_of_a_root_that_goes_later(tmp_path: Path) -> None:
    config = make_fov(tmp_path, cells((0, 0, -1), (1, 1, 0), (2, 2, 1)))
    index = index_of(config)
    keep = np.array([False, True, True])
    later = drop_observations(index, keep, "zero_frame", {"a": config.tau_frames(config.experiments[0])})
    assert lineages(later) == {1: "a/A/1/0/0", 2: "a/A/1/0/0"}
    assert later.observations["lineage_id"].type == pa.dictionary(pa.int32(), pa.string())
    assert later.tracks.to_pydict() == {
        "track_index": [0, 1],
        "lineage_index": [0, 0],
        "parent_track_index": [-1, 0],
    }


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no observation is left; dropped were \{'a': \{'outside_time': 1\}\}"):
        index_of(make_fov(tmp_path, cells((0, 99, -1))))
    with pytest.raises(ConfigError, match=r"no observation is left; dropped were \{\}"):
        index_of(make_fov(tmp_path, []))
    corner = table("track_id t y x", (0, 0, 0, 0))
    with pytest.raises(
        ConfigError, match=r"were \{'a': \{'near_border': 1\}\}\. Lower yx_patch_size, or give --border pad"
    ):
        index_of(make_fov(tmp_path, corner, max_border_shift_px=None))
    config = make_fov(tmp_path, cells((0, 0, -1)), exclude_fovs=("A/1/0",))
    with pytest.raises(ConfigError, match=r"no observation is left"):
        index_of(config)


NAMES = "abcdefgh"


@st.composite
def forests(draw: st.DrawFn) -> tuple[pa.Table, dict[str, tuple[int, int]]]:
    # many experiments in one example, because a query costs the same for few rows and for many
    cells = st.tuples(st.integers(0, len(NAMES) - 1), st.integers(0, 2), st.integers(0, 12))
    rows = draw(st.lists(cells, max_size=120))
    ranges = st.integers(0, 4).flatmap(lambda low: st.tuples(st.just(low), st.integers(max(low, 1), 8)))
    tau = {name: draw(ranges) for name in NAMES}
    columns = {
        "experiment": pa.array([NAMES[e] for e, _, _ in rows], pa.string()),
        "experiment_index": pa.array([e for e, _, _ in rows], pa.int16()),
        "lineage_index": pa.array([10 * e + i for e, i, _ in rows], pa.int32()),
        "t": pa.array([t for _, _, t in rows], pa.int32()),
    }
    return pa.table(columns), tau


@settings(max_examples=10, deadline=None)
@given(forests())
def test_candidates_equal_a_slow_recomputation(forest: tuple[pa.Table, dict[str, tuple[int, int]]]) -> None:
    observations, tau = forest
    rows = observations.to_pylist()
    has_candidate, is_candidate = [False] * len(rows), [False] * len(rows)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            low, high = tau[one["experiment"]]
            gap = other["t"] - one["t"]
            if one["lineage_index"] == other["lineage_index"] and gap != 0 and low <= gap <= high:
                has_candidate[i] = is_candidate[j] = True
    marked = mark_candidates(observations, tau)
    assert marked["has_candidate"].to_pylist() == has_candidate
    assert marked["is_candidate"].to_pylist() == is_candidate


def test_candidates_of_six_observations() -> None:
    # lineage 0: seen at 0, 1, 4 (twice), 9; lineage 1: at 1. τ of 2 to 4 frames: 0 → 4, 1 → 4; 4 → 9 is too far
    lineage, t = np.array([0, 0, 0, 0, 0, 1], np.int32), np.array([0, 1, 4, 4, 9, 1], np.int32)
    has, is_one = has_temporal(lineage, t, 2, 4)
    assert has.tolist() == [True, True, False, False, False, False]
    assert is_one.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("tau", [(-1, 3), (3, 2), (-1, 0)])
def test_a_tau_range_without_a_frame_is_an_error(tau: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"tau_frames\['a'\]=.* must be \(shortest, longest\), 0 ≤ shortest ≤ longest"):
        mark_candidates(pa.table({}), {"a": tau})


def test_marking_needs_the_range_of_every_experiment() -> None:
    columns = {"experiment": ["a"], "experiment_index": [0], "lineage_index": [0], "t": [0]}
    with pytest.raises(ValueError, match=r"tau_frames has \['b'\], but no \['a'\]\. Give all experiments"):
        mark_candidates(pa.table(columns), {"b": (1, 2)})


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
        experiment="experiment0", fov_name="B/2/0", well="B/2", frames=8, height=64, width=64
    )
    assert index.partitions == tuple(
        {"experiment": experiment, "condition": condition}
        for experiment in ("experiment0", "experiment1")
        for condition in ("control", "infected")
    )
    for row in rows:
        fov = index.fovs[row["fov_index"]]
        assert (row["experiment"], row["fov_name"], row["well"]) == (fov.experiment, fov.fov_name, fov.well)
        assert row["condition"] == ("control" if fov.well == "A/1" else "infected")
        assert index.partitions[row["partition_index"]] == {key: row[key] for key in ("experiment", "condition")}
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


@pytest.mark.parametrize("seed", range(3))
def test_lineages_and_parents_equal_a_walk_to_the_root(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng([3, seed])
    rows = random_tracks(rng, frames=10, height=32, width=32, lineages=12)
    for row in rows:
        if rng.random() < 0.2:
            row["y"] = -1.0
    parents = {row["track_id"]: row["parent_track_id"] for row in rows}
    kept = sorted({row["track_id"] for row in rows if row["y"] >= 0})

    def climb(track: int, stop: set[int]) -> int:
        while track not in stop and parents[track] in parents:
            track = parents[track]
        return track

    index = index_of(make_fov(tmp_path, rows))
    assert lineages(index) == {track: f"a/A/1/0/{climb(track, set())}" for track in kept}
    expected = []
    for track in kept:
        parent = parents[track]
        while parent in parents and parent not in kept:
            parent = parents[parent]
        expected.append(kept.index(parent) if parent in kept else -1)
    assert index.tracks["parent_track_index"].to_pylist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_dropping_later_equals_never_having_had_them(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng([4, seed])
    rows = random_tracks(rng, frames=10, height=32, width=32, lineages=12)
    # cells that go are outside the image when dropped at once, and dropped by number otherwise
    gone = {(row["track_id"], row["t"]) for row in rows if rng.random() < 0.4 and (row["track_id"], row["t"]) != (0, 0)}
    config = make_fov(tmp_path, rows)
    index = index_of(config)
    ids = index.observations.select(["track_id", "t"]).to_pylist()
    keep = np.array([(row["track_id"], row["t"]) not in gone for row in ids])
    assert keep.any()
    assert not keep.all()
    later = drop_observations(index, keep, "zero_frame", {"a": config.tau_frames(config.experiments[0])})
    at_once = index_of(
        make_fov(tmp_path, [row | {"y": -1.0} if (row["track_id"], row["t"]) in gone else row for row in rows])
    )
    assert later.observations.to_pylist() == at_once.observations.to_pylist()
    assert later.tracks.to_pydict() == at_once.tracks.to_pydict()
    assert (later.fovs, later.partitions) == (at_once.fovs, at_once.partitions)
    assert later.dropped == {"a": {"zero_frame": int((~keep).sum())}}


def test_dropping_a_whole_fov_renumbers_what_is_left(tmp_path: Path) -> None:
    config = parse_build_config(make_collection(tmp_path))
    index = index_of(config)
    tau = {experiment.name: config.tau_frames(experiment) for experiment in config.experiments}
    keep = index.observations["fov_index"].to_numpy() >= 2
    later = drop_observations(
        drop_observations(index, keep, "zero_frame", tau), np.ones(keep.sum(), bool), "again", tau
    )
    assert later.fovs == index.fovs[2:]
    assert later.partitions == index.partitions[1:]
    assert later.dropped == {"experiment0": {"zero_frame": int((~keep).sum())}}
    rows = later.observations.to_pylist()
    assert [row["observation"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert later.fovs[row["fov_index"]].fov_name == row["fov_name"]
        assert later.partitions[row["partition_index"]] == {key: row[key] for key in ("experiment", "condition")}
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
    # counted from the tables with pandas: cells of which a patch of 192 would move by 49 pixels up, or 48 down, or more
    larger = index_of(parse_build_config(DATA / "experiments.yaml", {"z_range": [0, 1], "yx_patch_size": 192}))
    assert larger.dropped == {"hacat_fucci": {"near_border": 1}, "mda231_qpi": {"near_border": 207}}
    assert len(larger.observations) == 3519 + 809 + 1784
