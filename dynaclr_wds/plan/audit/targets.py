"""Config to targets: works out what is asked of a batch and of an epoch, whatever the plan does about it.

This is worked out a second time, apart from the schedule, so that a ledger can hold the plan to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTargets:
    """What is asked of the batches of one group."""

    own: Int64[np.ndarray, " s"]
    """1 for strata of the group, 0 for others."""
    values: tuple[int, ...]
    """Stratify values that the group has, as numbers."""
    share: tuple[float, ...]
    """Share of each of these values; they add up to 1."""


class Targets:
    """The config's wishes in terms of an index's strata."""

    def __init__(self, index: PlanIndex, config: SamplingConfig) -> None:
        self.values, self.groups = index.value_names, index.group_names
        self.value_of, self.group_of = index.value_of, index.group_of
        self._weights = config.weights
        self._ratio = config.ratio
        self._known: dict[str, GroupTargets] = {}

    def for_group(self, group: str) -> GroupTargets:
        """Look up what is asked of batches about a group; about everything when `group` is empty."""
        if group not in self._known:
            everything = np.ones_like(self.group_of)
            own = everything if not group else (self.group_of == self.groups.index(group)).astype(np.int64)
            present = tuple(dict.fromkeys(self.value_of[own > 0].tolist()))
            share = [1.0 if self._ratio is None else float(self._ratio.get(self.values[v], 0.0)) for v in present]
            total = sum(share) or 1.0
            self._known[group] = GroupTargets(own=own, values=present, share=tuple(s / total for s in share))
        return self._known[group]

    def batch_shares(self, sizes: Int64[np.ndarray, " s"]) -> dict[str, float]:
        """Share of the batches that each group is to have: by weight, else by its anchors that may be drawn."""
        if self._weights is None:
            drawn = np.array([self._ratio is None or self._ratio.get(self.values[v], 0.0) > 0 for v in self.value_of])
            weight = np.bincount(self.group_of, sizes * drawn, minlength=len(self.groups))
        else:
            weight = np.array([float(self._weights.get(g, 0.0)) for g in self.groups])
        return dict(zip(self.groups, (weight / max(weight.sum(), 1e-9)).tolist(), strict=True))
