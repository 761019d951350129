"""Clips to JSON: who is on each patch, what may be drawn from the clip, how bright its frames are.

The text of a clip is a pure function of the index, the layout and the statistics. It names the
cell, frame and position of every patch, so two shards with the same texts hold the same pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import STATISTICS, ExperimentRecord, FovRecord, LabelRecord, shard_path
from dynaclr_wds.tau import least_tau
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
    labels: tuple[LabelRecord, ...]
    label_codes: Mapping[str, Int[np.ndarray, " obs"]]
    """Label → place of each observation's value in the label's record, NO_ID for null."""
    shard_by: tuple[str, ...]
    partitions: tuple[Mapping[str, str | None], ...]
    fovs: tuple[FovRecord, ...]
    experiments: tuple[ExperimentRecord, ...]
    columns: Mapping[str, Shaped[np.ndarray, " obs"]]
    """Columns of the observations."""
    lineage_ids: Sequence[str]
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
        """Path of every shard, numbered within its partition."""
        partition = self.shards.shard_partition
        number = np.arange(partition.size) - np.searchsorted(partition, partition)
        return tuple(
            shard_path(tuple(self.partitions[p].values()), int(n)) for p, n in zip(partition, number, strict=True)
        )

    def clip_experiment(self, clip: int) -> ExperimentRecord:
        """Return the experiment of a clip."""
        fov = self.fovs[int(self.columns["fov_index"][self.clips.clip_head[clip]])]
        return self.experiments[self.experiment_index[fov.experiment]]


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
    levels, channels = job.intensities, experiment.shape[0]
    constant, varying = _split_labels(job, obs)
    t = job.clips.patch_t[first:stop]
    frames = levels.fov_first_frame[fov_row]

    def table(level: str, at: int) -> Table:
        if (level, at) not in known:
            known[level, at] = [[_number(v) for v in channel] for channel in getattr(levels, level)[at][:channels]]
        return known[level, at]

    record = {
        "key": str(job.keys[clip]),
        "experiment": fov.experiment,
        "fov_name": fov.fov_name,
        "lineage_id": job.lineage_ids[int(job.clips.clip_lineage[clip])],
        "channel_names": experiment.source_channel,
        "shape": experiment.shape,
        "dtype": experiment.dtype,
        "interval_minutes": experiment.interval_minutes,
        "tau_frames": experiment.tau_frames,
        "labels": constant,
        "patches": _patches_json(job, first, stop, fov, experiment, varying),
        "statistics": {
            "names": STATISTICS,
            "dataset": table("dataset", row),
            "fov": table("fov", fov_row),
            "timepoint": {str(frame): table("timepoint", int(frames + frame)) for frame in np.unique(t).tolist()},
        },
    }
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def _patches_json(
    job: PackJob, first: int, stop: int, fov: FovRecord, experiment: ExperimentRecord, labels: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Say who is on each patch of a clip, and which patches are a sample's candidates."""
    obs, t = job.clips.patch_obs[first:stop], job.clips.patch_t[first:stop]
    is_sample = job.clips.patch_is_sample[first:stop].tolist()
    low = np.searchsorted(t, t + int(least_tau(experiment.tau_frames[0]))).tolist()
    high = np.searchsorted(t, t + experiment.tau_frames[1], "right").tolist()
    names = ("track_id", "parent_track_id", "id", "t", "hpi", "z", "y", "x", "y_clamp", "x_clamp")
    columns = [[_number(v) if v.dtype.kind == "f" else int(v) for v in job.columns[name][obs]] for name in names]
    width = name_digits(stop - first)
    return [
        {
            "file": f"{place:0{width}d}.npy",
            "global_track_id": f"{fov.experiment}/{fov.fov_name}/{values[0]}",
            **dict(zip(names, values, strict=True)),
            "is_sample": is_sample[place],
            "candidates": list(range(low[place], high[place])) if is_sample[place] else [],
            **({"labels": labels[place]} if labels[place] else {}),
        }
        for place, values in enumerate(zip(*columns, strict=True))
    ]


def _split_labels(
    job: PackJob, obs: Int[np.ndarray, " patches"]
) -> tuple[dict[str, str | None], list[dict[str, str | None]]]:
    """Split the labels of a clip's patches into those that all share and, patch by patch, those that change."""
    constant: dict[str, str | None] = {}
    varying: list[dict[str, str | None]] = [{} for _ in obs]
    for label in job.labels:
        codes = job.label_codes[label.name][obs].tolist()
        values = [label.values[code] if code >= 0 else None for code in codes]
        if len(set(codes)) == 1:
            constant[label.name] = values[0]
        else:
            for patch, value in zip(varying, values, strict=True):
                patch[label.name] = value
    return constant, varying


def _number(value: np.floating[Any]) -> float | None:
    """Shortest decimal that gives the same float32; null for NaN."""
    return None if np.isnan(value) else float(str(np.float32(value)))


def name_digits(patches: int) -> int:
    """Width of the numbers in a clip's member names: sorted names are in stored order."""
    return max(3, len(str(patches - 1)))
