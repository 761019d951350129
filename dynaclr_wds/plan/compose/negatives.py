"""Anchors to explicit negatives: another lineage of the same experiment, from the focal window where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.index import PlanIndex

_OFFERS = (1 << 11, 1 << 15)


@dataclass(frozen=True, slots=True)
class Offer:
    """Anchors to choose negatives from."""

    anchor: Int64[np.ndarray, " m"]
    lineage: Int64[np.ndarray, " m"]
    hpi: Float64[np.ndarray, " m"]


def make_offer(index: PlanIndex, anchor: Int64[np.ndarray, " m"]) -> Offer:
    """Look up what is asked of each anchor."""
    return Offer(anchor, index.lineage(anchor).astype(np.int64), index.hpi(anchor))


def sample_negatives(
    rng: np.random.Generator,
    index: PlanIndex,
    anchors: Int64[np.ndarray, " b"],
    focal_hpi: float,
    window: float,
    draw: Callable[[str, int], Offer],
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
        (experiment, count) → anchors drawn uniformly from the experiment's pool; may be the same at each call.

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
        offer = _choose_offer(focal_hpi, window, name, draw)
        own = offer.lineage
        if (own == own[0]).all() and (lineage[at] == own[0]).any():
            raise ValueError(
                f"return_negative=True, but experiment {name!r} has one lineage within reach. "
                "Leave it out, or train without explicit negatives."
            )
        chosen = rng.integers(0, len(own), len(at))
        while (clash := own[chosen] == lineage[at]).any():
            chosen[clash] = rng.integers(0, len(own), int(clash.sum()))
        out[at] = offer.anchor[chosen]
    return out


def _choose_offer(focal_hpi: float, window: float, experiment: str, draw: Callable[[str, int], Offer]) -> Offer:
    """Offer the anchors inside the window if two lineages are found there, else all."""
    offer = draw(experiment, _OFFERS[0])
    if np.isnan(focal_hpi):
        return offer
    for count in _OFFERS:
        offer = draw(experiment, count)
        inside = np.abs(offer.hpi - focal_hpi) <= window + 1e-6
        lineage = offer.lineage[inside]
        if len(lineage) and np.ptp(lineage) > 0:
            return Offer(offer.anchor[inside], lineage, offer.hpi[inside])
    return offer
