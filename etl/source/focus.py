"""Finds which slice of each frame is in focus as far as metadata say it, and how it is measured where they don't.

`focus_slice` attributes are those that VisCy's quality control writes: channel → `per_timepoint` (frame → slice),
`fov_statistics.z_focus_mean`, `dataset_statistics.z_focus_mean`, for each field of view, the last for the plate too.
Where there are none, the focus is measured as the same program does it (`focus_from_transverse_band` of waveorder): it
is the slice with the most power at middle spatial frequencies, here those of structures of 1.9 to 3.9 µm, which is what
that program takes at a numerical aperture of 0.55 and a wavelength of 532 nm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32

from dynaclr_wds.errors import PlateError
from etl.source.plates import Fov
from etl.source.z_options import FocusLevel

_CUTOFF = 2 * 0.55 / 0.532
"""Finest detail that a microscope of that aperture shows, in cycles per micrometre."""
BAND = (0.125 * _CUTOFF, 0.25 * _CUTOFF)
"""Spatial frequencies that are summed, in cycles per micrometre."""


def read_focus(fov: Fov, channel: str, level: FocusLevel) -> tuple[float, ...] | None:
    """Return the slice in focus of every frame; None where the metadata don't say it for all of them.

    Parameters
    ----------
    level
        The finest statistic to use; coarser ones stand in where that is missing.

    Raises
    ------
    PlateError
        A value that is no slice of the stack.
    """
    frames, depth = fov.shape[0], fov.shape[2]
    found: list[float] = []
    for t in range(frames):
        said = next(_values(fov, channel, level, t), None)
        if said is None:
            return None
        where, value = said
        good = isinstance(value, int | float) and not isinstance(value, bool) and -0.5 <= value <= depth - 0.5
        if not good:
            raise PlateError(
                f"{fov.where}: {where}={value!r} must be one of the {depth} slices, 0 to {depth - 1}. Run the quality "
                "control that wrote it again, or remove focus_slice to have the focus measured."
            )
        found.append(float(min(round(value), depth - 1)))
    return tuple(found)


def _values(fov: Fov, channel: str, level: FocusLevel, t: int) -> Iterator[tuple[str, Any]]:
    """Yield what the metadata say of the focus of a frame, the finest first, with where it stands."""
    said = fov.focus_slice.get(channel)
    said = said if isinstance(said, Mapping) else {}
    paths = [("per_timepoint", str(t)), ("fov_statistics", "z_focus_mean"), ("dataset_statistics", "z_focus_mean")]
    for group, name in paths[("timepoint", "fov", "dataset").index(level) :]:
        values = said.get(group)
        if isinstance(values, Mapping) and values.get(name) is not None:
            yield f"focus_slice.{channel}.{group}.{name}", values[name]


@lru_cache(maxsize=8)
def band_weights(shape: tuple[int, int], pixel_size_um: tuple[float, float]) -> Float32[np.ndarray, "ky kx"]:
    """Say which frequencies of a real image's spectrum count, and for how many they stand: 0, 1, or 2.

    Rows are all frequencies along y, in the order of `np.fft.fftfreq`; columns those along x from 0, as of
    `np.fft.rfft`, up to the last that counts. The others are their mirror images.
    """
    height, width = shape
    y = np.fft.fftfreq(height, pixel_size_um[0])
    x = np.fft.rfftfreq(width, pixel_size_um[1])
    radius = np.hypot(y[:, None], x)
    inside = (radius > BAND[0]) & (radius < BAND[1])
    has_mirror = (np.arange(x.size) > 0) & (np.arange(x.size) * 2 != width)
    columns = int(np.flatnonzero(inside.any(0)).max(initial=-1)) + 1
    return (inside * np.where(has_mirror, 2, 1)).astype(np.float32)[:, :columns]
