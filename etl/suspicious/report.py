"""Gathers what is known of a build's data: what was dropped, what was counted, what is suspicious.

A pure function of config, plates' metadata and index, in order of the experiments, so that an update of some
experiments reports on the others as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dynaclr_wds.suspicions import FactsRecord, SuspicionRecord
from etl.source.config import BuildConfig
from etl.source.plates import Plate
from etl.source.stored import plan_stack
from etl.suspicious.cells import CellSums, count_facts, find_alike, find_jumps, find_no_anchors
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


def make_report(
    config: BuildConfig,
    plates: Mapping[str, Plate],
    sums: Sequence[CellSums],
    dropped: Mapping[str, Mapping[str, int]],
) -> Report:
    """Make the report of a build.

    Parameters
    ----------
    sums
        Of the cells that are left when the pixels are known, of each experiment.
    dropped
        Experiment → reason → observations left out.
    """
    facts: list[FactsRecord] = []
    found: list[SuspicionRecord] = []
    for experiment, of in zip(config.experiments, sums, strict=True):
        fovs = [plates[experiment.name].fovs[table.fov_name] for table in of.tables]
        measured = sum(plan_stack(config, experiment, fov).measured is not None for fov in fovs)
        facts.append(replace(count_facts(of), measured_focus=measured))
        found += _find(config, plates[experiment.name], of)
    found += find_between_experiments(config)
    return Report(dropped=dropped, facts=tuple(facts), suspicious=tuple(found))


def _find(config: BuildConfig, plate: Plate, sums: CellSums) -> Iterator[SuspicionRecord]:
    """Yield what is suspicious in one experiment."""
    experiment = sums.experiment
    yield from find_in_scales(config, experiment, [plate.fovs[table.fov_name] for table in sums.tables])
    yield from find_in_tables(experiment, sums.tables)
    yield from find_gone_conditions(config, experiment, plate, sums.tables, sums.conditions)
    yield from find_jumps(sums)
    yield from find_alike(config, sums)
    why = find_no_anchors(config, sums)
    if why is not None and sums.cells:  # without cells, its conditions are said to be gone
        yield suspicion(
            "no_anchors", experiment.name, None, sums.cells,
            f"none of its {sums.cells:,} cells has a positive, so none can be an anchor: {why}. Correct "
            "interval_minutes, lower tau_range_hours, or leave the experiment out.",
        )  # fmt: skip
