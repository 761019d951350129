"""Holds what the user asks of a batch, and what makes a positive, as frozen values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dynaclr_wds.errors import ConfigError

Weights = Mapping[str, float]
"""Name of a group → its share of the batches, on any scale."""
WeightSchedule = Mapping[int, Weights]
"""Epoch → the weights from that epoch on."""

PositiveKind = Literal["temporal", "self", "columns"]
PositiveChannel = Literal["same", "any"]
TauDirection = Literal["forward", "both"]
PositiveRelatives = Literal["lineage", "descendants"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositiveRule:
    """What may be the positive of an anchor, and so which observations may be anchors."""

    kind: str = "temporal"
    """`temporal`: a cell of the lineage some τ later. `self`: the same patch, to be augmented anew. `columns`:
    another cell that agrees in `match_columns`, of another lineage where there is one."""
    match_columns: tuple[str, ...] = ()
    """Labels that a positive by columns shares with its anchor, at least one; null agrees with nothing."""
    channel: str = "same"
    """Where samples hold some of the channels: `same` takes those of the anchor (by columns: of the same marker), `any`
    draws them anew."""
    tau_direction: str = "forward"
    """`both`: an anchor without a candidate ahead, near the end of its track, takes one as far behind."""
    relatives: str = "lineage"
    """`descendants`: temporal positives are of the anchor's own line of descent: the cell itself or a descendant
    (behind: an ancestor). `lineage`: any cell of the lineage."""

    def __post_init__(self) -> None:
        """Check every value by itself, and that there are columns only where they are compared.

        That there are some is checked where the labels of the shards are known, in `plan_index`.

        Raises
        ------
        ConfigError
            A value is out of range; the message names it and what is allowed.
        """
        kinds = (("positive", self.kind, PositiveKind), ("positive_channel", self.channel, PositiveChannel))
        directions = (
            ("tau_direction", self.tau_direction, TauDirection),
            ("positive_relatives", self.relatives, PositiveRelatives),
        )
        for name, value, allowed in (*kinds, *directions):
            if value not in get_args(allowed):
                raise ConfigError(f"{name}={value!r} must be one of {list(get_args(allowed))}.")
        if self.relatives != "lineage" and self.kind != "temporal":
            raise ConfigError(
                f"positive_relatives={self.relatives!r} with positive={self.kind!r}: it says which cells a temporal "
                "positive may be. Give positive='temporal', or leave positive_relatives out."
            )
        if self.match_columns and self.kind != "columns":
            raise ConfigError(
                f"positive_match_columns={list(self.match_columns)} must be left out with positive={self.kind!r}: only "
                "positive='columns' compares columns. Give that, or remove positive_match_columns."
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
    group_weights: Weights | WeightSchedule | None = None
    """Share of batches per group; in proportion to its anchors when None. A group with weight 0, or without one, is
    never drawn from: no batch, no leak, no negative. May be a schedule over epochs, `{0: {…}, 20: {…}}`: the entry with
    the largest epoch that has come holds."""
    experiment_weights: Weights | WeightSchedule | None = None
    """Another name of `group_weights`."""
    condition_balanced: bool = True
    """Give every stratify value of the group the same number of samples, or those of `stratify_ratio`."""
    stratify_ratio: Mapping[str, float] | None = None
    """Share of each stratify value. A value with share 0, or without one, is never drawn from."""
    condition_ratio: Mapping[str, float] | None = None
    """Another name of `stratify_ratio`."""
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
        for name, other in (_WEIGHTS, _RATIO):
            if getattr(self, name) is not None and getattr(self, other) is not None:
                raise ConfigError(f"{name} and {other} are two names of one thing. Give one of them.")
        for epoch, weights in self._entries().items():
            _check_shares(self.weights_name + (f"[{epoch}]" if self.is_scheduled else ""), weights)
        if self.ratio is not None:
            _check_shares(self.ratio_name, self.ratio)

    @property
    def weights_name(self) -> str:
        """The name under which the weights were given."""
        return _WEIGHTS[self.experiment_weights is not None]

    @property
    def ratio_name(self) -> str:
        """The name under which the ratio was given."""
        return _RATIO[self.condition_ratio is not None]

    @property
    def ratio(self) -> Mapping[str, float] | None:
        """Share of each stratify value, by whichever name it was given."""
        return self.stratify_ratio if self.condition_ratio is None else self.condition_ratio

    @property
    def is_scheduled(self) -> bool:
        """Whether the weights change with the epoch."""
        given = getattr(self, self.weights_name)
        return given is not None and any(isinstance(value, Mapping) for value in given.values())

    @property
    def weights(self) -> Weights | None:
        """Share of batches per group, by whichever name it was given; of all epochs together where there are several.

        So a group is never drawn from if its weight is 0 here, and `of_epoch(epoch).weights` are those of one epoch.
        """
        entries = list(self._entries().values())
        if len(entries) < 2:
            return entries[0] if entries else None
        names = dict.fromkeys(name for weights in entries for name in weights)
        return {name: sum(weights.get(name, 0.0) for weights in entries) / len(entries) for name in names}

    def of_epoch(self, epoch: int) -> SamplingConfig:
        """Return the config with the weights of one epoch in place of a schedule."""
        if not self.is_scheduled:
            return self
        entries = self._entries()
        weights = entries[max(first for first in entries if first <= epoch)]
        return dataclasses.replace(self, **{self.weights_name: weights})  # type: ignore[arg-type]

    def of_entries(self) -> tuple[SamplingConfig, ...]:
        """Return the config of every entry of a schedule; the config itself without one."""
        return tuple(self.of_epoch(first) for first in self._entries()) or (self,)

    def to_plain(self) -> dict[str, Any]:
        """Return what the order depends on as plain values, the same for both names of a thing."""
        plain = dataclasses.asdict(self)
        for name, other in (_WEIGHTS, _RATIO):
            del plain[name], plain[other]
        entries = [[epoch, dict(weights)] for epoch, weights in self._entries().items()]
        weights = entries if self.is_scheduled else None if self.weights is None else dict(self.weights)
        ratio = None if self.ratio is None else dict(self.ratio)
        return {**plain, _WEIGHTS[0]: weights, _RATIO[0]: ratio}

    def _entries(self) -> dict[int, Weights]:
        """Weights by first epoch, ascending; none without weights.

        Raises
        ------
        ConfigError
            A schedule does not begin with epoch 0, or mixes epochs and names.
        """
        name = self.weights_name
        given = getattr(self, name)
        if given is None or not self.is_scheduled:
            return {} if given is None else {0: given}
        if not all(type(e) is int and e >= 0 and isinstance(w, Mapping) for e, w in given.items()) or 0 not in given:
            raise ConfigError(
                f"{name}={given!r:.200} must map group names to weights, or epochs, from 0 on, to such maps. "
                f"Write {name}: {{a: 2, b: 1}}, or {name}: {{0: {{a: 2, b: 1}}, 20: {{a: 1, b: 1}}}}."
            )
        return dict(sorted(given.items()))


_WEIGHTS = ("group_weights", "experiment_weights")
_RATIO = ("stratify_ratio", "condition_ratio")


def _check_shares(name: str, shares: Mapping[str, float]) -> None:
    if not all(0 <= v < math.inf for v in shares.values()) or not any(v > 0 for v in shares.values()):
        raise ConfigError(f"{name}={dict(shares)!r} must be finite and >= 0, with at least one > 0.")
