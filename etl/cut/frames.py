"""Cuts plates into patches: every source chunk is decoded once, and gives its patches and statistics.

A FOV is read in runs of frames that end where its chunks (its shards, where it has them) end. Each observation's patch
goes to its place in memory, in time order; the same pixels give the statistics, and tell which patches are blank in a
channel or hold NaN.
"""

from __future__ import annotations

import numpy as np

from dynaclr_wds.contract import STATISTICS
from etl.cut.faults import BlankValues, count_nonfinite, is_blank
from etl.cut.job import CutJob, FovCut
from etl.cut.patches import PatchMaker, Rows
from etl.cut.reading import read_frames
from etl.cut.statistics import empty_summary, summarize_frame
from etl.run.executors import report


def cut_fov(job: CutJob, stored: Rows) -> FovCut:
    """Pass once over the frames of a FOV that a segment reads.

    Parameters
    ----------
    stored
        Where the patches go, in the order of `job.t`.

    Raises
    ------
    PlateError
        A chunk that does not decode; NaN or infinite pixels in a patch where `job.on_nan` is "error".
    ConfigError
        Values that the stored dtype can't hold.
    """
    array = job.fov.array
    frames, begin, channels = len(job.frames), job.frames.start, len(job.channels)
    timepoint = np.full((frames, channels, len(STATISTICS)), np.nan)
    summaries = [empty_summary(array.dtype) for _ in job.channels]
    blank, nonfinite = np.zeros(job.t.size, bool), np.zeros(job.t.size, bool)
    z_focus, z_start = np.full(frames, np.nan), np.zeros(frames)
    values = BlankValues.of(array)
    first = np.searchsorted(job.t, np.arange(frames + 1) + begin)
    patches = PatchMaker(job)
    for frame in read_frames(job):
        t, row = frame.t, frame.t - begin
        z_focus[row], z_start[row] = frame.focus, frame.start
        may_be_nan = [values.nan] * channels
        for c, pixels in enumerate(frame.pixels):
            if not is_blank(pixels, values):
                timepoint[row, c], summary = summarize_frame(pixels, (t, c))
                if t in job.own_frames:
                    summaries[c] = summaries[c].merged(summary)  # type: ignore[arg-type]
                may_be_nan[c] = pixels.dtype.kind == "f" and summary.pixels < pixels.size
        used, rows = patches.choose_slices(frame), np.arange(first[row], first[row + 1])
        suspects = patches.find_suspects(used, rows, values, may_be_nan)
        patches.copy(used, frame, rows[~suspects], stored)
        for n in rows[suspects].tolist():
            patch = patches.crop(used, n)
            blank[n] = any(is_blank(channel, values) for channel in patch)
            if job.patch.is_resampled:
                patch = patches.crop(used, n, margin=True)
            if any(map(count_nonfinite, patch)) and not (blank[n] and job.on_blank == "drop"):
                nonfinite[n] = not blank[n]
                patch = patches.mend(used, patch, t)
            patches.finish(patch, n, frame, stored[n])
        report(1, frame.nbytes)
        del frame, pixels, used  # before the next run is read
    return FovCut(
        first=begin,
        timepoint=timepoint,
        summaries=tuple(summaries),
        blank=blank,
        nonfinite=nonfinite,
        z_focus=z_focus,
        z_start=z_start,
    )
