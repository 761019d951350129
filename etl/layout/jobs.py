"""Turns the index into jobs: what is cut from which FOV, and which clips it goes to.

Pure but for the arrays' metadata: turns the index's columns into what `cut`, `layout` and `pack` ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import ExperimentRecord
from etl.cut.job import CutJob, ReadingRoom
from etl.index import Index
from etl.layout.candidates import ObservationColumns
from etl.layout.clips import Clips, plan_clips, plan_keys, sort_clips
from etl.layout.groups import PlannedGroup, plan_segment_groups
from etl.layout.segments import WHOLE, Segment, plan_segments
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate
from etl.source.scales import stored_pixel_size
from etl.source.stored import plan_stack, plan_stored
from etl.stored_index import StoredIndex

_TEXT_BYTES_PER_PATCH = 1500
"""JSON, tar headers and index files."""

Columns = Mapping[str, Shaped[np.ndarray, " obs"]]
"""Numeric columns of the observations."""


def read_columns(observations: pa.Table) -> Columns:
    """Return the numeric columns of the observations; NaN where a float is missing."""
    columns = {}
    for name in observations.column_names:
        column = observations[name].combine_chunks()
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


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


def plan_collection(
    config: BuildConfig, experiments: Sequence[ExperimentRecord], index: StoredIndex
) -> list[PlannedGroup]:
    """Put the FOVs of each experiment into runs, and these, segment by segment, into groups."""
    planned = []
    for number, found in groupby(range(len(index.fovs)), index.experiment_index.tolist().__getitem__):
        rows, record = list(found), experiments[number]
        first, fovs = rows[0], index.fovs[rows[0] : rows[-1] + 1]
        segments = plan_segments(max(fov.frames for fov in fovs), config.segment_frames, record.tau_frames[1])
        sizes = index.count_observations(first, first + len(fovs), [s.first for s in segments]) * record.patch_bytes
        for run, place, own in plan_segment_groups([fov.fov_name for fov in fovs], sizes, config.group_bytes):
            if any(segments[place].own(fov.frames) for fov in fovs[own.start : own.stop]):
                ranges = [range(first + part.start, first + part.stop) for part in (run, own)]
                planned.append(PlannedGroup(experiment=number, run=ranges[0], fovs=ranges[1], segment=segments[place]))
    return planned


def plan_cuts(
    config: BuildConfig, fovs: Sequence[Fov], columns: Columns, room: ReadingRoom, segment: Segment = WHOLE
) -> tuple[tuple[CutJob, ...], Int[np.ndarray, " obs"]]:
    """Plan one cut per FOV of a group, its patches in time order.

    Parameters
    ----------
    config
        With the group's experiment only.

    Returns
    -------
    tuple
        The cuts, and the observations in the order of their patches.
    """
    (experiment,) = config.experiments
    fov_index, t = columns["fov_index"], columns["t"]
    order = np.lexsort((t, fov_index))
    first = np.searchsorted(fov_index[order], np.arange(len(fovs) + 1))
    cuts = []
    for number, fov in enumerate(fovs):
        rows = order[first[number] : first[number + 1]]
        cut = CutJob(
            fov=fov,
            channel_names=experiment.source_channel,
            channels=experiment.channel_indices,
            patch=plan_stored(config, experiment, fov),
            stack=plan_stack(config, experiment, fov),
            t=t[rows],
            y=columns["y_clamp"][rows],
            x=columns["x_clamp"][rows],
            on_blank=config.on_blank,
            on_nan=config.on_nan,
            room=room,
            segment=segment,
            on_bad_fov=config.on_bad_fov,
        )
        cuts.append(cut)
    return tuple(cuts), order


def plan_named_clips(
    config: BuildConfig, index: Index, columns: Columns, segment: Segment = WHOLE
) -> tuple[Clips, Shaped[np.ndarray, " clips"]]:
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
            end=segment.last,
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


def estimate_bytes(config: BuildConfig, experiment: ExperimentConfig, observations: int, patch_bytes: int) -> int:
    """Estimate what some observations take on the disk, from counts alone.

    An observation is stored once as a sample and again in clips whose samples reach it by τ; lines that divide count
    double. Index files are a few hundred bytes per observation.
    """
    copies = 1 + 2 * config.tau_frames(experiment)[1] / config.clip_anchors_for(experiment)
    return int(observations * copies * (patch_bytes + _TEXT_BYTES_PER_PATCH))
