"""Makes the index from track tables: which cells exist, whose descendants they are, which labels they have.

DuckDB works on integer keys (`etl.queries`); names and labels are added at the end, as dictionaries. The rows have
one order, whatever the number of threads. No pixel is read: `drop_observations` later takes out what only the
pixels can tell, such as a frame that is all zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32

from dynaclr_wds.contract import FovRecord, LabelRecord
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.tau import least_tau, reaches_a_frame
from etl.labels import keep_present_values, list_labels, make_label_columns, name_labels, number_partitions
from etl.queries import QueryResult, TrackTable, read_query, run_queries
from etl.source.annotations import parse_annotations
from etl.source.experiments import BuildConfig, check_shard_by
from etl.source.plates import Plate
from etl.source.preflight import check_plates, plan_fovs
from etl.source.table_places import open_tables
from etl.suspicious.tables import find_in_tables


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


def build_index(config: BuildConfig, plates: Mapping[str, Plate]) -> Index:
    """Build the index from the track files and annotation tables.

    Parameters
    ----------
    config
        Experiments and build options.
    plates
        Experiment → plate, as `etl.source.preflight.open_plates` gives them.

    Raises
    ------
    ConfigError
        The config does not fit the plates, a track file or annotation table is missing or wrong, tracks are
        their own ancestors, a label of `shard_by` changes within a lineage, or no observation is left.
    """
    check_plates(config, plates)
    chosen = {e.name: plan_fovs(config, e, plates[e.name].fovs) for e in config.experiments}
    with open_tables(config) as tables:
        annotations = parse_annotations(config, chosen, tables)
        names = name_labels(config, annotations.names)
        check_shard_by(config, names)
        found = run_queries(config, plates, chosen, annotations.rows, tables)
    if not len(found.observations):
        raise _explain_nothing_left(config, found)
    fovs = tuple(FovRecord(**{name: fov[name] for name in FovRecord.__slots__}) for fov in found.fovs)
    labels = make_label_columns(config, fovs, found.track_labels, annotations, found.observations)
    observations = _name_observations(found, labels)
    records = list_labels(config, observations, names)
    partition, partitions = number_partitions(config, records, observations)
    observations = _set_column(observations, "partition_index", pa.array(partition))
    tau_frames = {experiment.name: config.tau_frames(experiment) for experiment in config.experiments}
    return Index(
        observations=mark_candidates(observations, tau_frames),
        tracks=found.tracks.select(["track_index", "lineage_index", "parent_track_index"]),
        fovs=fovs,
        labels=records,
        partitions=partitions,
        dropped=found.dropped,
        tables=found.tables,
        notes=(*annotations.notes, *found.notes),
    )


def _explain_nothing_left(config: BuildConfig, found: QueryResult) -> ConfigError:
    """Make the error for an index without observations; what is suspicious in the track tables may be the reason."""
    near = any("near_border" in reasons for reasons in found.dropped.values())
    pad = "Lower yx_patch_size, or give --border pad to keep cells near the border. " if near else ""
    error = ConfigError(
        f"{config.where}: no observation is left; dropped were {found.dropped}. "
        f"{pad}Compare tracks_path, condition_wells, include_wells and exclude_fovs."
    )
    for experiment in config.experiments:
        tables = [table for table in found.tables if table.experiment == experiment.name]
        for reason in find_in_tables(experiment, tables):
            error.add_note(reason.text)
    return error


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
    numbers, first = np.unique(observations["experiment_index"].to_numpy(), return_index=True)
    names = [observations["experiment"][row].as_py() for row in first.tolist()]
    if missing := [name for name in names if name not in tau_frames]:
        raise ValueError(f"tau_frames has {sorted(tau_frames)}, but no {missing}. Give all experiments.")
    tau = {
        "experiment_index": pa.array(numbers),
        "tau_min": pa.array([int(least_tau(tau_frames[name][0])) for name in names], pa.int32()),
        "tau_max": pa.array([tau_frames[name][1] for name in names], pa.int32()),
    }
    order = pa.array(np.arange(len(observations), dtype=np.int32))
    cells = observations.select(["experiment_index", "lineage_index", "t"]).append_column("observation", order)
    with duckdb.connect() as con:
        con.register("observations", cells)
        con.register("tau", pa.table(tau))
        flags = read_query(con, "candidates").to_arrow_table()
    for name in ("has_candidate", "is_candidate"):
        observations = _set_column(observations, name, flags[name])
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
    index: Index, keep: Bool[np.ndarray, " observations"], tau_frames: Mapping[str, tuple[int, int]]
) -> Index:
    """Take some observations, perhaps none, and count nothing; else as `drop_observations`."""
    observations = index.observations.filter(pa.array(keep))
    sizes = {
        "fov_index": len(index.fovs),
        "partition_index": len(index.partitions),
        "track_index": len(index.tracks),
        "lineage_index": len(index.tracks),
    }
    new = {name: _renumber(observations[name].to_numpy(), size) for name, size in sizes.items()}
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


def add_stack_places(
    index: Index, z_start: Float32[np.ndarray, " observations"], z_focus: Float32[np.ndarray, " observations"]
) -> Index:
    """Add `z_start`, the slice of the plate that a patch's first one lies at, and `z_focus`, null where it is NaN."""
    observations = _set_column(index.observations, "z_start", pa.array(z_start))
    return replace(index, observations=_set_column(observations, "z_focus", pa.array(z_focus, mask=np.isnan(z_focus))))


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


def _name_observations(found: QueryResult, labels: Mapping[str, pa.DictionaryArray]) -> pa.Table:
    """Add row numbers, names and labels; a value is one dictionary entry, however many rows have it."""
    fovs = {name: [fov[name] for fov in found.fovs] for name in ("experiment", "fov_name", "well", "condition")}
    per_track = {name: found.tracks[name].combine_chunks() for name in ("global_track_id", "lineage_id")}
    names = {name: ("fov_index", pa.array(values, pa.string())) for name, values in fovs.items()}
    names |= {name: ("track_index", values) for name, values in per_track.items()}
    columns: dict[str, Any] = {"observation": pa.array(np.arange(len(found.observations), dtype=np.int32))}
    for name, (number, values) in names.items():
        columns[name] = values.dictionary_encode().take(found.observations[number].combine_chunks())
    numbers = found.observations.drop_columns(["row", "annotation"])
    return pa.table({**columns, **labels, **{name: numbers[name] for name in numbers.column_names}})


def _set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)
