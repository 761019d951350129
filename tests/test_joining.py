"""Laws of the join: numbers of one group follow those of the last, and bytes don't depend on where groups end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.pack.index_tables
import etl.pack.joining
import etl.run.stages
from dynaclr_wds.contract import OBSERVATIONS, PATCHES, Manifest
from dynaclr_wds.shardset import ShardSet
from etl.layout.groups import Group
from etl.pack.index_tables import writing_table
from etl.unit.part import Part
from tests.plates import cells, write_experiments, write_plate, write_tracks
from tests.set_files import find_array, find_index
from tests.test_build import array, build, digests

pytestmark = pytest.mark.usefixtures("without_fsync")

TRACKS = {
    "A/1/0": cells((4, 0, -1), (4, 1, -1), (9, 2, 4)),
    "A/2/0": cells((1, 0, -1), (1, 1, -1)),
    "B/1/0": cells((7, 1, -1), (3, 0, -1), (7, 2, -1)),
}
"""FOV → cells; a group each. All pixels of A/2/0 are blank."""


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("joining")
    noise = np.random.default_rng(0).integers(1, 99, (3, 1, 1, 32, 32)).astype("uint16")
    pixels = {fov: noise * (fov != "A/2/0") for fov in TRACKS}
    write_plate(root / "plate.zarr", fovs=tuple(TRACKS), pixels=pixels, shape=noise.shape, channel_names=["Phase"])
    for fov, rows in TRACKS.items():
        write_tracks(root / "tracks", fov, rows)
    entry = {
        "name": "one", "data_path": "plate.zarr", "tracks_path": "tracks", "channel_names": ["Phase"],
        "source_channel": ["Phase"], "condition_wells": {"virus": ["A/1"], "gone": ["A/2"], "mock": ["B/1"]},
        "interval_minutes": 30.0,
    }  # fmt: skip
    options = {"yx_patch_size": [8, 8], "tau_range_hours": [0.5, 1.0], "group_bytes": 1}
    return write_experiments(root / "experiments.yaml", [entry], **options)


@pytest.fixture(scope="module")
def built(plate: Path) -> tuple[Path, Manifest]:
    return plate.parent / "shards", build(plate, plate.parent / "shards")


def test_numbers_of_a_group_follow_those_of_the_groups_before_it(built: tuple[Path, Manifest]):
    out, _ = built
    expected = {
        "obs_fov": [0, 0, 0, 1, 1, 1],
        "obs_track": [0, 0, 1, 2, 3, 3],
        "obs_track_id": [4, 4, 9, 3, 7, 7],
        "obs_lineage": [0, 0, 0, 1, 2, 2],
        "obs_t": [0, 1, 2, 0, 1, 2],
        "fov_first_frame": [0, 3, 6],
        "clip_first": [0, 3, *array(out, "clip_first")[2:].tolist()],
        "patch_obs": [0, 1, 2, *array(out, "patch_obs")[3:].tolist()],
        "block_first": [0, 1, 3],
        "block_shard": [0, 1],
        "clip_block": [0, 1, 1],
        "obs_patch": np.argsort(array(out, "patch_obs")).tolist(),  # each is stored once
    }
    assert {name: array(out, name).tolist() for name in expected} == expected
    assert sorted(array(out, "patch_obs")[3:].tolist()) == [3, 4, 5]
    assert sorted(array(out, "clip_lineage")[1:].tolist()) == [1, 2]


def test_values_of_which_the_pixels_leave_nothing_are_not_numbered(built: tuple[Path, Manifest]):
    out, manifest = built
    assert {record.name: record.values for record in manifest.labels} == {
        "experiment": ("one",), "condition": ("virus", "mock"), "well": ("A/1", "B/1"),
    }  # fmt: skip
    assert [fov.fov_name for fov in manifest.fovs] == ["A/1/0", "B/1/0"]
    assert array(out, "label_well").tolist() == [0, 0, 0, 1, 1, 1]
    assert array(out, "label_condition").tolist() == [0, 0, 0, 1, 1, 1]
    assert [(p.labels["condition"], p.observations) for p in manifest.partitions] == [("virus", 3), ("mock", 3)]
    assert [shard.partition for shard in manifest.shards] == [0, 1]
    assert manifest.dropped == {"one": {"blank_channel": 2}}


def test_tables_say_what_the_arrays_say(built: tuple[Path, Manifest]):
    out, manifest = built
    observations = pq.read_table(find_index(out) / OBSERVATIONS)
    assert observations["observation"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert observations["track_index"].to_pylist() == [0, 0, 1, 2, 3, 3]
    assert observations["lineage_index"].to_pylist() == [0, 0, 0, 1, 2, 2]
    assert observations["lineage_id"].to_pylist() == ["one/A/1/0/4"] * 3 + ["one/B/1/0/3"] + ["one/B/1/0/7"] * 2
    assert observations["condition"].to_pylist() == ["virus"] * 3 + ["mock"] * 3
    assert ShardSet.open(out).lineage_ids == ("one/A/1/0/4", "one/B/1/0/3", "one/B/1/0/7")
    patches = pq.read_table(find_index(out) / PATCHES).to_pydict()
    assert patches["observation"] == array(out, "patch_obs").tolist()
    assert patches["shard"] == [manifest.shards[n].path for n in (0, 0, 0, 1, 1, 1)]
    assert patches["block"] == [0, 0, 0, 1, 1, 1]
    assert patches["offset"] == array(out, "patch_offset").tolist()


def test_rows_of_at_most_two_groups_are_read_at_a_time(plate: Path, monkeypatch: pytest.MonkeyPatch):
    held = most = 0
    read_rows, read_part = etl.run.stages.read_rows, etl.run.stages.Build._read_part

    def reading(self: etl.run.stages.Build, group: Group, *, rows: bool) -> Part:
        nonlocal held, most
        held += rows
        most = max(most, held)
        return read_part(self, group, rows=rows)

    def releasing(*arguments: object) -> object:
        nonlocal held
        held = 0
        for group in read_rows(*arguments):  # type: ignore[arg-type]
            yield group
            held -= 1

    monkeypatch.setattr(etl.run.stages.Build, "_read_part", reading)
    monkeypatch.setattr(etl.run.stages, "read_rows", releasing)
    build(plate, plate.parent / "again", on_blank="keep")
    assert 1 <= most <= 2


def make_rows() -> pa.Table:
    return pa.table(
        {
            "name": pa.array([f"cell {n // 2}" for n in range(10)]).dictionary_encode(),
            "label": pa.array(["b", None, "a", "b", "b", "a", "a", "a", None, "b"]).dictionary_encode(),
            "number": pa.array(range(10), pa.int32()),
        }
    )


@pytest.mark.parametrize("sizes", [[10], [3, 3, 4], [5, 5], [1] * 10, [9, 1]])
def test_bytes_of_a_table_do_not_depend_on_its_pieces(
    sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(etl.pack.index_tables, "_AT_A_TIME", 4)
    rows, first = make_rows(), 0
    pq.write_table(rows, tmp_path / "plain.parquet", row_group_size=4, compression="zstd")
    with writing_table(tmp_path / "pieces.parquet") as table:
        for size in sizes:
            table.append(size, partial(rows.slice, first, size))
            first += size
    with writing_table(tmp_path / "whole.parquet") as table:
        table.append(10, lambda: rows)
    assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    found, plain = (pq.ParquetFile(tmp_path / f"{name}.parquet") for name in ("pieces", "plain"))
    assert found.schema == plain.schema
    for number, names in enumerate((["cell 0", "cell 1"], ["cell 2", "cell 3"], ["cell 4"])):
        group = found.read_row_group(number)
        assert group["name"].combine_chunks().dictionary.to_pylist() == names
        assert group.to_pydict() == plain.read_row_group(number).to_pydict()


def test_a_table_is_absent_when_its_rows_can_not_be_made(tmp_path: Path):
    def fail() -> pa.Table:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"), writing_table(tmp_path / "rows.parquet") as table:  # noqa: PT012
        table.append(10, make_rows)
        table.append(10, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_keeps_all_its_groups_joins_them_to_the_same_bytes(plate: Path, built: tuple[Path, Manifest]):
    before = digests(built[0])
    find_array(built[0], "obs_track").unlink()
    (find_index(built[0]) / OBSERVATIONS).unlink()
    build(plate, built[0])
    assert digests(built[0]) == before
