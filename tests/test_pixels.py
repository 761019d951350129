"""Passes over pixels give the same with and without a compiler, and what plain numpy gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from etl.cut import counting, moments, patches, statistics
from etl.cut.compiled import load_compiled
from etl.cut.faults import BlankValues
from etl.cut.job import CutJob, ReadingRoom
from etl.cut.patches import PatchMaker
from etl.cut.reading import Frame
from etl.source.plates import Fov
from etl.source.stored import Stack, StoredPatch


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        for module in (counting, moments, patches):
            monkeypatch.setattr(module, "load_compiled", lambda: None)
    elif shutil.which("cc") is not None:
        assert load_compiled() is not None
    return bool(request.param)


@pytest.mark.usefixtures("compiled")
def test_counts_equal_numpy():
    rng = np.random.default_rng(0)
    for size in (1, 7, 200_003):
        for dtype, values in ((np.uint8, 256), (np.uint16, 1 << 16)):
            drawn = rng.integers(0, values, size).astype(dtype)
            counts, least = counting.count_values(drawn)
            assert [0] * least + counts.tolist() == np.bincount(drawn).tolist()
    for dtype in ("<u2", ">u2"):
        counts, least = counting.count_values(np.array([65535, 65530, 65535], dtype))
        assert (counts.tolist(), least) == ([1, 0, 0, 0, 0, 2], 65530)
    assert counting.count_values(np.empty(0, np.uint8))[0].size == 0


@pytest.mark.parametrize("dtype", ["i1", "<i2", ">i2"])
@pytest.mark.usefixtures("compiled")
def test_counts_of_signed_integers_begin_at_the_lowest(dtype: str):
    frame = np.array([[[-128, 127, 0, 0, -1]]], dtype)
    found, summary = statistics.summarize_frame(frame, (0, 0))
    assert found[[2, 6, 7]].tolist() == [0.0, -128.0, 127.0]
    assert isinstance(summary, statistics.Counts)
    assert (np.flatnonzero(summary.counts) + summary.lowest).tolist() == [-128, -1, 0, 127]
    more = statistics.summarize_frame(np.array([[[5, 5]]], dtype), (1, 0))[1]
    assert more.merged(summary).statistics().tolist() == summary.merged(more).statistics().tolist()  # type: ignore[arg-type]
    assert more.merged(summary).statistics()[[2, 6, 7]].tolist() == [0.0, -128.0, 127.0]  # type: ignore[arg-type]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e30])
def test_order_statistics_equal_sorting(spread: float):
    rng = np.random.default_rng(1)
    for size in (1, 7, 63, 64, 70_001):
        floats = rng.normal(0.2, spread, size).astype(np.float32)
        floats[rng.random(size) < 0.3] = 0.25  # many alike
        found = moments.measure_finite(floats[None])
        ranks = np.array([0, size // 3, size // 2, size - 1])
        ends = None if found is None else found[1]
        assert counting.find_order_statistics(floats, ranks, ends).tolist() == np.sort(floats)[ranks].tolist()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 127, 128, 129, 1000, 65_535, 65_536, 200_003])
def test_compiled_moments_are_those_of_numpy_to_the_last_bit(size: int):
    if load_compiled() is None:
        assert shutil.which("cc") is None, "there is a compiler"
        return
    plane = np.random.default_rng(size).normal(3, 5, (1, size)).astype(np.float32)
    found = moments.measure_finite(plane)
    assert found is not None
    assert found[0] == moments.measure(plane.ravel())


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.usefixtures("compiled")
def test_pixels_that_are_no_number_are_left_out(bad: float):
    frame = np.arange(100_000, dtype=np.float32).reshape(2, 1, 50_000)
    frame[1, 0, 49_999] = bad
    found, summary = statistics.summarize_frame(frame, (3, 1))
    assert summary.pixels == 99_999
    assert found[[0, 2, 6, 7]].tolist() == [49_999.0, 49_999.0, 0.0, 99_998.0]


def make_job(image: np.ndarray[Any, Any], y: list[int], x: list[int], size: tuple[int, int]) -> CutJob:
    """A job that cuts patches out of one image of (C, Z, Y, X)."""
    fov = Fov(plate_path="plate", name="A/1/0")
    array = zarr.create_array({}, data=image[None])
    fov.__dict__["array"] = array
    names = tuple("abc"[: len(image)])
    patch = StoredPatch(
        shape=(*image.shape[:2], *size), dtype=image.dtype, scale=(1.0, 1.0, 1.0), reductions=("none",) * len(image)
    )
    return CutJob(
        fov=fov,
        channel_names=names,
        channels=tuple(range(len(image))),
        patch=patch,
        stack=Stack(size=image.shape[1], scale=1.0, ends=(0, image.shape[1]), middle=0.0),
        t=np.zeros(len(y), np.int64),
        y=np.array(y),
        x=np.array(x),
        on_blank="drop",
        on_nan="error",
        room=ReadingRoom(memory_bytes=1 << 30, folder=Path()),
    )


def make_frame(image: np.ndarray[Any, Any]) -> Frame:
    return Frame(t=0, pixels=image, focus=float("nan"), start=0.0, offset=0.0)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<f4", "<f8"])
@pytest.mark.usefixtures("compiled")
def test_patches_hold_the_image_around_a_cell_and_beyond_the_edge_the_nearest_pixel(dtype: str):
    image = np.random.default_rng(2).integers(0, 200, (2, 3, 20, 31)).astype(dtype)
    y, x, size = [10, 0, 19, 3, 10], [15, 0, 30, 29, 4], (8, 11)
    stored = np.zeros((5, 2, 3, *size), dtype)
    rows = np.array([0, 1, 2, 4])
    for pixels in (image, image[:, :, :, ::-1][:, :, :, ::-1], np.asfortranarray(image)):
        stored[:] = 0
        PatchMaker(make_job(image, y, x, size)).copy(list(pixels), make_frame(image), rows, stored)
        for row in rows.tolist():
            lines = np.clip(np.arange(y[row] - 4, y[row] + 4), 0, 19)
            columns = np.clip(np.arange(x[row] - 5, x[row] + 6), 0, 30)
            np.testing.assert_array_equal(stored[row], image[:, :, lines[:, None], columns])
        assert not stored[3].any(), "only what was asked for is written"


def test_patches_whose_first_pixel_is_blank_are_looked_at():
    image = np.full((1, 1, 20, 20), 5, np.uint16)
    image[0, 0, 6, 6], image[0, 0, 0, 0] = 0, 7
    maker = PatchMaker(make_job(image, [10, 10, 2], [10, 12, 2], (8, 8)))
    values = BlankValues(numbers=(0, 7), nan=False)
    assert maker.find_suspects(list(image), np.arange(3), values, [False]).tolist() == [True, False, True]
    assert maker.find_suspects(list(image), np.arange(3), values, [True]).tolist() == [True, True, True]
