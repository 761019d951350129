"""The index in files: the same whatever fits into memory and whoever reads the tables; any part of it is a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import etl.run.memory
from dynaclr_wds.errors import BuildError, ConfigError
from etl import indexing, track_rows
from etl.column_files import ColumnFiles
from etl.index import Index
from etl.indexing import build_index, store_index
from etl.source.experiments import BuildConfig, parse_build_config
from etl.source.preflight import open_plates
from etl.source.track_formats import TableFile
from etl.source.tracks import TrackFile
from etl.track_rows import plan_batches
from tests.plates import cells, make_collection, make_fov, random_tracks, table


def index_of(config: BuildConfig) -> Index:
    return build_index(config, open_plates(config))


def assert_equal(one: Index, other: Index) -> None:
    assert one.observations.equals(other.observations)
    assert one.tracks.equals(other.tracks)
    for name in ("fovs", "labels", "partitions", "dropped", "tables", "notes"):
        assert getattr(one, name) == getattr(other, name), name


FOVS = ("A/1/0", "A/1/1", "A/2/0", "B/2/0")


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Two experiments; the tables of the second are Parquet."""
    path = make_collection(tmp_path, fovs=FOVS, yx_patch_size=[16, 16], max_border_shift_px=4)
    for file in sorted((tmp_path / "experiment1/tracks").rglob("*.csv")):
        pa_table = pa.csv.read_csv(file)
        pq.write_table(pa_table, file.with_suffix(".parquet"))
        file.unlink()
    return path


def test_the_index_is_the_same_in_batches_of_any_size(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = index_of(parse_build_config(collection))
    assert len(whole.tables) == 8
    monkeypatch.setattr(indexing, "find_room", lambda limit: limit)
    for limit in ("10K", "60K"):  # a field of view at a time; two or three
        assert_equal(index_of(parse_build_config(collection, {"memory_limit": limit, "workers": 2})), whole)


def test_batches_hold_what_fits_and_at_least_one(tmp_path: Path) -> None:
    experiment = make_fov(tmp_path, []).experiments[0]

    def plan(sizes: list[tuple[int, list[int]]], limit: int) -> list[tuple[range, list[int]]]:
        files = [
            TrackFile(
                file=TableFile(path=Path(str(number)), header=(), columns=(), read=lambda *_: pa.table({}), rows=rows),
                experiment=experiment,
                fovs={f"A/1/{fov}": fov for fov in fovs},
                labels=(),
            )
            for number, (rows, fovs) in enumerate(sizes)
        ]
        batches = plan_batches(files, limit)
        return [(batch.fovs, [int(file.file.path.name) for file in batch.files]) for batch in batches]

    one_each = [(rows, [fov]) for fov, rows in enumerate([300, 300, 300, 5000, 10, 10])]
    found = plan(one_each, 700 * 1024)
    assert found == [(range(0, 2), [0, 1]), (range(2, 3), [2]), (range(3, 4), [3]), (range(4, 6), [4, 5])]
    assert plan(one_each, 1) == [(range(n, n + 1), [n]) for n in range(6)]
    assert plan(one_each, 2**40) == [(range(6), [0, 1, 2, 3, 4, 5])]
    assert plan([(1_500_000, [n]) for n in range(3)], 2**40) == [(range(n, n + 1), [n]) for n in range(3)]
    # a table of two fields of view, between whose the other's lies
    assert plan([(300, [0, 2]), (300, [1]), (300, [3])], 1) == [(range(3), [0, 1]), (range(3, 4), [2])]
    assert plan([], 1) == []


def test_what_does_not_fit_into_memory_waits_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One table that is larger than the memory of DuckDB: the index is the same, and files were needed."""
    rng = np.random.default_rng(0)
    count = 300_000
    rows = {
        "track_id": np.repeat(np.arange(count // 10), 10),
        "t": np.tile(np.arange(10), count // 10),
        **{axis: rng.uniform(0, 32, count) for axis in "yx"},
        "parent_track_id": np.full(count, -1),
        **{name: rng.integers(0, 1 << 60, count) for name in ("id", "parent_id")},
    }
    config = make_fov(tmp_path, cells((0, 0, -1)), "tracks.parquet")
    pq.write_table(pa.table(rows).take(pa.array(rng.permutation(count))), tmp_path / "tracks/A/1/0/tracks.parquet")
    whole = index_of(config)
    spilled: list[int] = []
    run_queries = indexing.run_queries

    def watch(con: duckdb.DuckDBPyConnection, *given: Any) -> Any:
        found = run_queries(con, *given)
        spilled.append(con.execute("SELECT coalesce(sum(size), 0) FROM duckdb_temporary_files()").fetchone()[0])
        return found

    monkeypatch.setattr(indexing, "run_queries", watch)
    monkeypatch.setattr(indexing, "_LEAST_MEMORY", 24 * 2**20)
    small = index_of(make_fov(tmp_path, [], "unused.txt", memory_limit=1))
    assert small.notes == (
        f"{tmp_path / 'tracks/A/1/0/tracks.parquet'}: has about 300,000 rows and is read as a whole, in about 96 MB, "
        "which is more than --memory-limit 1 B leaves for it. Give a table for each field of view, or a larger limit.",
    )
    assert_equal(replace(small, notes=()), whole)
    assert spilled[0] > 0
    assert small.observations["track_id"].to_pylist()[:11] == [*[0] * 10, 1]


def test_the_index_takes_what_the_process_leaves_of_the_limit(
    collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etl.run.memory, "resident_bytes", lambda: 296 << 20)
    settings: list[str] = []
    connect = duckdb.connect

    def watch(*given: Any, **options: Any) -> duckdb.DuckDBPyConnection:
        settings.extend([options["config"]["memory_limit"]] if options else [])
        return connect(*given, **options)

    monkeypatch.setattr(indexing.duckdb, "connect", watch)
    rooms: list[int] = []
    monkeypatch.setattr(
        indexing, "plan_batches", lambda files, room: (rooms.append(room), plan_batches(files, room))[1]
    )
    index_of(parse_build_config(collection, {"memory_limit": "1G"}))
    assert (settings, rooms) == (["300MiB"], [600 << 20])  # an eighth of 1,024 MiB is for allocators


def test_a_limit_that_is_too_small_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_fov(tmp_path, cells((0, 0, -1)))

    def fail(*_: object) -> None:
        raise duckdb.OutOfMemoryException("could not allocate block of size 256.0 KiB")

    monkeypatch.setattr(indexing, "run_queries", fail)
    with pytest.raises(ConfigError, match=r"memory_limit=4,294,967,296 bytes are too few .* Give --memory-limit more"):
        index_of(config)


def test_a_disk_that_is_full_when_the_index_spills_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_fov(tmp_path, cells((0, 0, -1)))

    def fail(*_: object) -> None:
        raise duckdb.IOException('Could not write file "duckdb_temp_storage-0.tmp": No space left on device')

    monkeypatch.setattr(indexing, "run_queries", fail)
    with pytest.raises(BuildError, match=r"-index-.*: what does not fit into memory can't .* No space left .* TMPDIR"):
        index_of(config)


def write_parquet(root: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), root / "tracks/A/1/0/tracks.parquet")


SOUND: dict[str, Any] = {"track_id": [3, 3, 5], "t": [0, 1, 2], "y": [6.0, 7.5, 3.0], "x": [3, 4, 5]}
TYPES = [
    {},
    {"track_id": pa.array([3, 3, 5], pa.float64()), "t": pa.array([0, 1, 2], pa.uint8())},
    {"parent_track_id": [np.nan, np.nan, 3.0], "parent_id": [None, 7, None], "z": [0.5, None, np.nan]},
    {"parent_track_id": pa.array([-1, -1, 3], pa.int16()), "id": pa.array([2**60, 1, 2], pa.int64())},
    {"y": pa.array([6.0, 7.5, 3.0], pa.float32()), "note": ["a", "b", "c"], "__index_level_0__": [0, 1, 2]},
]


@pytest.mark.parametrize("more", TYPES, ids=["plain", "floats", "missing", "integers", "others"])
@pytest.mark.parametrize("unit", ["pixel", "um"])
def test_duckdb_reads_parquet_as_python_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], unit: str
) -> None:
    experiment = {"tracks_unit": unit, "pixel_size_um": (2.0, 0.5, 0.25) if unit == "um" else None}
    config = make_fov(tmp_path, cells((0, 0, -1)), "tracks.parquet", experiment=experiment)
    write_parquet(tmp_path, SOUND | more)
    parsed: list[int] = []
    parse = track_rows.parse_track_file
    monkeypatch.setattr(
        track_rows, "parse_track_file", lambda file: (parsed.extend(file.fovs.values()), parse(file))[1]
    )
    direct = index_of(config)
    assert parsed == []
    monkeypatch.setattr(track_rows, "is_direct", lambda _: False)
    assert_equal(direct, index_of(config))
    assert parsed == [0]


WRONG: list[dict[str, Any]] = [
    {"track_id": [3.5, 3.0, 5.0]},
    {"track_id": [-3, 3, 5]},
    {"track_id": pa.array([None, 3, 5], pa.int64())},
    {"track_id": [2.0**60, 3.0, 5.0]},
    {"t": [0.5, 1.0, 2.0]},
    {"t": [1, 1, 2]},
    {"y": [np.inf, 1.0, 2.0]},
    {"x": pa.array([1.0, None, 2.0], pa.float64())},
    {"id": [0.5, 1.0, 2.0]},
    {"parent_id": [2.0**54, 1.0, 2.0]},
    {"parent_track_id": [np.nan, 0.5, 3.0]},
    {"t": [True, False, True]},
    {"y": ["a", "b", "c"]},
]


@pytest.mark.parametrize("more", WRONG)
def test_what_is_wrong_in_parquet_is_said_as_python_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    config = make_fov(tmp_path, cells((0, 0, -1)), "tracks.parquet")
    write_parquet(tmp_path, SOUND | more)
    errors = []
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"tracks\.parquet: .*(row|type)") as raised:
            index_of(config)
        errors.append(str(raised.value))
        monkeypatch.setattr(track_rows, "is_direct", lambda _: False)
    assert errors[0] == errors[1]


def test_z_in_micrometres_needs_a_size_of_pixels_along_z(tmp_path: Path) -> None:
    flat = {"tracks_unit": "um", "pixel_size_um": (0.5, 0.25)}
    config = make_fov(tmp_path, cells((0, 0, -1)), "tracks.parquet", experiment=flat)
    write_parquet(tmp_path, SOUND | {"z": [0.0, 0.0, 0.0]})
    assert index_of(config).observations["y"].to_pylist() == [12.0, 15.0, 6.0]
    write_parquet(tmp_path, SOUND | {"z": [0.0, 1.5, 0.0]})
    with pytest.raises(ConfigError, match=r"z must be 0 where pixel_size_um has no z .* row 1 \(1\.5\)"):
        index_of(config)


def test_a_part_of_the_index_is_a_slice_of_it(collection: Path, tmp_path: Path) -> None:
    config = parse_build_config(collection)
    stored = store_index(config, open_plates(config), tmp_path / "index")
    whole = stored.take_all()
    rows = whole.observations.to_pandas()
    tracks = whole.tracks.to_pandas()
    counted = ["observation", "fov_index", "experiment_index", "track_index", "lineage_index", "partition_index"]
    for first, stop in ((0, 1), (1, 3), (3, 6), (5, 8), (0, 8)):
        part = stored.take(first, stop)
        assert part.fovs == whole.fovs[first:stop]
        expected = rows[(rows["fov_index"] >= first) & (rows["fov_index"] < stop)]
        found = part.observations.to_pandas()
        for name in rows.columns:
            values = expected[name].to_numpy()
            if name == "partition_index":
                there = np.unique(values)
                assert [part.partitions[n] for n in found[name]] == [whole.partitions[n] for n in values]
                assert len(part.partitions) == len(there)
            elif name in counted:
                assert found[name].tolist() == (values - values.min()).tolist(), name
            else:
                one, other = (frame[name].where(frame[name].notna(), None).tolist() for frame in (found, expected))
                assert [value if value == value else None for value in one] == [
                    value if value == value else None for value in other
                ], name
        own = tracks.iloc[expected["track_index"].min() : expected["track_index"].max() + 1]
        parent = own["parent_track_index"].to_numpy()
        shift = np.where(parent < 0, 0, own["track_index"].min())
        assert part.tracks["parent_track_index"].to_pylist() == (parent - shift).tolist()
        assert part.tracks["lineage_index"].to_pylist() == (own["lineage_index"] - own["lineage_index"].min()).tolist()
        for label in part.labels:
            assert set(label.values) == {value for value in found[label.name].tolist() if isinstance(value, str)}


def test_observations_take_few_bytes(tmp_path: Path) -> None:
    rows = random_tracks(np.random.default_rng(0), frames=10, height=32, width=32, lineages=40)
    config = make_fov(tmp_path, [row for row in rows if row["y"] < 31 and row["x"] < 31])
    stored = store_index(config, open_plates(config), tmp_path / "index")
    size = sum(path.stat().st_size for path in (tmp_path / "index/observations").iterdir())
    # t, y, x, two of the centre of 4 bytes each, and one of flags; no z, no ids where no table has any
    assert size == 21 * stored.observations.rows


def test_a_lineage_that_repeats_a_frame_is_refused_across_batches(tmp_path: Path) -> None:
    config = make_fov(tmp_path, table("track_id t y x", (4, 1, 5, 5), (3, 0, 5, 5), (4, 1, 6, 6), (4, 0, 9, 9)))
    with pytest.raises(ConfigError, match=r"\(track_id, t\) must be in one row only, but is not in line 4 \(\[4 1\]\)"):
        index_of(config)


def test_column_files_return_what_was_appended(tmp_path: Path) -> None:
    files = ColumnFiles(tmp_path, {"a": "<i4", "b": "<f8"})
    for first in (0, 3):
        files.append({"a": np.arange(first, first + 3), "b": np.arange(3) / 2})
    assert files.rows == 6
    assert files.read(1, 5, "a")["a"].tolist() == [1, 2, 3, 4]
    assert files.read(2, 4) == {"a": pytest.approx([2, 3]), "b": pytest.approx([1.0, 0.0])}
    assert files.read(6, 6)["a"].tolist() == []


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ColumnFiles(tmp_path, {"a": "<i4"})

    def full(*_: Any, **__: Any) -> Sequence[Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BuildError, match=r"a\.column: the disk is full"):
        files.append({"a": np.arange(3)})
