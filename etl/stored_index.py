"""Holds the index of a whole collection in files, and hands out that of some fields of view.

Observations, tracks and lineages of a FOV are adjacent, so a run of FOVs is a range of rows. What follows from the FOV
or the track (names, labels of wells, hours) is not stored but made when rows are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int32, Int64

from dynaclr_wds.contract import NO_ID, FovRecord, LabelRecord
from etl.column_files import ColumnFiles, Columns
from etl.index import Index
from etl.labels import encode_names, keep_present_values
from etl.queries import TrackTable


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIndex:
    """All that is known of the cells before a pixel is read; FOVs are in order of (experiment, fov_name)."""

    fovs: tuple[FovRecord, ...]
    """FOVs with kept observations."""
    first_observation: Int64[np.ndarray, " f1"]
    """CSR: observations of each FOV."""
    first_track: Int64[np.ndarray, " f1"]
    """CSR: tracks of each FOV."""
    first_lineage: Int64[np.ndarray, " f1"]
    """CSR: lineages of each FOV."""
    experiment_index: Int32[np.ndarray, " f"]
    """Entry of the YAML that each FOV is of."""
    clock: Float64[np.ndarray, "f 2"]
    """Hours of frame 0 and minutes per frame of each FOV."""
    labels: tuple[LabelRecord, ...]
    label_of_fov: Mapping[str, Int32[np.ndarray, " f"]]
    """Label → place in its record of the value that a whole FOV has; `NO_ID` where its rows have it, or nothing."""
    label_of_code: Mapping[str, Int32[np.ndarray, " codes_and_one"]]
    """Label → place in its record of each stored code, of the labels that rows have; the last is `NO_ID`."""
    label_columns: Mapping[str, str]
    """Label → column of `observations` with its codes, of the labels that rows have."""
    shard_by: tuple[str, ...]
    partitions: tuple[Mapping[str, str | None], ...]
    partition_codes: Int32[np.ndarray, "p labels"]
    """Places of each partition's values in the records of the `shard_by` labels, sorted; null comes first."""
    dropped: Mapping[str, Mapping[str, int]]
    """Experiment → reason → observations left out."""
    tables: tuple[TrackTable, ...]
    """What the track table of each FOV that was asked for holds, before anything is left out."""
    notes: tuple[str, ...]
    """What the user should be told."""
    observations: ColumnFiles
    """One row per kept observation, by (fov, track_id, t)."""
    tracks: ColumnFiles
    """One row per track with kept observations, by (fov, track_id)."""

    def take(self, first: int, stop: int) -> Index:
        """Take the FOVs `first … stop` as an index of its own, whose numbers all begin at 0, and whose names are few.

        The same cells give the same small index, whatever else there is: names and partitions are in the order of
        their text, which no other experiment decides. `dropped`, `tables` and `notes` stay behind.
        """
        return _order_names(self._take(first, stop, int(self.experiment_index[first])))

    def take_all(self) -> Index:
        """Take the whole index into memory, with what was counted on the way: for small collections."""
        whole = self._take(0, len(self.fovs), 0)
        return replace(whole, dropped=self.dropped, tables=self.tables, notes=self.notes)

    def take_labels(self, first: int, stop: int) -> dict[str, Int32[np.ndarray, " rows"]]:
        """Return label → place of its value in the label's record, of the rows of some FOVs."""
        edges, columns = self.first_observation[[first, stop]].tolist(), tuple(self.label_columns.values())
        rows = self.observations.read(*edges, *columns) if columns else {}
        fov = np.repeat(np.arange(first, stop, dtype=np.int32), np.diff(self.first_observation[first : stop + 1]))
        return {label.name: self._take_label(label.name, fov, rows) for label in self.labels}

    def count_observations(self, first: int, stop: int, begins: Sequence[int]) -> Int64[np.ndarray, "fovs segments"]:
        """Count the observations of some FOVs in each run of frames; `begins` are the first frames, from 0 on."""
        edges = self.first_observation[first : stop + 1]
        if len(begins) == 1:
            return np.diff(edges)[:, None]
        t = self.observations.read(int(edges[0]), int(edges[-1]), "t")["t"]
        number = np.searchsorted(np.asarray(begins), t, "right") - 1
        cell = np.repeat(np.arange(stop - first), np.diff(edges)) * len(begins) + number
        counts = np.bincount(cell, minlength=(stop - first) * len(begins))
        return counts.reshape(stop - first, len(begins)).astype(np.int64)

    def has_candidates(self) -> bool:
        """Whether any observation has a temporal candidate."""
        edges = [*range(0, self.observations.rows, _PIECE), self.observations.rows]
        pieces = (self.observations.read(first, stop, "flags")["flags"] for first, stop in pairwise(edges))
        return any(bool((piece & 1).any()) for piece in pieces)

    def _take(self, first: int, stop: int, first_experiment: int) -> Index:
        rows = self.observations.read(*self.first_observation[[first, stop]].tolist())
        tracks = self._take_tracks(first, stop)
        of_track = np.repeat(np.arange(tracks["fov"].size), tracks["observations"])
        fov = tracks["fov"][of_track]
        codes = {label.name: self._take_label(label.name, fov + first, rows) for label in self.labels}
        partitions, partition = np.unique(self._number_partitions(codes), return_inverse=True)
        start, minutes = self.clock[first:stop][fov].T
        numbers = {
            "hpi": (start + rows["t"] * minutes / 60).astype(np.float32),
            "experiment_index": (self.experiment_index[first:stop] - first_experiment).astype(np.int16)[fov],
            "fov_index": fov,
            "partition_index": partition.reshape(-1).astype(np.int32),
            "track_index": of_track.astype(np.int32),
        }
        names = {name: encode_names(self._values(name), code) for name, code in codes.items()}
        names |= self._name(self.fovs[first:stop], tracks, of_track)
        observations = pa.table(
            {
                "observation": np.arange(fov.size, dtype=np.int32),
                **{name: names.pop(name) for name in _FIRST_NAMES},
                **names,  # of other labels
                **_list_numbers(rows, tracks, of_track, numbers),
            }
        )
        own = {"track_index": np.arange(tracks["fov"].size), "lineage_index": tracks["lineage"]}
        own["parent_track_index"] = tracks["parent"]
        return Index(
            observations=observations,
            tracks=pa.table({name: values.astype(np.int32) for name, values in own.items()}),
            fovs=self.fovs[first:stop],
            labels=keep_present_values(self.labels, observations),
            partitions=tuple(self.partitions[number] for number in partitions.tolist()),
            dropped={},
            tables=(),
        )

    def _take_tracks(self, first: int, stop: int) -> dict[str, Any]:
        """Take tracks; lineages and parents are counted from the first of the range."""
        tracks = self.tracks.read(*self.first_track[[first, stop]].tolist())
        fov = np.repeat(np.arange(stop - first, dtype=np.int32), np.diff(self.first_track[first : stop + 1]))
        tracks["fov"] = fov
        tracks["lineage"] = tracks["lineage"] + (self.first_lineage[first:stop] - self.first_lineage[first])[fov]
        before = (self.first_track[first:stop] - self.first_track[first])[fov]
        tracks["parent"] = np.where(tracks["parent"] < 0, -1, tracks["parent"] + before)
        return tracks

    def _take_label(self, name: str, fov: Int32[np.ndarray, " rows"], rows: Columns) -> Int32[np.ndarray, " rows"]:
        """Return the place of each row's value of a label; a FOV has it as a whole, or its rows have it."""
        codes = self.label_of_fov[name][fov]
        if name in self.label_columns:
            own = self.label_of_code[name][rows[self.label_columns[name]]]
            codes = np.where(own == NO_ID, codes, own)
        return codes

    def _number_partitions(self, codes: Mapping[str, Int32[np.ndarray, " rows"]]) -> Int64[np.ndarray, " rows"]:
        """Number the partition of each row, in the whole collection."""
        sizes = {label.name: len(label.values) + 1 for label in self.labels}
        known = np.zeros(len(self.partition_codes), np.int64)
        number = np.zeros(next(iter(codes.values())).size, np.int64)
        for column, name in enumerate(self.shard_by):  # dense at every step, so that nothing overflows
            known = known * sizes[name] + self.partition_codes[:, column] + 1
            values, known = np.unique(known, return_inverse=True)
            number = np.searchsorted(values, number * sizes[name] + codes[name] + 1)
        return number

    def _values(self, name: str) -> tuple[str, ...]:
        return next(label.values for label in self.labels if label.name == name)

    def _name(
        self, fovs: Sequence[FovRecord], tracks: Mapping[str, Any], of_track: Int64[np.ndarray, " rows"]
    ) -> dict[str, pa.DictionaryArray]:
        """Name the field of view, the track and the lineage of each row; a name is there once."""
        places = pa.array([f"{fov.experiment}/{fov.fov_name}" for fov in fovs], pa.string())
        place = places.take(pa.array(tracks["fov"]))
        ids = (pc.cast(pa.array(tracks[name]), pa.string()) for name in ("track_id", "root_track_id"))
        track_ids, root_ids = (pc.binary_join_element_wise(place, own, "/") for own in ids)
        number, first = tracks["lineage"], np.zeros(int(tracks["lineage"].max(initial=-1)) + 1, np.int64)
        first[number[::-1]] = np.arange(number.size)[::-1]
        names = [fov.fov_name for fov in fovs]
        values = tuple(dict.fromkeys(names))
        fov_code = np.array([values.index(name) for name in names], np.int32)
        return {
            "fov_name": encode_names(values, fov_code[tracks["fov"]][of_track]),
            "global_track_id": encode_names(track_ids, of_track.astype(np.int32)),
            "lineage_id": encode_names(root_ids.take(pa.array(first)), number.astype(np.int32)[of_track]),
        }


_PIECE = 1 << 22
"""Rows that are read at a time."""

_FIRST_NAMES = ("experiment", "fov_name", "well", "condition", "global_track_id", "lineage_id")


def _order_names(index: Index) -> Index:
    """Put names and partitions into the order of their text."""
    observations, partitions = index.observations, index.partitions
    order = sorted(range(len(partitions)), key=lambda n: [(v is not None, v or "") for v in partitions[n].values()])
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    columns = {name: observations[name] for name in observations.column_names}
    for name in (*(label.name for label in index.labels), "fov_name"):
        columns[name] = _sort_names(observations[name].combine_chunks())
    columns["partition_index"] = place[observations["partition_index"].to_numpy()]
    return replace(index, observations=pa.table(columns), partitions=tuple(partitions[number] for number in order))


def _sort_names(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """Put the names of a column into the order of their text."""
    names = column.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names) + 1, np.int32)
    place[[*order, -1]] = [*range(len(names)), NO_ID]
    return encode_names([names[number] for number in order], place[column.indices.fill_null(NO_ID).to_numpy()])


def _list_numbers(
    rows: Columns, tracks: Mapping[str, Any], of_track: Int64[np.ndarray, " rows"], numbers: Columns
) -> dict[str, Any]:
    """List the numeric columns in their order; a column that no track file has is empty."""
    count = of_track.size
    z = rows.get("z", np.full(count, np.nan, np.float32))
    none = np.full(count, NO_ID, np.int64)
    return {
        "track_id": tracks["track_id"][of_track],
        "parent_track_id": tracks["parent_track_id"][of_track],
        "t": rows["t"],
        "z": pa.array(z, mask=np.isnan(z)),
        "y": rows["y"],
        "x": rows["x"],
        "id": rows.get("id", none),
        "parent_id": rows.get("parent_id", none),
        "y_clamp": rows["y_clamp"],
        "x_clamp": rows["x_clamp"],
        "hpi": numbers["hpi"],
        "experiment_index": numbers["experiment_index"],
        "fov_index": numbers["fov_index"],
        "track_index": numbers["track_index"],
        "lineage_index": tracks["lineage"].astype(np.int32)[of_track],
        "partition_index": numbers["partition_index"],
        "has_candidate": (rows["flags"] & 1).astype(bool),
        "is_candidate": (rows["flags"] & 2).astype(bool),
    }
