"""Cells near the border: their patches move inside, are padded with the nearest pixels, or are left out and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.shardset import ShardSet
from etl.run.progress import summarize_facts
from etl.source.experiments import parse_build_config
from etl.source.patch_grid import PatchGrid
from etl.verify import main as verify
from tests.plates import table, write_experiments
from tests.test_build import array, build, digests, one_cell, one_plate, reference
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
    centres = pq.read_table(out / "index/observations.parquet", columns=["track_id", "y_clamp", "x_clamp"]).to_pylist()
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


def test_shift_is_the_default_and_differs_only_for_cells_near_the_border(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    out = tmp_path / "out"
    shifted = stored(out, build(path, out))
    assert digests(out) == digests(_built(path, tmp_path / "again", border="shift"))
    padded = stored(tmp_path / "pad", build(path, tmp_path / "pad", border="pad"))
    same = {track for track in PLACES if all((shifted[track, t] == padded[track, t]).all() for t in range(3))}
    assert same == {1, 5}


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
    centres = [1.0, 1.9, 2.0, 18.7, 19.0]
    rows = [
        {"row": k, "fov": 0, "track_id": k, "t": 0, "y": y, "x": 10.0, "z": None, "id": -1, "parent_id": -1}
        for k, y in enumerate(centres)
    ]

    def place(rows: list[dict[str, Any]], max_shift: float | None, *, pad: bool) -> list[Any]:
        bounds = PatchGrid(size=4, scale=1.0).centres(20, beyond=pad)
        fovs = table("fov frames height width y_low y_high x_low x_high", (0, 1, 20, 20, *bounds, *bounds))
        return query("placed", {"rows": rows, "fovs": fovs}, max_shift=max_shift)

    shifted = place(rows, 0, pad=False)
    assert [row[-1] for row in shifted] == ["near_border", "near_border", None, None, "near_border"]
    padded = place(rows, None, pad=True)
    assert [(row[9], row[-1]) for row in padded] == [(1, None), (1, None), (2, None), (18, None), (19, None)]
    far = [{**rows[0], "y": 1e12}, {**rows[1], "y": -1e12}]
    assert [row[-1] for row in place(far, None, pad=True)] == ["outside_image", "outside_image"]
