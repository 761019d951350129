"""`memory_limit` bounds a build and changes no byte: what does not fit goes to files, and fewer units run at once."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

import etl.cut.filed_frames
import etl.cut.quantiles
import etl.pack.tars
import etl.run.memory
import etl.unit.build
from benchmarks import stacks
from dynaclr_wds.errors import ConfigError
from etl.cut import counting, moments, statistics
from etl.cut.filed_frames import FiledPixels, read_slabs
from etl.cut.quantiles import find_quantiles
from etl.cut.read_plan import Wanted, least_bytes, plan_reading, whole_bytes
from etl.run.executors import Elsewhere, ThreadUnits, _read_limits
from etl.run.file_room import FileRoom
from etl.run.memory import PROGRAM_BYTES, UnitNeed, find_place, share_memory
from etl.unit.memory import UnitMemory
from tests.plates import write_plate, write_tracks
from tests.test_build import build, digests

pytestmark = pytest.mark.usefixtures("without_fsync")

MIB = 1 << 20
CASES: dict[str, dict[str, Any]] = {
    "float32 with NaN": {"dtype": "float32", "on_nan": "zero", "on_blank": "keep"},
    "int16, 0.4": {"dtype": "int16", "version": "0.4", "shards": None},
    "focus measured": {"dtype": "uint16", "z_focus": {"channel": "a", "window": 3}, "source_channel": ["b"]},
    "largest of the stack": {"dtype": "uint16", "z_reduction": {"default": "mip"}, "codec": "gzip"},
    "rescaled": {"dtype": "float64", "reference_pixel_size_um": [1.5, 0.4, 0.4]},
}


def one_fov(root: Path, dtype: str, options: dict[str, Any]) -> Path:
    """experiments.yaml of a FOV of stacks, with missing chunks and, if it can be, NaN."""
    options = dict(options)
    rng = np.random.default_rng(5)
    pixels = rng.uniform(1, 99, (5, 2, 7, 48, 56)).astype(dtype)
    pixels[2, 1] = 0
    pixels[3, :, :, :20, :24] = 0
    if dtype == "float32":
        pixels[4, 0, 3, 30:34, 30] = np.nan
    write_plate(
        root / "plate.zarr",
        version=options.pop("version", "0.5"),
        pixels={"A/1/0": pixels},
        dtype=dtype,
        channel_names=["a", "b"],
        chunks=(1, 1, 2, 24, 28),
        shards=options.pop("shards", (2, 1, 4, 48, 56)),
        scales={"A/1/0": {"scale": [1, 1, 1.0, 0.3, 0.3], "units": dict.fromkeys("zyx", "micrometer")}},
    )
    rows = [{"track_id": n, "t": t, "y": 12 + 8 * n, "x": 14 + 6 * n} for n in range(4) for t in range(5)]
    write_tracks(root / "tracks", "A/1/0", rows)
    entry = {
        "name": "stacks",
        "data_path": "plate.zarr",
        "tracks_path": "tracks",
        "channel_names": ["a", "b"],
        "source_channel": options.pop("source_channel", ["b", "a"]),
        "condition_wells": {"all": ["A/1"]},
        "interval_minutes": 30.0,
    }
    shards = {"yx_patch_size": [16, 16], "max_border_shift_px": 9999, "block_bytes": 20_000, **options}
    (root / "experiments.yaml").write_text(yaml.safe_dump({"experiments": [entry], "shards": shards}))
    return root / "experiments.yaml"


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_into_memory_ends_in_the_same_bytes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = dict(CASES[case])
    path = one_fov(tmp_path, options.pop("dtype"), options)
    build(path, tmp_path / "ample")
    monkeypatch.setattr(etl.unit.build, "divide_memory", lambda _: UnitMemory(patches=0, frames=1))
    monkeypatch.setattr(etl.pack.tars, "PART_BYTES", 1)
    filed: list[int] = []
    original = FiledPixels.take
    monkeypatch.setattr(FiledPixels, "take", lambda self, *args: (filed.append(1), original(self, *args))[1])
    build(path, tmp_path / "scarce")
    assert len(filed) >= 5
    assert digests(tmp_path / "scarce") == digests(tmp_path / "ample")
    assert not list((tmp_path / "scarce").glob(".build-*"))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_quantiles_are_those_of_numpy_also_of_values_that_are_only_counted(kind: str, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 3, 9000), np.full(3000, -2.5), [0.0, -0.0, 1e30]]).astype(kind)
    quantiles, places = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0], rng.integers(0, values.size, 50)
    expected, found_moments = np.quantile(values.astype(np.float64), quantiles), moments.measure(values)
    for most, compiled in ((1 << 22, True), (0, True), (0, False)):
        monkeypatch.setattr(etl.cut.quantiles, "_MOST_PICKED", most)
        if not compiled:
            monkeypatch.setattr(counting, "load_compiled", lambda: None)
        found, drawn = find_quantiles(lambda: iter(np.array_split(values, 7)), found_moments, quantiles, places)
        np.testing.assert_allclose(found, expected, rtol=1e-14)
        assert drawn.tolist() == values[places].tolist()


def test_a_file_gives_back_what_has_served(tmp_path: Path):
    room = FileRoom(4 * mmap.PAGESIZE, tmp_path)
    room.data[:] = 7
    room.use(mmap.PAGESIZE)
    room.forget()
    room.give_back(mmap.PAGESIZE - 1, 3 * mmap.PAGESIZE + 1)
    pages = room.data.reshape(4, mmap.PAGESIZE)
    assert pages[[0, 3]].min() == 7
    assert pages[1:3].max() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_stack_in_a_file_reads_as_one_in_memory(tmp_path: Path):
    pixels = np.random.default_rng(0).normal(0, 1, (2, 2, 5, 6, 7)).astype("float32")
    filed = FiledPixels(FileRoom(pixels.nbytes, tmp_path), pixels.shape, pixels.dtype)
    filed[:, :, :, :, :] = pixels
    stack, expected = filed.take(1, 2, slice(1, 5))[1], pixels[1, 1, 1:5]
    np.testing.assert_array_equal(np.concatenate(list(read_slabs(stack))), expected)
    np.testing.assert_array_equal(stack[:, 2:4, 3:7], expected[:, 2:4, 3:7])
    np.testing.assert_array_equal(list(stack[1:3]), expected[1:3])
    np.testing.assert_array_equal(stack[0, np.array([1, 5]), np.array([2, 6])], expected[0, [1, 5], [2, 6]])
    assert stack[0, 0, 0] == expected[0, 0, 0]


def test_a_stack_is_read_whole_by_cells_or_into_a_file_as_memory_allows():
    shape, chunks = (9, 2, 100, 2048, 2048), (1, 1, 10, 1024, 1024)
    array = zarr.create_array({}, shape=shape, chunks=chunks, dtype="float32")  # nothing is written
    wanted = Wanted(array=array, channels=(0, 1), z=slice(0, 100))
    stack, chunk = 2 * 100 * 2048 * 2048 * 4, 10 * 1024 * 1024 * 4
    assert wanted.frame_bytes == stack
    assert least_bytes(wanted) == 3 * chunk
    assert stack < whole_bytes(wanted) < stack + 4 * chunk
    ample = plan_reading(wanted, 5 * stack)
    assert (ample.is_filed, ample.frames, ample.step) == (False, 1, (9, 2, 100, 2048, 2048))
    enough = plan_reading(wanted, stack + 13 * chunk)
    assert (enough.is_filed, enough.step) == (False, (1, 1, 10, 2048, 2048))
    scarce = plan_reading(wanted, 7 * chunk)
    assert (scarce.is_filed, scarce.step) == (True, (1, 1, 10, 1024, 2048))


def need(least: int, good: int, *, whole: int = 0, frames: int = 0) -> UnitNeed:
    return UnitNeed(least=least * MIB, good=good * MIB, whole=whole * MIB, frames=frames * MIB, where="experiment e")


def test_memory_is_divided_so_that_units_are_fast_or_at_least_possible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(etl.run.memory, "resident_bytes", lambda: 100 * MIB)

    def share(limit: int, needs: UnitNeed, place: Any = "threads", disk: int = 0) -> tuple[int, int]:
        found = share_memory(limit * MIB, [needs], 8, place, disk_bytes=disk * MIB, where="x.yaml")
        return found.units, found.bytes // MIB

    assert share(10_000, need(50, 1000)) == (8, 1081)
    assert share(5000, need(50, 1000)) == (4, 1068)
    assert share(1000, need(50, 1000)) == (8, 96)
    assert share(500, need(100, 1000)) == (3, 112)
    assert share(1000, need(50, 1000, whole=900, frames=60), disk=200) == (3, 258)
    assert share(1000, need(50, 1000, whole=900, frames=60)) == (1, 775)
    assert share(5000, need(50, 1000), "processes") == (3, 1425 - PROGRAM_BYTES // MIB)
    assert share(5000, need(50, 1000), "elsewhere") == (8, 4375 - PROGRAM_BYTES // MIB)


def test_too_small_a_limit_is_refused_with_the_smallest_that_works(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(etl.run.memory, "resident_bytes", lambda: 100 * MIB)
    with pytest.raises(
        ConfigError,
        match=r"x\.yaml: shards\.memory_limit=209,715,200 bytes are too few for a unit of experiment e: it needs "
        r"104,857,600 for one chunk .* beside 104,857,600 that the program holds\. Give --memory-limit 256M or more",
    ):
        share_memory(200 * MIB, [need(100, 1000)], 8, "threads", disk_bytes=0, where="x.yaml")
    assert share_memory(256 * MIB, [need(100, 1000)], 8, "threads", disk_bytes=0, where="x.yaml").units == 1


def test_units_of_other_machines_have_memory_of_their_own():
    assert find_place(ThreadUnits) == "threads"
    assert find_place(lambda workers, _advance: ThreadUnits(workers, _advance)) == "processes"
    assert find_place(Elsewhere(ThreadUnits)) == "elsewhere"


def test_control_groups_limit_memory(tmp_path: Path):
    (tmp_path / "own").write_text("5:cpu,memory:/slurm/job_7\n0::/user.slice/session\n")
    for name, text in {
        "memory/slurm/job_7/memory.limit_in_bytes": "5000",
        "memory/slurm/memory.limit_in_bytes": "9000",
        "user.slice/session/memory.max": "max",
        "user.slice/memory.max": "7000",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert sorted(_read_limits(tmp_path, tmp_path / "own")) == [5000, 7000, 9000]


@pytest.mark.slow
def test_a_build_stays_within_its_limit_though_plate_frames_and_patches_are_larger(tmp_path: Path):
    plate = stacks.StackPlate(
        dtype="float32", channels=1, frames=3, slices=48, size=1024, chunk=(4, 512, 1024), fovs=1, cells=12, patch=128
    )
    config, limit = stacks.write_plate(tmp_path, plate), 512 * MIB
    assert plate.bytes > limit
    assert plate.frame_bytes == 192 * MIB
    found = stacks.measure(config, tmp_path / "out", limit, workers=2)
    assert found.peak < limit
    assert found.shards > 12 * 3 * 48 * 128**2 * 4


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint32"])
def test_large_stacks_have_the_statistics_of_small_ones(dtype: str, monkeypatch: pytest.MonkeyPatch):
    frame = np.random.default_rng(3).gamma(2, 40, (9, 30, 40)).astype(dtype)
    if dtype != "uint32":
        frame[4, 3, :7] = np.nan
    monkeypatch.setattr(etl.cut.filed_frames, "SLAB_PIXELS", 2 * 30 * 40)
    monkeypatch.setattr(etl.cut.quantiles, "_MOST_PICKED", 0)
    small, of_small = statistics.summarize_frame(frame, (2, 1))
    monkeypatch.setattr(statistics, "WHOLE_PIXELS", 0)
    large, of_large = statistics.summarize_frame(frame, (2, 1))
    np.testing.assert_allclose(large, small, rtol=1e-13)
    assert isinstance(of_small, statistics.Moments)
    assert isinstance(of_large, statistics.Moments)
    assert of_large.moments == of_small.moments
    assert of_large.samples[0].tolist() == of_small.samples[0].tolist()
