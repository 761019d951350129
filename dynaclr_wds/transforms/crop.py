"""Crops patches: at random places, and to the centre that the network sees; rotations bring in black corners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

Size = tuple[int | None, int | None, int | None]
"""(Z, Y, X) of a crop; None keeps an axis whole."""


class _Crop(nn.Module):
    """Base of crops to a size (Z, Y, X) that is checked."""

    def __init__(self, size: Sequence[int | None]) -> None:
        super().__init__()
        self.size = parse_size(size, self.setting)

    @property
    def setting(self) -> str:
        """What the size is called in errors."""
        return f"{type(self).__name__}: size"

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"size={self.size}"


class RandomCrop(_Crop):
    """Cut a box out of every patch, at a place that is drawn per sample and is the same for all channels.

    Every place at which the box lies within the patch is equally probable.

    Parameters
    ----------
    size
        (Z, Y, X) of the box; null keeps an axis whole.

    Raises
    ------
    ValueError
        A size that is not three, or not > 0; in `forward`, one that is larger than the patch.
    """

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c crop_z crop_y crop_x"]:
        """Return the boxes."""
        size = _check_fits(x, self.size, self.setting)
        boxes, first = x, []
        for axis, (extent, length) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
            boxes = boxes.unfold(axis, length, 1)  # a view: every box that there is
            first.append(torch.randint(0, extent - length + 1, (x.shape[0],), device=x.device))
        z, y, x_ = first
        return boxes[torch.arange(x.shape[0], device=x.device), :, z, y, x_].contiguous()


class CenterCrop(_Crop):
    """Cut the centre out of every patch, in the midst of the augmentations, so that later ones have less to do.

    Parameters
    ----------
    size
        (Z, Y, X) of the centre; null keeps an axis whole.

    Raises
    ------
    ValueError
        A size that is not three, or not > 0; in `forward`, one that is larger than the patch.
    """

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c crop_z crop_y crop_x"]:
        """Return the centres."""
        return apply_center_crop(x, self.size, self.setting)


def apply_center_crop(
    x: Float[Tensor, "b c z y x"], size: Size, what: str = "size"
) -> Float[Tensor, "b c crop_z crop_y crop_x"]:
    """Cut the centre out of every patch.

    The cell's centre is at `length // 2` of each axis of the patch, and of the result.

    Parameters
    ----------
    x
        Patches.
    size
        (Z, Y, X) of the result, in planes and pixels; None keeps an axis whole.
    what
        Setting that the size was given for, for the error.

    Raises
    ------
    ValueError
        The patch is smaller than that.
    """
    lengths = _check_fits(x, size, what)
    if lengths == tuple(x.shape[2:]):
        return x
    cut = [slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(x.shape[2:], lengths, strict=True)]
    return x[:, :, cut[0], cut[1], cut[2]].contiguous()


def parse_size(size: Sequence[int | None], what: str) -> Size:
    """Return a size of three lengths > 0, or None for some of them.

    Raises
    ------
    ValueError
        It is none.
    """
    if len(size) != 3 or any(length is not None and length < 1 for length in size):
        raise ValueError(f"{what}={list(size)} must be three lengths > 0: (Z, Y, X). null keeps an axis whole.")
    z, y, x = size
    return z, y, x


def _check_fits(x: Tensor, size: Size, what: str) -> tuple[int, int, int]:
    """Return the lengths of a box within a patch."""
    z, y, x_ = (n if k is None else k for n, k in zip(x.shape[2:], size, strict=True))
    if any(not 0 < k <= n for k, n in zip((z, y, x_), x.shape[2:], strict=True)):
        raise ValueError(
            f"{what}={size} must be > 0 and at most the patch's (Z, Y, X) = {tuple(x.shape[2:])}. "
            "Ask for less, or read more with yx_patch_size and z_range."
        )
    return z, y, x_
