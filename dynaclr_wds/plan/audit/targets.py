"""Config to targets: what is asked of a batch and of an epoch, whatever the plan does about it.

Worked out here a second time, apart from the schedule, so that a ledger can hold the plan to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is asked of the batches of one group, whatever the plan does."""

    own: Int64[np.ndarray, " s"]
    """1 for strata of the group's experiment, 0 for others."""
    conditions: tuple[int, ...]
    """Conditions that the experiment has, as numbers."""
    share: tuple[float, ...]
    """Of each of them; adds up to 1."""


class Asked:
    """The config's wishes in terms of an index's strata."""

    def __init__(self, index: PlanIndex, config: SamplingConfig) -> None:
        strata = index.strata
        self.conditions = tuple(dict.fromkeys(s.condition for s in strata))
        self.experiments = tuple(dict.fromkeys(s.experiment for s in strata))
        self.condition_of = np.array([self.conditions.index(s.condition) for s in strata], np.int64)
        self.experiment_of = np.array([self.experiments.index(s.experiment) for s in strata], np.int64)
        self._config = config
        self._groups: dict[str, Targets] = {}

    def of(self, group: str) -> Targets:
        """Look up what is asked of batches about an experiment; about everything when `group` is empty."""
        if group not in self._groups:
            number = self.experiments.index(group) if group else None
            own = (
                np.ones_like(self.experiment_of) if number is None else (self.experiment_of == number).astype(np.int64)
            )
            present = tuple(dict.fromkeys(self.condition_of[own > 0].tolist()))
            ratio = self._config.condition_ratio
            share = [1.0 if ratio is None else float(ratio.get(self.conditions[c], 0.0)) for c in present]
            total = sum(share) or 1.0
            self._groups[group] = Targets(own=own, conditions=present, share=tuple(s / total for s in share))
        return self._groups[group]

    def batch_shares(self, sizes: Int64[np.ndarray, " s"]) -> dict[str, float]:
        """Share of the batches that each experiment is to have: by weight, else by its anchors that may be drawn."""
        weights = self._config.experiment_weights
        if weights is None:
            ratio = self._config.condition_ratio if self._config.condition_balanced else None
            drawn = np.array([ratio is None or ratio.get(self.conditions[c], 0.0) > 0 for c in self.condition_of])
            weight = np.bincount(self.experiment_of, sizes * drawn, minlength=len(self.experiments))
        else:
            weight = np.array([float(weights.get(e, 0.0)) for e in self.experiments])
        return dict(zip(self.experiments, (weight / max(weight.sum(), 1e-9)).tolist(), strict=True))
