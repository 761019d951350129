"""Finds what the configs of a training depend on: what a build of experiments.yaml would store. Reads no pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from etl.indexing import store_index
from etl.scratch import scratch_folder
from etl.source.experiments import BuildConfig
from etl.source.plates import Plate
from etl.source.preflight import open_plates, plan_fovs
from etl.source.scales import fill_in_from_plates
from etl.source.stored import plan_stored
from etl.stored_index import StoredIndex

_STORED_TWICE = 1.2
"""Patches are stored about so many times: clips share some."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnchorCells:
    """The cells of an experiment that have a positive: what an epoch draws. One row a cell."""

    fovs: tuple[str, ...]
    """`row/col/fov`, in order of the codes."""
    conditions: tuple[str, ...]
    fov: Int[np.ndarray, " n"]
    """Place in `fovs`."""
    condition: Int[np.ndarray, " n"]
    """Place in `conditions`."""
    lineage: Int[np.ndarray, " n"]
    t: Int[np.ndarray, " n"]
    """Frame."""

    def without(self, fovs: Collection[str]) -> AnchorCells:
        """Leave some FOVs out."""
        keep = ~np.isin(self.fov, [place for place, name in enumerate(self.fovs) if name in fovs])
        return replace(self, **{name: getattr(self, name)[keep] for name in ("fov", "condition", "lineage", "t")})


@dataclass(frozen=True, kw_only=True, eq=False)
class ExperimentFacts:
    """What shards would hold of one experiment."""

    name: str
    channels: tuple[str, ...]
    shape: tuple[int, int, int, int]
    """(C, Z, Y, X) of a patch."""
    interval_minutes: float
    start_hpi: float
    stored_bytes: int
    """An estimate."""
    cells: AnchorCells
    near_border: int = 0
    """Cells that are left out, because their patch would have to move too far."""
    observations: int = 0
    """Cells that are stored."""
    off_middle: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    """Along y and x: stored pixels that a cell may be off the middle of its patch, before it and behind it."""

    @property
    def anchors(self) -> int:
        """Number of cells that have a positive."""
        return len(self.cells.t)

    @cached_property
    def fovs(self) -> dict[str, dict[str, int]]:
        """FOV (`row/col/fov`) → condition → lineages that have an anchor, of the FOVs that have any."""
        cells = self.cells
        _, first = np.unique(cells.lineage, return_index=True)  # a lineage lives in one FOV
        place = cells.fov[first] * len(cells.conditions) + cells.condition[first]
        fovs: dict[str, dict[str, int]] = {}
        for number, count in zip(*(column.tolist() for column in np.unique(place, return_counts=True)), strict=True):
            fov, condition = divmod(number, len(cells.conditions))
            fovs.setdefault(cells.fovs[fov], {})[cells.conditions[condition]] = count
        return fovs

    @cached_property
    def lineages(self) -> dict[str, int]:
        """Condition → lineages that have an anchor with a positive; each lives in one FOV."""
        return sum_lineages(self.fovs.values())


def sum_lineages(fovs: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up lineages per condition."""
    total: Counter[str] = Counter()
    for lineages in fovs:
        total.update(lineages)
    return dict(total)


def find_facts(config: BuildConfig) -> tuple[ExperimentFacts, ...]:
    """Open the plates and read the track tables.

    Raises
    ------
    ConfigError, PlateError, StorageError
        As a build would raise before it reads pixels.
    """
    plates = open_plates(config)
    config = fill_in_from_plates(config, plates)
    with scratch_folder("index") as folder:
        index = store_index(config, plates, folder)
        return tuple(
            replace(
                _find_experiment(config, place, plates[experiment.name], _take_cells(index, place)),
                near_border=index.dropped.get(experiment.name, {}).get("near_border", 0),
            )
            for place, experiment in enumerate(config.experiments)
            if plan_fovs(config, experiment, plates[experiment.name].fovs)
        )


def _take_cells(index: StoredIndex, place: int) -> pa.Table:
    """Take the observations of an experiment, whose FOVs are adjacent."""
    first, stop = np.searchsorted(index.experiment_index, [place, place + 1]).tolist()
    if first == stop:
        return index.take(0, 1).observations.slice(0, 0)
    return index.take(first, stop).observations


def _find_experiment(config: BuildConfig, place: int, plate: Plate, cells: pa.Table) -> ExperimentFacts:
    experiment = config.experiments[place]
    fov = plate.fovs[plan_fovs(config, experiment, plate.fovs)[0]]
    stored, grids = plan_stored(config, experiment, fov), config.grids_for(experiment)
    return ExperimentFacts(
        name=experiment.name,
        observations=len(cells),
        channels=experiment.source_channel,
        shape=stored.shape,
        interval_minutes=experiment.minutes,
        start_hpi=experiment.start_hpi,
        stored_bytes=round(len(cells) * prod(stored.shape) * stored.dtype.itemsize * _STORED_TWICE),
        cells=_list_anchors(cells),
        off_middle=(_find_off_middle(cells, "y", grids[0].scale), _find_off_middle(cells, "x", grids[1].scale)),
    )


def _find_off_middle(cells: pa.Table, axis: str, scale: float) -> tuple[int, int]:
    """Return how far cells are off the middle of their patches: the build moves these into the image."""
    off = np.floor(cells[axis].to_numpy()) - cells[f"{axis}_clamp"].to_numpy()
    off = np.floor(off / scale + 0.5)
    return int(-off.min(initial=0)), int(off.max(initial=0))


def _list_anchors(cells: pa.Table) -> AnchorCells:
    anchors = cells.filter(cells["has_candidate"])
    fovs, fov = _encode(anchors["fov_name"])
    conditions, condition = _encode(anchors["condition"])
    lineage, t = (anchors[name].to_numpy().astype(np.int64) for name in ("lineage_index", "t"))
    return AnchorCells(fovs=fovs, conditions=conditions, fov=fov, condition=condition, lineage=lineage, t=t)


def _encode(column: pa.ChunkedArray) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    """Return the names in a column, and the place of each row's name."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)
