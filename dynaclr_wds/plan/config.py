"""Holds what the user asks of a batch, and what makes a positive, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from dynaclr_wds.errors import ConfigError

PositiveKind = Literal["temporal", "self", "columns"]
PositiveChannel = Literal["same", "any"]
TauDirection = Literal["forward", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositiveRule:
    """What may be the positive of an anchor, and so which observations may be anchors."""

    kind: str = "temporal"
    """`temporal`: the cell, or a descendant, some τ later. `self`: the same patch, to be augmented anew. `columns`:
    another cell that agrees in `match_columns`, of another lineage where there is one."""
    match_columns: tuple[str, ...] = ()
    """Labels that a positive by columns shares with its anchor; null agrees with nothing."""
    channel: str = "same"
    """Where samples hold some of the channels: `same` takes those of the anchor (by columns: of the same marker), `any`
    draws them anew."""
    tau_direction: str = "forward"
    """`both`: an anchor without a candidate ahead, near the end of its track, takes one as far behind."""

    def __post_init__(self) -> None:
        """Check every value by itself, and that the columns fit the kind.

        Raises
        ------
        ConfigError
            A value is out of range; the message names it and what is allowed.
        """
        kinds = (("positive", self.kind, PositiveKind), ("positive_channel", self.channel, PositiveChannel))
        for name, value, allowed in (*kinds, ("tau_direction", self.tau_direction, TauDirection)):
            if value not in get_args(allowed):
                raise ConfigError(f"{name}={value!r} must be one of {list(get_args(allowed))}.")
        if (self.kind == "columns") != bool(self.match_columns):
            raise ConfigError(
                f"positive={self.kind!r} with positive_match_columns={list(self.match_columns)}: columns are needed "
                "for positive='columns', and for nothing else."
            )
        if "lineage_id" in self.match_columns:
            raise ConfigError(
                "positive_match_columns names 'lineage_id'. A positive of the same lineage is positive='temporal', "
                "without positive_match_columns."
            )


TEMPORAL = PositiveRule()
"""The rule where nothing else is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Parameters of the sampler.

    The names are those of the reference implementation's sampler (mehta-lab/VisCy). They speak of experiments and
    conditions: read "group" and "stratify value" where the index is built with other labels.
    """

    batch_size: int = 128
    """Samples per step per rank."""
    experiment_aware: bool = True
    """Draw the main part of a batch from one group; from everything when False."""
    leaky: float = 0.0
    """Fraction of a batch from other groups, in [0, 1)."""
    experiment_weights: Mapping[str, float] | None = None
    """Share of batches per group; in proportion to its anchors when None. A group with weight 0, or without one, is
    never drawn from: no batch, no leak, no negative."""
    condition_balanced: bool = True
    """Give every stratify value of the group the same number of samples, or those of `condition_ratio`."""
    condition_ratio: Mapping[str, float] | None = None
    """Share of each stratify value. A value with share 0, or without one, is never drawn from."""
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
    relax_lineages: bool = False
    """Streaming: accept a window that is too small for a batch of distinct lineages; repeats are counted."""
    seed: int = 0
    """Seed of the order and of all draws, ≥ 0."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises
        ------
        ConfigError
            A value is out of range; the message names it and what is allowed.
        """
        share = self.temporal_global_fraction
        checks = (
            ("batch_size", self.batch_size, self.batch_size >= 1, ">= 1"),
            ("leaky", self.leaky, 0 <= self.leaky < 1, "in [0, 1)"),
            ("temporal_window_hours", self.temporal_window_hours, self.temporal_window_hours >= 0, ">= 0"),
            ("temporal_global_fraction", share, 0 <= share <= 1, "in [0, 1]"),
            ("tau_decay_rate", self.tau_decay_rate, self.tau_decay_rate >= 0, ">= 0"),
            ("seed", self.seed, self.seed >= 0, ">= 0"),
        )
        for name, value, holds, allowed in checks:
            if not holds:
                raise ConfigError(f"{name}={value!r} must be {allowed}.")
        for name in ("experiment_weights", "condition_ratio"):
            shares = getattr(self, name)
            if shares is None:
                continue
            if not all(0 <= v < math.inf for v in shares.values()) or not any(v > 0 for v in shares.values()):
                raise ConfigError(f"{name}={dict(shares)!r} must be finite and >= 0, with at least one > 0.")
