"""Anchors to explicit negatives: draws another lineage of the same group, from the focal window where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.focal_window import in_focal_window
from dynaclr_wds.plan.index import PlanIndex

_OFFERS = (1 << 11, 1 << 15)


@dataclass(frozen=True, slots=True)
class Offer:
    """Anchors to choose negatives from."""

    anchor: Int64[SampleIndex, " m"]
    lineage: Int64[np.ndarray, " m"]
    hpi: Float64[np.ndarray, " m"]


def make_offer(index: PlanIndex, anchor: Int64[SampleIndex, " m"]) -> Offer:
    """Look up lineage and HPI of each anchor."""
    return Offer(anchor, index.lineage(anchor).astype(np.int64), index.hpi(anchor))


def sample_negatives(
    rng: np.random.Generator,
    index: PlanIndex,
    anchors: Int64[SampleIndex, " b"],
    focal_hpi: float,
    half_width_hours: float,
    draw: Callable[[str, int], Offer],
) -> Int64[SampleIndex, " b"]:
    """Draw a negative for each anchor of one batch.

    Parameters
    ----------
    focal_hpi, half_width_hours
        The batch's focal window; NaN without one.
    draw
        (group, count) → anchors drawn uniformly from what is within reach of the group; may be the same at each call.

    Returns
    -------
    A negative for each. The window is given up where no other lineage is found in it.

    Raises
    ------
    ConfigError
        One lineage of the group is within reach.
    """
    out = np.empty(len(anchors), np.int64)
    lineage = index.lineage(anchors)
    group = np.array([s.group_name for s in index.strata])[index.stratum(anchors)]
    for name in dict.fromkeys(group.tolist()):
        at = np.flatnonzero(group == name)
        offer = _choose_offer(focal_hpi, half_width_hours, name, draw)
        own = offer.lineage
        if (own == own[0]).all() and (lineage[at] == own[0]).any():
            raise ConfigError(
                f"return_negative=True, but {index.group_label} {name!r} has one lineage within reach. "
                "Leave it out, or train without explicit negatives."
            )
        chosen = rng.integers(0, len(own), len(at))
        while (clash := own[chosen] == lineage[at]).any():
            chosen[clash] = rng.integers(0, len(own), int(clash.sum()))
        out[at] = offer.anchor[chosen]
    return cast(SampleIndex, out)


def _choose_offer(focal_hpi: float, half_width_hours: float, group: str, draw: Callable[[str, int], Offer]) -> Offer:
    """Offer the anchors inside the window if two lineages are found there, else all."""
    offer = draw(group, _OFFERS[0])
    if np.isnan(focal_hpi):
        return offer
    for count in _OFFERS:
        offer = draw(group, count)
        inside = in_focal_window(offer.hpi, focal_hpi, half_width_hours)
        lineage = offer.lineage[inside]
        if len(lineage) and np.ptp(lineage) > 0:
            return Offer(cast(SampleIndex, offer.anchor[inside]), lineage, offer.hpi[inside])
    return offer
