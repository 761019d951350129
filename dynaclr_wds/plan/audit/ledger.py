"""Batches to an account of the epoch: what was covered, what was composed, what had to be relaxed.

Achieved values are counted from the batches themselves, never from the intentions that led to them; asked values
come from the config and the sizes of the set, never from the plan. So a shortfall shows whatever its cause.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.audit.targets import Asked
from dynaclr_wds.plan.batch import BatchPlan
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
class BatchShare:
    """Share of the epoch's batches that are about one experiment: asked for against achieved."""

    experiment: str
    asked: float
    achieved: float
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The ledger of one epoch, over all ranks."""

    batches: int
    batch_size: int
    coverage: tuple[StratumCoverage, ...]
    experiments: tuple[BatchShare, ...]
    """Empty unless batches are drawn from one experiment each."""
    composition: tuple[Composition, ...]
    """Of each batch: `leak`, `condition … in …`, `focal window`, as far as they were asked for."""
    relaxed: Mapping[str, int]
    """Anchors of a batch that share their lineage, track or observation with an earlier one of it."""
    tau_frames: Mapping[int, int]
    """τ in frames → positives."""
    tau_hours: Mapping[float, int]
    """τ in hours → positives: what can be compared between experiments of different frame intervals."""
    bytes_used: int
    """Of the patches that were drawn as anchor, positive or negative, each counted once."""
    streaming: Mapping[str, float] = field(default_factory=dict)
    """Bytes stored and read, peak resident bytes, … (`traffic.account_traffic`); empty in exact mode."""

    @property
    def seen(self) -> float:
        """Fraction of all anchors that were drawn at least once."""
        return sum(c.unique for c in self.coverage) / max(sum(c.anchors for c in self.coverage), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


@dataclass(slots=True)
class _Quota:
    """Samples asked for and got, batch by batch."""

    asked: list[float] = field(default_factory=list)
    got: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)

    def sum_up(self, name: str) -> Composition:
        size = np.array(self.size)
        asked, got = np.array(self.asked) / size, np.array(self.got) / size
        off = np.abs(got - asked)
        return Composition(
            name=name,
            asked=float(asked.mean()),
            mean=float(got.mean()),
            worst=float(got[off.argmax()]),
            batches=len(size),
            missed=int((off * size > 1 + _SLACK).sum()),
        )


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
        self._asked = Asked(index, config)
        self._draws = np.zeros(len(index.row), np.uint32)
        self._used = np.zeros(len(index.columns.patch_obs), bool)
        self._relaxed: Counter[str] = Counter(lineage=0, track=0, observation=0)
        self._tau: Counter[tuple[float, int]] = Counter()
        self._quotas: dict[str, _Quota] = {}
        self._groups: Counter[str] = Counter()
        self._batches = 0
        self._interval = np.array([s.interval_minutes for s in index.strata])

    def add(self, plan: BatchPlan) -> None:
        """Count one batch.

        Raises
        ------
        ValueError
            The batch has an anchor that the index doesn't list.
        """
        index = self._index
        anchor = find_anchors(index, plan)
        np.add.at(self._draws, anchor, 1)
        for rows in (plan.anchor, plan.positive, plan.negative):
            if rows is not None:
                self._used[rows] = True
        for name, key in (("lineage", index.lineage(anchor)), ("track", index.track(anchor)), ("observation", anchor)):
            self._relaxed[name] += len(anchor) - len(np.unique(key))
        stratum = index.stratum(anchor)
        if plan.positive is not None:
            tau = index.columns.patch_t[plan.positive].astype(np.int64) - index.columns.patch_t[plan.anchor]
            self._tau.update(zip(self._interval[stratum].tolist(), tau.tolist(), strict=True))
        self._add_composition(plan, np.bincount(stratum, minlength=len(index.strata)))
        if self._config.temporal_enrichment:
            inside = np.abs(index.hpi(anchor) - plan.focal_hpi) <= self._config.temporal_window_hours + _SLACK
            self._note("focal window", 1 - self._config.temporal_global_fraction, inside.sum(), len(plan))
        self._groups[plan.group] += 1
        self._batches += 1

    def _add_composition(self, plan: BatchPlan, count: Int64[np.ndarray, " s"]) -> None:
        asked, config, size = self._asked, self._config, len(plan)
        targets = asked.of(plan.group)
        if plan.group:
            self._note("leak", config.leaky, size - (count * targets.own).sum(), size)
        if config.condition_balanced:
            by_condition = np.bincount(asked.condition_of, count, minlength=len(asked.conditions))
            # leaked samples of a condition that the experiment lacks can't count towards any of its own
            base = by_condition[list(targets.conditions)].sum() / size
            for condition, share in zip(targets.conditions, targets.share, strict=True):
                name = f"condition {asked.conditions[condition]}" + (f" in {plan.group}" if plan.group else "")
                self._note(name, share * base, by_condition[condition], size)

    def _note(self, name: str, asked: SupportsFloat, got: SupportsFloat, size: int) -> None:
        quota = self._quotas.setdefault(name, _Quota())
        quota.asked.append(float(asked) * size)
        quota.got.append(float(got))
        quota.size.append(size)

    def report(self, streaming: Mapping[str, float] | None = None) -> Report:
        """Sum up.

        Parameters
        ----------
        streaming
            From `traffic.account_traffic`.
        """
        frames: Counter[int] = Counter()
        hours: Counter[float] = Counter()
        for (interval, tau), count in self._tau.items():
            frames[tau] += count
            hours[round(tau * interval / 60, 6)] += count
        return Report(
            batches=self._batches,
            batch_size=self._config.batch_size,
            coverage=self._coverage(),
            experiments=self._experiments(),
            composition=tuple(quota.sum_up(name) for name, quota in sorted(self._quotas.items(), key=_by_kind)),
            relaxed=dict(self._relaxed),
            tau_frames=dict(sorted(frames.items())),
            tau_hours=dict(sorted(hours.items())),
            bytes_used=self._bytes_used(),
            streaming=dict(streaming or {}),
        )

    def _bytes_used(self) -> int:
        """Add up the patches that were drawn; every patch of a block is taken as equally large, JSON included."""
        columns = self._index.columns
        first = np.append(columns.clip_first[columns.block_first[:-1]], len(self._used))
        used = np.diff(np.concatenate([[0], np.cumsum(self._used)])[first])
        return int((columns.block_bytes * (used / np.maximum(np.diff(first), 1))).sum())

    def _experiments(self) -> tuple[BatchShare, ...]:
        if not self._config.experiment_aware:
            return ()
        return tuple(
            BatchShare(
                experiment=name,
                asked=share,
                achieved=self._groups[name] / max(self._batches, 1),
                batches=self._groups[name],
            )
            for name, share in self._asked.batch_shares(self._index.sizes).items()
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


def find_anchors(index: PlanIndex, plan: BatchPlan) -> Int64[np.ndarray, " b"]:
    """Positions in `index.row` of a batch's anchors.

    Raises
    ------
    ValueError
        The batch has an anchor that the index doesn't list.
    """
    # in the dtype of the rows: numpy would copy all of them to another
    wanted = plan.anchor.astype(index.row.dtype)
    anchor = np.minimum(np.searchsorted(index.row, wanted), len(index.row) - 1)
    if (stray := index.row[anchor] != wanted).any():
        raise ValueError(
            f"Batch {plan.number} has patch row {int(plan.anchor[stray.argmax()])} as an anchor, which is none of the "
            f"{len(index.row):,} anchors of this index. Count batches with the index that they were planned from."
        )
    return anchor.astype(np.int64)


def _by_kind(item: tuple[str, _Quota]) -> int:
    """Leak first, then conditions, then the focal window; each kind in the order of its first batch."""
    return ["leak", "condition", "focal"].index(item[0].split()[0])
