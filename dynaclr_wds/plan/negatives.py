"""Anchors to explicit negatives: another lineage of the same experiment, from the focal window where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.index import PlanIndex

_OFFERS = (1 << 11, 1 << 15)


def sample_negatives(
    rng: np.random.Generator,
    index: PlanIndex,
    anchors: Int64[np.ndarray, " b"],
    focal_hpi: float,
    window: float,
    draw: Callable[[str, int], Int64[np.ndarray, " m"]],
) -> Int64[np.ndarray, " b"]:
    """Draw a negative for each anchor of one batch.

    Parameters
    ----------
    anchors
        Positions in `index.row`.
    focal_hpi
        Centre of the batch's focal window in hours, NaN without one.
    window
        Half-width of the focal window in hours.
    draw
        (experiment, count) → anchors drawn uniformly from the experiment's pool.

    Returns
    -------
    Position in `index.row` of each negative. The window is given up where no other lineage is found in it.

    Raises
    ------
    ValueError
        The experiment's pool holds one lineage only.
    """
    out = np.empty(len(anchors), np.int64)
    lineage = index.lineage(anchors)
    experiment = np.array([s.experiment for s in index.strata])[index.stratum(anchors)]
    for name in dict.fromkeys(experiment.tolist()):
        at = np.flatnonzero(experiment == name)
        offer = _offer(index, focal_hpi, window, partial(draw, name))
        own = index.lineage(offer)
        if (own == own[0]).all() and (lineage[at] == own[0]).any():
            raise ValueError(
                f"return_negative=True, but experiment {name!r} has one lineage within reach. "
                "Leave it out, or train without explicit negatives."
            )
        chosen = rng.integers(0, len(offer), len(at))
        while (clash := own[chosen] == lineage[at]).any():
            chosen[clash] = rng.integers(0, len(offer), int(clash.sum()))
        out[at] = offer[chosen]
    return out


def _offer(
    index: PlanIndex, focal_hpi: float, window: float, draw: Callable[[int], Int64[np.ndarray, " m"]]
) -> Int64[np.ndarray, " k"]:
    """Draw anchors to choose from: inside the window if two lineages are found there, else anywhere."""
    offer = draw(_OFFERS[0])
    if np.isnan(focal_hpi):
        return offer
    for count in _OFFERS:
        offer = draw(count)
        inside = offer[np.abs(index.hpi(offer) - focal_hpi) <= window + 1e-6]
        if len(inside) and np.ptp(index.lineage(inside)) > 0:
            return inside
    return offer
