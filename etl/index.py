"""Holds the index of some fields of view: which cells exist, whose descendants they are, which labels they have.

`etl.indexing` makes it from track tables, and no pixel is read for it. `drop_observations` later takes out what only
the pixels can tell, such as a frame that is all zero. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32, Int64

from dynaclr_wds.contract import FovRecord, LabelRecord
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.tau import least_tau, reaches_a_frame
from etl.labels import encode_names, keep_present_values
from etl.layout.candidates import has_temporal
from etl.layout.segments import Segment, find_rows
from etl.queries import TrackTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Holds all that is known of the cells before a pixel is read."""

    observations: pa.Table
    """One row per kept observation, sorted by (experiment, fov_name, track_id, t); `observation` is the row number.

    Names (`experiment`, `fov_name`, `well`, `condition`, `global_track_id`, `lineage_id`) are dictionary-encoded
    strings. Integers: `track_id`, `parent_track_id`, `id`, `parent_id` as in the track table (-1 without one), `t`
    in frames, `y_clamp`, `x_clamp` the centre of the patch in pixels, and the dense numbers `experiment_index`
    (entry of the YAML), `fov_index`, `partition_index`, `track_index`, `lineage_index`. Floats: centroid `z`, `y`, `x`
    in pixels (`z` null where not tracked), `hpi` in hours. Flags: `has_candidate`, `is_candidate`.
    """
    tracks: pa.Table
    """One row per track with kept observations: `track_index` (the row number), `lineage_index`, `parent_track_index`
    (its nearest ancestor in this table, -1 without any)."""
    fovs: tuple[FovRecord, ...]
    """FOVs with kept observations, in order of `fov_index`."""
    labels: tuple[LabelRecord, ...]
    """Labels of the observations, each a dictionary-encoded column of `observations` with nulls."""
    partitions: tuple[Mapping[str, str | None], ...]
    """Label → value of `shard_by`, in order of `partition_index`."""
    dropped: Mapping[str, Mapping[str, int]]
    """Experiment → reason → observations left out."""
    tables: tuple[TrackTable, ...]
    """What the track table of each FOV that was asked for holds, before anything is left out."""
    notes: tuple[str, ...] = ()
    """What the user should be told: annotations that are about no observation."""


def mark_candidates(observations: pa.Table, tau_frames: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Set `has_candidate` and `is_candidate` from the rows that are there.

    An observation has a candidate if its lineage was seen at t + τ for a τ of the range, τ ≠ 0. It is a candidate
    if its lineage was seen at t - τ.

    Parameters
    ----------
    observations
        Rows of `Index.observations`, all or some; needs `experiment`, `experiment_index`, `lineage_index`, `t`.
    tau_frames
        Experiment → τ range in frames, both ends included; (0, 0) where there is one frame.

    Raises
    ------
    ValueError
        Another range without a frame, or an experiment without a range.
    """
    for name, (low, high) in tau_frames.items():
        if (low, high) != (0, 0) and (low < 0 or not reaches_a_frame((low, high))):
            raise ValueError(
                f"tau_frames[{name!r}]={(low, high)} must be (shortest, longest), 0 ≤ shortest ≤ longest, "
                "with at least one frame. Change tau_range_hours."
            )
    experiment, lineage, t = (observations[name].to_numpy() for name in ("experiment_index", "lineage_index", "t"))
    numbers, first = np.unique(experiment, return_index=True)
    names = [observations["experiment"][row].as_py() for row in first.tolist()]
    if missing := [name for name in names if name not in tau_frames]:
        raise ValueError(f"tau_frames has {sorted(tau_frames)}, but no {missing}. Give all experiments.")
    found = np.zeros((2, t.size), bool)
    for number, name in zip(numbers.tolist(), names, strict=True):
        low, high = tau_frames[name]
        rows = np.flatnonzero(experiment == number)
        found[:, rows] = has_temporal(lineage[rows], t[rows], int(least_tau(low)), high)
    for name, flags in zip(("has_candidate", "is_candidate"), found, strict=True):
        observations = _set_column(observations, name, pa.array(flags))
    return observations


def drop_observations(
    index: Index, keep: Bool[np.ndarray, " observations"], reason: str, tau_frames: Mapping[str, tuple[int, int]]
) -> Index:
    """Leave observations out: count them under `reason`, renumber the others, and mark their candidates again.

    Lineages stay as they were: a track whose observations all go still links its daughters to its parent.

    Parameters
    ----------
    index
        Is not changed.
    keep
        False for the observations that go.
    reason
        The name under which `dropped` counts them.
    tau_frames
        Experiment → τ range in frames, both ends included.

    Raises
    ------
    ConfigError
        No observation would be left.
    """
    if not keep.any():
        raise ConfigError(f"no observation is left: all {len(keep)} are dropped as {reason!r}. Look at the images.")
    return replace(keep_observations(index, keep, tau_frames), dropped=_count_dropped(index, keep, reason))


def keep_observations(
    index: Index,
    keep: Bool[np.ndarray, " observations"],
    tau_frames: Mapping[str, tuple[int, int]],
    *,
    with_fovs: bool = True,
) -> Index:
    """Take some observations, perhaps none, and count nothing; else as `drop_observations`.

    Parameters
    ----------
    with_fovs
        Renumber FOVs, too; else all stay, also those without observations.
    """
    observations = index.observations.filter(pa.array(keep))
    sizes = {
        "fov_index": len(index.fovs),
        "partition_index": len(index.partitions),
        "track_index": len(index.tracks),
        "lineage_index": len(index.tracks),
    }
    new = {name: _renumber(observations[name].to_numpy(), size) for name, size in sizes.items()}
    if not with_fovs:
        new["fov_index"] = np.arange(len(index.fovs), dtype=np.int32)
    for name, numbers in new.items():
        observations = _set_column(observations, name, pa.array(numbers[observations[name].to_numpy()]))
    observations = _set_column(observations, "observation", pa.array(np.arange(len(observations), dtype=np.int32)))
    return Index(
        observations=mark_candidates(observations, tau_frames),
        tracks=_renumber_tracks(index.tracks, new["track_index"], new["lineage_index"]),
        fovs=tuple(fov for fov, number in zip(index.fovs, new["fov_index"], strict=True) if number >= 0),
        labels=keep_present_values(index.labels, observations),
        partitions=tuple(p for p, number in zip(index.partitions, new["partition_index"], strict=True) if number >= 0),
        dropped=index.dropped,
        tables=index.tables,
        notes=index.notes,
    )


def take_segment(index: Index, segment: Segment, tau_frames: tuple[int, int]) -> Index:
    """Take what a segment holds of the index of some FOVs, which all stay; nothing of it depends on later frames.

    Parameters
    ----------
    index
        Of one experiment.
    """
    if segment.is_whole:
        return index
    lineage, t = (index.observations[name].to_numpy() for name in ("lineage_index", "t"))
    rows = find_rows(lineage, t, segment, tau_frames)
    names = {record.experiment: tau_frames for record in index.fovs}
    left = keep_observations(index, rows, names, with_fovs=False)
    return replace(left, observations=_drop_unused_names(left.observations))


def add_stack_places(
    index: Index, z_start: Float32[np.ndarray, " observations"], z_focus: Float32[np.ndarray, " observations"]
) -> Index:
    """Add `z_start`, the slice of the plate that a patch's first one lies at, and `z_focus`, null where it is NaN."""
    observations = _set_column(index.observations, "z_start", pa.array(z_start))
    return replace(index, observations=_set_column(observations, "z_focus", pa.array(z_focus, mask=np.isnan(z_focus))))


def find_edges(index: Index) -> Int64[np.ndarray, " fovs_and_one"]:
    """Return the first row of the observations of each FOV, and one past the last row."""
    edges: Int64[np.ndarray, " fovs_and_one"] = np.searchsorted(
        index.observations["fov_index"].to_numpy(), np.arange(len(index.fovs) + 1)
    )
    return edges


def _drop_unused_names(observations: pa.Table) -> pa.Table:
    """Leave names out of dictionaries that no row has."""
    columns = {name: observations[name] for name in observations.column_names}
    used = {
        name: encode_names(column.dictionary, column.indices.fill_null(-1).to_numpy())
        for name, chunks in columns.items()
        if pa.types.is_dictionary(chunks.type)
        and isinstance(column := chunks.unify_dictionaries().combine_chunks(), pa.DictionaryArray)
    }
    return pa.table({**columns, **used})


def _count_dropped(index: Index, keep: Bool[np.ndarray, " observations"], reason: str) -> dict[str, dict[str, int]]:
    """Add the observations that go to those that went before."""
    dropped = {experiment: dict(reasons) for experiment, reasons in index.dropped.items()}
    gone = index.observations["experiment"].filter(pa.array(~keep)).value_counts()
    for item in gone.to_pylist():
        counts = dropped.setdefault(item["values"], {})
        counts[reason] = counts.get(reason, 0) + item["counts"]
    return dropped


def _renumber(used: Int32[np.ndarray, " rows"], size: int) -> Int32[np.ndarray, " size"]:
    """Number those of `size` that are used without gaps, in their order; -1 for the others."""
    is_used = np.zeros(size, dtype=bool)
    is_used[used] = True
    return np.where(is_used, np.cumsum(is_used) - 1, -1).astype(np.int32)


def _renumber_tracks(
    tracks: pa.Table, track: Int32[np.ndarray, " tracks"], lineage: Int32[np.ndarray, " tracks"]
) -> pa.Table:
    """Keep the tracks with a new number; a parent that goes gives way to its nearest ancestor that stays."""
    parent = tracks["parent_track_index"].to_numpy().copy()
    old = parent.copy()
    while (gone := (parent >= 0) & (track[parent] < 0)).any():
        parent[gone] = old[parent[gone]]
    kept = track >= 0
    columns = {
        "track_index": track[kept],
        "lineage_index": lineage[tracks["lineage_index"].to_numpy()[kept]],
        "parent_track_index": np.where(parent < 0, -1, track[parent]).astype(np.int32)[kept],
    }
    return pa.table(columns)


def _set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)
