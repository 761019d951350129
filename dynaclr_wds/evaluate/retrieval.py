"""Lineage retrieval: whether the same cell, some τ later, is nearer than other cells of that time.

For every cell with a successor: the cells of the same experiment at the successor's frame, without those of its own
lineage, are ranked by cosine distance. Given are the share of them that is farther away than the successor (the
probability that it wins against one of them, an AUC; 0.5 is chance) and the share of cells whose successor is the
nearest of all (recall at 1, as in metric learning: Jégou et al., 2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from dynaclr_wds.evaluate.cells import Cells, number
from dynaclr_wds.evaluate.resampling import Estimate, Weights, estimate_ratio, sum_by
from dynaclr_wds.evaluate.smoothness import standardise, unit_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How well cells are found again."""

    farther: Estimate | None
    """Share of other cells that are farther away than the cell itself at t + τ."""
    nearest: Estimate | None
    """Share of cells that are nearest to themselves at t + τ."""
    nearest_by_chance: float | None
    queries: int
    tau_hours: float


def frames_of(cells: Cells, tau_hours: float) -> dict[str, int]:
    """Say how many frames τ is in each experiment, at least one; one where there are no hours."""
    found = {}
    for experiment in np.unique(cells.experiment.astype(str)):
        own = cells.experiment == experiment
        t, hpi = cells.t[own], cells.hpi[own]
        span = float(hpi.max() - hpi.min()) if np.isfinite(hpi).all() else 0.0
        hours = span / max(int(t.max() - t.min()), 1)
        found[str(experiment)] = max(round(tau_hours / hours), 1) if hours > 0 else 1
    return found


def measure_retrieval(
    x: Float32[np.ndarray, "n d"], cells: Cells, weights: Weights, tau_hours: float = 1.0
) -> Retrieval:
    """Measure how well cells are found again τ later."""
    unit = unit_length(standardise(x))
    lineages, lineage = number(cells.lineage)
    track, experiment = number(cells.track)[1], cells.experiment
    frames = frames_of(cells, tau_hours)
    where = {(int(track[n]), int(cells.t[n])): n for n in range(len(cells))}
    wins, firsts, chances, asked = (np.zeros(len(lineages)) for _ in range(4))
    for name, step in frames.items():
        own = np.flatnonzero(experiment == name)
        for t in np.unique(cells.t[own]):
            now = own[cells.t[own] == t]
            later = own[cells.t[own] == t + step]
            query = np.array([n for n in now if (int(track[n]), int(t) + step) in where], np.int64)
            if not len(query) or not len(later):
                continue
            target = np.array([where[int(track[n]), int(t) + step] for n in query], np.int64)
            for total, part in zip(
                (wins, firsts, chances, asked), _rank(unit, lineage, query, (target, later)), strict=True
            ):
                total += sum_by(lineage[query], part, len(lineages))
    return Retrieval(
        farther=estimate_ratio(wins, asked, weights),
        nearest=estimate_ratio(firsts, asked, weights),
        nearest_by_chance=float(chances.sum() / asked.sum()) if asked.sum() else None,
        queries=int(asked.sum()),
        tau_hours=tau_hours,
    )


def _rank(
    unit: Float64[np.ndarray, "n d"],
    lineage: Int64[np.ndarray, " n"],
    query: Int64[np.ndarray, " q"],
    gallery: tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " g"]],
) -> tuple[Float64[np.ndarray, " q"], ...]:
    """Compare each query's successor with the others at hand: share beaten, is first, chance of that, counts."""
    target, later = gallery
    mine = np.einsum("qd,qd->q", unit[query], unit[target])[:, None]
    theirs = unit[query] @ unit[later].T
    other = lineage[later][None, :] != lineage[query][:, None]
    count = other.sum(axis=1)
    beaten = (other & (theirs < mine)).sum(axis=1) + 0.5 * (other & (theirs == mine)).sum(axis=1)
    first = ~(other & (theirs >= mine)).any(axis=1)
    counts = (count > 0).astype(np.float64)
    return beaten / np.maximum(count, 1), first * counts, counts / (count + 1), counts
