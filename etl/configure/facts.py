"""Finds what the configs of a training depend on: what a build of experiments.yaml would store. Reads no pixel."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import pyarrow as pa

from etl.index import build_index
from etl.source.experiments import BuildConfig
from etl.source.plates import Plate
from etl.source.preflight import open_plates, plan_fovs
from etl.source.scales import fill_in_from_plates
from etl.source.stored import plan_stored

_STORED_TWICE = 1.2
"""Patches are stored about so many times: clips share some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentFacts:
    """What shards would hold of one experiment."""

    name: str
    channels: tuple[str, ...]
    shape: tuple[int, int, int, int]
    """(C, Z, Y, X) of a patch."""
    interval_minutes: float
    stored_bytes: int
    """An estimate."""
    fovs: Mapping[str, Mapping[str, int]]
    """FOV (`row/col/fov`) → condition → lineages that have an anchor with a positive."""
    anchors: Mapping[str, int]
    """FOV → cells that have a positive: what an epoch draws."""

    @property
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
    observations = build_index(config, plates).observations
    number = observations["experiment_index"].to_numpy()
    return tuple(
        _find_experiment(config, place, plates[experiment.name], observations.filter(pa.array(number == place)))
        for place, experiment in enumerate(config.experiments)
        if plan_fovs(config, experiment, plates[experiment.name].fovs)
    )


def usable_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _find_experiment(config: BuildConfig, place: int, plate: Plate, cells: pa.Table) -> ExperimentFacts:
    experiment = config.experiments[place]
    fov = plate.fovs[plan_fovs(config, experiment, plate.fovs)[0]]
    stored = plan_stored(config, experiment, fov)
    return ExperimentFacts(
        name=experiment.name,
        channels=experiment.source_channel,
        shape=stored.shape,
        interval_minutes=experiment.minutes,
        stored_bytes=round(len(cells) * prod(stored.shape) * stored.dtype.itemsize * _STORED_TWICE),
        fovs=_count_lineages(cells),
        anchors=_count_anchors(cells),
    )


def _count_lineages(cells: pa.Table) -> dict[str, dict[str, int]]:
    anchors = cells.filter(cells["has_candidate"])
    found = anchors.group_by(["fov_name", "condition"]).aggregate([("lineage_index", "count_distinct")])
    fovs: dict[str, dict[str, int]] = {}
    for row in sorted(found.to_pylist(), key=lambda row: (row["fov_name"], row["condition"])):
        fovs.setdefault(row["fov_name"], {})[row["condition"]] = row["lineage_index_count_distinct"]
    return fovs


def _count_anchors(cells: pa.Table) -> dict[str, int]:
    found = cells.filter(cells["has_candidate"]).group_by("fov_name").aggregate([([], "count_all")])
    return {row["fov_name"]: row["count_all"] for row in sorted(found.to_pylist(), key=lambda row: row["fov_name"])}
