"""Plates to patches: every source chunk is decoded once, and gives its patches and statistics.

A FOV is read in runs of frames that end where its chunks (its shards, where it has them) end. Each
observation's patch is appended to the FOV's spill file in time order; the same pixels give the
statistics and tell which frames are entirely zero. FOVs are cut in parallel by threads: decoding
and copying release the GIL. A finished FOV is kept by a run that goes on later.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zarr
from jaxtyping import Bool, Float, Int, Num

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.errors import ConfigError, PlateError
from etl.cut.statistics import Counts, Moments, Summary, empty_summary, summarize_frame
from etl.run.output import Interrupted, disk_full_named, run_threads
from etl.source.plates import Fov

RUN_BYTES = 1 << 30
"""Frames of one shard are read together up to this size, then in runs of whole chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutJob:
    """What to take from one FOV."""

    number: int
    """Names the spill file."""
    fov: Fov
    channels: tuple[int, ...]
    """Of the plate, in stored order."""
    z: slice
    dtype: np.dtype[Any]
    """Of the stored patches."""
    yx: tuple[int, int]
    """Height and width of a patch."""
    t: Int[np.ndarray, " obs"]
    """Frame of each observation, ascending: their order in the spill."""
    y0: Int[np.ndarray, " obs"]
    """First row of the patch."""
    x0: Int[np.ndarray, " obs"]
    """First column of the patch."""

    @property
    def patch_bytes(self) -> int:
        """Size of one patch."""
        depth = self.z.stop - self.z.start
        return len(self.channels) * depth * self.yx[0] * self.yx[1] * self.dtype.itemsize

    @property
    def digest(self) -> str:
        """Hash of what decides the spill file, but for the pixels."""
        array = self.fov.array
        text = [self.fov.where, self.channels, self.z, self.dtype.str, self.yx, array.shape, array.dtype.str]
        digest = hashlib.sha256(repr(text).encode())
        for column in (self.t, self.y0, self.x0):
            digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        return digest.hexdigest()

    def spill(self, work: Path) -> Path:
        """Return the file with this FOV's patches, without header, in the order of `t`."""
        return work / f"fov-{self.number:06d}.patches"


@dataclass(frozen=True, slots=True, kw_only=True)
class FovCut:
    """What the pass over the pixels of one FOV found."""

    timepoint: Float[np.ndarray, "frames channels 8"]
    """NaN where the frame is entirely zero."""
    zero: Bool[np.ndarray, " frames"]
    """Frames in which every stored channel and slice is zero."""
    summaries: tuple[Summary, ...]
    """One per channel, of the frames that are not zero."""


def cut_fovs(
    jobs: Sequence[CutJob], work: Path, workers: int, advance: Callable[[int, int], None]
) -> tuple[FovCut, ...]:
    """Cut all FOVs.

    Parameters
    ----------
    work
        Folder for the spill.
    advance
        Called with (frames, bytes of pixels) after each run of frames, from any thread.

    Returns
    -------
    tuple
        In the order of `jobs`.
    """
    stop = threading.Event()
    return run_threads(lambda job: _cut_fov(job, work, stop, advance), jobs, workers, stop)


def _cut_fov(job: CutJob, work: Path, stop: threading.Event, advance: Callable[[int, int], None]) -> FovCut:
    done = _read_done(job, work)
    if done is not None:
        advance(job.fov.shape[0], 0)
        return done
    spill = job.spill(work)
    partial = spill.with_suffix(".partial")
    try:
        with disk_full_named(partial), partial.open("wb") as file:
            cut = _cut_frames(job, file, stop, advance)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(spill)
        with disk_full_named(partial), partial.open("wb") as file:
            np.savez(file, **_to_arrays(job, cut))  # type: ignore[arg-type] # of allow_pickle, says the stub
        partial.replace(spill.with_suffix(".npz"))  # after the patches: it says that they are whole
    finally:
        partial.unlink(missing_ok=True)
    return cut


def _cut_frames(job: CutJob, file: BinaryIO, stop: threading.Event, advance: Callable[[int, int], None]) -> FovCut:
    """Pass over the frames of a FOV once."""
    array = job.fov.array
    frames, channels = array.shape[0], len(job.channels)
    timepoint = np.full((frames, channels, len(STATISTICS)), np.nan)
    zero = np.zeros(frames, bool)
    summaries = [empty_summary(array.dtype) for _ in job.channels]
    first = np.searchsorted(job.t, np.arange(frames + 1))
    for begin, end in plan_runs(array, job.z):
        try:
            pixels = _read_frames(array, begin, end, job.channels, job.z)
        except Exception as error:  # whatever a store or codec raises
            raise PlateError(
                f"{job.fov.where}: frames {begin} to {end - 1} can't be read ({error!r}). Every chunk must decode. "
                "Restore the plate, or leave the field of view out with exclude_fovs."
            ) from error
        for t in range(begin, end):
            if stop.is_set():
                raise Interrupted
            frame = pixels[t - begin]
            zero[t] = not frame.any()
            for c in range(0 if zero[t] else channels):
                timepoint[t, c], summary = summarize_frame(frame[c], (t, c))
                summaries[c] = summaries[c].merged(summary)  # type: ignore[arg-type]
            for row in range(first[t], first[t + 1]):
                file.write(_cut_patch(job, frame, row).data)
        advance(end - begin, pixels.nbytes)
    return FovCut(timepoint=timepoint, zero=zero, summaries=tuple(summaries))


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


def _cut_patch(job: CutJob, frame: Num[np.ndarray, "c z y x"], row: int) -> Num[np.ndarray, "c z h w"]:
    y, x = int(job.y0[row]), int(job.x0[row])
    patch = frame[:, :, y : y + job.yx[0], x : x + job.yx[1]]
    assert patch.shape[2:] == job.yx, "the index clamps centres"
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(patch, dtype=job.dtype)
    if job.dtype != frame.dtype and np.isfinite(patch).sum() != np.isfinite(stored).sum():
        raise ConfigError(
            f"shards.dtype={job.dtype.name!r} can't hold {job.fov.where}, t={int(job.t[row])}: values up to "
            f"{np.nanmax(patch)!r} become infinite. Use `source` or `float32`."
        )
    return stored


def _to_arrays(job: CutJob, cut: FovCut) -> dict[str, np.ndarray]:
    """Arrays of a finished FOV, to be kept."""
    arrays = {"digest": np.array(job.digest), "timepoint": cut.timepoint, "zero": cut.zero}
    for c, summary in enumerate(cut.summaries):
        if isinstance(summary, Counts):
            arrays |= {f"counts_{c}": summary.counts, f"lowest_{c}": np.array(summary.lowest)}
        else:
            arrays |= {f"moments_{c}": summary.moments, f"sample_{c}": np.concatenate([[], *summary.samples])}
    return arrays


def _read_done(job: CutJob, work: Path) -> FovCut | None:
    """Return what an earlier run found, if it finished this FOV and was asked the same."""
    spill = job.spill(work)
    table = spill.with_suffix(".npz")
    if not table.is_file() or not spill.is_file() or spill.stat().st_size != job.t.size * job.patch_bytes:
        return None
    with np.load(table, allow_pickle=False) as arrays:
        if str(arrays["digest"]) != job.digest:
            return None
        summaries: list[Summary] = []
        for c in range(len(job.channels)):
            if f"counts_{c}" in arrays:
                summaries.append(Counts(counts=arrays[f"counts_{c}"], lowest=int(arrays[f"lowest_{c}"])))
            else:
                summaries.append(Moments(moments=arrays[f"moments_{c}"], samples=(arrays[f"sample_{c}"],)))
        return FovCut(timepoint=arrays["timepoint"], zero=arrays["zero"], summaries=tuple(summaries))
