"""Cuts some cells of a frame as a build would: how long that takes, and how large their patches are when compressed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from dynaclr_wds.codec import compress_patch
from dynaclr_wds.contract import NO_CODEC, STATISTICS, npy_header
from etl.cut.faults import BlankValues, is_blank
from etl.cut.job import CutJob
from etl.cut.patches import PatchMaker
from etl.cut.reading import Frame
from etl.cut.statistics import Summary, empty_summary, summarize_frame
from etl.layout.clips import member_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameCut:
    """What a frame says of a build."""

    timepoint: Float64[np.ndarray, "c 8"]
    """Its statistics."""
    summaries: tuple[Summary, ...]
    """What merges into those of its experiment, one per channel."""
    start: float
    """Place of the first stored slice."""
    focus: float
    """Slice in focus; NaN where it is not asked for."""
    stored: tuple[int, ...]
    """Bytes that some of its patches take in a tar, compressed; empty without a codec."""
    seconds: float
    """Time to take its statistics and to cut, and compress, all of its cells: that of some times all."""


def cut_frame(job: CutJob, frame: Frame, cells: int, codec: str) -> FrameCut:
    """Do with a frame what a build does, but for some of its cells.

    Parameters
    ----------
    job
        Cuts some cells of the frame, and of no other.
    cells
        Cells that the frame has.
    codec
        How patches are stored.
    """
    begin = time.perf_counter()
    values, channels = BlankValues.of(job.fov.array), len(job.channels)
    timepoint = np.full((channels, len(STATISTICS)), np.nan)
    summaries: list[Summary] = [empty_summary(job.fov.array.dtype)] * channels
    may_be_nan = [values.nan] * channels
    for c, pixels in enumerate(frame.pixels):
        if not is_blank(pixels, values):
            timepoint[c], summaries[c] = summarize_frame(pixels, (frame.t, c))
            may_be_nan[c] = pixels.dtype.kind == "f" and summaries[c].pixels < pixels.size
    measured = time.perf_counter()
    maker = PatchMaker(job)
    used, rows = maker.choose_slices(frame), np.arange(job.t.size)
    rows = rows[~maker.find_suspects(used, rows, values, may_be_nan)]
    stored = np.empty((job.t.size, *job.patch.shape), job.patch.dtype)
    maker.copy(used, frame, rows, stored)
    sizes = () if codec == NO_CODEC else tuple(_compress(job, stored[row]) for row in rows.tolist())
    cutting = time.perf_counter() - measured
    return FrameCut(
        timepoint=timepoint,
        summaries=tuple(summaries),
        start=frame.start,
        focus=frame.focus,
        stored=sizes,
        seconds=measured - begin + cutting * cells / max(rows.size, 1),
    )


def _compress(job: CutJob, patch: np.ndarray) -> int:
    """Compress a patch; return the bytes of its member of a tar."""
    parts = compress_patch(npy_header(job.patch.dtype.str, job.patch.shape), patch.data, len(job.channels))
    size: int = member_bytes(sum(map(len, parts)))
    return size
