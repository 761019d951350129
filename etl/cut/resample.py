"""Resamples pixels to another size: linear interpolation, after a Gaussian where they shrink.

scipy does both. The Gaussian keeps detail that larger pixels can't show from turning into patterns (aliases); its
standard deviation is (scale - 1) / 2 pixels, as in `skimage.transform.resize`. Beyond the edge, the nearest pixel
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from scipy.ndimage import affine_transform, gaussian_filter

from etl.source.patch_grid import PatchGrid

_RADIUS = 4.0
"""The Gaussian is cut off at so many standard deviations."""


def smoothing_margin(grid: PatchGrid) -> int:
    """Return how many pixels beyond a patch have a part in it, because of the Gaussian."""
    return int(_RADIUS * grid.smoothing + 0.5)


def resample(
    pixels: Num[np.ndarray, "z y x"],
    first: tuple[float, float, float],
    scale: tuple[float, float, float],
    shape: tuple[int, ...],
) -> Float[np.ndarray, "zs ys xs"]:
    """Resample one channel.

    Parameters
    ----------
    pixels
        Of the plate, with as many beyond the patch as have a part in it.
    first
        Place of the first stored pixel among them.
    scale
        Pixels of the plate per stored pixel.
    shape
        Of the result.

    Returns
    -------
    np.ndarray
        float32; float64 of pixels that float32 can't hold.
    """
    kind = np.promote_types(pixels.dtype.newbyteorder("="), np.float32)
    work = pixels.astype(kind)
    if scale[0] == 1 and len(work) == shape[0]:
        return np.stack([_resample(plane, first[1:], scale[1:], shape[1:]) for plane in work])
    return _resample(work, first, scale, shape)


def _resample(
    pixels: Float[np.ndarray, "*source"], first: Sequence[float], scale: Sequence[float], shape: Sequence[int]
) -> Float[np.ndarray, "*stored"]:
    sigma = [PatchGrid(size=length, scale=step).smoothing for length, step in zip(shape, scale, strict=True)]
    if any(sigma):
        pixels = gaussian_filter(pixels, sigma, mode="nearest", truncate=_RADIUS)
    result: np.ndarray[Any, Any] = affine_transform(
        pixels, np.array(scale), first, tuple(shape), order=1, mode="nearest", prefilter=False
    )
    return result
