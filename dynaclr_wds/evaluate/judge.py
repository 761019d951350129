"""Runs all measures over embeddings of the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.evaluate.cells import Cells, Embedding, number
from dynaclr_wds.evaluate.mmd import Discrepancy, compare_groups
from dynaclr_wds.evaluate.probes import MOST_VALUES, Folds, Probe, plan_experiments, plan_folds, probe_label
from dynaclr_wds.evaluate.rank import describe_collapse, effective_rank
from dynaclr_wds.evaluate.resampling import draw_lineages
from dynaclr_wds.evaluate.retrieval import Retrieval, measure_retrieval
from dynaclr_wds.evaluate.smoothness import Smoothness, measure_smoothness


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to judge, and how."""

    labels: Sequence[str] = ("condition",)
    """Labels that probe and vote are to find."""
    tau_hours: float = 1.0
    """How much later a cell is to be found again."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What was measured of one embedding."""

    name: str
    dimensions: int
    collapse: str | None
    """A sentence where it has collapsed."""
    rank: float
    smoothness: Smoothness
    retrieval: Retrieval
    probes: Sequence[Probe]
    groups: Sequence[Discrepancy]
    groups_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was measured of embeddings of the same cells."""

    cells: int
    lineages: int
    fovs: int
    experiments: int
    embeddings: Sequence[Judged]
    tau_hours: float
    """How much later cells were looked for."""
    notes: Sequence[str] = field(default_factory=tuple)
    """What could not be measured, and why."""


def choose_labels(cells: Cells, asked: Sequence[str] | None, annotated: Sequence[str]) -> tuple[str, ...]:
    """Choose the labels to judge by: those asked for; or the condition and those of the annotations.

    Raises
    ------
    ConfigError
        A label isn't there; lists those that are.
    """
    if asked is None:
        return tuple(label for label in dict.fromkeys(("condition", *annotated)) if label in cells.labels)
    if absent := [label for label in asked if label not in cells.labels]:
        raise ConfigError(
            f"--label {absent[0]}: the tables have no such label; they have "
            f"{', '.join(sorted(cells.labels)) or 'none'}. Name one of these, or give --labels."
        )
    return tuple(asked)


def judge(cells: Cells, embeddings: Sequence[Embedding], settings: Settings) -> Verdict:
    """Measure everything of every embedding."""
    notes: list[str] = []
    plans = [plan for label in settings.labels for plan in _plan_label(cells, label, notes)]
    return Verdict(
        cells=len(cells),
        lineages=len(number(cells.lineage)[0]),
        fovs=len(number(cells.fov)[0]),
        experiments=len(number(cells.experiment)[0]),
        embeddings=[_judge_one(cells, embedding, plans, settings) for embedding in embeddings],
        tau_hours=settings.tau_hours,
        notes=notes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A label to be found, and who is held out."""

    label: str
    rows: Int64[np.ndarray, " k"]
    """Cells that have it."""
    folds: Folds


def _plan_label(cells: Cells, label: str, notes: list[str]) -> list[_Plan]:
    values = cells.labels[label]
    rows = np.flatnonzero(values != "")
    if unlabelled := len(values) - len(rows):
        notes.append(f"{label}: {unlabelled:,} of {len(values):,} cells have no value and are not judged by it.")
    count = len(number(values[rows])[0])
    if count < 2 or count > MOST_VALUES:
        few = f"{label}: has {count} value{'s' * (count != 1)}"
        notes.append(f"{few}; 2 to {MOST_VALUES} can be judged.")
        return []
    labelled = cells.take(rows)
    found = []
    within = plan_folds(values[rows], labelled)
    if within is None:
        notes.append(
            f"{label}: one of its values is in one lineage only, so nothing can be held out; it is not judged."
        )
    else:
        found.append(_Plan(label=label, rows=rows, folds=within))
        if within.held_out == "lineage":
            notes.append(
                f"{label}: one of its values is in one field of view only, so lineages were held out, not fields of "
                "view. Cells of one image resemble each other for other reasons, too: take the numbers with care."
            )
    across = plan_experiments(values[rows], labelled)
    if across is not None:
        found.append(_Plan(label=label, rows=rows, folds=across))
    elif len(number(labelled.experiment)[0]) > 1:
        notes.append(f"{label}: no experiment has values that the others have, too, so none was held out as a whole.")
    return found


def _judge_one(cells: Cells, embedding: Embedding, plans: Sequence[_Plan], settings: Settings) -> Judged:
    x = embedding.features
    finite = np.isfinite(x).all()
    safe: Float32[np.ndarray, "n d"] = x if finite else np.nan_to_num(x, posinf=0.0, neginf=0.0)
    weights = draw_lineages(len(number(cells.lineage)[0]), settings.seed)
    rank = effective_rank(safe)
    groups, left_out = compare_groups(safe, cells, settings.seed)
    return Judged(
        name=embedding.name,
        dimensions=x.shape[1],
        collapse=describe_collapse(x, rank),
        rank=rank,
        smoothness=measure_smoothness(safe, cells, weights, settings.seed),
        retrieval=measure_retrieval(safe, cells, weights, settings.tau_hours),
        probes=[_probe(safe, cells, plan, settings) for plan in plans],
        groups=groups,
        groups_left_out=left_out,
    )


def _probe(x: Float32[np.ndarray, "n d"], cells: Cells, plan: _Plan, settings: Settings) -> Probe:
    labelled = cells.take(plan.rows)
    weights = draw_lineages(len(number(labelled.lineage)[0]), settings.seed)
    return probe_label(x[plan.rows].astype(np.float64), plan.label, labelled, plan.folds, weights)
