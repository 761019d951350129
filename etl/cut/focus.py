"""Measures which slice of a stack is in focus: the one with the most power at middle spatial frequencies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.fft import fft, rfft

from etl.cut.filed_frames import Stack
from etl.source.focus import band_weights


def find_focus(stack: Stack, pixel_size_um: tuple[float, float]) -> int:
    """Return the slice in focus; the middle one where no slice has any structure.

    Parameters
    ----------
    pixel_size_um
        Along y and x.
    """
    if len(stack) == 1:
        return 0
    power = midband_power(stack, pixel_size_um)
    return int(np.argmax(power)) if power.max() > 0 else len(stack) // 2


def midband_power(stack: Stack, pixel_size_um: tuple[float, float]) -> Float64[np.ndarray, " z"]:
    """Sum the absolute values of each slice's spectrum over the band of `etl.source.focus`.

    Only what the band needs is computed: all rows, but then only the columns of the lower frequencies. Pixels that are
    NaN or infinite count as 0.
    """
    weights = band_weights((stack.shape[1], stack.shape[2]), pixel_size_um)
    power = np.zeros(len(stack))
    for z, plane in enumerate(stack):
        pixels = np.nan_to_num(plane.astype(np.float32), copy=False, posinf=0, neginf=0)
        rows = rfft(pixels, axis=1)[:, : weights.shape[1]]
        power[z] = np.sum(np.abs(fft(rows, axis=0)) * weights, dtype=np.float64)
    return power
