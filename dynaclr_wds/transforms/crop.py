"""Crops patches to the size that the network sees. The border that rotations bring in is cut off."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def apply_center_crop(x: Float[Tensor, "b c z y x"], yx_size: tuple[int, int]) -> Float[Tensor, "b c z crop_y crop_x"]:
    """Cut the centre out of every plane.

    The cell's centre is at `size // 2` of a patch, and at `yx_size // 2` of the result.

    Parameters
    ----------
    x
        Patches.
    yx_size
        (Y, X) of the result, in pixels.

    Raises
    ------
    ValueError
        The patch is smaller than that.
    """
    height, width = x.shape[-2:]
    crop_y, crop_x = yx_size
    if not (0 < crop_y <= height and 0 < crop_x <= width):
        raise ValueError(
            f"final_yx_patch_size=({crop_y}, {crop_x}) must be > 0 and at most the patch's ({height}, {width}). "
            "Give a smaller final_yx_patch_size or a larger yx_patch_size."
        )
    if (crop_y, crop_x) == (height, width):
        return x
    top, left = height // 2 - crop_y // 2, width // 2 - crop_x // 2
    return x[..., top : top + crop_y, left : left + crop_x].contiguous()
