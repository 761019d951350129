"""What is left of a group when its pixels are known: its index, and the statistics of its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from dynaclr_wds.contract import STATISTICS
from etl.cut.intensities import GroupStatistics, plan_group_statistics, take_frame_statistics
from etl.cut.job import FovCut
from etl.index import Index, add_stack_places, find_edges, keep_observations
from etl.unit.job import UnitJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of a group when the pixels are known."""

    index: Index
    fov_kept: Bool[np.ndarray, " fovs"]
    statistics: GroupStatistics
    """Of the FOVs that are left."""
    noted: Mapping[str, Float[np.ndarray, "_ channels 8"]]
    """Statistics for the part."""

    @classmethod
    def of(cls, job: UnitJob, done: Sequence[FovCut], kept: Bool[np.ndarray, " obs"]) -> Left:
        """Take what stays, and where its slices lie."""
        (entry,) = job.config.experiments
        index = job.index
        fov, t = (index.observations[name].to_numpy() for name in ("fov_index", "t"))
        edges = find_edges(index).tolist()
        z_start, z_focus = np.empty((2, t.size), np.float32)
        for number, cut in enumerate(done):
            rows = slice(edges[number], edges[number + 1])
            frame = t[rows] - cut.first
            z_start[rows], z_focus[rows] = cut.z_start[frame], cut.z_focus[frame]
        fov_kept = np.bincount(fov[kept], minlength=len(job.fovs)) > 0
        if not (kept.all() and fov_kept.all()):
            index = keep_observations(index, kept, {entry.name: job.config.tau_frames(entry)})
        plan = _plan_statistics if job.segment.is_whole else _plan_segment_statistics
        statistics, noted = plan(job, done, fov_kept)
        return cls(
            index=add_stack_places(index, z_start[kept], z_focus[kept]),
            fov_kept=fov_kept,
            statistics=statistics,
            noted={name: table.astype(np.float32) for name, table in noted.items()},
        )


Planned = tuple[GroupStatistics, dict[str, Float[np.ndarray, "_ channels 8"]]]
"""Statistics of a group, and those for its part."""


def _plan_statistics(job: UnitJob, done: Sequence[FovCut], fov_kept: Bool[np.ndarray, " fovs"]) -> Planned:
    """Take the statistics of whole movies."""
    (entry,) = job.config.experiments
    rows = np.flatnonzero(fov_kept).tolist()
    fovs, cuts = [job.fovs[row] for row in rows], [done[row] for row in rows]
    fill_blank = job.config.on_blank == "keep"
    found = plan_group_statistics(fovs, cuts, entry.source_channel, fill_blank=fill_blank)
    assert found.fov is not None, "movies are whole"
    return found, {"timepoint": found.timepoint, "fov": found.fov}


def _plan_segment_statistics(job: UnitJob, done: Sequence[FovCut], fov_kept: Bool[np.ndarray, " fovs"]) -> Planned:
    """Take the statistics of the frames of a segment, also of FOVs of which nothing is left here: elsewhere may be."""
    (entry,) = job.config.experiments
    channels = entry.source_channel
    nothing = np.empty((0, len(channels), len(STATISTICS)))
    tables = [take_frame_statistics(fov, cut, channels) for fov, cut in zip(job.fovs, done, strict=True)]
    own = [table[: len(job.segment.own(fov.frames))] for table, fov in zip(tables, job.index.fovs, strict=True)]
    left = [table for table, is_left in zip(tables, fov_kept.tolist(), strict=True) if is_left]
    found = GroupStatistics(
        timepoint=np.concatenate([nothing, *left]), fov=None, summaries=tuple(cut.summaries for cut in done)
    )
    return found, {"timepoint": np.concatenate([nothing, *own])}
