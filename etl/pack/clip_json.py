"""Clips to JSON: who is on each patch, what may be drawn from the clip, how bright its frames are.

The text of a clip is a pure function of the index, the layout and the statistics. It names the
cell, frame and position of every patch, so two shards with the same texts hold the same pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import STATISTICS, ExperimentRecord, FovRecord, shard_path
from etl.cut.intensities import Intensities
from etl.layout.clips import Clips, Shards

Table = list[list[float | None]]


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """All that the shards are made of."""

    clips: Clips
    """In stored order."""
    keys: Shaped[np.ndarray, " clips"]
    shards: Shards
    strata: tuple[tuple[str, str], ...]
    fovs: tuple[FovRecord, ...]
    experiments: tuple[ExperimentRecord, ...]
    columns: Mapping[str, Shaped[np.ndarray, " obs"]]
    """Columns of the observations."""
    lineage_ids: Sequence[str]
    patch_shape: tuple[int, int, int, int]
    intensities: Intensities
    spill: Sequence[Path]
    obs_spill: Int[np.ndarray, " obs"]
    """File of `spill` with an observation's patch."""
    obs_slot: Int[np.ndarray, " obs"]
    """Its place in that file, in patches."""

    @cached_property
    def experiment_index(self) -> dict[str, int]:
        """Experiment name → row of `experiments`."""
        return {experiment.name: row for row, experiment in enumerate(self.experiments)}

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Path of every shard, numbered within its stratum."""
        stratum = self.shards.shard_stratum
        number = np.arange(stratum.size) - np.searchsorted(stratum, stratum)
        return tuple(
            shard_path(self.strata[s][0], self.strata[s][1], int(n)) for s, n in zip(stratum, number, strict=True)
        )

    def patch_bytes(self, dtype: str) -> int:
        """Size of a patch's data."""
        return math.prod(self.patch_shape) * np.dtype(dtype).itemsize


def make_clip_json(job: PackJob, clip: int, known: dict[tuple[str, int], Table]) -> bytes:
    """Make the text of one clip.

    Parameters
    ----------
    known
        Tables of statistics that were made before; filled as new ones are needed.
    """
    first, stop = job.clips.clip_first[clip : clip + 2].tolist()
    obs = job.clips.patch_obs[first:stop]
    fov_row = int(job.columns["fov_index"][obs[0]])
    fov = job.fovs[fov_row]
    row = job.experiment_index[fov.experiment]
    experiment = job.experiments[row]
    levels = job.intensities
    t = job.clips.patch_t[first:stop]
    frames = levels.fov_first_frame[fov_row]

    def table(level: str, at: int) -> Table:
        if (level, at) not in known:
            known[level, at] = [[_number(v) for v in channel] for channel in getattr(levels, level)[at]]
        return known[level, at]

    record = {
        "key": str(job.keys[clip]),
        "experiment": fov.experiment,
        "condition": fov.condition,
        "well": fov.well,
        "fov_name": fov.fov_name,
        "lineage_id": job.lineage_ids[int(job.clips.clip_lineage[clip])],
        "channel_names": experiment.source_channel,
        "shape": job.patch_shape,
        "dtype": experiment.dtype,
        "interval_minutes": experiment.interval_minutes,
        "tau_frames": experiment.tau_frames,
        "patches": _patches_json(job, first, stop, fov, experiment),
        "statistics": {
            "names": STATISTICS,
            "dataset": table("dataset", row),
            "fov": table("fov", fov_row),
            "timepoint": {str(frame): table("timepoint", int(frames + frame)) for frame in np.unique(t).tolist()},
        },
    }
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def _patches_json(
    job: PackJob, first: int, stop: int, fov: FovRecord, experiment: ExperimentRecord
) -> list[dict[str, Any]]:
    """Say who is on each patch of a clip, and which patches are an anchor's candidates."""
    obs, t = job.clips.patch_obs[first:stop], job.clips.patch_t[first:stop]
    is_anchor = job.clips.patch_is_anchor[first:stop].tolist()
    low = np.searchsorted(t, t + max(experiment.tau_frames[0], 1)).tolist()
    high = np.searchsorted(t, t + experiment.tau_frames[1], "right").tolist()
    names = ("track_id", "parent_track_id", "id", "t", "hpi", "z", "y", "x", "y_clamp", "x_clamp")
    columns = [[_number(v) if v.dtype.kind == "f" else int(v) for v in job.columns[name][obs]] for name in names]
    width = name_digits(stop - first)
    return [
        {
            "file": f"{place:0{width}d}.npy",
            "global_track_id": f"{fov.experiment}/{fov.fov_name}/{values[0]}",
            **dict(zip(names, values, strict=True)),
            "is_anchor": is_anchor[place],
            "candidates": list(range(low[place], high[place])) if is_anchor[place] else [],
        }
        for place, values in enumerate(zip(*columns, strict=True))
    ]


def _number(value: np.floating[Any]) -> float | None:
    """Shortest decimal that gives the same float32; null for NaN."""
    return None if np.isnan(value) else float(str(np.float32(value)))


def name_digits(patches: int) -> int:
    """Width of the numbers in a clip's member names: sorted names are in stored order."""
    return max(3, len(str(patches - 1)))
