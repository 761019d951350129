"""Intervals: what a measure would be with other lineages, by the bootstrap over lineages.

Source: Efron (1979); for clusters such as lineages Field and Welsh (2007). Frames of one cell, and cells of one
lineage, are alike, so rows are no independent observations: intervals over rows would be far too narrow. Whole lineages
are drawn with replacement, and the measure is taken again of each draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

_TAG = 0x1E7A1
_COVER = (2.5, 97.5)
"""Percentiles of the draws that bound an interval."""
DRAWS = 200

Weights = Float64[np.ndarray, "draws l"]
"""How often each lineage is in each draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measure, with the interval that 95 % of the draws lie in; None where it can't be had."""

    value: float
    low: float | None = None
    high: float | None = None


def draw_lineages(count: int, seed: int, draws: int = DRAWS) -> Weights:
    """Draw as many lineages as there are, with replacement, so many times."""
    rng = np.random.default_rng([_TAG, seed])
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def estimate(value: float, drawn: Float64[np.ndarray, " draws"]) -> Estimate:
    """Put a measure and what came of the draws into an estimate; draws without a result don't count."""
    kept = drawn[np.isfinite(drawn)]
    if len(kept) < 2:
        return Estimate(value=float(value))
    low, high = np.percentile(kept, _COVER)
    return Estimate(value=float(value), low=float(low), high=float(high))


def estimate_ratio(
    above: Float64[np.ndarray, " l"], below: Float64[np.ndarray, " l"], weights: Weights
) -> Estimate | None:
    """Estimate a mean over rows from the sums of each lineage: all of `above` over all of `below`."""
    if below.sum() <= 0:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ above) / (weights @ below)
    return estimate(float(above.sum() / below.sum()), drawn)


def sum_by(groups: Int64[np.ndarray, " k"], values: Float64[np.ndarray, " k"], count: int) -> Float64[np.ndarray, " l"]:
    """Add values up by the number of their lineage."""
    return np.bincount(groups, values, minlength=count).astype(np.float64)
