"""Laws of `z_focus` and `z_reduction`: which slices of a stack are stored, and how they become one."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
import yaml
from scipy.ndimage import gaussian_filter

import etl.cut.reading
from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import ConfigError, PlateError
from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards, main
from etl.cut.focus import find_focus, midband_power
from etl.run.progress import summarize_facts
from etl.source.experiments import parse_build_config
from etl.verify import main as verify
from tests.plates import write_plate
from tests.set_files import digests, find_index
from tests.test_border import stored
from tests.test_build import array, build, one_cell, one_plate, reference
from tests.test_rescale import resampled

pytestmark = pytest.mark.usefixtures("without_fsync")

PLACES = {1: (16.0, 16.0), 2: (14.2, 20.9)}
FRAMES, DEPTH = 4, 9


def plate(root: Path, dtype: str = "u2", **experiment: Any) -> tuple[Path, np.ndarray]:
    """One FOV, two cells in four frames of nine slices, channels ch0 and ch1."""
    pixels = np.random.default_rng(4).integers(1, 999, (FRAMES, 2, DEPTH, 32, 32)).astype(dtype)
    rows = [one_cell(t, *place, track) for track, place in PLACES.items() for t in range(FRAMES)]
    path = one_plate(root, pixels, rows)
    document = yaml.safe_load(path.read_text())
    document["experiments"][0] |= {"pixel_size_um": [0.5, 0.2, 0.2]} | experiment
    path.write_text(yaml.safe_dump(document))
    return path, pixels


def set_focus(group: Path, channel: str, **values: Any) -> None:
    """Write `focus_slice` into the attributes of a plate or FOV, as VisCy's quality control does."""
    document = json.loads((group / "zarr.json").read_text())
    document["attributes"].setdefault("focus_slice", {})[channel] = values
    (group / "zarr.json").write_text(json.dumps(document))


def middle(t: int, track: int, pixels: np.ndarray) -> np.ndarray:
    """The whole stack around a cell."""
    y, x = (int(place) for place in PLACES[track])
    return pixels[t, :, :, y - 4 : y + 4, x - 4 : x + 4]


def places(out: Path) -> dict[tuple[int, int], tuple[float, float | None]]:
    """(track, frame) → z_start, z_focus."""
    rows = pq.read_table(find_index(out) / "observations.parquet").to_pylist()
    return {(row["track_id"], row["t"]): (row["z_start"], row["z_focus"]) for row in rows}


PER_TIMEPOINT = {"0": 4, "1": 6, "2": 0, "3": 8}
FOCUS = {
    "fov_statistics": {"z_focus_mean": 4.6, "z_focus_std": 1.0},
    "per_timepoint": PER_TIMEPOINT,
    "dataset_statistics": {"z_focus_mean": 2.4},
}


@pytest.mark.parametrize(
    ("options", "starts", "clamped"),
    [
        # window 4, two below: 2, 4, and at the ends 0 and 5
        ({"window": 4}, [2, 4, 0, 5], 2),
        # one below: 3, 5, 0, 5
        ({"window": 4, "offset": 0.3}, [3, 5, 0, 5], 2),
        ({"window": 1}, [4, 6, 0, 8], 0),
        ({"window": 9}, [0, 0, 0, 0], 3),
        # one focus for the FOV, 5, and for the plate, 2
        ({"window": 4, "level": "fov"}, [3, 3, 3, 3], 0),
        ({"window": 4, "level": "dataset"}, [0, 0, 0, 0], 0),
    ],
)
def test_slices_lie_around_the_focus_that_the_attributes_say(
    tmp_path: Path, options: dict[str, Any], starts: list[int], clamped: int
) -> None:
    path, pixels = plate(tmp_path)
    set_focus(tmp_path / "plate.zarr/A/1/0", "ch1", **FOCUS)
    out = tmp_path / "out"
    manifest = build(path, out, z_focus={"channel": "ch1"} | options)
    assert manifest.experiments[0].shape == (2, options["window"], 8, 8)
    patches = stored(out, manifest)
    assert len(patches) == 8
    for (track, t), patch in patches.items():
        expected = middle(t, track, pixels)[:, starts[t] : starts[t] + options["window"]]
        np.testing.assert_array_equal(patch, expected)
    assert {key: start for key, (start, _) in places(out).items()} == {(k, t): starts[t] for k, t in patches}
    assert (manifest.facts[0].clamped_stacks, manifest.facts[0].measured_focus) == (clamped, 0)
    # statistics are of the slices that were taken of each frame
    for t, start in enumerate(starts):
        expected = reference(pixels[t, 1, start : start + options["window"]])
        np.testing.assert_allclose(array(out, "stats_timepoint")[t, 1], expected, rtol=1e-6)
    assert verify([str(out)]) == 0
    assert ShardSet.open(out).z_range == (0, options["window"])


def test_coarser_values_stand_in_for_those_that_are_missing(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    fov = tmp_path / "plate.zarr/A/1/0"
    set_focus(tmp_path / "plate.zarr", "ch0", dataset_statistics={"z_focus_mean": 7.0})
    build(path, tmp_path / "plate", z_focus={"window": 1})
    assert {focus for _, focus in places(tmp_path / "plate").values()} == {7}
    set_focus(fov, "ch0", fov_statistics={"z_focus_mean": 3.2}, per_timepoint={"1": 5})
    build(path, tmp_path / "fov", z_focus={"window": 1})
    assert [focus for (track, _), (_, focus) in sorted(places(tmp_path / "fov").items()) if track == 1] == [3, 5, 3, 3]


def test_a_focus_that_changes_in_the_attributes_is_noticed(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    set_focus(tmp_path / "plate.zarr", "ch0", dataset_statistics={"z_focus_mean": 7.0})
    out, options = tmp_path / "out", {"z_focus": {"window": 3}}
    first = digests(out) if build(path, out, **options) else {}
    build(path, out, **options)
    assert digests(out) == first
    next(out.rglob("*.tar")).unlink()  # an unchanged experiment keeps where its slices lie
    build(path, out, **options)
    assert digests(out) == first
    set_focus(tmp_path / "plate.zarr", "ch0", dataset_statistics={"z_focus_mean": 4.0})
    build(path, out, **options)
    assert set(places(out).values()) == {(3, 4)}
    build(path, tmp_path / "fresh", **options)
    assert digests(out) == digests(tmp_path / "fresh")


def power_by_definition(plane: np.ndarray, pixel: tuple[float, float]) -> float:
    """Sum of |spectrum| in the band, by the definition of the Fourier transform."""
    y, x = (np.arange(length) for length in plane.shape)
    total = 0.0
    cutoff = 2 * 0.55 / 0.532
    for fy in np.fft.fftfreq(len(y)):
        for fx in np.fft.fftfreq(len(x)):
            if 0.125 * cutoff < np.hypot(fy / pixel[0], fx / pixel[1]) < 0.25 * cutoff:
                wave = np.exp(-2j * np.pi * fy * y)[:, None] * np.exp(-2j * np.pi * fx * x)
                total += abs((plane * wave).sum())
    return total


@pytest.mark.parametrize(("shape", "pixel"), [((12, 16), (0.4, 0.4)), ((13, 15), (0.5, 0.7)), ((16, 12), (1.0, 0.9))])
def test_midband_power_is_what_the_fourier_transform_says(shape: tuple[int, int], pixel: tuple[float, float]) -> None:
    stack = np.random.default_rng(2).integers(0, 4000, (3, *shape)).astype(np.uint16)
    expected = [power_by_definition(plane.astype(float), pixel) for plane in stack]
    np.testing.assert_allclose(midband_power(stack, pixel), expected, rtol=1e-5)


def blurred_stack(frames: int, focus: list[int], shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Stacks of one pattern that is more blurred the further a slice is from the focus."""
    rng = np.random.default_rng(5)
    pixels = np.empty((frames, 2, DEPTH, *shape))
    for t in range(frames):
        pattern = gaussian_filter(rng.normal(size=shape), 3, mode="wrap") * 20000
        for z in range(DEPTH):
            pixels[t, 0, z] = 1000 + gaussian_filter(pattern, 0.6 * abs(z - focus[t]), mode="wrap")
            pixels[t, 1, z] = 100 * z + 10 * t + 1
    return pixels.clip(1).astype("u2")


def test_the_focus_is_measured_where_no_attribute_says_it_and_every_chunk_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    focus = [4, 1, 7, 8]
    path, _ = plate(tmp_path, source_channel=["ch1"])
    pixels = blurred_stack(FRAMES, focus)
    write_plate(tmp_path / "plate.zarr", pixels={"A/1/0": pixels}, dtype="uint16", channel_names=["ch0", "ch1"])
    read: list[tuple[Any, ...]] = []
    original = etl.cut.reading.read_box

    def counting(array: Any, box: tuple[slice, ...]) -> np.ndarray:
        read.extend(product(*(range(part.start, part.stop) for part in box[:3])))
        return original(array, box)

    monkeypatch.setattr(etl.cut.reading, "read_box", counting)
    manifest = build(path, tmp_path / "out", z_focus={"channel": "ch0", "window": 3}, workers=1)
    assert len(read) == len(set(read)) == FRAMES * 2 * DEPTH
    starts = [3, 0, 6, 6]
    for (track, t), patch in stored(tmp_path / "out", manifest).items():
        np.testing.assert_array_equal(patch, middle(t, track, pixels)[1:, starts[t] : starts[t] + 3])
    assert {t: place for (_, t), place in places(tmp_path / "out").items()} == {
        t: (starts[t], focus[t]) for t in range(FRAMES)
    }
    assert (manifest.facts[0].measured_focus, manifest.facts[0].clamped_stacks) == (1, 1)
    assert "focus measured in 1 field of view, slices moved into the stack in 1 frame" in summarize_facts(manifest)[0]


def test_the_focus_of_a_stack_without_structure_is_its_middle() -> None:
    assert find_focus(np.full((5, 32, 32), 7, "u2"), (0.3, 0.3)) == 2
    assert find_focus(np.full((5, 32, 32), np.nan, "f4"), (0.3, 0.3)) == 2
    assert find_focus(np.zeros((1, 32, 32), "u2"), (0.3, 0.3)) == 0
    blank = blurred_stack(1, [6])[0, 0]
    blank[0] = 0  # a chunk that was never written
    assert find_focus(blank, (0.2, 0.2)) == 6


RULE = {"default": "center", "fluorescence": "mip"}


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int16"])
def test_reduced_channels_are_the_maximum_or_the_central_slice(tmp_path: Path, dtype: str) -> None:
    path, pixels = plate(tmp_path, dtype, channel_markers={"ch0": "Phase3D"})
    out = tmp_path / "out"
    manifest = build(path, out, z_reduction=RULE, z_range=[2, 6])
    assert manifest.experiments[0].shape == (2, 1, 8, 8)
    assert manifest.experiments[0].z_reduction == ("center", "mip")
    assert manifest.experiments[0].dtype == np.dtype(dtype).str
    for (track, t), patch in stored(out, manifest).items():
        stack = middle(t, track, pixels)[:, 2:6]
        np.testing.assert_array_equal(patch[0, 0], stack[0, 2])  # of slices 0 to 3
        np.testing.assert_array_equal(patch[1, 0], np.max(stack[1], axis=0))
    for c in range(2):  # statistics are of all slices that were taken
        expected = reference(pixels[0, c, 2:6])
        np.testing.assert_allclose(array(out, "stats_timepoint")[0, c], expected, rtol=1e-6)
    assert {start for start, _ in places(out).values()} == {2}
    assert ShardSet.open(out).z_range == (0, 1)
    assert verify([str(out)]) == 0


@pytest.mark.parametrize(
    ("rule", "reductions"),
    [
        ({"ch0": "mip"}, ("mip", "center")),
        ({"default": "mip"}, ("mip", "mip")),
        ({"labelfree": "mip", "default": "center"}, ("mip", "center")),
        ({"Phase3D": "center", "labelfree": "mip", "ch1": "mip", "fluorescence": "center"}, ("center", "mip")),
        ({"default": "none"}, ("none", "none")),
        (None, ("none", "none")),
    ],
)
def test_name_comes_before_marker_before_kind_before_default(
    tmp_path: Path, rule: Any, reductions: tuple[str, str]
) -> None:
    path, _ = plate(tmp_path, channel_markers={"ch0": "Phase3D"})
    config = parse_build_config(path, {"z_reduction": rule})
    assert config.reductions_for(config.experiments[0]) == reductions


def test_focus_depth_and_pixel_size_go_together(tmp_path: Path) -> None:
    """Around the focus, in steps of 1 µm = 2 slices: maximum of slices first to last, then resampled in y and x."""
    path, pixels = plate(tmp_path, channel_markers={"ch0": "Phase3D"})
    set_focus(tmp_path / "plate.zarr/A/1/0", "ch0", **FOCUS)
    options: dict[str, Any] = {"z_focus": {"window": 3}, "reference_pixel_size_um": [1.0, 0.3, 0.3], "border": "pad"}
    manifest = build(path, tmp_path / "out", z_reduction=RULE, **options)
    starts = [2, 4, 0, 4]  # the focus less one stored slice, two of the plate; three stored ones span five
    assert {t: start for (_, t), (start, _) in places(tmp_path / "out").items()} == dict(enumerate(starts))
    for (track, t), patch in stored(tmp_path / "out", manifest).items():
        centre = int(PLACES[track][0]), int(PLACES[track][1])
        mip = pixels[t, 1, starts[t] : starts[t] + 5].max(0)
        np.testing.assert_allclose(patch[1, 0], resampled(mip, 8, centre, (1.5, 1.5)), atol=0.502)
        central = pixels[t, 0, starts[t] + 2]
        np.testing.assert_allclose(patch[0, 0], resampled(central, 8, centre, (1.5, 1.5)), atol=0.502)
    whole = build(path, tmp_path / "stack", **options)
    assert whole.experiments[0].shape == (2, 3, 8, 8)
    assert {t: start for (_, t), (start, _) in places(tmp_path / "stack").items()} == dict(enumerate(starts))


def test_a_channel_is_blank_if_the_slices_that_it_is_made_of_are(tmp_path: Path) -> None:
    path, pixels = plate(tmp_path, channel_markers={"ch0": "Phase3D"})
    pixels[1, 0, 4] = 0  # the central slice of ch0 is blank in frame 1, one slice of the maximum in frame 2
    pixels[2, 1, 4] = 0
    write_plate(tmp_path / "plate.zarr", pixels={"A/1/0": pixels}, dtype="uint16", channel_names=["ch0", "ch1"])
    manifest = build(path, tmp_path / "out", z_reduction=RULE)
    assert manifest.dropped == {"one": {"blank_channel": 2}}
    assert {t for _, t in stored(tmp_path / "out", manifest)} == {0, 2, 3}


def test_stacks_with_fewer_slices_are_taken_whole_where_they_are_reduced(tmp_path: Path) -> None:
    path, pixels = plate(tmp_path)
    set_focus(tmp_path / "plate.zarr/A/1/0", "ch0", **FOCUS)
    manifest = build(path, tmp_path / "out", z_focus={"window": 16}, z_reduction={"default": "mip"})
    for (track, t), patch in stored(tmp_path / "out", manifest).items():
        np.testing.assert_array_equal(patch[:, 0], middle(t, track, pixels).max(1))
    assert manifest.facts[0].clamped_stacks == 3  # at focus 8 the stack begins where it is asked to
    with pytest.raises(ConfigError, match=r"z_focus\.window=16 is more than the 9 slices that the stack of .* has"):
        build(path, tmp_path / "other", z_focus={"window": 16})


def test_the_command_line_takes_keys_and_values(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    set_focus(tmp_path / "plate.zarr/A/1/0", "ch0", **FOCUS)
    flags = ["--z_focus", "channel=ch0", "window=3", "offset=0.3", "--z_reduction", "default=center", "ch1=mip"]
    assert main([str(path), "--out", str(tmp_path / "a"), "--quiet", *flags]) == 0
    document = yaml.safe_load(path.read_text())
    document["shards"] |= {
        "z_focus": {"channel": "ch0", "window": 3, "offset": 0.3}, "z_reduction": {"default": "center", "ch1": "mip"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document))
    build_shards(parse_build_config(path, {"workers": 2}), tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    with pytest.raises(SystemExit):
        main([str(path), "--z_focus", "window"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"z_focus": {"window": 3}, "z_range": [0, 3]}, r"z_range=\[0, 3\] must be left out with z_focus"),
        ({"z_focus": {"window": 0}}, r"z_focus\.window=0 must be a whole number ≥ 1"),
        ({"z_focus": {"window": 3, "windw": 3}}, r"z_focus\.windw=3: Unexpected keyword"),
        ({"z_focus": {"window": 3, "offset": 2.0}}, r"z_focus\.offset=2\.0 must be a fraction, 0 to 1"),
        ({"z_focus": {"window": 3, "channel": "x"}}, r"z_focus\.channel='x', but the focus_slice attributes of .*ch1"),
        ({"z_focus": {"window": 3, "level": "fov"}}, r"z_focus\.level='fov', but the focus_slice attributes"),
        ({"z_reduction": {"ch7": "mip"}}, r"z_reduction key='ch7' must be one of .*'labelfree'.*'ch0', 'ch1'"),
        ({"z_reduction": {"ch0": "max"}}, r"z_reduction\.ch0='max' must be one of \['center', 'mip', 'none'\]"),
        (
            {"z_reduction": {"ch0": "none"}},
            r"`none` for all channels .* experiments\[0\] has \{'ch0': 'none', 'ch1': 'c",
        ),
    ],
)
def test_options_that_cannot_be_had_are_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    path, _ = plate(tmp_path)
    with pytest.raises(ConfigError, match=match):
        build(path, tmp_path / "out", **options)
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_focus_cannot_be_measured_without_a_pixel_size_that_shows_it(tmp_path: Path) -> None:
    path, _ = plate(tmp_path, pixel_size_um=None)
    with pytest.raises(ConfigError, match=r"pixel_size_um is missing, .* to measure it the size of a pixel"):
        build(path, tmp_path / "out", z_focus={"window": 3})
    path, _ = plate(tmp_path, pixel_size_um=[3.0, 3.0])
    with pytest.raises(ConfigError, match=r"show no structures of 1\.9 to 3\.9 µm"):
        build(path, tmp_path / "out", z_focus={"window": 3})


@pytest.mark.parametrize("value", [9, -1, "4", float("nan"), True])
def test_a_focus_that_is_no_slice_is_an_error_that_names_it(tmp_path: Path, value: Any) -> None:
    path, _ = plate(tmp_path)
    set_focus(tmp_path / "plate.zarr/A/1/0", "ch0", **FOCUS | {"per_timepoint": PER_TIMEPOINT | {"2": value}})
    with pytest.raises(PlateError, match=r"focus_slice\.ch0\.per_timepoint\.2=.* must be one of the 9 slices"):
        build(path, tmp_path / "out", z_focus={"window": 3})


def test_chunks_along_z_that_no_frame_needs_are_not_read(tmp_path: Path) -> None:
    path, _ = plate(tmp_path)
    set_focus(tmp_path / "plate.zarr/A/1/0", "ch0", **FOCUS | {"per_timepoint": dict.fromkeys(PER_TIMEPOINT, 4)})
    chunks = sorted((tmp_path / "plate.zarr/A/1/0/0/c").rglob("*"))
    spoiled = [chunk for chunk in chunks if chunk.is_file() and chunk.parts[-3] not in ("3", "4", "5")]
    assert spoiled
    for chunk in spoiled:
        chunk.write_bytes(b"no chunk")
    manifest: Manifest = build(path, tmp_path / "out", z_focus={"window": 3})
    assert manifest.experiments[0].shape[1] == 3
    opened = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "plate.zarr/A/1/0/0")}})
    np.testing.assert_array_equal(
        stored(tmp_path / "out", manifest)[1, 0], opened.result()[0, :, 3:6, 12:20, 12:20].read().result()
    )
