"""Cuts plates into patches: every source chunk is decoded once, and gives its patches and statistics.

A FOV is read in runs of frames that end where its chunks (its shards, where it has them) end. Each observation's patch
is appended to the FOV's spill file in time order; the same pixels give the statistics, and tell which patches are blank
in a channel or hold NaN. A finished FOV is kept by a run that goes on later, if its source is still the same.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float, Int, Num

from dynaclr_wds.contract import STATISTICS, SourceRecord
from dynaclr_wds.errors import ConfigError, PlateError
from dynaclr_wds.files import write_whole
from etl.cut.faults import BlankValues, count_nonfinite, is_blank, zero_nonfinite
from etl.cut.statistics import Counts, Moments, Summary, empty_summary, summarize_frame
from etl.run.executors import Interrupted, report
from etl.run.output import HashingFile, file_size, naming_file, writing
from etl.source.config import OnBlank, OnNan
from etl.source.plates import Fov

RUN_BYTES = 1 << 30
"""Frames of one shard are read together up to this size, then in runs of whole chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutJob:
    """What to take from one FOV, and where to put it."""

    spill: Path
    """File for the patches, without header, in the order of `t`."""
    fov: Fov
    source: SourceRecord
    """What the FOV was when the build began."""
    channel_names: tuple[str, ...]
    """Stored channels, in stored order."""
    channels: tuple[int, ...]
    """Their places on the plate."""
    z: slice
    dtype: np.dtype[Any]
    """Dtype of the stored patches."""
    yx: tuple[int, int]
    """Height and width of a patch."""
    t: Int[np.ndarray, " obs"]
    """Frame of each observation, ascending: their order in the spill."""
    y0: Int[np.ndarray, " obs"]
    """First row of the patch; below 0 or less than a patch from the end where the patch reaches beyond the image."""
    x0: Int[np.ndarray, " obs"]
    """First column of the patch, likewise."""
    on_blank: OnBlank
    on_nan: OnNan

    @property
    def patch_bytes(self) -> int:
        """Size of one patch."""
        depth = self.z.stop - self.z.start
        return len(self.channels) * depth * self.yx[0] * self.yx[1] * self.dtype.itemsize

    @property
    def digest(self) -> str:
        """Hash of all that decides the spill file."""
        array, source = self.fov.array, self.source
        text = [source.experiment, source.fov_name, source.metadata, source.pixels, self.channels, self.z, self.yx]
        text += [self.dtype.str, array.shape, array.dtype.str, self.on_blank, self.on_nan]
        digest = hashlib.sha256(repr(text).encode())
        for column in (self.t, self.y0, self.x0):
            digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FovCut:
    """What the pass over the pixels of one FOV found."""

    timepoint: Float[np.ndarray, "frames channels 8"]
    """NaN where a channel of a frame is blank or has no finite pixel."""
    summaries: tuple[Summary, ...]
    """One per channel, of the frames that are not blank in it."""
    blank: Bool[np.ndarray, " obs"]
    """Patches with a channel that is entirely fill value."""
    nonfinite: Bool[np.ndarray, " obs"]
    """Other patches with NaN or infinite pixels."""


def cut_fov(job: CutJob) -> FovCut:
    """Cut one FOV: write its spill file, or find that it is there.

    Raises
    ------
    PlateError
        A chunk that does not decode; NaN or infinite pixels in a patch where `job.on_nan` is "error".
    ConfigError
        Values that the stored dtype can't hold.
    BuildError
        The disk is full, or failed.
    """
    done = _read_done(job)
    if done is not None:
        report(job.fov.shape[0])
        return done
    with writing(job.spill) as file:
        cut = _cut_frames(job, file)
    table = job.spill.with_suffix(".npz")  # after the patches: it says that they are whole
    with naming_file(table), write_whole(table) as raw:
        np.savez(raw, **_to_arrays(job, cut))  # type: ignore[arg-type] # the stub takes them for allow_pickle
    return cut


def _cut_frames(job: CutJob, file: HashingFile) -> FovCut:
    """Pass over the frames of a FOV once."""
    array = job.fov.array
    frames, channels = array.shape[0], len(job.channels)
    timepoint = np.full((frames, channels, len(STATISTICS)), np.nan)
    summaries = [empty_summary(array.dtype) for _ in job.channels]
    blank, nonfinite = np.zeros(job.t.size, bool), np.zeros(job.t.size, bool)
    values = BlankValues.of(array)
    first = np.searchsorted(job.t, np.arange(frames + 1))
    for begin, end in plan_runs(array, job.z):
        pixels = _read_run(job, begin, end)
        for t in range(begin, end):
            frame = pixels[t - begin]
            for c in range(channels):
                if not is_blank(frame[c], values):
                    timepoint[t, c], summary = summarize_frame(frame[c], (t, c))
                    summaries[c] = summaries[c].merged(summary)  # type: ignore[arg-type]
            for row in range(first[t], first[t + 1]):
                patch = _crop(job, frame, row)
                blank[row] = any(is_blank(channel, values) for channel in patch)
                if count_nonfinite(patch) and not (blank[row] and job.on_blank == "drop"):
                    nonfinite[row] = not blank[row]
                    patch = _mend(job, frame, patch, t)
                file.write(_store(job, _pad(job, patch, row), t).data)
            report(1, frame.nbytes)
    return FovCut(timepoint=timepoint, summaries=tuple(summaries), blank=blank, nonfinite=nonfinite)


def _read_run(job: CutJob, begin: int, end: int) -> Num[np.ndarray, "frames channels z y x"]:
    try:
        return _read_frames(job.fov.array, begin, end, job.channels, job.z)
    except Interrupted:
        raise
    except Exception as error:  # whatever a store or codec raises
        raise PlateError(
            f"{job.fov.where}: frames {begin} to {end - 1} can't be read ({error!r}). Every chunk must decode. "
            "Restore the plate, or leave the field of view out with exclude_fovs."
        ) from error


def plan_runs(array: zarr.Array[Any], z: slice) -> Iterator[tuple[int, int]]:
    """Yield runs of frames [begin, end) that share no chunk: whole shards while they fit, else whole chunks."""
    frames, chunk = array.shape[0], array.chunks[0]
    run = array.shards[0] if array.shards else chunk
    frame_bytes = array.shape[1] * (z.stop - z.start) * array.shape[3] * array.shape[4] * array.dtype.itemsize
    if run * frame_bytes > RUN_BYTES:
        run = max(RUN_BYTES // (frame_bytes * chunk), 1) * chunk
        if array.shards:  # runs must not straddle shards, whose index would be read twice otherwise
            run = next(size for size in range(run, 0, -chunk) if array.shards[0] % size == 0)
    for begin in range(0, frames, run):
        yield begin, min(begin + run, frames)


def _read_frames(
    array: zarr.Array[Any], begin: int, end: int, channels: tuple[int, ...], z: slice
) -> Num[np.ndarray, "frames channels z y x"]:
    """Read some frames; one read for all channels that share a chunk."""
    chunk = array.chunks[1]
    groups: dict[int, list[int]] = {}
    for place, channel in enumerate(channels):
        groups.setdefault(channel // chunk, []).append(place)
    pixels = None
    for places in groups.values():
        low, high = min(channels[p] for p in places), max(channels[p] for p in places)
        block = np.asarray(array[begin:end, low : high + 1, z])
        if len(groups) == 1 and channels == tuple(range(low, high + 1)):
            return block
        if pixels is None:
            pixels = np.empty((block.shape[0], len(channels), *block.shape[2:]), block.dtype)
        for place in places:
            pixels[:, place] = block[:, channels[place] - low]
    assert pixels is not None, "the config asks for at least one channel"
    return pixels


def _crop(job: CutJob, frame: Num[np.ndarray, "c z y x"], row: int) -> Num[np.ndarray, "c z h w"]:
    """Return the part of a patch that lies inside the image."""
    y, x = int(job.y0[row]), int(job.x0[row])
    return frame[:, :, max(y, 0) : y + job.yx[0], max(x, 0) : x + job.yx[1]]


def _pad(job: CutJob, patch: Num[np.ndarray, "c z h w"], row: int) -> Num[np.ndarray, "c z height width"]:
    """Fill a patch up to its size with the nearest pixels: no new value comes in, no edge, and no mirrored cell."""
    missing = job.yx[0] - patch.shape[2], job.yx[1] - patch.shape[3]
    if missing == (0, 0):
        return patch
    before = max(-int(job.y0[row]), 0), max(-int(job.x0[row]), 0)
    widths = [(0, 0), (0, 0), *((first, size - first) for first, size in zip(before, missing, strict=True))]
    return np.pad(patch, widths, mode="edge")


def _mend(
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


def _store(job: CutJob, patch: Num[np.ndarray, "c z h w"], t: int) -> Num[np.ndarray, "c z h w"]:
    """Convert a patch to what is stored."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(patch, dtype=job.dtype)
    if job.dtype != patch.dtype and count_nonfinite(patch) != count_nonfinite(stored):
        raise ConfigError(
            f"shards.dtype={job.dtype.name!r} can't hold {job.fov.where}, t={t}: values up to "
            f"{np.nanmax(patch)!r} become infinite. Use `source` or `float32`."
        )
    return stored


def _to_arrays(job: CutJob, cut: FovCut) -> dict[str, np.ndarray]:
    """Arrays of a finished FOV, to be kept."""
    arrays = {"digest": np.array(job.digest), "timepoint": cut.timepoint}
    arrays |= {"blank": cut.blank, "nonfinite": cut.nonfinite}
    for c, summary in enumerate(cut.summaries):
        if isinstance(summary, Counts):
            arrays |= {f"counts_{c}": summary.counts, f"lowest_{c}": np.array(summary.lowest)}
        else:
            arrays |= {f"moments_{c}": summary.moments, f"sample_{c}": np.concatenate([[], *summary.samples])}
    return arrays


def _read_done(job: CutJob) -> FovCut | None:
    """Return what an earlier run found, if it finished this FOV and was asked the same of the same source."""
    table = job.spill.with_suffix(".npz")
    if not table.is_file() or file_size(job.spill) != job.t.size * job.patch_bytes:
        return None
    try:
        with np.load(table, allow_pickle=False) as arrays:
            return _from_arrays(job, arrays) if str(arrays["digest"]) == job.digest else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: the FOV is cut again
        return None


def _from_arrays(job: CutJob, arrays: Any) -> FovCut:
    summaries: list[Summary] = []
    for c in range(len(job.channels)):
        if f"counts_{c}" in arrays:
            summaries.append(Counts(counts=arrays[f"counts_{c}"], lowest=int(arrays[f"lowest_{c}"])))
        else:
            summaries.append(Moments(moments=arrays[f"moments_{c}"], samples=(arrays[f"sample_{c}"],)))
    return FovCut(
        timepoint=arrays["timepoint"],
        summaries=tuple(summaries),
        blank=arrays["blank"],
        nonfinite=arrays["nonfinite"],
    )
