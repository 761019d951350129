"""Laws of the build: same input same bytes, whole or not there, pixels read once and kept as they are."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
import webdataset as wds
import yaml
import zarr.codecs
from zarr.codecs._v2 import V2Codec

import etl.run.output
import etl.run.stages
import etl.unit.build
from dynaclr_wds.contract import STATISTICS, Manifest
from dynaclr_wds.errors import BuildError, ConfigError, PlateError
from dynaclr_wds.manifest_checks import parse_manifest
from etl.build_shards import build_shards, main
from etl.cut.read_plan import Wanted, plan_run, plan_runs
from etl.run.executors import Interrupted, report, run_units
from etl.run.output import OutFolder
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from etl.source.stored_chunks import ChunkFile
from etl.unit.memory import UnitMemory
from tests.plates import make_collection, write_experiments, write_plate, write_tracks
from tests.set_files import digests, find_index, load_array

pytestmark = pytest.mark.usefixtures("without_fsync")

SMALL = {"shard_bytes": 60_000, "block_bytes": 10_000}


def build(path: Path, out: Path, **options: Any) -> Manifest:
    return build_shards(parse_build_config(path, options), out)


def array(out: Path, name: str) -> np.ndarray:
    return load_array(out, name)


def read_webdataset(urls: list[str]) -> list[dict[str, Any]]:
    """Read all samples as anyone would."""
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()  # webdataset leaves its files to the collector; see `leaves_files_open`
    return samples


leaves_files_open = pytest.mark.filterwarnings("ignore::ResourceWarning")


def one_cell(t: int, y: float = 16, x: float = 16, track: int = 1) -> dict[str, Any]:
    return {"track_id": track, "t": t, "y": y, "x": x, "parent_track_id": -1}


def one_plate(root: Path, pixels: np.ndarray, rows: list[dict[str, Any]] | None = None, **plate: Any) -> Path:
    """One FOV of 32 x 32 with one cell in the middle of every frame."""
    frames, channels = pixels.shape[:2]
    names = [f"ch{c}" for c in range(channels)]
    write_plate(
        root / "plate.zarr", pixels={"A/1/0": pixels}, dtype=pixels.dtype.name, shape=pixels.shape,
        channel_names=names, **plate,
    )  # fmt: skip
    write_tracks(root / "tracks", "A/1/0", rows or [one_cell(t) for t in range(frames)])
    entry = {
        "name": "one", "data_path": "plate.zarr", "tracks_path": "tracks", "channel_names": names,
        "source_channel": names, "condition_wells": {"all": ["A/1"]},
        "interval_minutes": 30.0,
    }  # fmt: skip
    return write_experiments(root / "experiments.yaml", [entry], yx_patch_size=[8, 8], tau_range_hours=[0.5, 1.0])


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_collection(tmp_path_factory.mktemp("collection"), **SMALL)


@pytest.fixture(scope="module")
def built(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("built") / "shards"
    return out, build(collection, out, workers=2)


def test_two_builds_give_the_same_bytes(collection: Path, built: tuple[Path, Manifest], tmp_path: Path):
    elsewhere = tmp_path / "moved"
    shutil.copytree(collection.parent, elsewhere)
    build(elsewhere / "experiments.yaml", tmp_path / "out", workers=1)
    assert digests(tmp_path / "out") == digests(built[0])
    assert not [path for path in built[0].iterdir() if path.name.startswith(".")]


def test_another_seed_gives_another_order_of_the_same_patches(
    collection: Path, built: tuple[Path, Manifest], tmp_path: Path
):
    build(collection, tmp_path / "out", seed=1)
    a, b = array(built[0], "patch_obs"), array(tmp_path / "out", "patch_obs")
    assert Counter(a.tolist()) == Counter(b.tolist())
    assert a.tolist() != b.tolist()


def read_plate(root: Path, experiment: dict[str, Any], fov: str) -> np.ndarray:
    """Pixels by tensorstore, channels as stored: a library that the reader does not use."""
    path = root / experiment["data_path"] / fov / "0"
    driver = "zarr3" if (path / "zarr.json").exists() else "zarr"
    data = ts.open({"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}).result().read().result()
    return data[:, [experiment["channel_names"].index(name) for name in experiment["source_channel"]]]


def test_patches_equal_slices_of_the_plate(collection: Path, built: tuple[Path, Manifest]):
    out, manifest = built
    experiments = {e["name"]: e for e in yaml.safe_load(collection.read_text())["experiments"]}
    assert {tuple(e["channel_names"]) for e in experiments.values()} == {("Phase", "GFP"), ("GFP", "Phase")}
    assert {e.source_channel for e in manifest.experiments} == {("Phase", "GFP")}
    observations = pq.read_table(find_index(out) / "observations.parquet").to_pylist()
    patches = pq.read_table(find_index(out) / "patches.parquet").to_pylist()
    plates: dict[tuple[str, str], np.ndarray] = {}
    for patch in patches:
        seen = observations[patch["observation"]]
        name = seen["experiment"], seen["fov_name"]
        if name not in plates:
            plates[name] = read_plate(collection.parent, experiments[name[0]], name[1])
        y, x = seen["y_clamp"] - 8, seen["x_clamp"] - 8
        expected = plates[name][seen["t"], :, :, y : y + 16, x : x + 16]
        with (out / patch["shard"]).open("rb") as file:  # plain open and seek: what FORMAT.md promises
            file.seek(patch["offset"])
            stored = np.frombuffer(file.read(patch["bytes"]), "<u2").reshape(2, 1, 16, 16)
        np.testing.assert_array_equal(stored, expected)
    assert {patch["observation"] for patch in patches} == set(range(len(observations)))


@leaves_files_open
def test_plain_webdataset_reads_every_sample(built: tuple[Path, Manifest]):
    out, manifest = built
    urls = [str(out / shard.path) for shard in manifest.shards]
    samples = read_webdataset(urls)
    assert len(samples) == sum(shard.clips for shard in manifest.shards) == len(array(out, "clip_lineage"))
    first = array(out, "clip_first")
    for number, sample in enumerate(samples):
        record = sample["json"]
        assert record["key"] == sample["__key__"]
        assert len(record["patches"]) == first[number + 1] - first[number]
        for patch in record["patches"]:
            assert sample[patch["file"]].shape == (2, 1, 16, 16)
            assert sample[patch["file"]].dtype == np.uint16
            assert patch["is_sample"] or not patch["candidates"]
            for candidate in patch["candidates"]:
                tau = record["patches"][candidate]["t"] - patch["t"]
                assert 1 <= tau <= 2


def test_the_manifest_counts_what_is_there(built: tuple[Path, Manifest]):
    out, manifest = built
    observations = pq.read_table(find_index(out) / "observations.parquet").to_pylist()
    for row, partition in enumerate(manifest.partitions):
        mine = [o for o in observations if {n: o[n] for n in manifest.shard_by} == partition.labels]
        shards = [shard for shard in manifest.shards if shard.partition == row]
        assert partition.observations == len(mine)
        assert partition.with_candidate == sum(o["has_candidate"] for o in mine)
        assert partition.lineages == len({o["lineage_id"] for o in mine})
        assert partition.shards == len(shards)
        assert partition.bytes == sum(shard.bytes for shard in shards)
    assert sum(s.shards for s in manifest.partitions) == len(manifest.shards) > len(manifest.partitions)
    assert max(shard.bytes for shard in manifest.shards if shard.clips > 1) <= SMALL["shard_bytes"]


CHUNKINGS: dict[str, dict[str, Any]] = {
    "one frame": {"chunks": (1, 1, 1, 16, 16)},
    "several frames and channels": {"chunks": (3, 2, 2, 32, 16)},
    "all frames": {"chunks": (10, 1, 1, 32, 32)},
    "sharded": {"chunks": (1, 1, 1, 16, 16), "shards": (4, 3, 2, 32, 32)},
    "sharded, chunks of two frames": {"chunks": (2, 2, 1, 32, 32), "shards": (4, 4, 2, 32, 32)},
    "0.4": {"chunks": (4, 3, 1, 16, 16), "version": "0.4"},
}


@pytest.mark.parametrize("memory", [1 << 30, 1])
@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_each_chunk_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunking: str, memory: int):
    plate = CHUNKINGS[chunking]
    path = one_plate(tmp_path, np.random.default_rng(0).integers(1, 99, (7, 3, 2, 32, 32)).astype("u2"), **plate)
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["source_channel"] = ["ch2", "ch0"]
    path.write_text(yaml.safe_dump(document))
    decoded: list[str] = []
    decode_v2, decode_v3 = V2Codec._decode_single, zarr.codecs.ZstdCodec._decode_sync
    decode_stored = ChunkFile.decode

    async def count_v2(self: Any, *args: Any) -> Any:
        decoded.append("0.4")
        return await decode_v2(self, *args)

    def count_v3(self: Any, *args: Any) -> Any:
        decoded.append("0.5")
        return decode_v3(self, *args)

    def count_stored(self: Any, *args: Any) -> Any:
        decoded.append(plate.get("version", "0.5"))
        return decode_stored(self, *args)

    monkeypatch.setattr(ChunkFile, "decode", count_stored)
    monkeypatch.setattr(V2Codec, "_decode_single", count_v2)
    monkeypatch.setattr(zarr.codecs.ZstdCodec, "_decode_sync", count_v3)
    monkeypatch.setattr(etl.unit.build, "divide_memory", lambda _: UnitMemory(patches=memory, frames=memory))
    build(path, tmp_path / "out")
    t, c, z, y, x = plate["chunks"]
    channel_chunks = len({channel // c for channel in (2, 0)})
    expected = -(-7 // t) * channel_chunks * -(-2 // z) * (32 // y) * (32 // x)
    assert decoded == [plate.get("version", "0.5")] * expected


def test_runs_of_frames_share_no_chunk(tmp_path: Path):
    shape = (11, 1, 1, 16, 16)
    write_plate(tmp_path / "p", shape=shape, channel_names=["a"], chunks=(2, 1, 1, 16, 16), shards=(6, 1, 1, 16, 16))
    opened = zarr.open_array(tmp_path / "p", path="A/1/0/0", mode="r")
    wanted = Wanted(array=opened, channels=(0,), z=slice(0, 1))
    assert list(plan_runs(range(11), plan_run(wanted, 1 << 30))) == [(0, 6), (6, 11)]
    five = 5 * 512  # bytes of five frames: runs are of whole chunks, and none straddles a shard
    assert list(plan_runs(range(11), plan_run(wanted, five))) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]


def reference(values: np.ndarray) -> list[float]:
    """Statistics by numpy, in the contract's order."""
    values = values[np.isfinite(values)].astype(np.float64)
    p1, p25, median, p75, p99 = np.percentile(values, [1, 25, 50, 75, 99])
    return [values.mean(), values.std(), median, p75 - p25, p1, p99, values.min(), values.max()]


def test_statistics_equal_numpy_at_every_level(collection: Path, built: tuple[Path, Manifest]):
    out, manifest = built
    assert STATISTICS == ("mean", "std", "median", "iqr", "p1", "p99", "min", "max")
    experiments = {e["name"]: e for e in yaml.safe_load(collection.read_text())["experiments"]}
    first = array(out, "fov_first_frame")
    seen: dict[str, list[np.ndarray]] = {}
    for row, fov in enumerate(manifest.fovs):
        pixels = read_plate(collection.parent, experiments[fov.experiment], fov.fov_name)
        seen.setdefault(fov.experiment, []).append(pixels)
        for c in range(2):
            np.testing.assert_allclose(array(out, "stats_fov")[row, c], reference(pixels[:, c]), rtol=1e-6)
            for t in range(fov.frames):
                got = array(out, "stats_timepoint")[first[row] + t, c]
                np.testing.assert_allclose(got, reference(pixels[t, c]), rtol=1e-6)
    for row, experiment in enumerate(manifest.experiments):
        pixels = np.concatenate(seen[experiment.name])
        for c in range(2):
            np.testing.assert_allclose(array(out, "stats_dataset")[row, c], reference(pixels[:, c]), rtol=1e-6)
    table = pq.read_table(find_index(out) / "stats.parquet").to_pylist()
    assert len(table) == 2 * (sum(fov.frames for fov in manifest.fovs) + len(manifest.fovs) + len(manifest.experiments))
    row = next(r for r in table if r["level"] == "fov" and r["channel"] == "GFP")
    pixels = read_plate(collection.parent, experiments[row["experiment"]], row["fov_name"])
    assert row["t"] is None
    np.testing.assert_allclose([row[name] for name in STATISTICS], reference(pixels[:, 1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float16", "float32", "float64"])
def test_statistics_of_any_dtype_leave_nan_out(tmp_path: Path, dtype: str):
    pixels = np.random.default_rng(1).normal(5, 30, (6, 1, 2, 32, 32)).clip(-120, 120).astype(dtype)
    if pixels.dtype.kind == "f":
        pixels[1, 0, 0, :3] = np.nan
        pixels[2, 0, 1, 0, 0] = np.inf
    manifest = build(one_plate(tmp_path, pixels), tmp_path / "out")
    assert manifest.experiments[0].dtype == pixels.dtype.newbyteorder("<").str
    for t in range(6):
        got = array(tmp_path / "out", "stats_timepoint")[t, 0]
        np.testing.assert_allclose(got, reference(pixels[t]), rtol=1e-5)
    got, expected = array(tmp_path / "out", "stats_fov")[0, 0], reference(pixels)
    np.testing.assert_allclose(got[[0, 1, 6, 7]], [expected[k] for k in (0, 1, 6, 7)], rtol=1e-5)
    np.testing.assert_allclose(got[2:6], expected[2:6], atol=6 if dtype != "int8" and dtype != "int16" else 1e-5)


def test_statistics_of_the_plate_take_the_place_of_computed_ones(tmp_path: Path):
    pixels = np.random.default_rng(2).integers(1, 99, (4, 1, 1, 32, 32)).astype("u2")
    attributes = {
        "": {"ch0": {"dataset_statistics": {"mean": 1000.0, "iqr": 3.0}}},
        "A/1/0": {
            "ch0": {
                "fov_statistics": {"mean": 100.0, "std": 2.0, "p5": 7.0},
                "timepoint_statistics": {"2": {"median": 50.0}},
            }
        },
    }
    build(one_plate(tmp_path, pixels, normalization=attributes), tmp_path / "out")
    fov, dataset = array(tmp_path / "out", "stats_fov")[0, 0], array(tmp_path / "out", "stats_dataset")[0, 0]
    timepoint = array(tmp_path / "out", "stats_timepoint")[:, 0]
    expected = reference(pixels)
    np.testing.assert_allclose(fov, [100, 2, *expected[2:]], rtol=1e-6)
    np.testing.assert_allclose(dataset, [1000, expected[1], expected[2], 3, *expected[4:]], rtol=1e-6)
    assert timepoint[2, 2] == 50
    assert timepoint[1, 2] == np.median(pixels[1])


def test_a_statistic_that_is_no_number_is_an_error(tmp_path: Path):
    attributes = {"A/1/0": {"ch0": {"fov_statistics": {"mean": "high"}}}}
    path = one_plate(tmp_path, np.ones((3, 1, 1, 32, 32), "u2"), normalization=attributes)
    with pytest.raises(PlateError, match=r"normalization.ch0.fov_statistics.mean='high' must be a number"):
        build(path, tmp_path / "out")


@leaves_files_open
def test_dtype_converts_what_is_stored(tmp_path: Path):
    pixels = np.random.default_rng(4).integers(1, 2000, (3, 1, 1, 32, 32)).astype("u2")
    path = one_plate(tmp_path, pixels)
    for name, code in {"float16": "<f2", "float32": "<f4"}.items():
        manifest = build(path, tmp_path / name, dtype=name)
        assert manifest.experiments[0].dtype == code
        sample = read_webdataset([str(tmp_path / name / manifest.shards[0].path)])[0]
        np.testing.assert_array_equal(sample["000.npy"], pixels[0, :, :, 12:20, 12:20].astype(name))


def test_values_that_float16_cannot_hold_are_an_error(tmp_path: Path):
    pixels = np.full((3, 1, 1, 32, 32), 65_535, "u2")
    with pytest.raises(ConfigError, match=r"shards.dtype='float16' can't hold .*A/1/0, t=0: values up to .*65535"):
        build(one_plate(tmp_path, pixels), tmp_path / "out", dtype="float16")


def test_a_chunk_that_does_not_decode_names_the_fov(tmp_path: Path):
    path = one_plate(tmp_path, np.ones((3, 1, 1, 32, 32), "u2"))
    (tmp_path / "plate.zarr/A/1/0/0/c/1/0/0/0/0").write_bytes(b"rotten")
    with pytest.raises(PlateError, match=r"A/1/0: frame 1 can't be read"):
        build(path, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("after", [0, 5, 14, 45])
def test_a_build_killed_anywhere_ends_with_the_same_bytes(
    collection: Path, built: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    out, replace, calls = tmp_path / "out", Path.replace, 0

    def dying(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            build(collection, out, workers=2)
    assert not (out / "manifest.json").exists()
    build(collection, out, workers=1)
    assert digests(out) == digests(built[0])


def test_finished_groups_are_kept_by_the_next_run(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    each_fov = {"group_bytes": 1}
    expected = build(collection, tmp_path / "whole", **each_fov)
    out, written, write = tmp_path / "out", [], etl.unit.build.write_part

    def dying(folder: Path, path: str, part: Any) -> Any:
        if len(written) == 4:
            raise Killed  # the shards of this group are there, what says so is not
        written.append((folder, path, part.shards))
        return write(folder, path, part)

    with monkeypatch.context() as patch:
        patch.setattr(etl.unit.build, "write_part", dying)
        with pytest.raises(Killed):
            build(collection, out, workers=1, **each_fov)
    work = next(out.glob(".build-*"))
    assert len(list(work.rglob("*.npz"))) == 4
    shards = [[folder / shard.path for shard in records] for folder, _, records in written]
    inodes = [[path.stat().st_ino for path in paths] for paths in shards]
    damaged = shards[0][0].read_bytes()
    shards[0][0].write_bytes(b"x" * len(damaged))  # damaged meanwhile: its group is built again
    part = written[1][0] / written[1][1]
    part.write_bytes(part.read_bytes()[:-100])  # so is one of unknown content
    cut: list[str] = []
    cut_fov = etl.unit.build.cut_fov

    def watched(job: Any, stored: Any) -> Any:
        cut.append(job.fov.name)
        return cut_fov(job, stored)

    monkeypatch.setattr(etl.unit.build, "cut_fov", watched)
    build(collection, out, workers=1, **each_fov)
    assert len(cut) == 4  # two that are damaged, two that had not ended
    found = [[(out / path.relative_to(work / "staged")).stat().st_ino for path in paths] for paths in shards]
    assert [one == other for one, other in zip(found, inodes, strict=True)] == [False, False, True, True]
    assert digests(out) == digests(tmp_path / "whole")
    assert len(expected.shards) == sum(map(len, shards)) + sum(
        shard.path not in {s.path for _, _, records in written for s in records} for shard in expected.shards
    )


def test_shard_is_absent_when_writer_raises(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = etl.run.output.HashingFile.write

    def failing(self: Any, data: bytes) -> int:
        if self.bytes > 2_000:  # less than any tar
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(etl.run.output.HashingFile, "write", failing)
    with pytest.raises(BuildError, match=r"\.tar: the disk is full .* run the same command again"):
        build(collection, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tar"))
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not (tmp_path / "out/manifest.json").exists()


def test_too_little_space_is_said_before_any_work(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BuildError, match=r"needs about [\d,]+ bytes, but 1,000 are free"):
        build(collection, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_build_that_fails_in_its_checks_leaves_no_folder(tmp_path: Path):
    path = one_plate(tmp_path / "few", np.ones((3, 1, 1, 32, 32), np.uint8), [one_cell(0)])  # no cell has a positive
    there = tmp_path / "there"
    there.mkdir()
    for out in (tmp_path / "new" / "shards", there / "shards", there):
        with pytest.raises(ConfigError, match="no cell has a positive"):
            build(path, out)
    assert not (tmp_path / "new").exists()
    assert [entry.name for entry in there.iterdir() if not entry.name.startswith(".")] == []  # it was there before
    path.write_text(path.read_text().replace("data_path: ", "data_path: no_"))
    with pytest.raises(ConfigError, match=r"has no plate"):
        build(path, tmp_path / "new" / "shards")
    assert not (tmp_path / "new").exists()


def test_a_build_that_waited_for_one_that_failed_makes_the_folder_anew(tmp_path: Path):
    out, told = tmp_path / "out", threading.Event()

    def wait() -> bool:
        with OutFolder(out, "b" * 16).locked(told.set):
            return out.is_dir()

    def fail(pool: ThreadPoolExecutor, waiting: list[Any]) -> None:
        with OutFolder(out, "a" * 16).locked(lambda: None):
            waiting.append(pool.submit(wait))
            assert told.wait(10)
            raise ConfigError("bad")

    waiting: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ConfigError, match="bad"):
            fail(pool, waiting)
        assert waiting[0].result(10)
    assert out.is_dir()


def test_a_whole_set_is_up_to_date(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert main([str(collection), "--out", str(out)]) == 0
    first = capsys.readouterr()
    assert "build: 48/48 frames" in first.err
    assert "control" in first.out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main([str(collection), "--out", str(out), "--workers", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == ""  # the table was printed when it was built
    assert re.fullmatch(
        rf"{re.escape(str(out))}: up to date, nothing to do: 2 experiments, [\d,]+ cells, \d+ shards, [\d.]+ kB\. "
        rf"\(`dynaclr-wds verify {re.escape(str(out))}` reads the files, too\.\)\n",
        said.err,
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    shard = next(out.rglob("*.tar"))
    expected = digests(out)
    shard.write_bytes(shard.read_bytes()[:-1])  # damaged: built again
    assert main([str(collection), "--out", str(out), "--quiet"]) == 0
    assert digests(out) == expected
    assert capsys.readouterr() == ("", "")


def test_shards_are_not_mixed_with_files_of_others(tmp_path: Path) -> None:
    path = make_collection(tmp_path, experiments=1)
    out = tmp_path / "results"
    out.mkdir()
    (out / "figure.png").write_bytes(b"figure")
    (out / ".gitkeep").touch()
    with pytest.raises(BuildError, match=r"holds other files \(figure\.png\), but no manifest\.json.*--overwrite"):
        build_shards(parse_build_config(path), out)
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == ["figure.png"]
    build_shards(parse_build_config(path), out, overwrite=True)
    assert (out / "figure.png").read_bytes() == b"figure"


def test_another_config_needs_replace(collection: Path, built: tuple[Path, Manifest], tmp_path: Path):
    out = tmp_path / "out"
    build(collection, out, yx_patch_size=[8, 8], shard_bytes=30_000)
    many = set(digests(out))
    with pytest.raises(BuildError, match=r"holds shards of another config: .*, asked for .*\. Give --replace"):
        build(collection, out)
    build_shards(parse_build_config(collection, {}), out, replace=True)
    assert digests(out) == digests(built[0])
    assert many != set(digests(out))


def test_overwrite_builds_anew_what_is_up_to_date(collection: Path, built: tuple[Path, Manifest], tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    before = {path.stat().st_ino for path in out.rglob("*.tar")}
    build_shards(parse_build_config(collection, {}), out, overwrite=True)
    assert not before & {path.stat().st_ino for path in out.rglob("*.tar")}
    assert digests(out) == digests(built[0])


def test_a_foreign_manifest_needs_replace(collection: Path, built: tuple[Path, Manifest], tmp_path: Path):
    for foreign in (b"{}", b"\xff\xfe"):
        (tmp_path / "manifest.json").write_bytes(foreign)
        with pytest.raises(BuildError, match=r"(is not the manifest of|is not JSON) .* Give --replace"):
            build(collection, tmp_path)
    build_shards(parse_build_config(collection, {}), tmp_path, replace=True)
    assert digests(tmp_path) == digests(built[0])


def test_unfinished_work_of_another_config_is_discarded(
    collection: Path, built: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(etl.run.stages, "write_index", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            build(collection, out, yx_patch_size=[8, 8], shard_bytes=30_000)
    assert list(out.rglob("*.tar"))
    theirs = out / ".build-of-somebody"
    theirs.mkdir()
    (theirs / "precious").touch()
    build(collection, out)
    assert (theirs / "precious").exists()
    shutil.rmtree(theirs)
    assert digests(out) == digests(built[0])


def test_a_foreign_work_folder_is_left_alone(collection: Path, tmp_path: Path):
    work = tmp_path / f".build-{parse_build_config(collection, {}).token[:12]}"
    work.mkdir()
    (work / "precious").touch()
    with pytest.raises(BuildError, match=r"was not made by a build. Move it away"):
        build(collection, tmp_path)
    assert (work / "precious").exists()


def test_bad_input_exits_with_2_and_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "absent.yaml"), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "absent.yaml: no such file" in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_bad_tracks_leave_a_set_that_is_there_alone(collection: Path, tmp_path: Path):
    root = tmp_path / "collection"
    shutil.copytree(collection.parent, root)
    out = tmp_path / "out"
    build(root / "experiments.yaml", out)
    before = digests(out)
    shutil.rmtree(root / "experiment1/tracks")
    with pytest.raises(ConfigError, match="tracks"):
        build_shards(parse_build_config(root / "experiments.yaml", {"seed": 5}), out, replace=True)
    assert digests(out) == before


def test_options_have_the_names_of_the_yaml(collection: Path, tmp_path: Path):
    options = ["--yx-patch-size", "8", "12", "--tau_range_hours", "0.5", "0.5", "--include_wells", "A/1", "--quiet"]
    more = ["--exclude-fovs", "A/1/1", "--dtype", "float32", "--clip_anchors", "3", "--seed", "4"]
    assert main([str(collection), "--out", str(tmp_path / "out"), *options, *more]) == 0
    manifest = parse_manifest((tmp_path / "out/manifest.json").read_text())
    assert {e.shape for e in manifest.experiments} == {(2, 1, 8, 12)}
    assert {fov.fov_name for fov in manifest.fovs} == {"A/1/0"}
    assert manifest.config["clip_anchors"] == 3
    assert manifest.config["seed"] == 4
    assert [e.tau_frames for e in manifest.experiments] == [(1, 1), (1, 1)]


def test_ctrl_c_says_how_to_go_on(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etl.run.stages, "write_index", stop)
        assert main([str(collection), "--out", str(tmp_path / "out"), "--quiet"]) == 130
    assert "Give the same command again to go on" in capsys.readouterr().err


def test_other_fovs_stop_when_one_fails(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def failing(job: Any, *_: Any) -> Any:
        if job.fov.where.endswith("experiment0/plate.zarr/A/1/0"):
            raise Killed
        try:
            for _ in range(1000):
                time.sleep(0.01)
                report(0)
        except Interrupted:
            seen.append(job.fov.name)
            raise

    monkeypatch.setattr(etl.unit.build, "cut_fov", failing)
    with pytest.raises(Killed):
        build(collection, tmp_path / "out", workers=2, group_bytes=1)
    assert 1 <= len(seen) <= 2  # the thread that failed may have taken one more job before the others were called off
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_processes_run_the_same_units_to_the_same_bytes(collection: Path, built: tuple[Path, Manifest], tmp_path: Path):
    def spawn(workers: int, _: Any) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    config = parse_build_config(collection, {"workers": 1})
    build_shards(config, tmp_path / "out", make_executor=spawn)
    assert digests(tmp_path / "out") == digests(built[0])


def test_the_error_of_a_unit_is_told_by_an_executor_that_can_only_wait():
    class WaitOnly(ThreadPoolExecutor):  # as that of Dask
        def shutdown(self, wait: bool = True) -> None:
            super().shutdown(wait)

    begun: list[int] = []

    def unit(job: int) -> None:
        begun.append(job)
        time.sleep(0.02)
        raise PlateError(f"unit {job}")

    with pytest.raises(PlateError, match="unit 0"), WaitOnly(1) as pool:
        run_units(pool, unit, range(100), 2)
    assert begun in ([0], [0, 1])  # the rest of those that were submitted are dropped


def test_a_second_build_waits_for_the_first(collection: Path, built: tuple[Path, Manifest], tmp_path: Path):
    out, told, waits = tmp_path / "out", [], threading.Event()

    class Telling(Progress):
        def say(self, text: str) -> None:
            told.append(text)
            waits.set()

    config = parse_build_config(collection, {})
    second = threading.Thread(target=build_shards, args=(config, out), kwargs={"progress": Telling()})
    with OutFolder(out, config.token).locked(lambda: None):
        second.start()
        assert waits.wait(30)
        assert told == [f"{out}: another build is running there; waiting for it to end."]
    second.join(60)
    assert digests(out) == digests(built[0])


def test_ctrl_c_during_imports_is_one_line(tmp_path: Path):
    (tmp_path / "duckdb.py").write_text("raise KeyboardInterrupt")
    (tmp_path / "experiments.yaml").write_text("experiments: []")
    (tmp_path / "yaml.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "etl.build_shards", "experiments.yaml"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopped. Give the same command again to go on.\n"


def test_a_disk_that_fails_is_named_with_the_file(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(etl.run.output.HashingFile, "write", failing)
    with pytest.raises(BuildError, match=r"-000000\.tar: Input/output error \(errno 5\). The disk failed"):
        build(collection, tmp_path / "out")


def test_reading_the_command_line_loads_no_torch():
    code = "import sys, etl.build_shards; print(sorted({'torch', 'webdataset'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_a_config_that_is_wrong_is_not_told_as_another_config(collection: Path, tmp_path: Path):
    """What the YAML names is looked for before a finished set is said to be of another config."""
    home = shutil.copytree(collection.parent, tmp_path / "home")
    yaml_path, out = home / collection.name, tmp_path / "out"
    build_shards(parse_build_config(yaml_path), out)
    before, good = digests(out), yaml_path.read_text()
    wrong = {
        "tracks_path": ("trakcs", r"experiments\[0\]\.tracks_path='.*trakcs' is no folder"),
        "data_path": ("plaet.zarr", r"experiments\[0\]\.data_path='.*plaet\.zarr' has no plate"),
        "condition_wells": ({"control": ["A/9"]}, r"experiments\[0\]\.condition_wells\.control='A/9' is not a well of"),
    }
    for key, (value, said) in wrong.items():
        document = yaml.safe_load(good)
        document["experiments"][0][key] = value
        yaml_path.write_text(yaml.safe_dump(document))
        with pytest.raises(ConfigError, match=said):
            build_shards(parse_build_config(yaml_path), out)
    yaml_path.write_text(good)
    with pytest.raises(BuildError, match=r"seed=0, asked for 5\. Give --replace"):
        build_shards(parse_build_config(yaml_path, {"seed": 5}), out)
    assert digests(out) == before


def test_a_build_says_what_to_run_next_with_the_paths_of_the_user(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["dynaclr-wds"])
    monkeypatch.chdir(tmp_path)

    def build(out: str) -> list[str]:
        assert main([str(collection), "--out", out, "--overwrite"]) == 0
        return capsys.readouterr().out.splitlines()[-3:]

    assert build("shards") == [
        "shards: built. Next:",
        f"  dynaclr-wds init {collection}",
        "  dynaclr-wds verify shards",
    ]
    assert build("my shards")[1] == f"  dynaclr-wds init {collection} --shards 'my shards'"
    command = [str(collection), "--out", "other", "--dtype", "float32", "--z_range", "0", "1", "--workers", "1"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Other commands don't know the options given here. Write them below `shards:` in the YAML: `z_range: [0, 1]`, "
        "`dtype: float32`."
    )
    Path("configs").mkdir()
    Path("configs/fit.yaml").write_text("data: {shards: shards}\n")
    assert build("shards")[1] == "  dynaclr-wds fit -c configs/fit.yaml"
    assert build("my shards")[1] == "  dynaclr-wds fit -c configs/fit.yaml --data.shards 'my shards'"
