"""What the user asks of a batch, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Parameters of the sampler; the names are those of the reference implementation's sampler."""

    batch_size: int = 128
    """Samples per step per rank."""
    experiment_aware: bool = True
    """Draw a batch from one experiment."""
    leaky: float = 0.0
    """Fraction of a batch from other experiments, in [0, 1)."""
    experiment_weights: Mapping[str, float] | None = None
    """Share of batches per experiment; in proportion to its anchors when None."""
    condition_balanced: bool = True
    """Give every condition of the experiment the same number of samples, or those of `condition_ratio`."""
    condition_ratio: Mapping[str, float] | None = None
    """Share of each condition; one that is not named gets none."""
    temporal_enrichment: bool = False
    """Draw most of a batch near one focal HPI."""
    temporal_window_hours: float = 2.0
    """Half-width of the focal window in hours, ends included."""
    temporal_global_fraction: float = 0.3
    """Fraction of a batch from outside the focal window."""
    tau_decay_rate: float = 2.0
    """Decay of P(τ) over the τ range; 0 draws τ uniformly."""
    return_negative: bool = False
    """Also draw an explicit negative for each anchor."""
    seed: int = 0
    """Of the order and all draws, ≥ 0."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises
        ------
        ValueError
            A value out of range; the message names it and what is allowed.
        """
        checks = (
            ("batch_size", self.batch_size, self.batch_size >= 1, ">= 1"),
            ("leaky", self.leaky, 0 <= self.leaky < 1, "in [0, 1)"),
            ("temporal_window_hours", self.temporal_window_hours, self.temporal_window_hours >= 0, ">= 0"),
            (
                "temporal_global_fraction",
                self.temporal_global_fraction,
                0 <= self.temporal_global_fraction <= 1,
                "in [0, 1]",
            ),
            ("tau_decay_rate", self.tau_decay_rate, self.tau_decay_rate >= 0, ">= 0"),
            ("seed", self.seed, self.seed >= 0, ">= 0"),
        )
        for name, value, holds, allowed in checks:
            if not holds:
                raise ValueError(f"{name}={value!r} must be {allowed}.")
        for field in ("experiment_weights", "condition_ratio"):
            shares = getattr(self, field)
            if shares is None:
                continue
            if any(v < 0 for v in shares.values()) or not any(v > 0 for v in shares.values()):
                raise ValueError(f"{field}={dict(shares)!r} must be >= 0 with at least one > 0.")
