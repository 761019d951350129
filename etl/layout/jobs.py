"""Turns the index into jobs: what is cut from which FOV, and which clips it goes to.

Pure but for the arrays' metadata: turns the index's columns into what `cut`, `layout` and `pack` ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import ExperimentRecord, SourceRecord, checksum, format_checksum
from etl.cut.job import CutJob
from etl.index import Index
from etl.layout.candidates import ObservationColumns
from etl.layout.clips import Clips, plan_clips, plan_keys, sort_clips
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate
from etl.source.scales import stored_pixel_size
from etl.source.stored import plan_stack, plan_stored

_TEXT_BYTES_PER_PATCH = 1500
"""JSON, tar headers and index files."""

Columns = Mapping[str, Shaped[np.ndarray, " obs"]]
"""Numeric columns of the observations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPlan:
    """Where each observation's patch is before it is packed."""

    jobs: Mapping[tuple[str, str], CutJob]
    """(experiment, fov_name) → job, for every FOV of the index."""
    obs_slot: Int[np.ndarray, " obs"]
    """Place in the spill file of the observation's FOV, in patches."""
    order: Int[np.ndarray, " obs"]
    """Observations by job, in the order of the spill files."""


def read_columns(observations: pa.Table) -> Columns:
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
        stored = plan_stored(config, experiment, next(iter(plates[experiment.name].fovs.values())))
        records.append(
            ExperimentRecord(
                name=experiment.name,
                dtype=stored.dtype.str,
                channel_names=experiment.channel_names,
                shape=stored.shape,
                source_channel=experiment.source_channel,
                markers=tuple(experiment.channel_markers.get(name, name) for name in experiment.source_channel),
                interval_minutes=experiment.minutes,
                pixel_size_um=stored_pixel_size(experiment, stored.scale),
                scale=stored.scale,
                z_reduction=stored.reductions,
                start_hpi=experiment.start_hpi,
                tau_frames=config.tau_frames(experiment),
            )
        )
    return tuple(records)


def plan_cuts(
    config: BuildConfig,
    index: Index,
    columns: Columns,
    plates: Mapping[str, Plate],
    sources: Mapping[tuple[str, str], SourceRecord],
    work: Path,
) -> CutPlan:
    """Plan one cut per FOV, its patches in time order."""
    fov_index, t = columns["fov_index"], columns["t"]
    order = np.lexsort((t, fov_index))
    first = np.searchsorted(fov_index[order], np.arange(len(index.fovs) + 1))
    slot = np.empty(t.size, np.int64)
    slot[order] = np.arange(t.size) - first[fov_index[order]]
    experiments = {experiment.name: experiment for experiment in config.experiments}
    jobs = {}
    for number, (record, fov) in enumerate(zip(index.fovs, index_fovs(index, plates), strict=True)):
        key = record.experiment, record.fov_name
        rows = order[first[number] : first[number + 1]]
        jobs[key] = _plan_cut(config, experiments[record.experiment], fov, sources[key], columns, rows, work)
    return CutPlan(jobs=jobs, obs_slot=slot, order=order)


def _plan_cut(
    config: BuildConfig,
    experiment: ExperimentConfig,
    fov: Fov,
    source: SourceRecord,
    columns: Columns,
    rows: Int[np.ndarray, " rows"],
    work: Path,
) -> CutJob:
    name = format_checksum(checksum(f"{experiment.name}/{fov.name}".encode()))
    return CutJob(
        spill=work / f"fov-{name}.patches",
        fov=fov,
        source=source,
        channel_names=experiment.source_channel,
        channels=experiment.channel_indices,
        patch=plan_stored(config, experiment, fov),
        stack=plan_stack(config, experiment, fov),
        t=columns["t"][rows],
        y=columns["y_clamp"][rows],
        x=columns["x_clamp"][rows],
        on_blank=config.on_blank,
        on_nan=config.on_nan,
    )


def plan_named_clips(config: BuildConfig, index: Index, columns: Columns) -> tuple[Clips, Shaped[np.ndarray, " clips"]]:
    """Put the index's observations into clips; return them in stored order, with their keys."""
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
    head = clips.clip_head
    column = index.observations["lineage_id"].combine_chunks()
    roots = [name.rpartition("/")[2] for name in column.dictionary.to_pylist()]
    keys = plan_keys(
        config.seed,
        [(fov.experiment, fov.fov_name) for fov in index.fovs],
        columns["fov_index"][head],
        [roots[code] for code in column.indices.to_numpy()[head].tolist()],
        [columns[name][head] for name in ("track_id", "t")],
    )
    return sort_clips(clips, keys)


def lineage_ids(index: Index, columns: Columns) -> list[str]:
    """Return the lineage_id of each lineage_index."""
    numbers, first = np.unique(columns["lineage_index"], return_index=True)
    assert numbers.size == 0 or numbers[-1] == numbers.size - 1, "the index numbers lineages densely"
    ids: list[str] = index.observations["lineage_id"].take(first).to_pylist()
    return ids


def estimate_bytes(config: BuildConfig, jobs: Mapping[tuple[str, str], CutJob]) -> int:
    """Estimate what a build of some FOVs writes, from counts alone: patches as they are cut, and shards.

    An observation is stored once as a sample and again in clips whose samples reach it by τ; lines that divide count
    double. Index files are a few hundred bytes per observation.
    """
    experiments = {experiment.name: experiment for experiment in config.experiments}
    total = 0
    for (name, _), job in jobs.items():
        experiment = experiments[name]
        copies = 1 + 2 * config.tau_frames(experiment)[1] / config.clip_anchors_for(experiment)
        total += int(job.t.size * (job.patch_bytes * (1 + copies) + copies * _TEXT_BYTES_PER_PATCH))
    return total
