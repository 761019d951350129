"""Laws of `reference_pixel_size_um`: cells have one size in every experiment, and stand where they stood in a patch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from dynaclr_wds.errors import BuildError, ConfigError
from etl.build_shards import main
from etl.cut.resample import resample
from etl.source.experiments import parse_build_config
from etl.source.patch_grid import PatchGrid
from etl.verify import main as verify
from tests.plates import write_experiments, write_plate, write_tracks
from tests.set_files import digests, find_index
from tests.test_border import stored
from tests.test_build import array, build, one_cell, one_plate, reference

pytestmark = pytest.mark.usefixtures("without_fsync")

PLACES = {1: (16.0, 16.0), 2: (0.4, 31.9), 3: (20.7, 12.2)}


def plate(root: Path, dtype: str = "u2", depth: int = 2) -> tuple[Path, np.ndarray]:
    """One FOV of 32 x 32 pixels of 0.2 µm along y and 0.3 µm along x, slices of 0.5 µm."""
    pixels = np.random.default_rng(4).integers(1, 999, (3, 2, depth, 32, 32)).astype(dtype)
    rows = [one_cell(t, *place, track) for track, place in PLACES.items() for t in range(3)]
    path = one_plate(root, pixels, rows)
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["pixel_size_um"] = [0.5, 0.2, 0.3]
    path.write_text(yaml.safe_dump(document))
    return path, pixels


def resampled(image: np.ndarray, size: int, centre: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """A patch of a plane: the whole plane is smoothed, and read off at the place of each stored pixel."""
    smooth = gaussian_filter(image.astype(float), [max(step - 1, 0) / 2 for step in scale], mode="nearest")
    y, x = (c + (np.arange(size) - size // 2) * step for c, step in zip(centre, scale, strict=True))
    return map_coordinates(smooth, np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")


@pytest.mark.parametrize(
    ("size", "scale"),
    [([0.3, 0.3], (1.5, 1.0)), (0.1, (0.5, 1 / 3)), ([0.5, 0.6], (2.5, 2.0)), ([0.2, 0.45], (1, 1.5))],
)
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_patch_is_the_whole_image_resampled_around_the_cell(
    tmp_path: Path, size: Any, scale: tuple[float, float], dtype: str
) -> None:
    path, pixels = plate(tmp_path, dtype)
    out = tmp_path / "out"
    manifest = build(path, out, reference_pixel_size_um=size, border="pad")
    (record,) = manifest.experiments
    assert record.dtype == np.dtype(dtype).str
    assert record.scale == pytest.approx((1, *scale))
    wanted = [0.1, 0.1] if size == 0.1 else size
    assert record.pixel_size_um == pytest.approx((0.5, *wanted))
    patches = stored(out, manifest)
    assert len(patches) == 9
    for (track, t), patch in patches.items():
        centre = int(PLACES[track][0]), int(PLACES[track][1])
        for c in range(2):
            for z in range(2):
                expected = resampled(pixels[t, c, z], 8, centre, scale)
                # float32 rounds at the sixth digit; integers are rounded to the next one
                np.testing.assert_allclose(patch[c, z], expected, atol=0.502 if dtype == "uint16" else 1e-3)
    # the statistics are of the plate's pixels
    for c in range(2):
        np.testing.assert_allclose(array(out, "stats_timepoint")[0, c], reference(pixels[0, c]), rtol=1e-6)
    assert verify([str(out)]) == 0


def test_the_pixel_of_the_cell_is_in_the_middle_and_as_it_was(tmp_path: Path) -> None:
    path, pixels = plate(tmp_path)
    manifest = build(path, tmp_path / "out", reference_pixel_size_um=[0.1, 0.1], border="pad", dtype="float32")
    for (track, t), patch in stored(tmp_path / "out", manifest).items():
        y, x = (int(place) for place in PLACES[track])
        np.testing.assert_array_equal(patch[:, :, 4, 4], pixels[t, :, :, y, x])


def test_a_shifted_patch_lies_inside_the_image_and_a_dropped_one_would_not(tmp_path: Path) -> None:
    """Patch of 8 at 1.5 and 2 image pixels a pixel: 6 and 8 pixels before the centre, 4.5 and 6 behind."""
    path, pixels = plate(tmp_path)
    options = {"reference_pixel_size_um": [0.3, 0.6]}
    manifest = build(path, tmp_path / "out", **options, max_border_shift_px=9999)
    table = pq.read_table(
        find_index(tmp_path / "out") / "observations.parquet", columns=["track_id", "y_clamp", "x_clamp"]
    )
    centres = {row["track_id"]: (row["y_clamp"], row["x_clamp"]) for row in table.to_pylist()}
    assert centres == {1: (16, 16), 2: (6, 25), 3: (20, 12)}
    for (track, t), patch in stored(tmp_path / "out", manifest).items():
        expected = resampled(pixels[t, 1, 0], 8, centres[track], (1.5, 2.0))
        np.testing.assert_allclose(patch[1, 0], expected, atol=0.502)
    assert (manifest.facts[0].moved_patches, manifest.facts[0].padded_patches) == (3, 0)
    dropped = build(path, tmp_path / "dropped", **options, border="drop")
    assert dropped.dropped == {"one": {"near_border": 3}}
    padded = build(path, tmp_path / "padded", **options, border="pad")
    assert padded.facts[0].padded_patches == 3


@pytest.mark.parametrize(
    ("limit", "kept"), [(None, {1, 3}), (3.0, {1, 3}), (3.9, {1, 3}), (4.0, {1, 2, 3}), (5, {1, 2, 3})]
)
def test_the_limit_of_a_shift_counts_stored_pixels(tmp_path: Path, limit: float | None, kept: set[int]) -> None:
    """At 1.5 and 2 image pixels a stored one, cell 2 is moved by 6 of the image: 4 and 3 stored ones."""
    path, _ = plate(tmp_path)
    manifest = build(path, tmp_path / "out", reference_pixel_size_um=[0.3, 0.6], max_border_shift_px=limit)
    assert {track for track, _ in stored(tmp_path / "out", manifest)} == kept


@given(size=st.integers(1, 40), scale=st.floats(0.2, 5), length=st.integers(1, 200), data=st.data())
def test_a_centre_within_the_bounds_keeps_the_patch_inside_and_the_next_one_does_not(
    size: int, scale: float, length: int, data: st.DataObject
) -> None:
    grid = PatchGrid(size=size, scale=scale)
    low, high = grid.centres(length, beyond=False)
    first, last = -(size // 2) * scale, (size - 1 - size // 2) * scale
    for centre in range(length):
        inside = centre + first >= -1e-6 and centre + last <= length - 1 + 1e-6
        assert inside == (low <= centre <= high)
    assert grid.centres(length, beyond=True) == (0, length - 1)
    centre = data.draw(st.integers(0, length - 1))
    window = grid.window(centre, length)
    assert window.start == max(math.floor(centre + first + 1e-6), 0)
    assert window.stop == min(math.ceil(centre + last - 1e-6) + 1, length)


def test_resampling_along_z_changes_the_depth_and_keeps_the_middle_of_the_stack(tmp_path: Path) -> None:
    path, pixels = plate(tmp_path, depth=7)
    manifest = build(path, tmp_path / "out", reference_pixel_size_um=[1.0, 0.2, 0.3], dtype="float32")
    assert manifest.experiments[0].shape == (2, 4, 8, 8)  # 7 slices of 0.5 µm, in steps of 1 µm
    assert manifest.experiments[0].scale == (2.0, 1.0, 1.0)
    patch = stored(tmp_path / "out", manifest)[1, 0]
    smooth = gaussian_filter(pixels[0].astype(float), (0, 0.5, 0, 0), mode="nearest")[:, :, 12:20, 12:20]
    # slices 0, 2, 4, 6
    np.testing.assert_allclose(patch, smooth[:, ::2], rtol=1e-5)


def test_linear_ramps_are_resampled_exactly() -> None:
    """An independent check without scipy: a plane stays the plane, at half and at double the size."""
    y, x = np.mgrid[:20, :30].astype(np.float32)
    plane = (3 * y + 2 * x + 5)[None]
    half = resample(plane, (0.0, 6.0, 8.0), (1.0, 2.0, 2.0), (1, 3, 4))
    expected = [[3 * (6 + 2 * i) + 2 * (8 + 2 * j) + 5 for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(half[0], expected, rtol=1e-6)
    double = resample(plane, (0.0, 6.25, 8.5), (1.0, 0.5, 0.5), (1, 3, 4))
    expected = [[3 * (6.25 + i / 2) + 2 * (8.5 + j / 2) + 5 for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(double[0], expected, rtol=1e-6)


def test_a_cell_has_the_same_size_in_experiments_that_differ_in_pixel_size(tmp_path: Path) -> None:
    """A Gaussian spot of 2 µm, imaged with pixels of 0.5 and of 0.25 µm."""
    entries = []
    for name, pixel in (("coarse", 0.5), ("fine", 0.25)):
        length = int(48 / pixel)
        y, x = np.mgrid[:length, :length]
        spot = 1000 * np.exp(-(((y - length / 2) ** 2 + (x - length / 2) ** 2) * pixel**2) / 8) + 100
        frames = np.broadcast_to(spot, (2, 1, 1, length, length)).astype("f4")
        write_plate(
            tmp_path / name / "plate", pixels={"A/1/0": frames}, dtype="float32", channel_names=["Phase"],
            scales={"A/1/0": {"scale": [1, 1, 1, pixel, pixel], "units": dict.fromkeys("zyx", "micrometer")}},
        )  # fmt: skip
        write_tracks(tmp_path / name / "tracks", "A/1/0", [one_cell(t, length / 2, length / 2) for t in range(2)])
        entries.append(
            {
                "name": name,
                "data_path": f"{name}/plate",
                "tracks_path": f"{name}/tracks",
                "channel_names": ["Phase"],
                "source_channel": ["Phase"],
                "condition_wells": {"all": ["A/1"]},
                "interval_minutes": 30.0,
            }
        )
    path = write_experiments(
        tmp_path / "experiments.yaml", entries, yx_patch_size=32, tau_range_hours=[0.5, 1], reference_pixel_size_um=0.4
    )
    manifest = build(path, tmp_path / "out")
    assert [e.scale for e in manifest.experiments] == [(1, 0.8, 0.8), (1, 1.6, 1.6)]
    assert [e.pixel_size_um for e in manifest.experiments] == [(None, 0.4, 0.4)] * 2
    assert not [s for s in manifest.suspicious if s.code == "pixel_sizes_vary"]
    areas = []
    for shard in manifest.shards:
        data = (tmp_path / "out" / shard.path).read_bytes()
        patch = np.frombuffer(data, "<f4", 32 * 32, array(tmp_path / "out", "patch_offset")[0]).reshape(32, 32)
        areas.append(float((patch - 100).sum() / 1000))
        rows, columns = (np.average(np.arange(32), weights=(patch - 100).sum(axis)) for axis in (1, 0))
        assert (rows, columns) == pytest.approx((16, 16), abs=0.01)
    # 2 π σ² = 25.13 µm² = 157.1 pixels of 0.16 µm²
    assert areas == pytest.approx([157.1, 157.1], rel=5e-3)  # the patch ends at 3.2 σ


def test_pixels_of_the_reference_size_are_copied(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    plain = stored(tmp_path / "a", build(path, tmp_path / "a"))
    almost = stored(tmp_path / "b", build(path, tmp_path / "b", reference_pixel_size_um=[0.20001, 0.29999]))
    assert all((plain[key] == almost[key]).all() for key in plain)


def test_another_reference_is_another_set_and_a_new_pixel_size_of_the_plate_is_noticed(tmp_path: Path) -> None:
    path, pixels = plate(tmp_path)
    document = yaml.safe_load(path.read_text())
    del document["experiments"][0]["pixel_size_um"]
    path.write_text(yaml.safe_dump(document))

    def write(pixel: float) -> None:
        scale = {"scale": [1, 1, 1, pixel, pixel], "units": dict.fromkeys("zyx", "micrometer")}
        write_plate(
            tmp_path / "plate.zarr", pixels={"A/1/0": pixels}, dtype="uint16", channel_names=["ch0", "ch1"],
            scales={"A/1/0": scale},
        )  # fmt: skip

    write(0.2)
    out = tmp_path / "out"
    first = build(path, out, reference_pixel_size_um=0.3)
    assert first.experiments[0].scale == pytest.approx((1, 1.5, 1.5))
    with pytest.raises(BuildError, match=r"reference_pixel_size_um=\[0\.3, 0\.3\], asked for \[0\.4, 0\.4\]"):
        build(path, out, reference_pixel_size_um=0.4)
    write(0.15)
    again = build(path, out, reference_pixel_size_um=0.3)
    assert again.experiments[0].scale == pytest.approx((1, 2, 2))
    build(path, tmp_path / "fresh", reference_pixel_size_um=0.3)
    assert digests(out) == digests(tmp_path / "fresh")


def test_one_worker_or_two_give_the_same_bytes_from_the_command_line(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    for workers in ("1", "2"):
        flags = ["--reference_pixel_size_um", "0.25", "--workers", workers, "--quiet"]
        assert main([str(path), "--out", str(tmp_path / workers), *flags]) == 0
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


@pytest.mark.parametrize(
    ("own", "options", "match"),
    [
        (None, {"reference_pixel_size_um": 0.2}, r"experiments\[0\]\.pixel_size_um=None doesn't say .* y x, and"),
        ([0.2, 0.2], {"reference_pixel_size_um": [1, 0.2, 0.2]}, r"pixel_size_um=\[0\.2, 0\.2\] .* z y x, and"),
        (
            [0.2, 0.2],
            {"reference_pixel_size_um": 1.0},
            r"yx_patch_size=\[8, 8\] at \[1\.0, 1\.0\] µm is larger than the image .*, which is \[6, 6\] at",
        ),
        ([0.2, 0.2], {"reference_pixel_size_um": [1]}, None),
        ([0.2, 0.2], {"reference_pixel_size_um": 0}, r"reference_pixel_size_um\[0\]=0 must be a number > 0"),
        ([0.2, 0.2], {"reference_pixel_size_um": "x"}, r"reference_pixel_size_um='x' must be a list of two or three"),
    ],
)
def test_a_size_that_cannot_be_had_is_refused(tmp_path: Path, own: Any, options: Any, match: str | None) -> None:
    path, _ = plate(tmp_path)
    document = yaml.safe_load(path.read_text())
    document["experiments"][0]["pixel_size_um"] = own
    path.write_text(yaml.safe_dump(document))
    if match is None:
        assert parse_build_config(path, options).reference_pixel_size_um == (1.0, 1.0)
        return
    with pytest.raises(ConfigError, match=match):
        build(path, tmp_path / "out", **options)


def test_nan_beside_a_patch_that_smoothing_would_draw_in_counts_as_its_own(tmp_path: Path) -> None:
    """At 2.5 pixels a pixel, smoothing looks 3 pixels beyond the patch, which begins at 6: NaN at 4 is drawn in."""
    path, pixels = plate(tmp_path, "float32")
    pixels[0, 0, 0, 4, 16] = np.nan
    write_plate(tmp_path / "plate.zarr", pixels={"A/1/0": pixels}, dtype="float32", channel_names=["ch0", "ch1"])
    options: dict[str, Any] = {"reference_pixel_size_um": [0.5, 0.3], "yx_patch_size": 8, "border": "pad"}
    manifest = build(path, tmp_path / "out", **options, on_nan="drop")
    assert manifest.dropped["one"]["nan_pixels"] >= 1
    for patch in stored(tmp_path / "out", manifest).values():
        assert np.isfinite(patch).all()
    zeroed = build(path, tmp_path / "zero", **options, on_nan="zero")
    clean = np.where(np.isfinite(pixels), pixels, 0)
    expected = resampled(clean[0, 0, 0], 8, (16, 16), (2.5, 1.0))
    np.testing.assert_allclose(stored(tmp_path / "zero", zeroed)[1, 0][0, 0], expected, atol=1e-3)
