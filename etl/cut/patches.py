"""Makes patches out of frames: crops, mends, reduces, resamples or pads, and converts to what is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, Num

from dynaclr_wds.errors import ConfigError, PlateError
from etl.cut.compiled import load_compiled
from etl.cut.faults import BlankValues, count_nonfinite, zero_nonfinite
from etl.cut.filed_frames import Stack
from etl.cut.job import CutJob
from etl.cut.patch_room import FiledRows
from etl.cut.reading import Frame
from etl.cut.resample import resample, smoothing_margin

Channels = Sequence[Stack]
"""(Z, Y, X) of every stored channel of a frame; channels that are reduced to one slice may differ in Z."""
Crops = Sequence[Num[np.ndarray, "_ _ _"]]
"""The same of the part of a frame that a patch is made of."""
Rows = Num[np.ndarray, "obs c z h w"] | FiledRows
"""Where patches go."""


class PatchMaker:
    """Makes the patches of one field of view; what depends on their places alone is computed once.

    Parameters
    ----------
    job
        What to make.
    """

    def __init__(self, job: CutJob) -> None:
        self._job, (height, width) = job, job.fov.shape[3:]
        self._axes = list(zip(job.grids, (job.y, job.x), (height, width), strict=True))
        firsts = [grid.first_pixels(centres) for grid, centres, _ in self._axes]
        self._corners = np.ascontiguousarray(np.stack(firsts, axis=1))
        stored = job.patch.dtype.newbyteorder("=") == job.fov.array.dtype.newbyteorder("=")
        self._is_copied = stored and not job.patch.is_resampled and "mip" not in job.patch.reductions

    def _window(self, row: int, *, margin: bool) -> tuple[slice, slice]:
        """Return the rows and columns of the image that a patch is made of."""
        y, x = (
            grid.window(int(centres[row]), length, smoothing_margin(grid) if margin else 0)
            for grid, centres, length in self._axes
        )
        return y, x

    def choose_slices(self, frame: Frame) -> Channels:
        """Return what each channel of the patches is made of: of one that keeps its central slice only that."""
        stack = self._job.stack
        center = math.floor(frame.offset + stack.center * stack.scale + 0.5)
        return [
            pixels[center : center + 1] if how == "center" else pixels
            for pixels, how in zip(frame.pixels, self._job.patch.reductions, strict=True)
        ]

    def crop(self, channels: Channels, row: int, *, margin: bool = False) -> Crops:
        """Return the pixels of an image that a patch is made of.

        Parameters
        ----------
        row
            The observation.
        margin
            With those that only smoothing looks at.
        """
        y, x = self._window(row, margin=margin)
        return [pixels[:, y, x] for pixels in channels]

    def find_suspects(
        self, channels: Channels, rows: Int64[np.ndarray, " rows"], values: BlankValues, may_be_nan: Sequence[bool]
    ) -> Bool[np.ndarray, " rows"]:
        """Say which patches of a frame may be blank in a channel, or hold NaN: most frames have none.

        A channel of a patch can only be blank if its first pixel is.

        Parameters
        ----------
        may_be_nan
            Whether some pixel of each channel is NaN or infinite.
        """
        y, x = np.maximum(self._corners[rows], 0).T
        suspects = np.full(y.size, any(may_be_nan))
        for pixels in channels:
            first = pixels[0, y, x]
            for number in values.numbers:
                suspects |= first == number
        return suspects

    def copy(self, channels: Channels, frame: Frame, rows: Int64[np.ndarray, " rows"], stored: Rows) -> None:
        """Make patches that need no mending, of the whole frame in one pass where they are copied as they are.

        Parameters
        ----------
        rows
            The observations.
        stored
            Of all observations.
        """
        compiled = load_compiled()
        in_memory = [pixels for pixels in channels if isinstance(pixels, np.ndarray)]
        is_plain = all(pixels.strides[2] == pixels.itemsize for pixels in in_memory) and len(in_memory) == len(channels)
        if (
            compiled is None
            or isinstance(stored, FiledRows)
            or not (self._is_copied and is_plain and stored.flags.c_contiguous and stored.dtype == channels[0].dtype)
        ):
            margin = self._job.patch.is_resampled
            for row in rows.tolist():
                self.finish(self.crop(channels, row, margin=margin), row, frame, stored[row])
            return
        size = np.array(stored.shape[3:], np.int64)
        for c, pixels in enumerate(in_memory):
            shape, strides = np.array(pixels.shape, np.int64), np.array(pixels.strides, np.int64)
            places = (self._corners, rows)
            compiled["crop"](
                *(array.ctypes.data for array in (pixels, shape, strides)),
                pixels.itemsize,
                *(array.ctypes.data for array in places),
                rows.size,
                size.ctypes.data,
                stored.ctypes.data + c * stored.strides[1],
                stored.strides[0],
            )

    def mend(self, channels: Channels, patch: Crops, t: int) -> Crops:
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

    def finish(self, patch: Crops, row: int, frame: Frame, stored: Num[np.ndarray, "c z height width"]) -> None:
        """Bring the pixels of a patch to the stored depth, size and dtype.

        Parameters
        ----------
        patch
            As `crop` returns it, with the margin where it is resampled.
        stored
            Where they go.
        """
        kind = self._job.patch
        for c, (pixels, how) in enumerate(zip(patch, kind.reductions, strict=True)):
            reduced = pixels.max(axis=0, keepdims=True) if how == "mip" else pixels
            sized = self._resample(reduced, row, frame.offset) if kind.is_resampled else self._pad(reduced, row)
            self._convert(sized, stored[c], frame.t)

    def _resample(self, pixels: Num[np.ndarray, "z h w"], row: int, z: float) -> Num[np.ndarray, "zs height width"]:
        """Resample to the stored pixel size; integers that stay integers are rounded. The first slice lies at `z`."""
        kind = self._job.patch
        y, x = (
            int(centres[row]) - grid.size // 2 * grid.scale - window.start
            for (grid, centres, _), window in zip(self._axes, self._window(row, margin=True), strict=True)
        )
        first, scale = ((0.0, y, x), (1.0, *kind.scale[1:])) if kind.is_reduced else ((z, y, x), kind.scale)
        resampled = resample(pixels, first, scale, kind.shape[1:])
        return np.rint(resampled, out=resampled) if kind.dtype.kind in "iu" else resampled

    def _pad(self, pixels: Num[np.ndarray, "z h w"], row: int) -> Num[np.ndarray, "z height width"]:
        """Fill up to the size of a patch with the nearest pixels: no new value, no edge, and no mirrored cell."""
        size = self._job.patch.shape[2:]
        if pixels.shape[1:] == size:
            return pixels
        before = [max(grid.size // 2 - int(centres[row]), 0) for grid, centres, _ in self._axes]
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
