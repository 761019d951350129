"""Gathers what is known of a build's data: what was dropped, what was counted, what is suspicious.

A pure function of config, plates' metadata and index, in order of the experiments, so that an update of some
experiments reports on the others as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dynaclr_wds.suspicions import FactsRecord, SuspicionRecord
from etl.index import Index
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Plate
from etl.source.stored import plan_stack
from etl.suspicious.cells import Cells, Columns, count_facts, find_alike, find_jumps, find_no_anchors
from etl.suspicious.scales import find_between_experiments, find_in_scales
from etl.suspicious.tables import find_gone_conditions, find_in_tables
from etl.suspicious.words import suspicion


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the manifest says about the data, beside what is stored."""

    dropped: Mapping[str, Mapping[str, int]]
    """Experiment → reason → observations left out."""
    facts: tuple[FactsRecord, ...]
    """One per experiment."""
    suspicious: tuple[SuspicionRecord, ...]


def make_report(config: BuildConfig, plates: Mapping[str, Plate], index: Index, columns: Columns) -> Report:
    """Make the report of a build.

    Parameters
    ----------
    index
        What is left when the pixels are known.
    columns
        Its numeric columns.
    """
    facts: list[FactsRecord] = []
    found: list[SuspicionRecord] = []
    for experiment, cells in zip(config.experiments, Cells.by_experiment(config, index, columns), strict=True):
        fovs = [plates[experiment.name].fovs[table.fov_name] for table in cells.tables]
        measured = sum(plan_stack(config, experiment, fov).measured is not None for fov in fovs)
        facts.append(replace(count_facts(config, experiment, cells, index), measured_focus=measured))
        found += _find(config, experiment, plates[experiment.name], index, cells)
    found += find_between_experiments(config)
    return Report(dropped=index.dropped, facts=tuple(facts), suspicious=tuple(found))


def _find(
    config: BuildConfig, experiment: ExperimentConfig, plate: Plate, index: Index, cells: Cells
) -> Iterator[SuspicionRecord]:
    """Yield what is suspicious in one experiment."""
    yield from find_in_scales(config, experiment, [plate.fovs[table.fov_name] for table in cells.tables])
    yield from find_in_tables(experiment, cells.tables)
    yield from find_gone_conditions(
        config, experiment, plate, cells.tables, _count_conditions(experiment, index, cells)
    )
    yield from find_jumps(config, experiment, cells, index)
    yield from find_alike(config, experiment, cells, index)
    why = find_no_anchors(config, experiment, cells)
    if why is not None and len(cells):  # without cells, its conditions are said to be gone
        yield suspicion(
            "no_anchors", experiment.name, None, len(cells),
            f"none of its {len(cells):,} cells has a positive, so none can be an anchor: {why}. Correct "
            "interval_minutes, lower tau_range_hours, or leave the experiment out.",
        )  # fmt: skip


def _count_conditions(experiment: ExperimentConfig, index: Index, cells: Cells) -> dict[str, int]:
    """Return condition → observations that are left."""
    fovs, counts = np.unique(cells.columns["fov_index"], return_counts=True)
    kept: dict[str, int] = {}
    for fov, count in zip(fovs.tolist(), counts.tolist(), strict=True):
        condition = experiment.well_conditions[index.fovs[fov].well]
        kept[condition] = kept.get(condition, 0) + count
    return kept
