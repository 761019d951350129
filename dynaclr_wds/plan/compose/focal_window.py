"""Focal windows of a round: at which HPIs they lie, how much of a batch is inside, and what is inside.

The focal HPIs of a round are spread over the HPIs that its draws have in all main strata at once, so that together the
windows use up the draws. `focal_batches` fills them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.compose.group_quotas import MANY
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.config import SamplingConfig

_EDGE_HOURS = 1e-6  # frames at the window's very edge belong to it


def check_time(config: SamplingConfig, still: Sequence[str]) -> None:
    """Check that there are times to draw batches near to, if that is asked for.

    Parameters
    ----------
    still
        Experiments of one frame, where there is no time.

    Raises
    ------
    ConfigError
        There are some.
    """
    if config.temporal_enrichment and still:
        raise ConfigError(
            f"temporal_enrichment=True draws cells near one time, but experiment {still[0]!r} has one frame and no "
            "time (interval_minutes is 0). Set temporal_enrichment: false, or leave its wells out."
        )


def focal_edges(
    focal_hpi: Float64[np.ndarray, "*n"] | float, half_width_hours: float
) -> tuple[Float64[np.ndarray, "*n"] | float, Float64[np.ndarray, "*n"] | float]:
    """Where a focal window begins and ends in hours; what lies in between, ends included, is in it."""
    reach = half_width_hours + _EDGE_HOURS
    return focal_hpi - reach, focal_hpi + reach


def in_focal_window(
    hpi: Float64[np.ndarray, "*n"], focal_hpi: float, half_width_hours: float
) -> Bool[np.ndarray, "*n"]:
    """Say which HPIs are in the focal window; all of them when `focal_hpi` is NaN, which means no window."""
    if np.isnan(focal_hpi):
        return np.ones(hpi.shape, bool)
    low, high = focal_edges(focal_hpi, half_width_hours)
    return (hpi >= low) & (hpi <= high)


def sample_focal_hpi(
    rng: np.random.Generator, hpi: list[Float64[np.ndarray, " _"]], half_width_hours: float, count: int
) -> Float64[np.ndarray, " count"]:
    """Draw focal HPIs evenly over the HPIs at which all strata have draws, with the whole window inside their range.

    Parameters
    ----------
    hpi
        Of the draws of each main stratum.
    count
        Batches in the round.
    """
    values, weight = np.unique(np.concatenate(hpi), return_counts=True)
    begin, end = focal_edges(values, half_width_hours)
    density = np.empty((len(hpi), len(values)))
    for s, own in enumerate(hpi):
        ordered = np.sort(own)
        inside = np.searchsorted(ordered, end, "right") - np.searchsorted(ordered, begin, "left")
        density[s] = inside / max(len(own), 1)
    joint = weight * density.min(0) / density.mean(0)
    total = np.cumsum(joint if joint.any() else weight)
    even = (np.arange(count) + rng.random(count)) / count
    at = np.minimum(np.searchsorted(total, even * total[-1], "right"), len(values) - 1)
    low, high = values[0] + half_width_hours, values[-1] - half_width_hours
    return rng.permutation(np.clip(values[at], min(low, high), max(low, high)))


def focal_sizes(batches: int, first_occurrence: int, config: SamplingConfig) -> Int64[np.ndarray, " batches"]:
    """Size of the focal part of each batch of a round, exact over the epoch.

    Parameters
    ----------
    first_occurrence
        Which of its group's batches the first one is.
    """
    each = config.temporal_global_fraction * config.batch_size
    until = np.floor(np.arange(first_occurrence, first_occurrence + batches + 1) * each + 1e-9)
    return config.batch_size - np.diff(until).astype(np.int64)


def focal_quota(quota: Int64[np.ndarray, "r q"], focal_size: Int64[np.ndarray, " r"]) -> Int64[np.ndarray, "r q"]:
    """Split the focal part of each batch over its quota groups.

    Where these are many, most give one sample, if any: then each may give all that it gives to the batch, and the part
    is made of those that have some in the window.

    Parameters
    ----------
    quota
        Samples of each quota group in each batch of the round.
    """
    if quota.shape[1] > MANY:
        return quota
    return np.stack([largest_remainder(n, row) for n, row in zip(focal_size.tolist(), quota, strict=True)])
