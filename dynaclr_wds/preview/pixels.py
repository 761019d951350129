"""Patches to how bright they are: quantiles and histograms of each channel, and patches that hold nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

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
    zero: Float64[np.ndarray, " c"]
    """Share of pixels that are exactly 0, in patches that are not constant."""
    patches: int
    sample: tuple[Float32[np.ndarray, " _"], ...]
    """Some pixels of each channel that are finite, evenly taken."""


def measure_brightness(*parts: Float32[Tensor, "_ c z y x"]) -> Brightness:
    """Measure patches, such as anchors and positives; all have the same channels."""
    x = torch.cat([part.detach() for part in parts]).flatten(2)
    finite = torch.isfinite(x)
    constant = x.amax(2) == x.amin(2)
    varied = ~constant
    zero = ((x == 0).float().mean(2) * varied).sum(0) / varied.sum(0).clamp(min=1)
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
        zero=zero.double().numpy(),
        patches=len(x),
        sample=tuple(samples),
    )
