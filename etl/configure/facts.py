"""Finds what the configs of a training depend on: what a build of experiments.yaml would store. Reads no pixel."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    lineages: Mapping[str, int]
    """Condition → lineages that have an anchor with a positive."""


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
        lineages=_count_lineages(cells),
    )


def _count_lineages(cells: pa.Table) -> dict[str, int]:
    anchors = cells.filter(cells["has_candidate"])
    lineages = anchors.group_by("condition").aggregate([("lineage_index", "count_distinct")])
    return dict(
        zip(lineages["condition"].to_pylist(), lineages["lineage_index_count_distinct"].to_pylist(), strict=True)
    )
