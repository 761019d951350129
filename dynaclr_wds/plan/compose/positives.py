"""Anchors to positives: draw τ, then one of the candidates at that τ (law 1).

Clips store their patches by frame, so the candidates of an anchor are the rows of its clip whose frame lies in
the τ range: no list of links is needed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.index import PlanIndex


def sample_positives(
    rng: np.random.Generator, index: PlanIndex, anchors: Int64[np.ndarray, " n"], decay_rate: float
) -> Int64[np.ndarray, " n"]:
    """Draw a positive for each anchor.

    P(τ) ∝ exp(−decay · (τ − τ_min) / (τ_max − τ_min)) over the τ > 0 that have a candidate, then uniformly
    among the candidates at that τ (mehta-lab/VisCy, `sample_tau`, which draws τ before it looks for candidates).

    Parameters
    ----------
    anchors
        Positions in `index.row`.
    decay_rate
        0 draws τ uniformly.

    Returns
    -------
    Patch row of each positive.
    """
    columns = index.columns
    clip = index.clip(anchors)
    first, count = columns.clip_first[clip], columns.clip_first[clip + 1] - columns.clip_first[clip]
    low, high = index.tau_frames(anchors)
    # ragged (anchor, row of its clip), flattened
    start = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(anchors)), count)
    row = np.arange(len(owner)) + np.repeat(first - start, count)
    tau = columns.patch_t[row].astype(np.int64) - columns.patch_t[index.row[anchors]][owner]
    keep = (tau >= np.maximum(low, 1)[owner]) & (tau <= high[owner])
    owner, row, tau = owner[keep], row[keep], tau[keep]
    # runs of equal (anchor, τ)
    edge = np.flatnonzero(np.diff(owner) | np.diff(tau)) + 1
    run = np.concatenate([[0], edge]).astype(np.int64)
    length = np.diff(np.concatenate([run, [len(row)]]))
    span = np.maximum(high - low, 1)[owner[run]]
    weight = np.exp(-decay_rate * (tau[run] - low[owner[run]]) / span)
    total = np.cumsum(weight)
    # where each anchor's runs end in `total`; every anchor has at least one
    last = np.searchsorted(owner[run], np.arange(len(anchors)), "right") - 1
    before = np.concatenate([[0.0], total[last[:-1]]])
    at = np.searchsorted(total, before + rng.random(len(anchors)) * (total[last] - before), "right")
    at = np.clip(at, np.concatenate([[0], last[:-1] + 1]), last)
    return row[run[at] + rng.integers(0, length[at])].astype(np.int64)
