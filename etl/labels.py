"""Label sources to label columns, their codes, and the partitions that they make.

A label comes from the experiment, the wells, the track files or an annotation table, one source per experiment.
While tables are read its values are numbered as they are met; they get their order when all are known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, Int32

from dynaclr_wds.contract import NO_ID, OWN_LABELS, LabelRecord
from dynaclr_wds.errors import ConfigError
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


class LabelCodes:
    """Numbers the values of labels in the order in which they are met.

    Parameters
    ----------
    names
        All labels of a collection.
    of_rows
        Those whose values may differ inside a FOV: they stand in track files or annotation tables.
    """

    def __init__(self, names: Sequence[str], of_rows: Collection[str]) -> None:
        self.names, self.of_rows = tuple(names), tuple(name for name in names if name in of_rows)
        self._codes: dict[str, dict[str, int]] = {name: {} for name in names}

    def column(self, name: str) -> str:
        """Return the name of the column with the codes of a label of rows."""
        return f"label_{self.of_rows.index(name)}"

    def encode(self, name: str, values: Sequence[str | None]) -> Int32[np.ndarray, " n"]:
        """Number values of a label; `NO_ID` for null.

        Raises
        ------
        ConfigError
            The label has too many values to be a category.
        """
        known = self._codes[name]
        codes = [NO_ID if value is None else known.setdefault(value, len(known)) for value in values]
        refuse_measurement(len(known), f"label {name!r}")
        return np.array(codes, np.int32)

    def values(self, name: str) -> tuple[str, ...]:
        """Return the values of a label, by code."""
        return tuple(self._codes[name])


def encode_fovs(
    config: BuildConfig, labels: LabelCodes, wells: Sequence[tuple[str, str]]
) -> dict[str, Int32[np.ndarray, " fovs"]]:
    """Number the value of each label that each FOV has as a whole; `NO_ID` where its rows have it, or nothing.

    Parameters
    ----------
    wells
        Experiment and well of each FOV.
    """
    experiments = {experiment.name: experiment for experiment in config.experiments}
    codes = {}
    for name in labels.names:
        values = [_value_of_fov(experiments[experiment], well, name) for experiment, well in wells]
        codes[name] = labels.encode(name, values)
    return codes


def _value_of_fov(experiment: ExperimentConfig, well: str, name: str) -> str | None:
    """Return a label's value that the experiment or the well gives."""
    own = dict(zip(OWN_LABELS, (experiment.name, experiment.well_conditions[well], well), strict=True))
    if name in own:
        return own[name]
    for value, wells in experiment.well_labels.get(name, {}).items():
        if well in wells:
            return value
    return experiment.labels.get(name)


def list_labels(config: BuildConfig, labels: LabelCodes, present: Mapping[str, set[int]]) -> tuple[LabelRecord, ...]:
    """List labels and their values: experiments and conditions in the order of the YAML, others sorted.

    Parameters
    ----------
    present
        Label → codes that an observation has.
    """
    conditions = [c for experiment in config.experiments for c in experiment.conditions]
    order = {"experiment": [e.name for e in config.experiments], "condition": list(dict.fromkeys(conditions))}
    records = []
    for name in labels.names:
        values = labels.values(name)
        there = {values[code] for code in present[name] if code != NO_ID}
        ordered = order.get(name) or sorted(there)
        records.append(LabelRecord(name=name, values=tuple(value for value in ordered if value in there)))
    return tuple(records)


def order_codes(labels: LabelCodes, records: Sequence[LabelRecord]) -> dict[str, Int32[np.ndarray, " codes_and_one"]]:
    """Return label → place in its record of each code; the last, which -1 finds, is `NO_ID`."""
    tables = {}
    for record in records:
        place = {value: number for number, value in enumerate(record.values)}
        found = [place.get(value, NO_ID) for value in labels.values(record.name)]
        tables[record.name] = np.array([*found, NO_ID], np.int32)
    return tables


def keep_present_values(labels: Sequence[LabelRecord], observations: pa.Table) -> tuple[LabelRecord, ...]:
    """Return the labels without those values that no observation has."""
    records = []
    for label in labels:
        present = set(pc.unique(observations[label.name]).to_pylist())
        records.append(LabelRecord(name=label.name, values=tuple(value for value in label.values if value in present)))
    return tuple(records)


def encode_names(values: Sequence[str] | pa.Array, codes: Int32[np.ndarray, " rows"]) -> pa.DictionaryArray:
    """Make a column of names: a dictionary of those that are there, in their order; a code below 0 is null."""
    whole = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    used = np.zeros(len(whole), bool)
    used[codes[codes >= 0]] = True
    if not used.all():
        whole = whole.filter(pa.array(used))
        codes = np.where(codes < 0, NO_ID, (np.cumsum(used, dtype=np.int32) - 1)[codes]).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), whole)


def label_codes(observations: pa.Table, label: LabelRecord) -> Int32[np.ndarray, " observations"]:
    """Number the values of a label as its record does; NO_ID for null."""
    column = observations[label.name].unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no row at all
        return np.empty(0, np.int32)
    codes = pc.index_in(column.dictionary, value_set=pa.array(label.values, pa.string()), skip_nulls=True)
    return np.asarray(codes.take(column.indices).fill_null(NO_ID).to_numpy(zero_copy_only=False), np.int32)


def name_partitions(
    records: Sequence[LabelRecord], shard_by: Sequence[str], codes: Int32[np.ndarray, "p labels"]
) -> tuple[Mapping[str, str | None], ...]:
    """Return label → value of each partition.

    Parameters
    ----------
    codes
        Places of its values in the labels' records, in the order of `shard_by`; `NO_ID` for null.
    """
    values = {record.name: (*record.values, None) for record in records}  # NO_ID is the last
    return tuple({name: values[name][code] for name, code in zip(shard_by, row, strict=True)} for row in codes.tolist())


def refuse_change(
    config: BuildConfig,
    label: LabelRecord,
    codes: Int32[np.ndarray, " rows"],
    lineage: Int[np.ndarray, " rows"],
    name_lineage: Callable[[int], str],
) -> None:
    """Raise an error that names the first lineage in which a label of `shard_by` changes, if any.

    Parameters
    ----------
    label
        Its values, in the order of `codes`.
    lineage
        Number of the lineage of each row, from 0.
    name_lineage
        Gives the `lineage_id` of a row.
    """
    first = np.zeros(int(lineage.max(initial=-1)) + 1, dtype=np.int64)
    first[lineage[::-1]] = np.arange(lineage.size)[::-1]
    changed = np.flatnonzero(codes != codes[first[lineage]])
    if changed.size:
        rows = [int(first[lineage[changed[0]]]), int(changed[0])]
        one, other = ("no value" if codes[row] == NO_ID else repr(label.values[codes[row]]) for row in rows)
        raise ConfigError(
            f"{config.where}: shards.shard_by={list(config.shard_by)}: {label.name} must be the same in all of a "
            f"lineage, but lineage {name_lineage(rows[0])} has {one} and {other}. Leave {label.name} out of shard_by, "
            "or give the lineage one value."
        )
