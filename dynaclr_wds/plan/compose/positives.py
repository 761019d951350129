"""Anchors to positives: draws τ, then one of the candidates at that τ, when a batch is planned.

Clips store their patches by frame, so the candidates of an anchor are the rows of its clip whose frame lies in
the τ range: no list of links is needed.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.tau import least_tau, tau_weights


def sample_positives(
    rng: np.random.Generator, index: PlanIndex, anchors: Int64[SampleIndex, " n"], decay_rate: float
) -> Int64[PatchRow, " n"]:
    """Draw a positive for each anchor.

    τ is drawn with `tau.tau_weights` among the τ that have a candidate, then uniformly one of the candidates at that τ.

    Parameters
    ----------
    decay_rate
        0 draws τ uniformly.
    """
    columns = index.columns
    own = index.row[anchors].astype(np.int64)
    first = own + 1  # clips are stored by frame, so positives come after their anchor
    count = columns.clip_first[columns.patch_clip[own] + 1] - first
    low, high = index.tau_frames(anchors)
    # ragged (anchor, later row of its clip), flattened
    start = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(anchors)), count)
    row = np.arange(len(owner)) + np.repeat(first - start, count)
    tau = columns.patch_t[row].astype(np.int64) - columns.patch_t[own][owner]
    keep = (tau >= least_tau(low)[owner]) & (tau <= high[owner])
    owner, row, tau = owner[keep], row[keep], tau[keep]
    # runs of equal (anchor, τ)
    edge = np.flatnonzero(np.diff(owner) | np.diff(tau)) + 1
    run = np.concatenate([[0], edge]).astype(np.int64)
    length = np.diff(np.concatenate([run, [len(row)]]))
    total = np.cumsum(tau_weights(tau[run], low[owner[run]], high[owner[run]], decay_rate))
    # where each anchor's runs end in `total`; every anchor has at least one
    last = np.searchsorted(owner[run], np.arange(len(anchors)), "right") - 1
    before = np.concatenate([[0.0], total[last[:-1]]])
    at = np.searchsorted(total, before + rng.random(len(anchors)) * (total[last] - before), "right")
    at = np.clip(at, np.concatenate([[0], last[:-1] + 1]), last)
    return cast(PatchRow, row[run[at] + rng.integers(0, length[at])].astype(np.int64))
