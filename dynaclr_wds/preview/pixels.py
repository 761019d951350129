"""Patches to how bright they are: quantiles and histograms of each channel, and patches that hold nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from kornia.augmentation import (
    AugmentationBase2D,
    AugmentationBase3D,
    IntensityAugmentationBase2D,
    IntensityAugmentationBase3D,
)
from torch import Tensor, nn

from dynaclr_wds.transforms.affine import RandomAffineStack
from dynaclr_wds.transforms.augment import Augment
from dynaclr_wds.transforms.batch import BatchTransform
from dynaclr_wds.transforms.crop import apply_center_crop

_MOST_FILLED = 64
"""Patches of ones that are turned."""
QUANTILES = (0.001, 0.01, 0.5, 0.99, 0.999)
_MOST_PIXELS = 1 << 18
"""Pixels of a channel that quantiles are worked out from, evenly taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """What the pixels of some patches are like, channel by channel."""

    quantiles: Float64[np.ndarray, "c 5"]
    """At `QUANTILES`, of pixels that are finite."""
    mean: Float64[np.ndarray, " c"]
    deviation: Float64[np.ndarray, " c"]
    constant: Int64[np.ndarray, " c"]
    """Patches whose pixels are all alike."""
    not_finite: Int64[np.ndarray, " c"]
    """Patches with a pixel that is NaN or infinite."""
    patches: int
    sample: tuple[Float32[np.ndarray, " _"], ...]
    """Some pixels of each channel that are finite, evenly taken."""


def measure_filled(transform: BatchTransform, patches: Shaped[Tensor, "b c z y x"]) -> float:
    """Measure which share of the pixels that are left lies outside the patches that were read, as empty corners do.

    Turns, shifts and scalings are applied to patches that are 1 everywhere, and the last crop.
    """
    x = torch.ones_like(patches[:_MOST_FILLED, :1], dtype=torch.float32)
    for module in transform.augmentations:
        if isinstance(module, RandomAffineStack) or (isinstance(module, Augment) and _is_geometry(module.module)):
            x = module(x)
    return float((apply_center_crop(x, transform.final_size, "final size") < 0.5).float().mean())


def _is_geometry(module: nn.Module) -> bool:
    intensity = isinstance(module, IntensityAugmentationBase2D | IntensityAugmentationBase3D)
    return isinstance(module, AugmentationBase2D | AugmentationBase3D) and not intensity


def measure_brightness(*parts: Float32[Tensor, "_ c z y x"]) -> Brightness:
    """Measure patches, such as anchors and positives; all have the same channels."""
    x = torch.cat([part.detach() for part in parts]).flatten(2)
    finite = torch.isfinite(x)
    constant = x.amax(2) == x.amin(2)
    samples, quantiles, moments = [], [], []
    for c in range(x.shape[1]):
        own = x[:, c][finite[:, c]]
        few = own[:: max(len(own) // _MOST_PIXELS, 1)].numpy()
        samples.append(few)
        quantiles.append(np.quantile(few, QUANTILES) if len(few) else np.full(len(QUANTILES), np.nan))
        moments.append((few.mean(dtype=np.float64), few.std(dtype=np.float64)) if len(few) else (np.nan, np.nan))
    mean, deviation = np.array(moments, np.float64).T
    return Brightness(
        quantiles=np.array(quantiles, np.float64),
        mean=mean,
        deviation=deviation,
        constant=constant.sum(0).numpy(),
        not_finite=(~finite.all(2)).sum(0).numpy(),
        patches=len(x),
        sample=tuple(samples),
    )
