"""Cuts plates into patches: every source chunk is decoded once, and gives its patches and statistics.

A FOV is read in runs of frames that end where its chunks (its shards, where it has them) end. Each observation's patch
is appended to the FOV's spill file in time order; the same pixels give the statistics, and tell which patches are blank
in a channel or hold NaN. A finished FOV is kept by a run that goes on later, if its source is still the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from jaxtyping import Num

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.errors import PlateError
from etl.cut.faults import BlankValues, count_nonfinite, is_blank
from etl.cut.finished import read_finished, write_finished
from etl.cut.job import CutJob, FovCut
from etl.cut.patches import crop_patch, finish_patch, mend_patch
from etl.cut.statistics import empty_summary, summarize_frame
from etl.run.executors import Interrupted, report
from etl.run.output import HashingFile, writing

RUN_BYTES = 1 << 30
"""Frames of one shard are read together up to this size, then in runs of whole chunks."""


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
    done = read_finished(job)
    if done is not None:
        report(job.fov.shape[0])
        return done
    with writing(job.spill) as file:
        cut = _cut_frames(job, file)
    write_finished(job, cut)  # after the patches: it says that they are whole
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
    taken = job.stack.slices(job.stack.first)
    for begin, end in plan_runs(array, taken):
        pixels = _read_run(job, begin, end, taken)
        for t in range(begin, end):
            frame = pixels[t - begin]
            for c in range(channels):
                if not is_blank(frame[c], values):
                    timepoint[t, c], summary = summarize_frame(frame[c], (t, c))
                    summaries[c] = summaries[c].merged(summary)  # type: ignore[arg-type]
            for row in range(first[t], first[t + 1]):
                patch = crop_patch(job, frame, row)
                blank[row] = any(is_blank(channel, values) for channel in patch)
                if job.patch.is_resampled:
                    patch = crop_patch(job, frame, row, margin=True)
                if count_nonfinite(patch) and not (blank[row] and job.on_blank == "drop"):
                    nonfinite[row] = not blank[row]
                    patch = mend_patch(job, frame, patch, t)
                file.write(finish_patch(job, patch, row, frame.shape[2:], job.stack.first - taken.start).data)
            report(1, frame.nbytes)
    return FovCut(timepoint=timepoint, summaries=tuple(summaries), blank=blank, nonfinite=nonfinite)


def _read_run(job: CutJob, begin: int, end: int, z: slice) -> Num[np.ndarray, "frames channels z y x"]:
    try:
        return _read_frames(job.fov.array, begin, end, job.channels, z)
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
