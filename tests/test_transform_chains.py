"""Chains as trainings of mehta-lab/VisCy have them: made from descriptions, as a config has them, and run in one go."""

import pytest
import torch

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.describe import describe, make_modules
from dynaclr_wds.transforms import BatchTransform, NormalizeSampled


def entry(name: str, **settings: object) -> dict[str, object]:
    package = "kornia.augmentation" if name.endswith("Flip") else "dynaclr_wds.transforms"
    return {"class_path": f"{package}.{name}", "init_args": settings}


def affine(shear: float, *zyx: list[float]) -> dict[str, object]:
    return entry("RandomAffineStack", degrees=[-180.0, 180.0], shear=[-shear, shear], scale=list(zyx), p=0.8)


FLIPS = [entry("RandomHorizontalFlip", p=0.5), entry("RandomVerticalFlip", p=0.5)]
LIGHT = [
    entry("RandomAdjustContrast", gamma=[0.6, 1.6], p=0.5),
    entry("RandomAdjustIntensity", scale=[0.5, 1.5], shift=[0.0, 0.0], p=0.5),
]
NOISE = entry("RandomNoise", std=[0.0, 0.1], p=0.5)
BY_FRAME = entry("NormalizeSampled", level="timepoint", subtrahend="mean", divisor="std")


def blur(low: float, high: float, z: list[float]) -> dict[str, object]:
    return entry("RandomBlur", sigma_y=[low, high], sigma_x=[low, high], sigma_z=z, border="zeros", p=0.5)


CHAINS = {  # normalisation, augmentations, shape read, final size, whether Z is reduced, shape shown
    "2D, maximum over Z": (
        BY_FRAME,
        [
            affine(0.05, *[[0.8, 1.3]] * 3),
            *FLIPS,
            *LIGHT,
            blur(0.25, 0.5, [0.0, 0.0]),
            NOISE,
            entry("RandomCrop", size=[5, 24, 24]),
        ],
        (8, 32, 32),
        (None, 20, 20),
        True,
        (1, 20, 20),
    ),
    "3D": (
        BY_FRAME,
        [
            affine(0.05, *[[0.9, 1.1]] * 3),
            entry("RandomCrop", size=[10, 28, 28]),
            *FLIPS,
            *LIGHT,
            blur(0.25, 0.5, [0.0, 0.2]),
            NOISE,
        ],
        (12, 32, 32),
        (8, 20, 20),
        False,
        (8, 20, 20),
    ),
    "label-free, cropped twice": (
        entry("NormalizeSampled", level="fov"),
        [
            affine(0.1, *[[0.8, 2.0]] * 3),
            entry("RandomCrop", size=[9, 40, 40]),
            entry("CenterCrop", size=[7, 24, 24]),
            *FLIPS,
            *LIGHT,
            NOISE,
            blur(0.25, 1.5, [0.25, 1.5]),
        ],
        (10, 48, 48),
        (7, 24, 24),
        False,
        (7, 24, 24),
    ),
    "pooled screens": (
        entry("NormalizePercentiles", level="patch", lower=50, upper=99, b_min=0.0, b_max=1.0, clip=True),
        [affine(0.0, [1.0, 1.0], [0.9, 1.1], [0.9, 1.1]), *FLIPS, *LIGHT, blur(0.2, 0.5, [0.0, 0.0]), NOISE],
        (1, 28, 28),
        (1, 16, 16),
        False,
        (1, 16, 16),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_chains_give_the_network_its_shape_and_wait_for_nothing(name, device):
    normalization, augmentations, read, final_size, reduce_z, shown = CHAINS[name]
    transform = BatchTransform(
        make_modules([normalization], "normalizations"),
        make_modules(augmentations, "augmentations"),
        final_size,
        reduce_z=reduce_z,
    ).to(device)
    statistics = torch.ones(4, 1, len(STATISTICS), device=device)
    batch = {
        "anchor": torch.randint(0, 900, (4, 1, *read)).to(torch.uint16).to(device),
        "anchor_norm_meta": dict.fromkeys(("timepoint", "fov", "dataset"), statistics),
        "anchor_channel_meta": {"mip": torch.ones(4, 1, dtype=torch.bool, device=device)},
    }
    for training in (True, False):
        result = transform(batch, training=training)["anchor"]
        assert result.shape == (4, 1, *shown)
        assert device == "meta" or result.isfinite().all()


def test_what_prediction_needs_can_be_described():
    for normalization, *_ in CHAINS.values():
        (module,) = make_modules([normalization], "normalizations")
        assert make_modules([describe(module)], "normalizations")[0].extra_repr() == module.extra_repr()
    assert isinstance(make_modules([BY_FRAME], "normalizations")[0], NormalizeSampled)
