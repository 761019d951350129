"""Draws patches as one picture for people: a row per sample, with anchor and positive of each channel side by side."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def apply_pair_image(
    anchor: Float[Tensor, "b c z y x"], positive: Float[Tensor, "b c z y x"], gap: int = 2
) -> Float[Tensor, "height width"]:
    """Draw anchors and positives as one grey picture.

    A row shows the middle planes of one sample: anchor and positive of channel 0, then of channel 1, and so on. Anchor
    and positive of a channel share one grey scale, from their common minimum to their common maximum.

    Parameters
    ----------
    anchor, positive
        Patches.
    gap
        White pixels between the patches.

    Returns
    -------
    Grey values in [0, 1].
    """
    pairs = torch.stack([anchor, positive], dim=2)[:, :, :, anchor.shape[2] // 2].float()  # (b, c, 2, y, x)
    low, high = pairs.amin((2, 3, 4), keepdim=True), pairs.amax((2, 3, 4), keepdim=True)
    grey = (pairs - low) / (high - low).clamp_min(1e-8)
    framed = torch.nn.functional.pad(grey, (0, gap, 0, gap), value=1.0)
    b, c, two, y, x = framed.shape
    # (b, c, 2, y, x) -> (b, y, c, 2, x) -> (b·y, c·2·x)
    return framed.permute(0, 3, 1, 2, 4).reshape(b * y, c * two * x)
