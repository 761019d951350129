"""Hours to frames to weights: every rule about τ, the time from an anchor to its temporal positive.

The ETL, the plan and the plain pipeline all take these rules from here. Imports numpy and the errors only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynaclr_wds.errors import ConfigError

TauHours = tuple[float, float]
"""Shortest and longest τ in hours, both ends included."""

TauFrames = tuple[int, int]
"""Least and greatest τ in frames, both ends included."""


_MOST_FRAMES = 1 << 31


def tau_range_frames(tau_range_hours: TauHours, interval_minutes: float) -> TauFrames:
    """Convert a τ range from hours to frames, both ends included.

    `round(hours * 60 / interval)`, as the reference implementation (mehta-lab/VisCy,
    `ExperimentRegistry.tau_range_frames`) does. An interval of 0 is that of a plate of one frame, where there is no
    time: it gives (0, 0), a range that holds no frame.

    Raises
    ------
    ValueError
        A bound is no finite number, or more frames than 32 bits count.
    """
    low, high = tau_range_hours
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"A τ range of {low} to {high} hours must be two finite numbers. Give the hours.")
    if interval_minutes == 0:
        return 0, 0
    frames = low * 60 / interval_minutes, high * 60 / interval_minutes
    if not max(map(abs, frames)) < _MOST_FRAMES:
        raise ValueError(
            f"A τ range of {low} to {high} hours is more than {_MOST_FRAMES:,} frames of {interval_minutes} minutes. "
            "Give a shorter one, or the right interval."
        )
    return round(frames[0]), round(frames[1])


def least_tau(low: Any) -> Any:
    """Return the least τ that counts: τ = 0 would be the anchor itself, so it never does. Takes numbers and arrays."""
    return np.maximum(low, 1)


def reaches_a_frame(tau_frames: TauFrames) -> bool:
    """Say whether a range holds any τ that counts."""
    return tau_frames[1] >= max(tau_frames[0], 1)


def candidate_span(t: np.ndarray, tau_frames: TauFrames) -> tuple[np.ndarray, np.ndarray]:
    """Find the candidates of each patch of a clip: they are the places `first` to `stop` of the clip.

    Parameters
    ----------
    t
        Frames of one lineage's patches, ascending.
    """
    return np.searchsorted(t, t + least_tau(tau_frames[0])), np.searchsorted(t, t + tau_frames[1], "right")


def tau_weights(tau: Any, low: Any, high: Any, decay_rate: float) -> Any:
    """Weigh τ: exp(−decay · (τ − τ_min) / (τ_max − τ_min)), not normalised.

    The reference implementation (mehta-lab/VisCy, `sample_tau`) draws τ with these weights before it looks for
    candidates; here only τ with a candidate are weighed.

    Parameters
    ----------
    tau
        In frames; an array.
    low, high
        Range in frames; numbers, or arrays like `tau`.
    decay_rate
        0 weighs all alike.
    """
    return np.exp(-decay_rate * (tau - low) / np.maximum(high - low, 1))


def check_tau_range(
    name: str, experiment: str, asked: TauFrames, built: TauFrames, interval_minutes: float, where: str = ""
) -> None:
    """Check that the shards of an experiment hold the positives that are asked for.

    Parameters
    ----------
    name
        Name of the parameter, for the error.
    experiment
        For the error.
    asked, built
        In frames.
    interval_minutes
        Minutes between frames; 0 where there is one frame.
    where
        Shard and clip, for the error.

    Raises
    ------
    ValueError
        The range reaches beyond the one that the shards were built for, or holds no frame, or there is no time at all.
    """
    (low, high), (least, most) = asked, built
    place = f" ({where})" if where else ""
    if interval_minutes == 0:
        raise ConfigError(
            f"{name}: experiment {experiment!r}{place} has one frame and no time (interval_minutes is 0), so none of "
            "its cells has a temporal positive. Set positive: self or positive: columns, or leave its wells out."
        )
    if low >= least and high <= most and reaches_a_frame(asked):
        return
    hours = interval_minutes / 60
    raise ValueError(
        f"{name}: {low}…{high} frames ({low * hours:g}…{high * hours:g} h) in experiment {experiment!r}{place}, "
        f"but its shards hold positives at {least}…{most} frames ({least * hours:g}…{most * hours:g} h). "
        "Ask for a range inside it that reaches one frame, or build the shards with a wider tau_range_hours."
    )
