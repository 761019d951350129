"""Augments patches: applies Kornia's modules, and our own, to (B, C, Z, Y, X).

Geometry is drawn once per sample and is the same for every channel and Z. Intensity is drawn per sample and channel
and is the same over Z. All draws follow `torch.manual_seed`.

Kornia draws its few numbers on the CPU and sends them to the device without waiting for it. If its modules were moved
to the device they would draw there and fetch the numbers back, which waits; so `Augment` keeps them on the CPU. Three
wait anyway (Kornia 0.9), because they invert or solve on the device: `RandomAffine3D`, `RandomRotation3D` and
`RandomThinPlateSpline`; `RandomAffineStack` does what the first two do. Our own modules draw on the device, because
noise drawn on the CPU would be a copy as large as the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from kornia.augmentation import (
    AugmentationBase2D,
    AugmentationBase3D,
    IntensityAugmentationBase2D,
    IntensityAugmentationBase3D,
    MixAugmentationBaseV2,
)
from torch import Tensor, nn

UNBOUNDED = frozenset(
    {
        "RandomBoxBlur",
        "RandomErasing",
        "RandomGaussianBlur",
        "RandomGaussianNoise",
        "RandomMedianBlur",
        "RandomMotionBlur",
        "RandomMotionBlur3D",
    }
)
"""Kornia intensity augmentations that do not clamp to [0, 1], which would destroy normalised data."""

UNBOUNDED_WITHOUT_CLIP = frozenset({"RandomBrightness", "RandomContrast"})
"""Those that do not clamp when `clip_output` is false."""

OWN = (
    "RandomAdjustIntensity, RandomAdjustContrast, RandomInvert, RandomBlur, RandomSharpness, RandomNoise "
    "(dynaclr_wds.transforms)"
)

_KORNIA = (AugmentationBase2D, AugmentationBase3D)


class Augment(nn.Module):
    """Applies one augmentation to (B, C, Z, Y, X), in the layout that its kind needs.

    - 2D geometry: on (B, C·Z, Y, X), one draw per sample.
    - 2D intensity: on (B·C, Z, Y, X), one draw per sample and channel.
    - 3D geometry: on (B, C, Z, Y, X), one draw per sample.
    - 3D intensity: on (B·C, 1, Z, Y, X), one draw per sample and channel.
    - any other module: on (B, C, Z, Y, X).

    Parameters
    ----------
    module
        A Kornia augmentation or any module that maps patches to patches.
    channels
        Channels to alter, in stored order; None = all. Not for geometry, which must keep channels aligned.

    Raises
    ------
    ValueError
        A Kornia module that mixes samples, holds others, or clamps intensities to [0, 1]; channels for geometry;
        in `forward`, a channel that is not in the data.
    """

    def __init__(self, module: nn.Module, channels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.module = module
        self.channels = None if channels is None else tuple(channels)
        self._layout = _parse_layout(module)
        if channels is not None and self._layout in (_geometry_2d, _geometry_3d):
            raise ValueError(
                f"Augment: channels={list(channels)} given for {type(module).__name__}, which moves pixels; "
                "channels would no longer lie on each other. Leave `channels` out."
            )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z2 y2 x2"]:
        """Return the altered patches."""
        if self.channels is None:
            return self._layout(self.module, x)
        count = x.shape[1]
        if not all(0 <= c < count for c in self.channels):
            raise ValueError(
                f"Augment: channels={list(self.channels)}, but the data have {count} "
                f"(allowed: 0 to {count - 1}). Name only those, or leave `channels` out for all."
            )
        # slices, because an index list would be copied from the host
        altered = self._layout(self.module, torch.cat([x[:, c : c + 1] for c in self.channels], dim=1))
        result = x.clone()
        for i, c in enumerate(self.channels):
            result[:, c] = altered[:, i]
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Augment:
        """Move the module, unless it is one of Kornia's: the top of this file says why."""
        if self._layout is not _plain:
            return self
        moved: Augment = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved


def as_augmentation(module: nn.Module) -> nn.Module:
    """Wrap a Kornia augmentation in `Augment`; return any other module as it is."""
    return Augment(module) if isinstance(module, _KORNIA) or _is_kornia(module) else module


def _geometry_2d(module: nn.Module, x: Tensor) -> Tensor:
    # (B, C, Z, Y, X) -> (B, C·Z, Y, X): Kornia draws per B and moves all channels in the same way
    moved: Tensor = module(x.flatten(1, 2))
    return moved.reshape(*x.shape[:3], *moved.shape[2:])


def _intensity_2d(module: nn.Module, x: Tensor) -> Tensor:
    # (B, C, Z, Y, X) -> (B·C, Z, Y, X): Kornia draws per B·C and treats every Z in the same way
    altered: Tensor = module(x.flatten(0, 1))
    return altered.reshape(*x.shape[:2], *altered.shape[1:])


def _geometry_3d(module: nn.Module, x: Tensor) -> Tensor:
    moved: Tensor = module(x)
    return moved


def _intensity_3d(module: nn.Module, x: Tensor) -> Tensor:
    # (B, C, Z, Y, X) -> (B·C, 1, Z, Y, X)
    altered: Tensor = module(x.flatten(0, 1).unsqueeze(1))
    return altered.reshape(*x.shape[:2], *altered.shape[2:])


def _plain(module: nn.Module, x: Tensor) -> Tensor:
    altered: Tensor = module(x)
    return altered


def _is_kornia(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "kornia"


def _parse_layout(module: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """Choose how a module is applied, or refuse it."""
    name = type(module).__name__
    if isinstance(module, MixAugmentationBaseV2) or (_is_kornia(module) and not isinstance(module, _KORNIA)):
        raise ValueError(
            f"augmentations: {name} mixes samples or holds other augmentations. "
            "List single 2D or 3D geometry and intensity augmentations; they are applied in the order given."
        )
    if isinstance(module, IntensityAugmentationBase2D | IntensityAugmentationBase3D):
        unclipped = name in UNBOUNDED_WITHOUT_CLIP and not getattr(module, "clip_output", True)
        if _is_kornia(module) and name not in UNBOUNDED and not unclipped:
            raise ValueError(
                f"augmentations: {name} takes intensities to lie in [0, 1], which normalised data do not. "
                f"Use {OWN}; of Kornia {', '.join(sorted(UNBOUNDED))}; "
                f"or {' and '.join(sorted(UNBOUNDED_WITHOUT_CLIP))} with clip_output: false."
            )
        return _intensity_2d if isinstance(module, IntensityAugmentationBase2D) else _intensity_3d
    if isinstance(module, AugmentationBase2D):
        return _geometry_2d
    return _geometry_3d if isinstance(module, AugmentationBase3D) else _plain
