"""Cells near the border: their patches move inside, are padded with the nearest pixels, or are left out and counted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.shardset import ShardSet
from etl.run.progress import summarize_dropped, summarize_facts
from etl.source.config import BuildConfig
from etl.source.experiments import parse_build_config
from etl.source.patch_grid import PatchGrid
from etl.verify import main as verify
from tests.plates import table, write_experiments
from tests.set_files import digests, find_index
from tests.test_build import array, build, one_cell, one_plate, reference
from tests.test_sql import query

pytestmark = pytest.mark.usefixtures("without_fsync")

# image 32 x 32, patch 8 x 8: in the middle, in a corner, at the lower edge, a pixel too near the left edge, just inside
PLACES = {1: (16.0, 16.0), 2: (0.4, 31.9), 3: (31.0, 16.0), 4: (16.0, 3.9), 5: (28.9, 4.0)}


def plate(root: Path, dtype: str = "u2") -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(4).integers(1, 999, (3, 2, 2, 32, 32)).astype(dtype)
    rows = [one_cell(t, *place, track) for track, place in PLACES.items() for t in range(3)]
    return one_plate(root, pixels, rows), pixels


def stored(out: Path, manifest: Manifest) -> dict[tuple[int, int], np.ndarray]:
    """(track, frame) → patch, at the offsets of the index."""
    shape, dtype = manifest.experiments[0].shape, manifest.experiments[0].dtype
    data = (out / manifest.shards[0].path).read_bytes()
    track = array(out, "obs_track_id")[array(out, "patch_obs")]
    rows = zip(track.tolist(), array(out, "patch_t").tolist(), array(out, "patch_offset").tolist(), strict=True)
    return {(k, t): np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape) for k, t, at in rows}


def nearest(frame: np.ndarray, y: int, x: int, size: tuple[int, int]) -> np.ndarray:
    """A patch of the nearest pixels, one index at a time."""
    rows = [min(max(y - size[0] // 2 + k, 0), frame.shape[2] - 1) for k in range(size[0])]
    columns = [min(max(x - size[1] // 2 + k, 0), frame.shape[3] - 1) for k in range(size[1])]
    return frame[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("size", [(8, 8), (5, 8), (40, 12), (97, 70)])
def test_a_padded_patch_has_the_cell_in_the_middle_and_the_nearest_pixels_beyond(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path, pixels = plate(tmp_path)
    out = tmp_path / "out"
    manifest = build(path, out, border="pad", yx_patch_size=size)
    patches = stored(out, manifest)
    assert len(patches) == 15
    for (track, t), patch in patches.items():
        y, x = (int(place) for place in PLACES[track])
        np.testing.assert_array_equal(patch, nearest(pixels[t], y, x, size))
        np.testing.assert_array_equal(patch[:, :, size[0] // 2, size[1] // 2], pixels[t, :, :, y, x])
    # no padded pixel enters the statistics
    for c in range(2):
        np.testing.assert_allclose(array(out, "stats_dataset")[0, c], reference(pixels[:, c]), rtol=1e-6)
    centres = pq.read_table(
        find_index(out) / "observations.parquet", columns=["track_id", "y_clamp", "x_clamp"]
    ).to_pylist()
    assert {tuple(row.values()) for row in centres} == {(k, int(y), int(x)) for k, (y, x) in PLACES.items()}
    assert verify([str(out)]) == 0
    assert ShardSet.open(out).manifest.experiments[0].shape == (2, 2, *size)


def test_padded_patches_are_counted(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    manifest = build(path, tmp_path / "out", border="pad")
    assert manifest.dropped == {}
    assert (manifest.facts[0].padded_patches, manifest.facts[0].moved_patches) == (9, 0)  # three tracks, three frames
    assert "9 patches near the border filled with the nearest pixels" in summarize_facts(manifest)[0]


def test_dropped_cells_are_those_whose_patch_is_not_in_the_image(tmp_path: Path) -> None:
    path, pixels = plate(tmp_path)
    out = tmp_path / "out"
    manifest = build(path, out, border="drop")
    assert manifest.dropped == {"one": {"near_border": 9}}
    patches = stored(out, manifest)
    assert {track for track, _ in patches} == {1, 5}
    for (track, t), patch in patches.items():
        y, x = (int(place) for place in PLACES[track])
        np.testing.assert_array_equal(patch, pixels[t, :, :, y - 4 : y + 4, x - 4 : x + 4])


def test_shift_by_a_quarter_is_the_default_and_differs_only_for_cells_near_the_border(tmp_path: Path) -> None:
    """Centres lie between 4 and 28: cell 2 is 4 and 3 pixels off, cell 3 three, cell 4 one."""
    path, _ = plate(tmp_path)
    out = tmp_path / "out"
    manifest = build(path, out)
    shifted = stored(out, manifest)
    assert {track for track, _ in shifted} == {1, 4, 5}
    assert manifest.dropped == {"one": {"near_border": 6}}
    assert manifest.config["max_border_shift_px"] == [2.0, 1.0]
    assert digests(out) == digests(_built(path, tmp_path / "again", border="shift"))
    padded = stored(tmp_path / "pad", build(path, tmp_path / "pad", border="pad"))
    assert {track for track, t in shifted if (shifted[track, t] == padded[track, t]).all()} == {1, 5}


def test_a_large_limit_keeps_every_cell(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    manifest = build(path, tmp_path / "out", max_border_shift_px=9999)
    assert {track for track, _ in stored(tmp_path / "out", manifest)} == {1, 2, 3, 4, 5}
    assert (manifest.dropped, manifest.facts[0].moved_patches) == ({}, 9)
    three = build(path, tmp_path / "three", max_border_shift_px=3)
    assert {track for track, _ in stored(tmp_path / "three", three)} == {1, 3, 4, 5}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {},
            "6 cells so near the border that their patch would have to move by more than 2 pixels down or "
            "right, or 1 up or left (near_border); "
            "a smaller --yx_patch_size keeps more of them, --border pad or a larger --max_border_shift_px all",
        ),
        (
            {"border": "drop"},
            "9 cells so near the border that their patch would reach beyond the image (near_border). "
            "--border shift or pad keeps them",
        ),
    ],
)
def test_the_summary_says_how_many_cells_near_the_border_are_left_out_and_how_to_keep_them(
    tmp_path: Path, options: dict[str, str], said: str
) -> None:
    path, _ = plate(tmp_path)
    assert summarize_dropped(build(path, tmp_path / "out", **options)) == [f"dropped from one: {said}"]


@given(
    size=st.integers(4, 40),
    length=st.integers(40, 90),
    scale=st.sampled_from([1.0, 0.5, 1 / 3, 1.5, 2.0]),
    more=st.integers(0, 40),
)
@settings(max_examples=25, deadline=None)
def test_a_cell_that_is_kept_lies_inside_every_centre_crop_of_at_least_half_its_patch(
    size: int, length: int, scale: float, more: int
) -> None:
    """Pixel k of the plate is `(k - centre) / scale` stored pixels from the middle, which is pixel n // 2 of n."""
    grid = PatchGrid(size=size, scale=scale)
    low, high = grid.centres(length, beyond=False)
    assume(low <= high)
    config = BuildConfig(experiments=(), yx_patch_size=(size, size))
    limits = [grid.image_pixels(most) for most in config.border_shifts_px]
    kept = {y: centre for y, centre, reason in _place(range(length), (low, high), limits) if reason is None}
    assert set(range(low, high + 1)) <= set(kept)  # who need not move
    crop = min((size + 1) // 2 + more, size)
    for y, centre in kept.items():
        assert 0 <= math.floor(crop // 2 + (y - centre) / scale + 0.5) < crop
    # who is left out is a quarter away, to within a stored pixel, or outside the smallest such crop
    half = (size + 1) // 2
    for y in set(range(length)) - set(kept):
        outside = math.floor(half // 2 + (y - high) / scale + 0.5) >= half
        assert max(low - y, y - high) > (size // 4 - 1) * scale or outside


def _place(
    centres: Iterable[float], bounds: tuple[float, float], limits: Iterable[float], length: int = 90
) -> list[tuple[float, int, str | None]]:
    """Position, centre of the patch and reason, of cells along y."""
    rows = [
        {"row": k, "fov": 0, "track_id": k, "t": 0, "y": y, "x": 10.0, "z": None, "id": -1, "parent_id": -1}
        for k, y in enumerate(map(float, centres))
    ]
    names = "fov frames height width y_low y_high x_low x_high y_forth y_back x_forth x_back"
    fovs = table(names, (0, 1, length, 20, *bounds, 10, 10, *limits, 0.0, 0.0))
    return [(row[4], row[9], row[-1]) for row in query("placed", {"rows": rows, "fovs": fovs})]


def _built(path: Path, out: Path, **options: Any) -> Path:
    build(path, out, **options)
    return out


def test_one_worker_or_two_and_a_rebuild_give_the_same_padded_bytes(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    one, two = (_built(path, tmp_path / f"{workers}", border="pad", workers=workers) for workers in (1, 2))
    assert digests(one) == digests(two)
    next(one.rglob("*.tar")).unlink()
    assert digests(_built(path, one, border="pad")) == digests(two)


def test_a_padded_patch_is_blank_where_the_image_is(tmp_path: Path) -> None:
    path, pixels = plate(tmp_path / "other")
    pixels[1, 0, :, :5, 27:] = 0  # the part of cell 2's patch that lies in the image; in frame 2 but one pixel of it
    pixels[2, 0, :, :5, 27:] = 0
    pixels[2, 0, 1, 0, 31] = 7
    rows = [one_cell(t, *place, track) for track, place in PLACES.items() for t in range(3)]
    path = one_plate(tmp_path, pixels, rows)
    out = tmp_path / "out"
    assert build(path, out, border="pad").dropped == {"one": {"blank_channel": 1}}
    kept = zip(array(out, "obs_track_id").tolist(), array(out, "obs_t").tolist(), strict=True)
    assert [t for track, t in kept if track == 2] == [0, 2]


def test_nan_in_a_padded_patch_is_counted_once(tmp_path: Path) -> None:
    _, pixels = plate(tmp_path / "other")
    pixels = pixels.astype("f4")
    pixels[1, 1, 0, 0, 31] = np.nan  # the corner: a quarter of cell 2's patch repeats it
    path = one_plate(tmp_path, pixels, [one_cell(t, 0.4, 31.9, 2) for t in range(3)])
    with pytest.raises(ValueError, match=r"frame 1, channel 'ch1': 1 pixels of a cell's patch are NaN"):
        build(path, tmp_path / "out", border="pad")
    manifest = build(path, tmp_path / "out", border="pad", on_nan="zero")
    patch = stored(tmp_path / "out", manifest)[2, 1][1, 0]
    assert (patch == 0).sum() == 5 * 4  # the corner, and what repeats it: rows above, columns to the right
    assert np.isfinite(patch).all()


def test_a_patch_larger_than_the_image_says_what_to_do(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    for border in ("shift", "drop"):
        with pytest.raises(
            ConfigError,
            match=r"yx_patch_size=\[40, 32\] is larger than the image of \S*A/1/0, which is \[32, 32\]\. Lower it to "
            r"\[32, 32\] at most, or pad patches \(--border pad\)",
        ):
            build(path, tmp_path / "out", yx_patch_size=[40, 32], border=border)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"border": "reflect"}, r"border='reflect' must be one of \['shift', 'pad', 'drop'\]"),
        (
            {"border": "pad", "max_border_shift_px": 4.0},
            r"max_border_shift_px=4\.0 must be left out with border='pad': it limits how far a patch is shifted",
        ),
        ({"border": "drop", "max_border_shift_px": 0.0}, r"must be left out with border='drop'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    entry = {
        **{"name": "a", "data_path": "p", "tracks_path": "t", "channel_names": ["c"], "source_channel": ["c"]},
        "condition_wells": {"mock": ["A/1"]},
    }
    with pytest.raises(ConfigError, match=match):
        parse_build_config(write_experiments(tmp_path / "experiments.yaml", [entry], **options))


def test_a_shift_is_counted_in_whole_pixels() -> None:
    """Image 20 x 20, patch 4 x 4: centres 2 to 18. At 18.7 the patch is where it is at 18: nothing has moved."""
    grid, centres = PatchGrid(size=4, scale=1.0), [1.0, 1.9, 2.0, 18.7, 19.0]
    shifted = _place(centres, grid.centres(20, beyond=False), (0.0, 0.0), 20)
    assert [reason for *_, reason in shifted] == ["near_border", "near_border", None, None, "near_border"]
    padded = _place(centres, grid.centres(20, beyond=True), (0.0, 0.0), 20)
    assert [place[1:] for place in padded] == [(1, None), (1, None), (2, None), (18, None), (19, None)]
    far = _place([1e12, -1e12], grid.centres(20, beyond=True), (0.0, 0.0), 20)
    assert [reason for *_, reason in far] == ["outside_image", "outside_image"]
