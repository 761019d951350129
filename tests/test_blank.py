"""Nothing silent in the pixels: blank channels and numbers that are none are dropped, kept or refused, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import ConfigError, PlateError
from etl.cut.faults import BlankValues, is_blank
from etl.run.progress import summarize_dropped
from tests.set_files import find_index
from tests.test_build import array, build, one_plate, reference

pytestmark = pytest.mark.usefixtures("without_fsync")


def noise(frames: int, channels: int = 2, dtype: str = "u2") -> np.ndarray:
    return np.random.default_rng(3).integers(1, 99, (frames, channels, 1, 32, 32)).astype(dtype)


def stored_patches(out: Path, manifest: Manifest) -> dict[int, np.ndarray]:
    """Frame → patch, read at the offsets of the index; for one cell in one shard."""
    experiment = manifest.experiments[0]
    data = (out / manifest.shards[0].path).read_bytes()
    rows = zip(array(out, "patch_t").tolist(), array(out, "patch_offset").tolist(), strict=True)
    count = int(np.prod(experiment.shape))
    return {t: np.frombuffer(data, experiment.dtype, count, at).reshape(experiment.shape) for t, at in rows}


def test_frames_that_are_blank_go_with_their_observations_and_are_counted(tmp_path: Path):
    pixels = noise(8)
    pixels[2] = 0
    pixels[6:] = 0
    out = tmp_path / "out"
    manifest = build(one_plate(tmp_path, pixels), out)
    assert manifest.dropped["one"] == {"blank_channel": 3}
    assert array(out, "obs_t").tolist() == [0, 1, 3, 4, 5]
    observations = pq.read_table(find_index(out) / "observations.parquet").to_pylist()
    # two frames ahead at most: t=1 still reaches t=3; t=5 has lost its candidates
    assert [o["has_candidate"] for o in observations] == [True, True, True, True, False]
    nothing = np.isnan(array(out, "stats_timepoint")).all(axis=(1, 2))
    assert nothing.tolist() == [False, False, True, False, False, False, True, True]
    for t, patch in stored_patches(out, manifest).items():
        np.testing.assert_array_equal(patch, pixels[t, :, :, 12:20, 12:20])


def test_a_frame_that_is_blank_in_one_channel_is_left_out_of_that_channels_statistics(tmp_path: Path):
    pixels = noise(8)
    pixels[3, 0] = 0
    out = tmp_path / "out"
    assert build(one_plate(tmp_path, pixels), out).dropped["one"] == {"blank_channel": 1}
    whole = [0, 1, 2, 4, 5, 6, 7]
    for level in ("stats_fov", "stats_dataset"):
        np.testing.assert_allclose(array(out, level)[0, 0], reference(pixels[whole, 0]), rtol=1e-6)
        np.testing.assert_allclose(array(out, level)[0, 1], reference(pixels[:, 1]), rtol=1e-6)
    timepoint = array(out, "stats_timepoint")
    assert np.isnan(timepoint[3, 0]).all()
    np.testing.assert_allclose(timepoint[3, 1], reference(pixels[3, 1]), rtol=1e-6)


def test_a_chunk_that_was_never_written_is_blank(tmp_path: Path):
    """The missing chunk covers a quarter of the frame: the cell inside it goes, its neighbour stays."""
    rows: list[dict[str, Any]] = [
        {"track_id": k, "t": t, "y": y, "x": y, "parent_track_id": -1} for k, y in ((1, 6), (2, 24)) for t in range(4)
    ]
    path = one_plate(tmp_path, noise(4), rows, chunks=(1, 1, 1, 16, 16))
    (tmp_path / "plate.zarr/A/1/0/0/c/2/1/0/0/0").unlink()
    out = tmp_path / "out"
    assert build(path, out).dropped["one"] == {"blank_channel": 1}
    pairs = zip(array(out, "obs_track_id").tolist(), array(out, "obs_t").tolist(), strict=True)
    assert list(pairs) == [(1, 0), (1, 1), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_kept_blanks_are_counted_and_take_the_statistics_of_their_fov(tmp_path: Path):
    pixels = noise(5)
    pixels[1, 1] = 0
    out = tmp_path / "out"
    manifest = build(one_plate(tmp_path, pixels), out, on_blank="keep")
    assert manifest.dropped["one"] == {"blank_channel_kept": 1}
    assert array(out, "obs_t").tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(stored_patches(out, manifest)[1][1], 0)
    np.testing.assert_array_equal(array(out, "stats_timepoint")[1, 1], array(out, "stats_fov")[0, 1])
    assert np.isfinite(array(out, "stats_timepoint")).all()
    assert summarize_dropped(manifest) == [
        "kept in one: 1 cell whose patch has a channel that is entirely fill value (blank_channel_kept)"
    ]


def test_a_channel_without_any_pixel_takes_zero_and_one(tmp_path: Path):
    pixels = noise(3)
    pixels[:, 0] = 0
    out = tmp_path / "out"
    build(one_plate(tmp_path, pixels), out, on_blank="keep")
    # mean std median iqr p1 p99 min max
    assert array(out, "stats_dataset")[0, 0].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    assert array(out, "stats_timepoint")[2, 0].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]


def test_a_plate_of_zeros_is_an_error(tmp_path: Path):
    path = one_plate(tmp_path, np.zeros((3, 1, 1, 32, 32), "u2"))
    with pytest.raises(ConfigError, match="no observation is left: all 3 are dropped as 'blank_channel'"):
        build(path, tmp_path / "out")


def broken(tmp_path: Path) -> Path:
    """A plate whose frame 1 has NaN and infinity in the second channel, in the cell's patch and beside it."""
    pixels = noise(4, dtype="f4")
    pixels[1, 1, 0, 15, 14:17] = np.nan
    pixels[1, 1, 0, 16, 16] = np.inf
    pixels[1, 1, 0, 0, 0] = np.nan
    pixels[2, 0, 0, :4] = np.nan  # outside every patch
    return one_plate(tmp_path, pixels)


def test_pixels_that_are_no_number_are_an_error_that_names_them(tmp_path: Path):
    expected = (
        r"A/1/0: frame 1, channel 'ch1': 4 pixels of a cell's patch are NaN or infinite \(5 of the frame's\).*"
        r"--on_nan drop"
    )
    with pytest.raises(PlateError, match=expected):
        build(broken(tmp_path), tmp_path / "out")


def test_pixels_that_are_no_number_can_be_dropped(tmp_path: Path):
    manifest = build(broken(tmp_path), tmp_path / "out", on_nan="drop")
    assert manifest.dropped["one"] == {"nan_pixels": 1}
    assert array(tmp_path / "out", "obs_t").tolist() == [0, 2, 3]


def test_pixels_that_are_no_number_can_be_zero(tmp_path: Path):
    out = tmp_path / "out"
    manifest = build(broken(tmp_path), out, on_nan="zero")
    assert manifest.dropped["one"] == {"nan_pixels": 1}
    assert summarize_dropped(manifest)[0].startswith("kept in one: 1 cell whose patch had NaN")
    patch = stored_patches(out, manifest)[1][1, 0]
    assert patch[3].tolist()[2:5] == [0, 0, 0]
    assert patch[4, 4] == 0
    assert (patch != 0).sum() == 64 - 4


def test_blank_is_fill_value_or_zero():
    zero, nan = BlankValues(numbers=(0, 7), nan=False), BlankValues(numbers=(0,), nan=True)
    assert is_blank(np.zeros((1, 2, 2)), zero)
    assert is_blank(np.full((1, 2, 2), 7), zero)
    assert not is_blank(np.array([[[0.0, 7.0]]]), zero)
    assert not is_blank(np.full((1, 2, 2), np.nan), zero)
    assert is_blank(np.full((1, 2, 2), np.nan), nan)
    assert not is_blank(np.array([[[np.nan, 1.0]]]), nan)
