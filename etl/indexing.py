"""Makes the index from track tables, batch of fields of view by batch: which cells exist, whose descendants they are.

DuckDB reads and joins what a batch holds, within its limit of memory; observations go to files, in one order whatever
the number of threads and the size of the batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32

from dynaclr_wds.contract import NO_ID, FovRecord, LabelRecord
from dynaclr_wds.errors import BuildError, ConfigError
from dynaclr_wds.tau import least_tau
from etl.column_files import ColumnFiles, Columns
from etl.index import Index
from etl.index_notes import explain_nothing_left, note_large_tables, note_unmatched
from etl.labels import (
    LabelCodes,
    encode_fovs,
    list_labels,
    name_labels,
    name_partitions,
    order_codes,
    refuse_change,
)
from etl.ordering import OrderedBatch, RepeatedRow, order_batch
from etl.queries import BatchResult, TrackTable, list_fovs, run_queries
from etl.run.memory import find_room
from etl.scratch import scratch_folder
from etl.source.annotations import AnnotationRows, parse_annotations
from etl.source.experiments import BuildConfig, check_shard_by
from etl.source.plates import Plate
from etl.source.preflight import check_plates, plan_fovs
from etl.source.table_places import open_tables
from etl.source.tracks import TrackFile, open_track_files, parse_track_file
from etl.stored_index import StoredIndex
from etl.track_rows import Batch, TrackReader, plan_batches

_LEAST_MEMORY = 64 * 2**20
"""Bytes without which DuckDB can't work."""


def build_index(config: BuildConfig, plates: Mapping[str, Plate]) -> Index:
    """Build the index of a collection in memory; see `store_index`."""
    with scratch_folder("index") as folder:
        return store_index(config, plates, folder).take_all()


def store_index(config: BuildConfig, plates: Mapping[str, Plate], folder: Path) -> StoredIndex:
    """Build the index of a collection in files.

    Parameters
    ----------
    config
        Experiments and build options; `memory_limit` bounds what DuckDB takes.
    plates
        Experiment → plate, as `etl.source.preflight.open_plates` gives them.
    folder
        Takes the files, which the index reads from as long as it is used.

    Raises
    ------
    ConfigError
        The config does not fit the plates, a track file or annotation table is missing or wrong, tracks are
        their own ancestors, a label of `shard_by` changes within a lineage, or no observation is left.
    BuildError
        The disk is full, or failed.
    """
    check_plates(config, plates)
    chosen = {e.name: plan_fovs(config, e, plates[e.name].fovs) for e in config.experiments}
    with open_tables(config) as tables:
        annotations = parse_annotations(config, chosen, tables)
        names = name_labels(config, annotations.names)
        check_shard_by(config, names)
        files = open_track_files(config, chosen, tables)
        indexing = Indexing(config, list_fovs(config, plates, chosen), annotations, files, folder)
        room = find_room(config.memory_limit)
        for_duckdb = max(room // 2, _LEAST_MEMORY)  # the other half is for what numpy makes of it
        with _connect(config, folder, for_duckdb) as con, ThreadPoolExecutor(1) as after:
            added: Future[None] = after.submit(lambda: None)
            for batch in plan_batches(files, room):
                try:
                    found = indexing.query(con, batch)
                finally:
                    added.result()  # what is wrong in an earlier batch is said first
                added = after.submit(indexing.add, batch, found)  # while DuckDB reads the next one
            added.result()
        unmatched = note_unmatched(config, tables, indexing.annotations.rows, indexing.annotated)
    notes = (
        *annotations.notes,
        *indexing.reader.notes,
        *unmatched,
        *note_large_tables(files, config, max(room, 2 * _LEAST_MEMORY)),
    )
    return indexing.finish(notes)


@contextmanager
def _connect(config: BuildConfig, folder: Path, limit: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB with the threads of a build, and some memory; what does not fit goes to files in the folder."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": config.workers,
        "memory_limit": f"{limit // 2**20}MiB",
        "temp_directory": str(folder / "duckdb"),
    }
    try:
        with duckdb.connect(config=settings) as con:
            yield con
    except duckdb.OutOfMemoryException as error:
        raise ConfigError(
            f"{config.where}: shards.memory_limit={config.memory_limit:,} bytes are too few for the largest track "
            f"table ({str(error).splitlines()[0]}). Give --memory-limit more, or fewer --workers."
        ) from error
    except duckdb.IOException as error:
        raise BuildError(
            f"{folder}: what does not fit into memory can't be kept there ({str(error).splitlines()[0]}). Free space, "
            "or name another folder in TMPDIR, then run the same command again."
        ) from error


class Indexing:
    """Adds up what the batches give.

    Parameters
    ----------
    fovs
        As `etl.queries.list_fovs`.
    annotations
        Of all experiments.
    files
        The track file of each FOV.
    folder
        Takes the files of the index.
    """

    def __init__(
        self, config: BuildConfig, fovs: pa.Table, annotations: AnnotationRows, files: Sequence[TrackFile], folder: Path
    ) -> None:
        self._config, self._fovs, self.annotations = config, fovs, annotations
        in_tracks = {name for experiment in config.experiments for name in experiment.label_columns}
        self._labels = LabelCodes(
            name_labels(config, annotations.names), {*in_tracks, *annotations.labels.column_names}
        )
        self.reader = TrackReader(self._labels, config.workers)
        self.annotated = np.zeros(len(annotations.rows), bool)
        self._of_annotation = _encode_annotations(self._labels, annotations)
        self._records = fovs.to_pylist()
        wells = [(record["experiment"], record["well"]) for record in self._records]
        self._of_fov = encode_fovs(config, self._labels, wells)
        self._present: dict[str, set[int]] = {name: set() for name in self._labels.names}
        self._together: set[tuple[int, ...]] = set()
        there = {name for file in files for name in file.file.columns}
        kinds = {name: dtype for name, dtype in _OBSERVATIONS.items() if name not in _MAYBE or name in there}
        kinds |= {self._labels.column(name): "<i4" for name in self._labels.of_rows}
        self._observations, self._tracks = (
            ColumnFiles(folder / "observations", kinds),
            ColumnFiles(folder / "tracks", _TRACKS),
        )
        self._kept: list[int] = []
        self._counts = [np.zeros((1, 3), np.int64)]
        self._dropped: dict[str, dict[str, int]] = {}
        self._tables: list[TrackTable] = []

    def query(self, con: duckdb.DuckDBPyConnection, batch: Batch) -> BatchResult:
        """Read the track files of a run of FOVs."""
        fovs = self._fovs.slice(batch.fovs.start, len(batch.fovs))
        annotations = None
        if len(self.annotations.rows):
            of = self.annotations.rows["fov"]
            within = pc.and_(pc.greater_equal(of, batch.fovs.start), pc.less(of, batch.fovs.stop))
            annotations = self.annotations.rows.filter(within)
        return run_queries(con, self.reader, batch.files, fovs, annotations)

    def add(self, batch: Batch, found: BatchResult) -> None:
        """Append what the track files of a run of FOVs hold."""
        for experiment, reason, count in found.dropped:
            reasons = self._dropped.setdefault(experiment, {})
            reasons[reason] = reasons.get(reason, 0) + count
        self._tables += found.tables
        try:
            ordered = order_batch(found, {number: self._tau(number) for number in batch.fovs})
        except RepeatedRow as error:
            for file in batch.files:
                if error.fov in file.fovs.values():
                    parse_track_file(file)  # says which rows
            raise
        self._append(ordered)

    def _tau(self, fov: int) -> tuple[int, int]:
        low, high = self._config.tau_frames(self._config.experiments[self._records[fov]["experiment_index"]])
        return int(least_tau(low)), high

    def _append(self, ordered: OrderedBatch) -> None:
        rows = dict(ordered.observations)
        count = rows["t"].size
        annotation = rows.get("annotation", np.full(count, NO_ID, np.int32))
        self.annotated[annotation[annotation >= 0]] = True
        for name in self._labels.of_rows:
            column = self._labels.column(name)
            codes = rows.get(column, np.full(count, NO_ID, np.int32))
            own = self._of_annotation.get(name)
            rows[column] = codes if own is None else np.where(annotation < 0, codes, own[annotation])
        self._note_labels(ordered, rows)
        self._observations.append(rows)
        self._tracks.append(ordered.tracks)
        self._kept += ordered.fovs.tolist()
        self._counts.append(ordered.counts)

    def _note_labels(self, ordered: OrderedBatch, rows: Columns) -> None:
        """Note which values there are, alone and, of `shard_by`, together."""
        codes = {name: self._of_fov[name][ordered.fovs] for name in self._labels.names}
        of_rows = {name: rows[self._labels.column(name)] for name in self._labels.of_rows}
        for name in codes:
            self._present[name] |= set(codes[name].tolist()) | set(np.unique(of_rows.get(name, ())).tolist())
        by = self._config.shard_by
        if not set(by) & set(of_rows):
            self._together |= set(zip(*(codes[name].tolist() for name in by), strict=True))
            return
        per_row = {name: np.repeat(codes[name], ordered.counts[:, 0]) for name in by}
        for name in set(by) & set(of_rows):
            per_row[name] = np.where(of_rows[name] < 0, per_row[name], of_rows[name])
        lineage = np.repeat(ordered.number_lineages(), ordered.tracks["observations"])
        for name in by:
            record = LabelRecord(name=name, values=self._labels.values(name))
            refuse_change(self._config, record, per_row[name], lineage, lambda row: self._name_lineage(ordered, row))
        together = np.unique(np.stack([per_row[name] for name in by], axis=1), axis=0)
        self._together |= set(map(tuple, together.tolist()))

    def _name_lineage(self, ordered: OrderedBatch, row: int) -> str:
        track = int(np.searchsorted(np.cumsum(ordered.tracks["observations"]), row, "right"))
        fov = int(ordered.fovs[np.searchsorted(np.cumsum(ordered.counts[:, 1]), track, "right")])
        record = self._records[fov]
        return f"{record['experiment']}/{record['fov_name']}/{ordered.tracks['root_track_id'][track]}"

    def finish(self, notes: tuple[str, ...]) -> StoredIndex:
        """Return the index, when all batches were added.

        Raises
        ------
        ConfigError
            No observation is left.
        """
        for experiment, count in self.reader.outside_tracks.items():
            self._dropped[experiment] = {"outside_tracks": count, **self._dropped.get(experiment, {})}
        if not self._kept:
            raise explain_nothing_left(self._config, self._dropped, self._tables)
        config, labels = self._config, self._labels
        records = list_labels(config, labels, self._present)
        place = order_codes(labels, records)
        together = [
            tuple(int(place[n][c]) for n, c in zip(config.shard_by, codes, strict=True)) for codes in self._together
        ]
        partition_codes = np.array(sorted(together), np.int32).reshape(len(together), len(config.shard_by))
        kept = [self._records[number] for number in self._kept]
        first = np.cumsum(np.concatenate(self._counts), axis=0).T
        return StoredIndex(
            fovs=tuple(FovRecord(**{name: record[name] for name in FovRecord.__slots__}) for record in kept),
            first_observation=first[0],
            first_track=first[1],
            first_lineage=first[2],
            experiment_index=np.array([record["experiment_index"] for record in kept], np.int32),
            clock=np.array([(record["start_hpi"], record["interval_minutes"]) for record in kept], np.float64),
            labels=records,
            label_of_fov={name: place[name][codes[self._kept]] for name, codes in self._of_fov.items()},
            label_of_code={name: place[name] for name in labels.of_rows},
            label_columns={name: labels.column(name) for name in labels.of_rows},
            shard_by=config.shard_by,
            partitions=name_partitions(records, config.shard_by, partition_codes),
            partition_codes=partition_codes,
            dropped=self._dropped,
            tables=tuple(self._tables),
            notes=notes,
            observations=self._observations,
            tracks=self._tracks,
        )


_OBSERVATIONS = {
    **{"t": "<i4", "z": "<f4", "y": "<f4", "x": "<f4", "id": "<i8", "parent_id": "<i8"},
    **{"y_clamp": "<i4", "x_clamp": "<i4", "flags": "|u1"},
}
_MAYBE = ("z", "id", "parent_id")
"""Columns that are kept only where a track file has them."""

_TRACKS = {
    **{"track_id": "<i8", "parent_track_id": "<i8", "root_track_id": "<i8"},
    **{"lineage": "<i4", "parent": "<i4", "observations": "<i4"},
}


def _encode_annotations(labels: LabelCodes, annotations: AnnotationRows) -> dict[str, Int32[np.ndarray, " n"]]:
    """Number the values of annotations: label → code of each."""
    found = {}
    for name in annotations.labels.column_names:
        column = annotations.labels[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no row at all
            continue
        codes = np.append(labels.encode(name, column.dictionary.to_pylist()), np.int32(NO_ID))
        found[name] = codes[column.indices.fill_null(NO_ID).to_numpy()]
    return found
