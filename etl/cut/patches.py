"""Makes patches out of frames: crops, mends, resamples or pads, and converts to what is stored."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from dynaclr_wds.errors import ConfigError, PlateError
from etl.cut.faults import count_nonfinite, zero_nonfinite
from etl.cut.job import CutJob
from etl.cut.resample import resample, smoothing_margin


def crop_patch(
    job: CutJob, frame: Num[np.ndarray, "c z y x"], row: int, *, margin: bool = False
) -> Num[np.ndarray, "c z h w"]:
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
        for grid, centre, length in zip(job.grids, (job.y, job.x), frame.shape[2:], strict=True)
    )
    return frame[:, :, y, x]


def mend_patch(
    job: CutJob, frame: Num[np.ndarray, "c z y x"], patch: Num[np.ndarray, "c z h w"], t: int
) -> Num[np.ndarray, "c z h w"]:
    """Do with NaN and infinite pixels as the config says."""
    if job.on_nan == "zero":
        return zero_nonfinite(patch)
    if job.on_nan == "error":
        place = next(c for c in range(len(patch)) if count_nonfinite(patch[c]))
        channel = job.channel_names[place]
        raise PlateError(
            f"{job.fov.where}: frame {t}, channel {channel!r}: {count_nonfinite(patch[place]):,} pixels of a cell's "
            f"patch are NaN or infinite ({count_nonfinite(frame[place]):,} of the frame's). Allowed are finite "
            "numbers. Mend the plate, or build with --on_nan drop (leaves such cells out) or --on_nan zero."
        )
    return patch


def finish_patch(
    job: CutJob, patch: Num[np.ndarray, "c z h w"], row: int, image: tuple[int, ...], z: float
) -> Num[np.ndarray, "c zs height width"]:
    """Bring the pixels of a patch to the stored size and dtype.

    Parameters
    ----------
    patch
        As `crop_patch` returns it, with the margin where it is resampled.
    image
        Height and width of the image.
    z
        Place of the first stored slice in `patch`.
    """
    sized = _resample_patch(job, patch, row, image, z) if job.patch.is_resampled else _pad(job, patch, row)
    return _convert(job, sized, int(job.t[row]))


def _resample_patch(
    job: CutJob, patch: Num[np.ndarray, "c z h w"], row: int, image: tuple[int, ...], z: float
) -> Num[np.ndarray, "c zs height width"]:
    """Resample to the stored pixel size; integers that stay integers are rounded."""
    first = [z]
    for grid, centre, length in zip(job.grids, (job.y, job.x), image, strict=True):
        begin = grid.window(int(centre[row]), length, smoothing_margin(grid)).start
        first.append(int(centre[row]) - grid.size // 2 * grid.scale - begin)
    place = first[0], first[1], first[2]
    resampled = np.stack([resample(channel, place, job.patch.scale, job.patch.shape[1:]) for channel in patch])
    return np.rint(resampled, out=resampled) if job.patch.dtype.kind in "iu" else resampled


def _pad(job: CutJob, patch: Num[np.ndarray, "c z h w"], row: int) -> Num[np.ndarray, "c z height width"]:
    """Fill a patch up to its size with the nearest pixels: no new value comes in, no edge, and no mirrored cell."""
    missing = [size - length for size, length in zip(job.patch.shape[2:], patch.shape[2:], strict=True)]
    if not any(missing):
        return patch
    before = [max(grid.size // 2 - int(centre[row]), 0) for grid, centre in zip(job.grids, (job.y, job.x), strict=True)]
    widths = [(0, 0), (0, 0), *((first, size - first) for first, size in zip(before, missing, strict=True))]
    return np.pad(patch, widths, mode="edge")


def _convert(job: CutJob, patch: Num[np.ndarray, "c z h w"], t: int) -> Num[np.ndarray, "c z h w"]:
    """Convert a patch to the stored dtype."""
    dtype = job.patch.dtype
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(patch, dtype=dtype)
    if dtype != patch.dtype and count_nonfinite(patch) != count_nonfinite(stored):
        raise ConfigError(
            f"shards.dtype={dtype.name!r} can't hold {job.fov.where}, t={t}: values up to "
            f"{np.nanmax(patch)!r} become infinite. Use `source` or `float32`."
        )
    return stored
