"""Index to jobs: what is cut from which FOV, and which clips it goes to.

Pure but for the arrays' metadata: turns the index's columns into what `cut`, `layout` and `pack` ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Shaped

from dynaclr_wds.contract import ExperimentRecord
from etl.cut.frames import CutJob
from etl.index import Index
from etl.layout.candidates import ObservationColumns
from etl.layout.clips import Clips, plan_clips, plan_key, sort_clips
from etl.source.experiments import BuildConfig
from etl.source.plates import Fov, Plate


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillPlan:
    """Where each observation's patch is before it is packed."""

    jobs: tuple[CutJob, ...]
    """One per FOV of the index that was cut."""
    names: tuple[tuple[str, str], ...]
    """(experiment, fov_name) of each job."""
    obs_job: Int[np.ndarray, " obs"]
    obs_slot: Int[np.ndarray, " obs"]
    """Place in the job's spill file, in patches."""

    def kept(self, keep: Bool[np.ndarray, " obs"]) -> SpillPlan:
        """Return the same for some of the observations; the files stay as they are."""
        return SpillPlan(jobs=self.jobs, names=self.names, obs_job=self.obs_job[keep], obs_slot=self.obs_slot[keep])


def read_columns(observations: pa.Table) -> dict[str, Shaped[np.ndarray, " obs"]]:
    """Return the numeric columns of the observations; NaN where a float is missing."""
    columns = {}
    for name in observations.column_names:
        column = observations[name].combine_chunks()
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def index_fovs(index: Index, plates: Mapping[str, Plate]) -> tuple[Fov, ...]:
    """Return the FOVs in the order of the index."""
    return tuple(plates[record.experiment].fovs[record.fov_name] for record in index.fovs)


def plan_experiments(config: BuildConfig, plates: Mapping[str, Plate]) -> tuple[ExperimentRecord, ...]:
    """Describe the experiments as they will be stored."""
    records = []
    for experiment in config.experiments:
        array = next(iter(plates[experiment.name].fovs.values())).array
        z = config.z_slices(array.shape[2])
        records.append(
            ExperimentRecord(
                name=experiment.name,
                dtype=stored_dtype(config, array.dtype).str,
                channel_names=experiment.channel_names,
                shape=(len(experiment.source_channel), z.stop - z.start, *config.yx_patch_size),
                source_channel=experiment.source_channel,
                markers=tuple(experiment.channel_markers.get(name, name) for name in experiment.source_channel),
                interval_minutes=experiment.interval_minutes,
                start_hpi=experiment.start_hpi,
                tau_frames=config.tau_frames(experiment),
            )
        )
    return tuple(records)


def stored_dtype(config: BuildConfig, source: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the stored patches, little-endian."""
    return np.dtype(source if config.dtype == "source" else config.dtype).newbyteorder("<")


def plan_spill(config: BuildConfig, index: Index, fovs: Sequence[Fov]) -> SpillPlan:
    """Plan one cut per FOV, its patches in time order."""
    columns = read_columns(index.observations)
    fov_index, t = columns["fov_index"], columns["t"]
    order = np.lexsort((t, fov_index))
    first = np.searchsorted(fov_index[order], np.arange(len(fovs) + 1))
    slot = np.empty(t.size, np.int64)
    slot[order] = np.arange(t.size) - first[fov_index[order]]
    height, width = config.yx_patch_size
    experiments = {experiment.name: experiment for experiment in config.experiments}
    jobs = []
    for number, (record, fov) in enumerate(zip(index.fovs, fovs, strict=True)):
        rows = order[first[number] : first[number + 1]]
        jobs.append(
            CutJob(
                number=number,
                fov=fov,
                channels=experiments[record.experiment].channel_indices,
                z=config.z_slices(fov.shape[2]),
                dtype=stored_dtype(config, fov.array.dtype),
                yx=(height, width),
                t=t[rows],
                y0=columns["y_clamp"][rows] - height // 2,
                x0=columns["x_clamp"][rows] - width // 2,
            )
        )
    names = tuple((record.experiment, record.fov_name) for record in index.fovs)
    return SpillPlan(jobs=tuple(jobs), names=names, obs_job=fov_index.astype(np.int32), obs_slot=slot)


def plan_named_clips(config: BuildConfig, index: Index) -> tuple[Clips, Shaped[np.ndarray, " clips"]]:
    """Put the index's observations into clips; return them in stored order, with their keys."""
    columns = read_columns(index.observations)
    experiment = columns["experiment_index"]
    tau = np.array([config.tau_frames(e) for e in config.experiments], np.int64)
    longest = np.array([config.clip_anchors_for(e) for e in config.experiments], np.int64)
    clips = plan_clips(
        ObservationColumns(
            partition=columns["partition_index"],
            lineage=columns["lineage_index"],
            track=columns["track_index"],
            t=columns["t"],
            has_candidate=columns["has_candidate"],
            tau=tau[experiment],
            clip_anchors=longest[experiment],
            track_parent=index.tracks["parent_track_index"].to_numpy(),
            track_lineage=index.tracks["lineage_index"].to_numpy(),
        )
    )
    heads = index.observations.select(["experiment", "fov_name", "lineage_id", "track_id", "t"]).take(clips.clip_head)
    keys = [
        plan_key(config.seed, (name, fov, lineage.rpartition("/")[2], track, t))
        for name, fov, lineage, track, t in zip(*(column.to_pylist() for column in heads.columns), strict=True)
    ]
    return sort_clips(clips, np.array(keys))


def lineage_ids(index: Index) -> list[str]:
    """Return the lineage_id of each lineage_index."""
    numbers, first = np.unique(index.observations["lineage_index"].to_numpy(), return_index=True)
    assert numbers.size == 0 or numbers[-1] == numbers.size - 1, "the index numbers lineages densely"
    ids: list[str] = index.observations["lineage_id"].take(first).to_pylist()
    return ids
