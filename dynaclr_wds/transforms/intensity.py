"""Alters intensities of normalised data, which lie around 0 and have no bounds.

Each module draws per sample and channel, the same over Z, on the tensor's own device.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dynaclr_wds.transforms.ranges import Range, check_p, parse_range

_VOLUME = (2, 3, 4)
"""Axes of one sample's channel in (B, C, Z, Y, X)."""


class _RandomIntensity(nn.Module):
    """Base of the modules here: a probability, and draws of shape (B, C, 1, 1, 1)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = check_p(self, p)

    def _sample_gate(self, x: Float[Tensor, "b c z y x"]) -> Bool[Tensor, "b c 1 1 1"]:
        return torch.rand((*x.shape[:2], 1, 1, 1), device=x.device) < self.p

    def _sample_uniform(self, x: Float[Tensor, "b c z y x"], bounds: Range) -> Float[Tensor, "b c 1 1 1"]:
        draw = torch.rand((*x.shape[:2], 1, 1, 1), device=x.device, dtype=x.dtype)
        return draw * (bounds[1] - bounds[0]) + bounds[0]


class RandomAdjustIntensity(_RandomIntensity):
    """Changes gain and offset: `x * scale + shift`.

    Parameters
    ----------
    scale
        Range of the factor, drawn uniformly, >= 0.
    shift
        Range of the summand, drawn uniformly, in units of the normalised data.
    p
        Probability of a change, per sample and channel.
    """

    def __init__(
        self, scale: tuple[float, float] = (0.8, 1.2), shift: tuple[float, float] = (-0.1, 0.1), p: float = 0.5
    ) -> None:
        super().__init__(p)
        self.scale = parse_range(self, "scale", scale, 0.0)
        self.shift = parse_range(self, "shift", shift)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the altered patches."""
        gate = self._sample_gate(x)
        scale = self._sample_uniform(x, self.scale).where(gate, 1.0)
        shift = self._sample_uniform(x, self.shift).where(gate, 0.0)
        return torch.addcmul(shift, x, scale)


class RandomAdjustContrast(_RandomIntensity):
    """Changes gamma within each sample's own range: `((x - min) / (max - min)) ** gamma * (max - min) + min`.

    The formula is that of MONAI's `AdjustContrast`; it keeps minimum and maximum.

    Parameters
    ----------
    gamma
        Range of the exponent, drawn uniformly, >= 0.
    p
        Probability of a change, per sample and channel.
    """

    def __init__(self, gamma: tuple[float, float] = (0.8, 1.2), p: float = 0.5) -> None:
        super().__init__(p)
        self.gamma = parse_range(self, "gamma", gamma, 0.0)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the altered patches."""
        gate = self._sample_gate(x)
        gamma = self._sample_uniform(x, self.gamma)
        low = x.amin(_VOLUME, keepdim=True)
        extent = x.amax(_VOLUME, keepdim=True) - low
        unit = (x - low) / extent.clamp_min(1e-8)  # a constant patch stays as it is
        return torch.where(gate, unit**gamma * extent + low, x)


class RandomNoise(_RandomIntensity):
    """Adds Gaussian noise of a drawn strength, independent in every voxel.

    Parameters
    ----------
    std
        Range of the noise's standard deviation, drawn uniformly, >= 0, in units of the normalised data.
    p
        Probability of a change, per sample and channel.
    """

    def __init__(self, std: tuple[float, float] = (0.0, 0.2), p: float = 0.5) -> None:
        super().__init__(p)
        self.std = parse_range(self, "std", std, 0.0)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the altered patches."""
        std = self._sample_uniform(x, self.std).where(self._sample_gate(x), 0.0)
        return torch.addcmul(x, torch.randn_like(x), std)


class RandomInvert(_RandomIntensity):
    """Turns dark to bright: `2 * about - x`.

    Parameters
    ----------
    about
        The value that stays: 0 for data around 0, 0.5 for data in [0, 1].
    p
        Probability of a change, per sample and channel.
    """

    def __init__(self, about: float = 0.0, p: float = 0.1) -> None:
        super().__init__(p)
        self.about = about

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the altered patches."""
        return torch.where(self._sample_gate(x), 2 * self.about - x, x)
