"""Anchors to explicit negatives: draws another lineage of the same group, from the focal window where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.focal_window import focal_edges
from dynaclr_wds.plan.index import PlanIndex

_OFFERS = (1 << 11, 1 << 15)


@dataclass(frozen=True, slots=True)
class Offer:
    """Anchors to choose negatives from, by HPI."""

    anchor: Int64[SampleIndex, " m"]
    lineage: Int64[np.ndarray, " m"]
    hpi: Float64[np.ndarray, " m"]

    def cut(self, begin: int, end: int) -> Offer:
        """Keep the anchors `begin … end`."""
        return Offer(cast(SampleIndex, self.anchor[begin:end]), self.lineage[begin:end], self.hpi[begin:end])


def make_offer(index: PlanIndex, anchor: Int64[SampleIndex, " m"]) -> Offer:
    """Look up lineage and HPI of each anchor, and sort by HPI; so a focal window is a slice."""
    hpi = index.hpi(anchor)
    order = np.argsort(hpi, kind="stable")
    ordered = cast(SampleIndex, anchor[order])
    return Offer(ordered, index.lineage(ordered).astype(np.int64), hpi[order])


def sample_negatives(
    rng: np.random.Generator,
    index: PlanIndex,
    anchors: Int64[SampleIndex, " b"],
    focal_hpi: float,
    half_width_hours: float,
    draw: Callable[[int, int], Offer],
) -> Int64[SampleIndex, " b"]:
    """Draw a negative for each anchor of one batch.

    Parameters
    ----------
    focal_hpi, half_width_hours
        The batch's focal window; NaN without one.
    draw
        (number of a group, count) → anchors drawn uniformly from what is within reach of the group; may be the same at
        each call.

    Returns
    -------
    A negative for each. The window is given up where no other lineage is found in it.

    Raises
    ------
    ConfigError
        One lineage of the group is within reach.
    """
    out = np.empty(len(anchors), np.int64)
    lineage, group = index.lineage(anchors), index.group_of[index.stratum(anchors)]
    for number in np.unique(group).tolist():
        at = np.flatnonzero(group == number)
        offer = _choose_offer(focal_hpi, half_width_hours, number, draw)
        own = offer.lineage
        if (lineage[at] == own[0]).any() and (own == own[0]).all():
            name = index.strata[int(np.argmax(index.group_of == number))].group_name
            raise ConfigError(
                f"return_negative=True, but {index.group_label} {name!r} has one lineage within reach. "
                "Leave it out, or train without explicit negatives."
            )
        chosen = rng.integers(0, len(own), len(at))
        while (clash := own[chosen] == lineage[at]).any():
            chosen[clash] = rng.integers(0, len(own), int(clash.sum()))
        out[at] = offer.anchor[chosen]
    return cast(SampleIndex, out)


def _choose_offer(focal_hpi: float, half_width_hours: float, group: int, draw: Callable[[int, int], Offer]) -> Offer:
    """Offer the anchors inside the window if two lineages are found there, else all."""
    if np.isnan(focal_hpi):
        return draw(group, _OFFERS[0])
    for count in _OFFERS:
        offer = draw(group, count)
        low, high = focal_edges(focal_hpi, half_width_hours)
        inside = offer.cut(int(np.searchsorted(offer.hpi, low)), int(np.searchsorted(offer.hpi, high, "right")))
        if len(inside.lineage) and np.ptp(inside.lineage) > 0:
            return inside
    return offer
