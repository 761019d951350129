"""Makes patches out of frames: crops, mends, reduces, resamples or pads, and converts to what is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Num

from dynaclr_wds.errors import ConfigError, PlateError
from etl.cut.faults import count_nonfinite, zero_nonfinite
from etl.cut.job import CutJob
from etl.cut.reading import Frame
from etl.cut.resample import resample, smoothing_margin

Channels = Sequence[Num[np.ndarray, "_ _ _"]]
"""(Z, Y, X) of every stored channel; channels that are reduced to one slice may differ in Z."""


def choose_slices(job: CutJob, frame: Frame) -> Channels:
    """Return what each channel of the patches is made of: of one that keeps its central slice only that."""
    center = math.floor(frame.offset + job.stack.center * job.stack.scale + 0.5)
    return [
        pixels[center : center + 1] if how == "center" else pixels
        for pixels, how in zip(frame.pixels, job.patch.reductions, strict=True)
    ]


def crop_patch(job: CutJob, channels: Channels, row: int, *, margin: bool = False) -> Channels:
    """Return the pixels of an image that a patch is made of.

    Parameters
    ----------
    row
        The observation.
    margin
        With those that only smoothing looks at.
    """
    y, x = (
        grid.window(int(centre[row]), length, smoothing_margin(grid) if margin else 0)
        for grid, centre, length in zip(job.grids, (job.y, job.x), channels[0].shape[1:], strict=True)
    )
    return [pixels[:, y, x] for pixels in channels]


def mend_patch(job: CutJob, channels: Channels, patch: Channels, t: int) -> Channels:
    """Do with NaN and infinite pixels as the config says."""
    if job.on_nan == "zero":
        return [zero_nonfinite(pixels) for pixels in patch]
    if job.on_nan == "error":
        place = next(c for c, pixels in enumerate(patch) if count_nonfinite(pixels))
        channel = job.channel_names[place]
        raise PlateError(
            f"{job.fov.where}: frame {t}, channel {channel!r}: {count_nonfinite(patch[place]):,} pixels of a cell's "
            f"patch are NaN or infinite ({count_nonfinite(channels[place]):,} of the frame's). Allowed are finite "
            "numbers. Mend the plate, or build with --on_nan drop (leaves such cells out) or --on_nan zero."
        )
    return patch


def finish_patch(job: CutJob, patch: Channels, row: int, frame: Frame) -> Num[np.ndarray, "c z height width"]:
    """Bring the pixels of a patch to the stored depth, size and dtype.

    Parameters
    ----------
    patch
        As `crop_patch` returns it, with the margin where it is resampled.
    """
    stored = np.empty(job.patch.shape, job.patch.dtype)
    for c, (pixels, how) in enumerate(zip(patch, job.patch.reductions, strict=True)):
        reduced = pixels.max(axis=0, keepdims=True) if how == "mip" else pixels
        sized = _resample_channel(job, reduced, row, frame) if job.patch.is_resampled else _pad(job, reduced, row)
        _convert(job, sized, stored[c], frame.t)
    return stored


def _resample_channel(
    job: CutJob, pixels: Num[np.ndarray, "z h w"], row: int, frame: Frame
) -> Num[np.ndarray, "zs height width"]:
    """Resample to the stored pixel size; integers that stay integers are rounded."""
    z, *scale = job.patch.scale
    first = [frame.offset]
    if job.patch.is_reduced:
        z, first = 1.0, [0.0]
    for grid, centre, length in zip(job.grids, (job.y, job.x), frame.pixels.shape[2:], strict=True):
        begin = grid.window(int(centre[row]), length, smoothing_margin(grid)).start
        first.append(int(centre[row]) - grid.size // 2 * grid.scale - begin)
    resampled = resample(pixels, (first[0], first[1], first[2]), (z, scale[0], scale[1]), job.patch.shape[1:])
    return np.rint(resampled, out=resampled) if job.patch.dtype.kind in "iu" else resampled


def _pad(job: CutJob, pixels: Num[np.ndarray, "z h w"], row: int) -> Num[np.ndarray, "z height width"]:
    """Fill up to the size of a patch with the nearest pixels: no new value comes in, no edge, and no mirrored cell."""
    missing = [size - length for size, length in zip(job.patch.shape[2:], pixels.shape[1:], strict=True)]
    if not any(missing):
        return pixels
    before = [max(grid.size // 2 - int(centre[row]), 0) for grid, centre in zip(job.grids, (job.y, job.x), strict=True)]
    widths = [(0, 0), *((first, size - first) for first, size in zip(before, missing, strict=True))]
    return np.pad(pixels, widths, mode="edge")


def _convert(job: CutJob, pixels: Num[np.ndarray, "z h w"], stored: Num[np.ndarray, "z h w"], t: int) -> None:
    """Write pixels as the stored dtype."""
    with np.errstate(over="ignore"):
        stored[...] = pixels
    if stored.dtype != pixels.dtype and count_nonfinite(pixels) != count_nonfinite(stored):
        raise ConfigError(
            f"shards.dtype={stored.dtype.name!r} can't hold {job.fov.where}, t={t}: values up to "
            f"{np.nanmax(pixels)!r} become infinite. Use `source` or `float32`."
        )
