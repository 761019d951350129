"""Makes patches out of frames: crops, mends, reduces, resamples or pads, and converts to what is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num

from dynaclr_wds.errors import ConfigError, PlateError
from etl.cut.faults import BlankValues, count_nonfinite, zero_nonfinite
from etl.cut.job import CutJob
from etl.cut.reading import Frame
from etl.cut.resample import resample, smoothing_margin

Channels = Sequence[Num[np.ndarray, "_ _ _"]]
"""(Z, Y, X) of every stored channel; channels that are reduced to one slice may differ in Z."""


class PatchMaker:
    """Makes the patches of one field of view; what depends on their places alone is computed once.

    Parameters
    ----------
    job
        What to make.
    """

    def __init__(self, job: CutJob) -> None:
        self._job, (height, width) = job, job.fov.shape[3:]
        self._axes = list(zip(job.grids, (job.y.tolist(), job.x.tolist()), (height, width), strict=True))
        self._inner = self._windows(margin=False)
        self._outer = self._windows(margin=True) if job.patch.is_resampled else self._inner
        self._corners = np.array([(y.start, x.start) for y, x in self._inner], np.int64).reshape(-1, 2)
        size = job.patch.shape[2:]
        self._is_whole = [(y.stop - y.start, x.stop - x.start) == size for y, x in self._inner]
        stored = job.patch.dtype.newbyteorder("=") == job.fov.array.dtype.newbyteorder("=")
        self._is_copied = stored and not job.patch.is_resampled and "mip" not in job.patch.reductions

    def _windows(self, *, margin: bool) -> list[tuple[slice, slice]]:
        """Return the rows and columns of the image that each patch is made of."""
        y, x = (
            [grid.window(centre, length, smoothing_margin(grid) if margin else 0) for centre in centres]
            for grid, centres, length in self._axes
        )
        return list(zip(y, x, strict=True))

    def choose_slices(self, frame: Frame) -> Channels:
        """Return what each channel of the patches is made of: of one that keeps its central slice only that."""
        stack = self._job.stack
        center = math.floor(frame.offset + stack.center * stack.scale + 0.5)
        return [
            pixels[center : center + 1] if how == "center" else pixels
            for pixels, how in zip(frame.pixels, self._job.patch.reductions, strict=True)
        ]

    def crop(self, channels: Channels, row: int, *, margin: bool = False) -> Channels:
        """Return the pixels of an image that a patch is made of.

        Parameters
        ----------
        row
            The observation.
        margin
            With those that only smoothing looks at.
        """
        y, x = (self._outer if margin else self._inner)[row]
        return [pixels[:, y, x] for pixels in channels]

    def find_suspects(self, channels: Channels, rows: slice, values: BlankValues) -> Bool[np.ndarray, " rows"]:
        """Say which patches of a frame may be blank in a channel, or hold NaN: most frames have none.

        A channel of a patch can only be blank if its first pixel is, and only NaN make a frame's sum one.
        """
        y, x = self._corners[rows].T
        suspects = np.zeros(y.size, bool)
        for pixels in channels:
            if pixels.dtype.kind == "f" and not np.isfinite([pixels.min(), pixels.max()]).all():
                suspects[:] = True
            suspects |= np.isin(pixels[0, y, x], values.numbers)
        return suspects

    def mend(self, channels: Channels, patch: Channels, t: int) -> Channels:
        """Do with NaN and infinite pixels as the config says."""
        job = self._job
        if job.on_nan == "zero":
            return [zero_nonfinite(pixels) for pixels in patch]
        if job.on_nan == "error":
            place = next(c for c, pixels in enumerate(patch) if count_nonfinite(pixels))
            channel = job.channel_names[place]
            raise PlateError(
                f"{job.fov.where}: frame {t}, channel {channel!r}: {count_nonfinite(patch[place]):,} pixels of a "
                f"cell's patch are NaN or infinite ({count_nonfinite(channels[place]):,} of the frame's). Allowed are "
                "finite numbers. Mend the plate, or build with --on_nan drop (leaves such cells out) or --on_nan zero."
            )
        return patch

    def finish(self, patch: Channels, row: int, frame: Frame, stored: Num[np.ndarray, "c z height width"]) -> None:
        """Bring the pixels of a patch to the stored depth, size and dtype.

        Parameters
        ----------
        patch
            As `crop` returns it, with the margin where it is resampled.
        stored
            Where they go.
        """
        kind = self._job.patch
        if self._is_copied and self._is_whole[row]:
            for pixels, place in zip(patch, stored, strict=True):
                place[...] = pixels
            return
        for c, (pixels, how) in enumerate(zip(patch, kind.reductions, strict=True)):
            reduced = pixels.max(axis=0, keepdims=True) if how == "mip" else pixels
            sized = self._resample(reduced, row, frame.offset) if kind.is_resampled else self._pad(reduced, row)
            self._convert(sized, stored[c], frame.t)

    def _resample(self, pixels: Num[np.ndarray, "z h w"], row: int, z: float) -> Num[np.ndarray, "zs height width"]:
        """Resample to the stored pixel size; integers that stay integers are rounded. The first slice lies at `z`."""
        kind = self._job.patch
        y, x = (
            centres[row] - grid.size // 2 * grid.scale - window.start
            for (grid, centres, _), window in zip(self._axes, self._outer[row], strict=True)
        )
        first, scale = ((0.0, y, x), (1.0, *kind.scale[1:])) if kind.is_reduced else ((z, y, x), kind.scale)
        resampled = resample(pixels, first, scale, kind.shape[1:])
        return np.rint(resampled, out=resampled) if kind.dtype.kind in "iu" else resampled

    def _pad(self, pixels: Num[np.ndarray, "z h w"], row: int) -> Num[np.ndarray, "z height width"]:
        """Fill up to the size of a patch with the nearest pixels: no new value, no edge, and no mirrored cell."""
        size = self._job.patch.shape[2:]
        if pixels.shape[1:] == size:
            return pixels
        before = [max(grid.size // 2 - centres[row], 0) for grid, centres, _ in self._axes]
        missing = [whole - length for whole, length in zip(size, pixels.shape[1:], strict=True)]
        widths = [(0, 0), *((first, more - first) for first, more in zip(before, missing, strict=True))]
        return np.pad(pixels, widths, mode="edge")

    def _convert(self, pixels: Num[np.ndarray, "z h w"], stored: Num[np.ndarray, "z h w"], t: int) -> None:
        """Write pixels as the stored dtype."""
        with np.errstate(over="ignore"):
            stored[...] = pixels
        if stored.dtype != pixels.dtype and count_nonfinite(pixels) != count_nonfinite(stored):
            raise ConfigError(
                f"shards.dtype={stored.dtype.name!r} can't hold {self._job.fov.where}, t={t}: values up to "
                f"{np.nanmax(pixels)!r} become infinite. Use `source` or `float32`."
            )
