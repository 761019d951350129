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
    """Pass over the frames of a FOV once.

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
    frames, channels = array.shape[0], len(job.channels)
    timepoint = np.full((frames, channels, len(STATISTICS)), np.nan)
    summaries = [empty_summary(array.dtype) for _ in job.channels]
    blank, nonfinite = np.zeros(job.t.size, bool), np.zeros(job.t.size, bool)
    z_focus, z_start = np.full(frames, np.nan), np.zeros(frames)
    values = BlankValues.of(array)
    first = np.searchsorted(job.t, np.arange(frames + 1))
    patches = PatchMaker(job)
    for frame in read_frames(job):
        t = frame.t
        z_focus[t], z_start[t] = frame.focus, frame.start
        may_be_nan = [values.nan] * channels
        for c, pixels in enumerate(frame.pixels):
            if not is_blank(pixels, values):
                timepoint[t, c], summary = summarize_frame(pixels, (t, c))
                summaries[c] = summaries[c].merged(summary)  # type: ignore[arg-type]
                may_be_nan[c] = pixels.dtype.kind == "f" and summary.pixels < pixels.size
        used, rows = patches.choose_slices(frame), np.arange(first[t], first[t + 1])
        suspects = patches.find_suspects(used, rows, values, may_be_nan)
        patches.copy(used, frame, rows[~suspects], stored)
        for row in rows[suspects].tolist():
            patch = patches.crop(used, row)
            blank[row] = any(is_blank(channel, values) for channel in patch)
            if job.patch.is_resampled:
                patch = patches.crop(used, row, margin=True)
            if any(map(count_nonfinite, patch)) and not (blank[row] and job.on_blank == "drop"):
                nonfinite[row] = not blank[row]
                patch = patches.mend(used, patch, t)
            patches.finish(patch, row, frame, stored[row])
        report(1, frame.nbytes)
        del frame, pixels, used  # before the next run is read
    return FovCut(
        timepoint=timepoint,
        summaries=tuple(summaries),
        blank=blank,
        nonfinite=nonfinite,
        z_focus=z_focus,
        z_start=z_start,
    )
