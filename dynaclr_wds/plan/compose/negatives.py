"""Anchors to explicit negatives: draws another lineage of the same group, from the focal window where there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.focal_window import focal_edges
from dynaclr_wds.plan.index import PlanIndex

_LEAST_OFFER, _MOST_OFFER, _LARGE_OFFER = 1 << 8, 1 << 11, 1 << 15


@dataclass(frozen=True, slots=True)
class Offer:
    """Anchors to choose negatives from, by HPI."""

    anchor: Int64[SampleIndex, " m"]
    lineage: Int64[np.ndarray, " m"]
    hpi: Float64[np.ndarray, " m"]

    def window(
        self, focal_hpi: Float64[np.ndarray, " n"], half_width_hours: float
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Where focal windows begin and end; NaN, which means no window, takes in all."""
        low, high = focal_edges(focal_hpi, half_width_hours)
        everywhere = np.isnan(focal_hpi)
        begin = np.searchsorted(self.hpi, np.where(everywhere, -np.inf, low), "left")
        return begin, np.searchsorted(self.hpi, np.where(everywhere, np.inf, high), "right")

    def holds_two_lineages(
        self, begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Whether each of the slices `begin … end` holds two lineages or more."""
        edge = np.append(1 + np.flatnonzero(np.diff(self.lineage)), len(self.lineage))
        return edge[np.searchsorted(edge, begin, "right").clip(max=len(edge) - 1)] < end

    def choose(
        self,
        rng: np.random.Generator,
        lineage: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
    ) -> Int64[SampleIndex, " n"]:
        """Choose one of each slice that is of another lineage than `lineage`; there has to be one."""
        chosen = rng.integers(begin, end)
        while len(clash := np.flatnonzero(self.lineage[chosen] == lineage)):
            chosen[clash] = rng.integers(begin[clash], end[clash])
        return cast(SampleIndex, self.anchor[chosen])


def make_offer(index: PlanIndex, anchor: Int64[SampleIndex, " m"]) -> Offer:
    """Look up lineage and HPI of each anchor, and sort by HPI; so a focal window is a slice."""
    hpi = index.hpi(anchor)
    order = np.argsort(hpi, kind="stable")
    ordered = cast(SampleIndex, anchor[order])
    return Offer(ordered, index.lineage(ordered).astype(np.int64), hpi[order])


def sample_negatives(
    rng: np.random.Generator,
    index: PlanIndex,
    anchors: Int64[SampleIndex, "r b"],
    focal_hpi: Float64[np.ndarray, " r"],
    half_width_hours: float,
    draw: Callable[[int, int], Offer],
) -> Int64[SampleIndex, "r b"]:
    """Draw a negative for each anchor of some batches.

    Parameters
    ----------
    focal_hpi, half_width_hours
        The focal window of each batch; NaN without one.
    draw
        (number of a group, count) → anchors drawn uniformly from what is within reach of the group.

    Returns
    -------
    A negative for each. The window is given up where no other lineage is found in it.

    Raises
    ------
    ConfigError
        One lineage of the group is within reach.
    """
    out = np.empty(anchors.shape, np.int64)
    lineage, group = index.lineage(anchors).astype(np.int64), index.group_of[index.stratum(anchors)]
    for number in np.unique(group).tolist():
        at = np.nonzero(group == number)
        offer = functools.partial(draw, number)
        found = _sample_group(rng, lineage[at], focal_hpi[at[0]], half_width_hours, offer)
        if found is None:
            name = index.strata[int(np.argmax(index.group_of == number))].group_name
            raise ConfigError(
                f"return_negative=True, but {index.group_label} {name!r} has one lineage within reach. "
                "Leave it out, or train without explicit negatives."
            )
        out[at] = found
    return cast(SampleIndex, out)


def _sample_group(
    rng: np.random.Generator,
    lineage: Int64[np.ndarray, " n"],
    focal_hpi: Float64[np.ndarray, " n"],
    half_width_hours: float,
    draw: Callable[[int], Offer],
) -> Int64[SampleIndex, " n"] | None:
    """Draw negatives for anchors of one group, inside the window where two lineages are found there, else from all.

    None where there is no other lineage at all.
    """
    out, left = np.empty(len(lineage), np.int64), np.arange(len(lineage))
    for count in (min(max(4 * len(lineage), _LEAST_OFFER), _MOST_OFFER), _LARGE_OFFER):
        offer = draw(count)
        begin, end = offer.window(focal_hpi[left], half_width_hours)
        enough = offer.holds_two_lineages(begin, end)
        out[left[enough]] = offer.choose(rng, lineage[left[enough]], begin[enough], end[enough])
        left = left[~enough]
        if not len(left):
            return cast(SampleIndex, out)
    if (offer.lineage == offer.lineage[0]).all() and (lineage[left] == offer.lineage[0]).any():
        return None
    end = np.full(len(left), len(offer.lineage))
    out[left] = offer.choose(rng, lineage[left], np.zeros_like(end), end)
    return cast(SampleIndex, out)
