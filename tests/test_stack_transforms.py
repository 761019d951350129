"""Transforms of stacks do what SciPy, MONAI and Kornia do with the same parameters, and draw as they say."""

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from monai.networks.layers import GaussianFilter
from scipy import ndimage

from dynaclr_wds.transforms import (
    CenterCrop,
    RandomAffineStack,
    RandomBlur,
    RandomCrop,
    RandomElasticStack,
    RandomInvert,
    RandomSharpness,
    RandomShiftZ,
)
from dynaclr_wds.transforms.deform import bend

SCIPY_MODE = {"zeros": "grid-constant", "border": "nearest", "reflection": "grid-mirror"}
"""`grid_sample`'s borders as SciPy calls them."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stacks(batch: int = 2, channels: int = 2, shape: tuple[int, int, int] = (8, 18, 22)) -> torch.Tensor:
    return torch.rand(batch, channels, *shape)


def same(moved: torch.Tensor, expected: np.ndarray, atol: float = 1e-5) -> None:
    torch.testing.assert_close(moved, torch.from_numpy(np.ascontiguousarray(expected, np.float32)), atol=atol, rtol=0)


# affine


@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("planes_apart", [True, False], ids=["planes", "stack"])
def test_affine_is_what_scipy_does_with_the_same_matrix(border, planes_apart):
    """Zoom 1.2, 0.8 and 1.1 along Z, Y and X, then a turn by 30°: with planes one by one, and with a grid in 3D."""
    x = stacks()
    module = RandomAffineStack((30.0, 30.0), scale=((1.2, 1.2), (0.8, 0.8), (1.1, 1.1)), border=border, p=1.0)
    module._flat = planes_apart
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])  # Z, Y, X; Y points down
    back = np.linalg.inv(turn @ np.diag([1.2, 0.8, 1.1]))
    middle = (np.array(x.shape[2:]) - 1) / 2
    expected = ndimage.affine_transform(x[1, 1].numpy(), back, middle - back @ middle, order=1, mode=SCIPY_MODE[border])
    same(module(x)[1, 1], expected)


@pytest.mark.parametrize("facet", range(6))
def test_affine_is_what_kornia_does_with_the_same_draws(facet):
    """In a cube, because Kornia 0.9 mixes two conventions of the border where the sides differ."""
    x = stacks(shape=(12, 12, 12))
    shear = [(7.0, 7.0) if f == facet else (0.0, 0.0) for f in range(6)]
    kornia = K.RandomAffine3D(
        ((0.0, 0.0), (0.0, 0.0), (25.0, 25.0)), scale=((1.1, 1.1), (0.8, 0.8), (1.2, 1.2)), shears=shear, p=1.0
    )
    ours = RandomAffineStack((25.0, 25.0), shear=shear, scale=((1.2, 1.2), (0.8, 0.8), (1.1, 1.1)), p=1.0)
    torch.testing.assert_close(ours(x), kornia(x), atol=1e-5, rtol=0)


def test_affine_with_flat_shear_takes_no_grid_in_3d():
    assert RandomAffineStack(shear=(-5.0, 5.0), scale=(0.8, 1.2))._flat
    assert not RandomAffineStack(tilt=(-1.0, 1.0))._flat
    assert not RandomAffineStack(shear=[(0.0, 0.0)] * 5 + [(-1.0, 1.0)])._flat


def test_affine_leaves_a_single_plane_where_it_is_when_z_is_scaled():
    x = torch.rand(2, 1, 1, 8, 8)
    torch.testing.assert_close(RandomAffineStack((0.0, 0.0), scale=((0.5, 2.0), (1.0, 1.0), (1.0, 1.0)), p=1.0)(x), x)


# crop


def test_random_crop_takes_every_box_and_the_same_of_all_channels():
    place = torch.arange(5.0 * 6 * 7).reshape(1, 1, 5, 6, 7).expand(3000, 2, 5, 6, 7)
    cropped = RandomCrop((3, 5, 6))(place)
    assert cropped.shape == (3000, 2, 3, 5, 6)
    assert torch.equal(cropped[:, 0], cropped[:, 1])
    first, counts = cropped[:, 0, 0, 0, 0].unique(return_counts=True)
    boxes = [42 * z + 7 * y + x for z in range(3) for y in range(2) for x in range(2)]
    assert first.tolist() == boxes
    assert (counts - 250).abs().max() < 63  # 4 standard deviations
    inner = torch.arange(5.0 * 6 * 7).reshape(5, 6, 7)[:3, :5, :6]
    assert torch.equal(cropped[0, 0] - cropped[0, 0, 0, 0, 0], inner - inner[0, 0, 0])


def test_crops_keep_axes_that_are_not_named():
    x = stacks()
    assert torch.equal(RandomCrop((None, None, None))(x), x)
    assert RandomCrop((5, None, None))(x).shape == (2, 2, 5, 18, 22)
    assert torch.equal(CenterCrop((3, None, 10))(x), x[:, :, 3:6, :, 6:16])


def test_crops_refuse_what_cannot_be():
    with pytest.raises(ValueError, match=r"RandomCrop: size=\[4, 5\] must be three lengths > 0: \(Z, Y, X\)"):
        RandomCrop((4, 5))
    with pytest.raises(ValueError, match=r"CenterCrop: size=\[0, 5, 5\] must be three lengths > 0"):
        CenterCrop((0, 5, 5))
    with pytest.raises(ValueError, match=r"size=\(9, None, None\) must be > 0 and at most .* = \(8, 18, 22\)"):
        RandomCrop((9, None, None))(stacks())


# deform


@pytest.mark.parametrize(("fill", "first"), [(0.0, [0, 0, 0, 1]), (None, [1, 1, 1, 1]), (9.0, [9, 9, 9, 1])])
def test_shift_z_moves_whole_planes_and_fills(fill, first):
    x = torch.arange(1.0, 6).reshape(1, 1, 5, 1, 1).expand(400, 2, 5, 3, 3)
    shifted = RandomShiftZ(3, fill, p=1.0)(x)
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    rows = {tuple(row) for row in shifted[:, 0, :, 0, 0].tolist()}
    assert len(rows) == 7, "-3 to 3 planes"
    assert (*first, 2) in rows
    assert (1, 2, 3, 4, 5) in rows


def test_shift_z_leaves_samples_that_are_not_drawn():
    x = stacks()
    assert torch.equal(RandomShiftZ(p=0.0)(x), x)
    with pytest.raises(ValueError, match="max_shift=-1 must be >= 0"):
        RandomShiftZ(-1)


@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("depth", [1, 8], ids=["planes alike", "3D"])
def test_bend_is_what_scipy_does_with_the_same_field(border, depth):
    x = stacks()
    field = 2 * torch.randn(2, 3, depth, 18, 22)
    if depth == 1:
        field[:, 0] = 0
    grid = np.indices(x.shape[2:]) + field[1].numpy()
    expected = ndimage.map_coordinates(x[1, 0].numpy(), grid, order=1, mode=SCIPY_MODE[border])
    same(bend(x, field, border)[1, 0], expected, atol=1e-4)


def test_elastic_fields_are_as_strong_and_as_smooth_as_asked():
    module = RandomElasticStack((4.0, 4.0), (2.5, 2.5), (0.5, 0.5))
    field = module._sample_field(torch.zeros(16, 1, 24, 96, 96))
    assert field.shape == (16, 3, 24, 96, 96)
    inner = field[:, :, 6:18, 16:-16, 16:-16]
    assert inner.std((0, 2, 3, 4)).tolist() == pytest.approx([0.5, 2.5, 2.5], rel=0.1)
    # noise smoothed by a Gaussian of width s agrees with itself d pixels on by exp(-d²/4s²): 0.78 for 4 of 4
    y = inner[:, 1]
    agree = (y[..., 4:] * y[..., :-4]).mean() / y.square().mean()
    assert agree.item() == pytest.approx(0.78, abs=0.05)
    flat = RandomElasticStack((4.0, 4.0), (2.5, 2.5))._sample_field(torch.zeros(16, 1, 24, 96, 96))
    assert flat.shape == (16, 3, 1, 96, 96)
    assert flat.std((0, 2, 3, 4)).tolist() == pytest.approx([0.0, 2.5, 2.5], rel=0.15)


def test_elastic_is_alike_over_channels_and_differs_between_samples():
    x = torch.rand(1, 1, 4, 32, 32).expand(3, 2, 4, 32, 32)
    for z_magnitude in ((0.0, 0.0), (0.5, 0.5)):
        bent = RandomElasticStack((3.0, 5.0), z_magnitude=z_magnitude, p=1.0)(x)
        torch.testing.assert_close(bent[:, 0], bent[:, 1])
        assert not torch.allclose(bent[0], bent[1])
    assert torch.equal(RandomElasticStack(p=0.0)(x), x)


# filters


def test_blur_is_what_monai_does_with_the_same_widths():
    """MONAI's kernel lacks the tails beyond 4 widths, 6e-5 of it; ours sums to 1."""
    x = stacks()
    blurred = RandomBlur((0.6, 0.6), (1.3, 1.3), (0.4, 0.4), border="zeros", p=1.0)(x)
    expected = GaussianFilter(3, [0.4, 0.6, 1.3], truncated=4.0, approx="erf")(x)
    torch.testing.assert_close(blurred, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("border", "nearest"), ("reflection", "mirror")])
def test_blur_is_nearly_what_scipy_does(border, mode):
    """SciPy samples the Gaussian where we integrate it, which is a blur of 1/12 square pixels more: 2 %."""
    x = stacks(shape=(16, 40, 40))
    blurred = RandomBlur((2.0, 2.0), (3.0, 3.0), (1.5, 1.5), border=border, p=1.0)(x)
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), [(s**2 + 1 / 12) ** 0.5 for s in (1.5, 2.0, 3.0)], mode=mode)
    same(blurred[0, 0], expected, atol=2e-3)


def test_blur_draws_a_width_per_sample_and_channel_within_its_range():
    x = torch.zeros(64, 2, 1, 1, 33)
    x[..., 16] = 1.0
    blurred = RandomBlur((0.5, 1.0), (1.0, 2.0), (0.5, 1.0), p=0.5)(x)
    variance = (blurred * (torch.arange(33.0) - 16) ** 2).sum(-1).flatten()
    left, drawn = variance[variance < 1e-6], variance[variance >= 1e-6]
    assert 40 < len(left) < 88  # 64 ± 4 standard deviations of 5.7
    assert len(drawn.unique()) == len(drawn)
    assert drawn.min() > 1.0
    assert drawn.max() < 4.0 + 1 / 12
    torch.testing.assert_close(blurred.sum(-1), torch.ones(64, 2, 1, 1))


def test_blur_of_width_zero_leaves_an_axis():
    x = stacks()
    assert torch.equal(RandomBlur((0.0, 0.0), (0.0, 0.0), p=1.0)(x), x)
    torch.testing.assert_close(RandomBlur((0.0, 1e-3), (0.0, 1e-3), (0.0, 1e-3), p=1.0)(x), x)
    with pytest.raises(ValueError, match=r"sigma_z=\(-1.0, 1.0\) must be a range"):
        RandomBlur(sigma_z=(-1.0, 1.0))


@pytest.mark.parametrize("shape", [(8, 18, 22), (1, 18, 22)], ids=["stack", "plane"])
def test_sharpness_takes_away_scipys_laplacian(shape):
    x = stacks(shape=shape)
    sharpened = RandomSharpness((0.3, 0.3), p=1.0)(x)
    image = x[0, 1].numpy()
    same(sharpened[0, 1], image - 0.3 * ndimage.laplace(image, mode="nearest"))
    assert torch.equal(RandomSharpness(p=0.0)(x), x)


def test_invert_turns_about_a_value_per_sample_and_channel():
    x = torch.tensor([-1.0, 0.0, 0.25]).reshape(1, 1, 1, 1, 3)
    assert RandomInvert(p=1.0)(x).flatten().tolist() == [1.0, 0.0, -0.25]
    assert RandomInvert(about=0.5, p=1.0)(x).flatten().tolist() == [2.0, 1.0, 0.75]
    share = (RandomInvert(p=0.25)(torch.ones(2000, 2, 1, 1, 1)) < 0).float().mean().item()
    assert 0.22 < share < 0.28  # 0.25 ± 4 standard deviations
