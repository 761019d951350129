"""Batches to an account of the epoch: what was covered, what was composed, what had to be relaxed.

Counts what the plan did from the batches themselves, never from the intentions that led to them.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.batches import BatchPlan
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex

_SLACK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumCoverage:
    """What an epoch drew from one (experiment, condition)."""

    experiment: str
    condition: str
    anchors: int
    unique: int
    """Anchors drawn at least once."""
    repeated: int
    """Draws beyond the first of each anchor."""
    never_seen: int
    most_repeats: int
    """Draws of the anchor that was drawn most."""
    without_positive: int
    """Anchors that the τ range asked for leaves without a positive; never drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One quota over the epoch, as fractions of a batch: asked for against achieved."""

    name: str
    asked: float
    mean: float
    worst: float
    """Of the batch that is furthest off."""
    batches: int
    """Batches that the quota applies to."""
    missed: int
    """Batches more than one sample off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The ledger of one epoch, over all ranks."""

    batches: int
    batch_size: int
    coverage: tuple[StratumCoverage, ...]
    composition: tuple[Composition, ...]
    relaxed: Mapping[str, int]
    """Anchors of a batch that share their lineage, track or observation with an earlier one of it."""
    tau_frames: Mapping[int, int]
    """τ in frames → positives."""
    streaming: Mapping[str, float] = field(default_factory=dict)
    """Bytes read, stored and used, peak resident bytes; empty in exact mode."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


class Ledger:
    """Adds up batches.

    Parameters
    ----------
    index
        What the batches were planned from.
    config
        What was asked of them.
    """

    def __init__(self, index: PlanIndex, config: SamplingConfig) -> None:
        self._index = index
        self._config = config
        self._draws = np.zeros(len(index.row), np.uint16)
        self._relaxed: Counter[str] = Counter(lineage=0, track=0, observation=0)
        self._tau: Counter[int] = Counter()
        self._parts: dict[str, list[float]] = {}
        self._asked: dict[str, float] = {}
        self._batches = 0

    def add(self, plan: BatchPlan) -> None:
        """Count one batch."""
        index = self._index
        anchor = np.searchsorted(index.row, plan.anchor)
        np.add.at(self._draws, anchor, 1)
        lineages, tracks, observations = (
            len(np.unique(key)) for key in (index.lineage(anchor), index.track(anchor), anchor)
        )
        self._relaxed["lineage"] += len(anchor) - lineages
        self._relaxed["track"] += len(anchor) - tracks
        self._relaxed["observation"] += len(anchor) - observations
        if plan.positive is not None:
            tau, count = np.unique(
                index.columns.patch_t[plan.positive] - index.columns.patch_t[plan.anchor], return_counts=True
            )
            self._tau.update(dict(zip(tau.tolist(), count.tolist(), strict=True)))
        self._add_composition(plan, anchor)
        self._batches += 1

    def _add_composition(self, plan: BatchPlan, anchor: Int64[np.ndarray, " b"]) -> None:
        config, strata = self._config, self._index.strata
        stratum = np.bincount(self._index.stratum(anchor), minlength=len(strata))
        if plan.group:
            own = sum(int(n) for s, n in zip(strata, stratum, strict=True) if s.experiment == plan.group)
            leak = config.leaky if len({s.experiment for s in strata}) > 1 else 0.0
            self._note("experiment", 1 - leak, own)
        if config.condition_balanced:
            by_condition: Counter[str] = Counter()
            for s, n in zip(strata, stratum, strict=True):
                by_condition[s.condition] += int(n)
            present = [s.condition for s in strata if plan.group in ("", s.experiment)]
            share = {c: 1.0 if config.condition_ratio is None else config.condition_ratio.get(c, 0.0) for c in present}
            leaked = sum(n for c, n in by_condition.items() if c not in share)
            for c, want in share.items():
                part = want / sum(share.values()) * (1 - leaked / len(anchor))
                self._note(f"condition {c} in {plan.group}" if plan.group else f"condition {c}", part, by_condition[c])
        if config.temporal_enrichment:
            inside = np.abs(self._index.hpi(anchor) - plan.focal_hpi) <= config.temporal_window_hours + _SLACK
            self._note("focal window", 1 - config.temporal_global_fraction, int(inside.sum()))

    def _note(self, name: str, asked: float, count: int) -> None:
        self._parts.setdefault(name, []).append(count)
        # a batch with leaked samples of conditions that its experiment lacks asks for a little less: keep the mean
        seen = len(self._parts[name])
        self._asked[name] = self._asked.get(name, 0.0) + (asked - self._asked.get(name, 0.0)) / seen

    def report(self) -> Report:
        """Sum up."""
        size = self._config.batch_size
        composition = []
        for name, counts in self._parts.items():
            part, asked = np.array(counts) / size, self._asked[name]
            off = np.abs(part - asked)
            composition.append(
                Composition(
                    name=name,
                    asked=asked,
                    mean=float(part.mean()),
                    worst=float(part[off.argmax()]),
                    batches=len(part),
                    missed=int((off * size > 1 + _SLACK).sum()),
                )
            )
        return Report(
            batches=self._batches,
            batch_size=size,
            coverage=self._coverage(),
            composition=tuple(composition),
            relaxed=dict(self._relaxed),
            tau_frames=dict(sorted(self._tau.items())),
        )

    def _coverage(self) -> tuple[StratumCoverage, ...]:
        out, index = [], self._index
        for s, stratum in enumerate(index.strata):
            draws = self._draws[index.first[s] : index.first[s + 1]]
            unique = int((draws > 0).sum())
            out.append(
                StratumCoverage(
                    experiment=stratum.experiment,
                    condition=stratum.condition,
                    anchors=len(draws),
                    unique=unique,
                    repeated=int(draws.sum(dtype=np.int64)) - unique,
                    never_seen=len(draws) - unique,
                    most_repeats=int(draws.max(initial=0)),
                    without_positive=index.without_positive[s],
                )
            )
        return tuple(out)
