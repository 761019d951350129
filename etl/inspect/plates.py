"""Experiments before a build: plates and tracks, as a build would take them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from dynaclr_wds.contract import SkippedRecord
from dynaclr_wds.errors import FovError
from dynaclr_wds.suspicions import SuspicionRecord
from etl.cut.faults import BlankValues
from etl.cut.job import CutJob, ReadingRoom
from etl.cut.patches import PatchMaker
from etl.cut.reading import read_frame
from etl.index import Index
from etl.inspect.build_size import Planned, estimate_sizes
from etl.inspect.collection import Labels, Run, Sizes, split_runs
from etl.inspect.frame_cuts import FrameCut, cut_frame
from etl.inspect.pixels import FrameLook, look_at_channel
from etl.layout.jobs import Columns, plan_cuts, plan_experiments, read_columns
from etl.source.config import BuildConfig
from etl.source.plates import Plate
from etl.stored_index import StoredIndex
from etl.suspicious.cells import Census
from etl.suspicious.report import make_report

_CUT_CELLS, _CUT_BYTES = 64, 1 << 26
"""Cells of a frame that are cut, and bytes of their patches, to see how long that takes."""


class PlateCollection:
    """Plates and tracks.

    Parameters
    ----------
    config
        With what the plates say filled in.
    plates
        Experiment → plate.
    index
        Of all cells.
    what
        How the user named it.
    """

    is_built = False
    skipped: tuple[SkippedRecord, ...] = ()

    def __init__(self, config: BuildConfig, plates: Mapping[str, Plate], index: StoredIndex, what: str) -> None:
        self._config, self._plates, self._index, self.what = config, plates, index, what
        self._looking = replace(config, on_nan="zero", on_blank="keep")
        self.experiments = plan_experiments(config, plates)
        self.fovs, self.labels, self.dropped = index.fovs, index.labels, index.dropped
        self.strata: tuple[Labels, ...] = index.partitions
        self.tau_range_hours = config.tau_range_hours
        self.workers = config.workers
        self._stratum = {tuple(values.items()): number for number, values in enumerate(self.strata)}

    def runs(self) -> Iterator[Run]:
        """Yield all cells."""
        for first, stop in split_runs(self._index.experiment_index, self._index.first_observation):
            yield self._make_run(first, stop)

    def take(self, fov: int) -> Run:
        """Return the cells of one field of view."""
        return self._make_run(fov, fov + 1)

    def _make_run(self, first: int, stop: int) -> Run:
        index = self._index.take(first, stop)
        columns = read_columns(index.observations)
        of_partition = np.array([self._stratum[tuple(values.items())] for values in index.partitions], np.int64)
        ids = np.zeros(len(index.tracks), np.int64)
        ids[columns["track_index"]] = columns["track_id"]
        return Run(
            experiment=int(self._index.experiment_index[first]),
            fov=columns["fov_index"].astype(np.int64) + first,
            track=columns["track_index"],
            lineage=columns["lineage_index"],
            t=columns["t"],
            y=columns["y"],
            x=columns["x"],
            hpi=columns["hpi"],
            has_positive=columns["has_candidate"],
            stratum=of_partition[columns["partition_index"]],
            labels={label.name: self._find_codes(index, label.name, label.values) for label in self.labels},
            parent=index.tracks["parent_track_index"].to_numpy(),
            track_id=ids,
        )

    def _find_codes(self, index: Index, name: str, values: Sequence[str]) -> Int64[np.ndarray, " n"]:
        column = index.observations[name].combine_chunks()
        place = {value: number for number, value in enumerate(values)}
        codes = np.array([*(place[value] for value in column.dictionary.to_pylist()), -1], np.int64)
        return codes[column.indices.fill_null(len(codes) - 1).to_numpy()]

    def find_sizes(self, seen: Sequence[Sequence[FrameCut]]) -> Sizes:
        """Estimate what a build would write."""
        planned = Planned(config=self._config, plates=self._plates, index=self._index, experiments=self.experiments)
        return estimate_sizes(planned, seen)

    def count_frames(self, experiment: int) -> int:
        """Count the frames of the fields of view that have cells."""
        name = self.experiments[experiment].name
        return sum(fov.frames for fov in self.fovs if fov.experiment == name)

    def find_suspicious(self) -> tuple[SuspicionRecord, ...]:
        """Say what a build would find suspicious."""
        census = Census(self._config, self._index.tables)
        for fov, experiment in enumerate(self._index.experiment_index.tolist()):
            census.add(experiment, self._index.take(fov, fov + 1))
        return make_report(self._config, self._plates, census.finish(), self.dropped).suspicious

    def find_statistics(self, experiment: int) -> None:
        """Return None: what is known comes of the frames that are looked at."""

    def look_at_frames(self, experiment: int, wanted: Sequence[tuple[int, int]]) -> Iterator[FrameLook]:
        """Read frames, and look at them."""
        for fov in sorted({fov for fov, _ in wanted}):
            columns = self._read_columns(fov)
            for t in sorted(t for own, t in wanted if own == fov):
                rows = np.flatnonzero(columns["t"] == t)
                some = rows[:: max(-(-rows.size // self._count_cut(experiment)), 1)]
                job = self._plan_cut(fov, columns, some)
                try:
                    yield _look(job, (experiment, fov, t), rows.size, self._config.codec)
                except FovError as error:
                    yield FrameLook(fov=fov, t=t, channels=(), error=error)

    def _count_cut(self, experiment: int) -> int:
        """Say how many cells of a frame are cut."""
        return int(np.clip(_CUT_BYTES // self.experiments[experiment].patch_bytes, 1, _CUT_CELLS))

    def read_patches(self, fov: int, rows: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k c y x"]:
        """Cut patches as a build would."""
        unique, place = np.unique(rows, return_inverse=True)
        columns = self._read_columns(fov)
        job = self._plan_cut(fov, columns, unique)
        order = np.lexsort((columns["t"][unique],))
        maker = PatchMaker(job)
        stored = np.zeros((len(unique), *job.patch.shape), job.patch.dtype)
        for t in np.unique(job.t).tolist():
            frame = read_frame(job, t)
            channels = maker.choose_slices(frame)
            for row in np.flatnonzero(job.t == t).tolist():
                patch = maker.mend(channels, maker.crop(channels, row, margin=job.patch.is_resampled), t)
                maker.finish(patch, row, frame, stored[row])
        back = np.empty(len(unique), np.int64)
        back[order] = np.arange(len(unique))
        middle = stored[:, :, stored.shape[2] // 2].astype(np.float32)
        return middle[back[place.reshape(-1)]]

    def _read_columns(self, fov: int) -> Columns:
        return read_columns(self._index.take(fov, fov + 1).observations)

    def _plan_cut(self, fov: int, columns: Columns, rows: Int64[np.ndarray, " k"]) -> CutJob:
        """Plan to cut some cells of a field of view, of whose columns all rows are given."""
        record = self.fovs[fov]
        experiment = next(e for e in self._config.experiments if e.name == record.experiment)
        own = {name: columns[name][rows] for name in ("fov_index", "t", "y_clamp", "x_clamp")}
        place = self._plates[record.experiment].fovs[record.fov_name]
        room = ReadingRoom(memory_bytes=0, folder=Path())  # frames are read one by one, whole
        return plan_cuts(replace(self._looking, experiments=(experiment,)), [place], own, room)[0][0]


def _look(job: CutJob, place: tuple[int, int, int], cells: int, codec: str) -> FrameLook:
    """Read a frame, look at it, and cut some of its cells; `place` is its experiment, FOV and t."""
    values, array = BlankValues.of(job.fov.array), job.fov.array
    begin = time.perf_counter()
    frame = read_frame(job, place[2])
    seconds = time.perf_counter() - begin
    cut = cut_frame(job, frame, cells, codec)
    looks = (look_at_channel(np.asarray(p), values, (*place, c)) for c, p in enumerate(frame.pixels))
    decoded = min(array.chunks[0], array.shape[0])  # frames that lie in the same chunks
    return FrameLook(
        fov=place[1], t=place[2], channels=tuple(looks), seconds=seconds / decoded, bytes=frame.nbytes, cut=cut
    )
