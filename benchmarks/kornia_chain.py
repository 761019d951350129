"""Two chains of the same augmentations: ours for all channels at once, and single Kornia calls channel by channel.

Kornia's calls draw for the first channel, and the others are given the same numbers where pixels move. Its contrast and
brightness stand for our gamma and gain, which it only has for data in [0, 1]; the work is about the same.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from dynaclr_wds.transforms import (
    RandomAdjustContrast,
    RandomAdjustIntensity,
    RandomAffineStack,
    RandomBlur,
    RandomNoise,
)

DEGREES, SCALE, SIGMA, STD = (-180.0, 180.0), (0.8, 1.3), (0.25, 0.5), 0.1


def our_chain() -> list[nn.Module]:
    """Affine, flips, gamma, gain, blur, noise, as `BatchTransform` takes them."""
    return [
        RandomAffineStack(DEGREES, scale=SCALE, p=0.8),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        RandomAdjustContrast((0.6, 1.6), p=0.5),
        RandomAdjustIntensity((0.5, 1.5), (0.0, 0.0), p=0.5),
        RandomBlur(SIGMA, SIGMA, p=0.5),
        RandomNoise((0.0, STD), p=0.5),
    ]


class KorniaChain(nn.Module):
    """The same by single calls of Kornia, channel by channel: in 3D for stacks, in 2D for single planes."""

    def __init__(self, planes: int = 1) -> None:
        super().__init__()
        self.flat = planes == 1
        affine = (
            K.RandomAffine(180.0, scale=SCALE, p=0.8)
            if self.flat
            else K.RandomAffine3D(((0.0, 0.0), (0.0, 0.0), DEGREES), scale=(SCALE,) * 3, p=0.8)
        )
        flips = (
            [K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5)]
            if self.flat
            else [K.RandomHorizontalFlip3D(p=0.5), K.RandomVerticalFlip3D(p=0.5)]
        )
        self.geometry = nn.ModuleList([affine, *flips])
        self.intensity = nn.ModuleList(
            [
                K.RandomContrast((0.6, 1.6), clip_output=False, p=0.5),
                K.RandomBrightness((0.5, 1.5), clip_output=False, p=0.5),
                K.RandomGaussianBlur((5, 5), SIGMA, p=0.5),
                K.RandomGaussianNoise(0.0, STD, p=0.5),
            ]
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, Z, Y, X), altered."""
        channels = [x[:, c] if self.flat else x[:, c : c + 1] for c in range(x.shape[1])]
        for module in self.geometry:
            params = module.forward_parameters(channels[0].shape)
            channels = [module(channel, params=params) for channel in channels]
        planes = [channel if self.flat else channel[:, 0] for channel in channels]
        for module in self.intensity:
            planes = [module(plane) for plane in planes]
        return torch.stack(planes, dim=1)
