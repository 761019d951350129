"""Rescaled patches, the chosen focus and the maximum over Z equal what scikit-image and scipy make of the same pixels.

The build uses scipy's affine_transform, a part of one Fourier transform, and numpy's maximum. What it is compared with
here has other code: scikit-image interpolates in its own `warp`, and finds blur by a filter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.fft import fft2, fftfreq
from scipy.ndimage import maximum_filter
from skimage.filters import gaussian
from skimage.measure import blur_effect
from skimage.transform import AffineTransform, rescale, resize, warp

from etl.cut.focus import find_focus, midband_power
from etl.cut.resample import resample
from tests.test_border import stored
from tests.test_build import build, one_cell, one_plate

pytestmark = pytest.mark.usefixtures("without_fsync")

OF_THE_RANGE = 1e-6
"""Tolerance of rescaled pixels, relative to the range of the image: float32 here, float64 in scikit-image."""


def image(*shape: int) -> np.ndarray:
    """White noise: nothing is more different after smoothing, or a hundredth of a pixel further on."""
    return np.random.default_rng(9).integers(0, 4096, shape).astype(np.uint16)


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=4096 * OF_THE_RANGE)


@pytest.mark.parametrize("size", [(48, 60), (32, 40), (96, 30), (120, 200)])
def test_a_whole_image_equals_resize_with_anti_aliasing(size: tuple[int, int]) -> None:
    pixels = image(96, 120)
    scale = 96 / size[0], 120 / size[1]
    first = (scale[0] - 1) / 2, (scale[1] - 1) / 2  # resize keeps the corners of the image where they are
    ours = resample(pixels[None], (0.0, *first), (1.0, *scale), (1, *size))[0]
    theirs = resize(pixels.astype(float), size, order=1, mode="edge", anti_aliasing=True)
    assert ours.dtype == np.float32
    assert_alike(ours, theirs)


def test_a_whole_stack_equals_rescale_along_z_too() -> None:
    pixels = image(12, 36, 40)
    ours = resample(pixels, (0.5, 1.0, 0.0), (2.0, 3.0, 1.0), (6, 12, 40))
    theirs = rescale(pixels.astype(float), (1 / 2, 1 / 3, 1), order=1, mode="edge", anti_aliasing=True)
    assert_alike(ours, theirs)


@pytest.mark.parametrize("scale", [(1.5, 1.0), (0.5, 1 / 3), (2.5, 2.0), (1.0, 1.5)])
def test_a_built_patch_equals_warp_around_the_cell(tmp_path: Path, scale: tuple[float, float]) -> None:
    """Cells in the middle and at a corner; scikit-image smooths the whole image and reads the patch off it."""
    pixels = image(1, 2, 1, 48, 56)
    places = {1: (24, 28), 2: (1, 54)}
    path = one_plate(tmp_path, pixels, [one_cell(0, float(y), float(x), n) for n, (y, x) in places.items()])
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    document["experiments"][0] |= {"pixel_size_um": [0.2, 0.3], "interval_minutes": 0}
    path.write_text(yaml.safe_dump(document))
    size = [0.2 * scale[0], 0.3 * scale[1]]
    manifest = build(path, tmp_path / "out", reference_pixel_size_um=size, border="pad", dtype="float32")
    patches = stored(tmp_path / "out", manifest)
    assert set(patches) == {(1, 0), (2, 0)}
    for (track, _), patch in patches.items():
        y, x = (place - 4 * step for place, step in zip(places[track], scale, strict=True))
        there = AffineTransform(scale=scale[::-1], translation=(x, y))
        for channel in range(2):
            sigma = [max(step - 1, 0) / 2 for step in scale]
            smooth = gaussian(pixels[0, channel, 0].astype(float), sigma, mode="nearest", preserve_range=True)
            theirs = warp(smooth, there, output_shape=(8, 8), order=1, mode="edge", preserve_range=True)
            assert_alike(patch[channel, 0], theirs)


@pytest.mark.parametrize("pixel", [(0.3, 0.3), (0.25, 0.4)])
def test_midband_power_equals_a_mask_on_the_whole_spectrum_of_scipy(pixel: tuple[float, float]) -> None:
    stack = image(4, 120, 150)
    y, x = (fftfreq(length, step) for length, step in zip(stack.shape[1:], pixel, strict=True))
    frequency = np.hypot(y[:, None], x)
    cutoff = 2 * 0.55 / 0.532  # numerical aperture over the wavelength in micrometres
    band = (frequency > 0.125 * cutoff) & (frequency < 0.25 * cutoff)
    assert 100 < band.sum() < band.size
    theirs = [np.abs(fft2(plane.astype(float)))[band].sum() for plane in stack]
    np.testing.assert_allclose(midband_power(stack, pixel), theirs, rtol=1e-5)


@pytest.mark.parametrize("focus", [0, 3, 8, 10])
def test_the_slice_in_focus_is_the_least_blurred_one_by_scikit_image(focus: int) -> None:
    """A stack that is one more pixel blurred with each slice away from the focus, with noise: the very same slice."""
    rng = np.random.default_rng([11, focus])
    pattern = gaussian(rng.normal(size=(160, 144)), 2, mode="wrap")
    stack = np.stack([gaussian(pattern, abs(z - focus) + 1e-3, mode="wrap") for z in range(11)])
    stack = (1000 + 20000 * stack + rng.normal(size=stack.shape)).astype(np.uint16)
    blur = [blur_effect(plane.astype(float)) for plane in stack]
    assert int(np.argmin(blur)) == focus
    assert find_focus(stack, (0.3, 0.3)) == focus


def test_the_maximum_over_z_equals_a_maximum_filter_of_scipy(tmp_path: Path) -> None:
    pixels = image(1, 1, 7, 24, 24)
    path = one_plate(tmp_path, pixels, [one_cell(0, 12.0, 12.0)])
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    document["experiments"][0]["interval_minutes"] = 0
    path.write_text(yaml.safe_dump(document))
    manifest = build(path, tmp_path / "out", z_reduction={"default": "mip"})
    (patch,) = stored(tmp_path / "out", manifest).values()
    theirs = maximum_filter(pixels[0, 0], size=(7, 1, 1))[3]
    np.testing.assert_array_equal(patch[0, 0], theirs[8:16, 8:16])
