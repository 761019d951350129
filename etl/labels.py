"""Label sources to label columns, their codes, and the partitions that they make.

A label comes from the experiment, the wells, the track files or an annotation table, one source per experiment.
All stays dictionary-encoded: a value is one text, however many observations have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32

from dynaclr_wds.contract import NO_ID, OWN_LABELS, FovRecord, LabelRecord
from dynaclr_wds.errors import ConfigError
from etl.source.annotations import AnnotationRows
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.track_formats import refuse_measurement


def name_labels(config: BuildConfig, annotated: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """List the labels of a collection: those that all have, then in the order of the YAML and the annotations.

    Parameters
    ----------
    annotated
        Experiment → labels of its annotation table.
    """
    given = [name for e in config.experiments for name in (*e.label_names, *annotated.get(e.name, ()))]
    return tuple(dict.fromkeys((*OWN_LABELS, *given)))


def make_label_columns(
    config: BuildConfig,
    fovs: Sequence[FovRecord],
    track_labels: pa.Table,
    annotations: AnnotationRows,
    observations: pa.Table,
) -> dict[str, pa.DictionaryArray]:
    """Make the label columns but `experiment`, `condition` and `well`.

    Parameters
    ----------
    fovs
        In order of `fov_index`.
    track_labels, annotations
        Labels of the rows of the track files and of the annotation tables; taken at `observations["row"]` and
        `observations["annotation"]`.
    observations
        One row per observation with `fov_index`, `row`, `annotation` (null without one).

    Raises
    ------
    ConfigError
        A label has too many values to be a category.
    """
    experiments = {experiment.name: experiment for experiment in config.experiments}
    place = {name: observations[name].combine_chunks() for name in ("fov_index", "row", "annotation")}
    columns = {}
    for name in name_labels(config, annotations.names):
        if name in OWN_LABELS:
            continue
        sources = []
        values = [_value_of_fov(experiments[fov.experiment], fov.well, name) for fov in fovs]
        if any(value is not None for value in values):
            sources.append(pa.array(values, pa.string()).dictionary_encode().take(place["fov_index"]))
        for table, at in ((track_labels, "row"), (annotations.labels, "annotation")):
            if name in table.column_names:
                sources.append(_take(table[name], place[at]))
        columns[name] = _merge(name, sources, len(observations))
    return columns


def _value_of_fov(experiment: ExperimentConfig, well: str, name: str) -> str | None:
    """Return a label's value that the experiment or the well gives."""
    for value, wells in experiment.well_labels.get(name, {}).items():
        if well in wells:
            return value
    return experiment.labels.get(name)


def _take(column: pa.ChunkedArray, rows: pa.Array) -> pa.DictionaryArray:
    """Take rows of a column whose chunks share a dictionary; null for a null row."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no chunk at all
        whole = pa.array([], column.type)
    return whole.take(rows)


def _merge(name: str, sources: Sequence[pa.DictionaryArray], rows: int) -> pa.DictionaryArray:
    """Merge sources that never have a value in the same row; the values are sorted."""
    values = sorted({value for source in sources for value in source.dictionary.to_pylist()})
    refuse_measurement(len(values), f"label {name!r}")
    merged = pa.array(values, pa.string())
    codes = np.full(rows, NO_ID, dtype=np.int32)
    for source in sources:
        new = pc.index_in(source.dictionary, value_set=merged).take(source.indices).fill_null(NO_ID).to_numpy()
        np.copyto(codes, new, where=new >= 0)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), merged)


def list_labels(config: BuildConfig, observations: pa.Table, names: Sequence[str]) -> tuple[LabelRecord, ...]:
    """List labels and their values: experiments and conditions in the order of the YAML, others sorted."""
    conditions = [c for experiment in config.experiments for c in experiment.conditions]
    order = {"experiment": [e.name for e in config.experiments], "condition": list(dict.fromkeys(conditions))}
    records = []
    for name in names:
        present = {value for value in pc.unique(observations[name]).to_pylist() if value is not None}
        ordered = order.get(name) or sorted(present)
        records.append(LabelRecord(name=name, values=tuple(value for value in ordered if value in present)))
    return tuple(records)


def keep_present_values(labels: Sequence[LabelRecord], observations: pa.Table) -> tuple[LabelRecord, ...]:
    """Return the labels without those values that no observation has."""
    records = []
    for label in labels:
        present = set(pc.unique(observations[label.name]).to_pylist())
        records.append(LabelRecord(name=label.name, values=tuple(value for value in label.values if value in present)))
    return tuple(records)


def label_codes(observations: pa.Table, label: LabelRecord) -> Int32[np.ndarray, " observations"]:
    """Number the values of a label as its record does; NO_ID for null."""
    column = observations[label.name].unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no row at all
        return np.empty(0, np.int32)
    codes = pc.index_in(column.dictionary, value_set=pa.array(label.values, pa.string()), skip_nulls=True)
    return np.asarray(codes.take(column.indices).fill_null(NO_ID).to_numpy(zero_copy_only=False), np.int32)


def number_partitions(
    config: BuildConfig, labels: Sequence[LabelRecord], observations: pa.Table
) -> tuple[Int32[np.ndarray, " observations"], tuple[Mapping[str, str | None], ...]]:
    """Number the values of the `shard_by` labels without gaps, in the order of the labels; null comes first.

    Returns
    -------
    tuple
        The partition of each observation, and label → value of each partition.

    Raises
    ------
    ConfigError
        A label of `shard_by` changes within a lineage, whose clips hold all its cells.
    """
    records = [next(label for label in labels if label.name == name) for name in config.shard_by]
    number = np.zeros(len(observations), dtype=np.int64)
    for record in records:
        codes = label_codes(observations, record)
        _refuse_change(config, record, codes, observations)
        # one number per combination of values, made dense at every step so that it can't overflow
        number = np.unique(number * (len(record.values) + 1) + codes + 1, return_inverse=True)[1].reshape(-1)
    first = np.unique(number, return_index=True)[1]
    rows = observations.select(list(config.shard_by)).take(first)
    values = [rows[name].to_pylist() for name in config.shard_by]
    partitions = tuple(dict(zip(config.shard_by, row, strict=True)) for row in zip(*values, strict=True))
    return number.astype(np.int32), partitions


def _refuse_change(
    config: BuildConfig, label: LabelRecord, codes: Int32[np.ndarray, " observations"], observations: pa.Table
) -> None:
    """Raise an error that names the first lineage in which a label changes, if any."""
    lineage = observations["lineage_index"].to_numpy()
    first = np.zeros(int(lineage.max(initial=-1)) + 1, dtype=np.int64)
    first[lineage[::-1]] = np.arange(lineage.size)[::-1]
    changed = np.flatnonzero(codes != codes[first[lineage]])
    if changed.size:
        rows = [int(first[lineage[changed[0]]]), int(changed[0])]
        name = observations["lineage_id"][rows[0]].as_py()
        one, other = (observations[label.name][row].as_py() for row in rows)
        one, other = ("no value" if value is None else repr(value) for value in (one, other))
        raise ConfigError(
            f"{config.where}: shards.shard_by={list(config.shard_by)}: {label.name} must be the same in all of a "
            f"lineage, but lineage {name} has {one} and {other}. Leave {label.name} out of shard_by, or give the "
            "lineage one value."
        )
