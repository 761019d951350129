"""Batches to an account of the epoch: counts what was covered, how batches were composed, what had to be relaxed.

Achieved values are counted from the batches themselves, never from the intentions that led to them; asked values
come from the config and the sizes of the set, never from the plan. So a shortfall shows whatever its cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat, cast

import numpy as np
from jaxtyping import Int64, UInt32

from dynaclr_wds.plan.audit.report import BatchShare, Composition, Report, StratumCoverage
from dynaclr_wds.plan.audit.targets import Targets
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.compose.focal_window import in_focal_window
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex, Stratum

_ROUNDING = 1e-6  # rounding error of floats that still counts as one whole sample


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
            missed=int((off * size > 1 + _ROUNDING).sum()),
        )


class Ledger:
    """Adds up batches.

    Parameters
    ----------
    index
        What the batches were planned from.
    config
        What was asked of them.
    substituted
        Shard → samples that could not be read and were replaced, as the loader counted.
    """

    def __init__(self, index: PlanIndex, config: SamplingConfig, substituted: Mapping[str, int] | None = None) -> None:
        self._substituted = dict(substituted or {})
        self._index = index
        self._config = config
        self._targets = Targets(index, config)
        self._draws = np.zeros(len(index.row), np.uint32)
        self._used = np.zeros(len(index.columns.patch_obs), bool)
        self._relaxed: Counter[str] = Counter(lineage=0, track=0, observation=0)
        self._tau: Counter[tuple[float, int]] = Counter()
        self._partners: Counter[str] = Counter()
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
            self._add_positives(plan.anchor, plan.positive, stratum)
        self._add_composition(plan, np.bincount(stratum, minlength=len(index.strata)))
        if self._config.temporal_enrichment:
            inside = in_focal_window(index.hpi(anchor), plan.focal_hpi, self._config.temporal_window_hours)
            self._note("focal window", 1 - self._config.temporal_global_fraction, inside.sum(), len(plan))
        self._groups[plan.group] += 1
        self._batches += 1

    def _add_positives(
        self, anchor: Int64[PatchRow, " b"], positive: Int64[PatchRow, " b"], stratum: Int64[np.ndarray, " b"]
    ) -> None:
        columns = self._index.columns
        if self._index.positives.kind == "temporal":
            tau = columns.patch_t[positive].astype(np.int64) - columns.patch_t[anchor]
            self._tau.update(zip(self._interval[stratum].tolist(), tau.tolist(), strict=True))
        elif self._index.positives.kind == "columns":
            lineage, other = (columns.clip_lineage[columns.patch_clip[rows]] for rows in (anchor, positive))
            itself = columns.patch_obs[anchor] == columns.patch_obs[positive]
            self._partners.update(same_lineage=int(((lineage == other) & ~itself).sum()), itself=int(itself.sum()))

    def _add_composition(self, plan: BatchPlan, count: Int64[np.ndarray, " s"]) -> None:
        config, size = self._config, len(plan)
        targets = self._targets.for_group(plan.group)
        if plan.group:
            self._note("leak", config.leaky, size - (count * targets.own).sum(), size)
        if config.condition_balanced:
            by_value = np.bincount(self._targets.value_of, count, minlength=len(self._targets.values))
            # leaked samples of a value that the group lacks can't count towards any of its own
            base = by_value[list(targets.values)].sum() / size
            for value, share in zip(targets.values, targets.share, strict=True):
                name = f"{self._index.value_label} {self._targets.values[value]}"
                name += f" in {plan.group}" if plan.group else ""
                self._note(name, share * base, by_value[value], size)

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
            From `bytes_read.account_bytes`; the measured peak may be among it.
        """
        frames: Counter[int] = Counter()
        hours: Counter[float] = Counter()
        for (interval, tau), count in self._tau.items():
            frames[tau] += count
            hours[round(tau * interval / 60, 6)] += count
        return Report(
            batches=self._batches,
            batch_size=self._config.batch_size,
            group_label=self._index.group_label,
            value_label=self._index.value_label,
            coverage=self._coverage(),
            groups=self._group_shares(),
            composition=tuple(quota.sum_up(name) for name, quota in sorted(self._quotas.items(), key=_by_kind)),
            relaxed=dict(self._relaxed),
            tau_frames=dict(sorted(frames.items())),
            tau_hours=dict(sorted(hours.items())),
            partners=dict(self._partners),
            bytes_used=self._bytes_used(),
            substituted=self._substituted,
            streaming=dict(streaming or {}),
        )

    def _bytes_used(self) -> int:
        """Add up the patches that were drawn; every patch of a block is taken as equally large, JSON included."""
        columns = self._index.columns
        first = np.append(columns.clip_first[columns.block_first[:-1]], len(self._used))
        used = np.diff(np.concatenate([[0], np.cumsum(self._used)])[first])
        return int((columns.block_bytes * (used / np.maximum(np.diff(first), 1))).sum())

    def _group_shares(self) -> tuple[BatchShare, ...]:
        if not self._config.experiment_aware:
            return ()
        return tuple(
            BatchShare(
                group=name,
                asked=share,
                achieved=self._groups[name] / max(self._batches, 1),
                batches=self._groups[name],
            )
            for name, share in self._targets.batch_shares(self._index.sizes).items()
        )

    def _coverage(self) -> tuple[StratumCoverage, ...]:
        index = self._index
        parts = np.split(self._draws, index.first[1:-1])
        out = [_cover(*of) for of in zip(index.strata, parts, index.without_positive, strict=False)]
        return (*out, *(_cover(stratum, self._draws[:0], samples) for stratum, samples in index.barren))


def _cover(stratum: Stratum, draws: UInt32[np.ndarray, " n"], without_positive: int) -> StratumCoverage:
    """Count the draws of each anchor of a stratum."""
    unique = int((draws > 0).sum())
    return StratumCoverage(
        experiment=stratum.experiment,
        group=stratum.group_name,
        value=stratum.value_name,
        anchors=len(draws),
        unique=unique,
        repeated=int(draws.sum(dtype=np.int64)) - unique,
        never_seen=len(draws) - unique,
        often=int((draws > 2).sum()),
        most_repeats=int(draws.max(initial=0)),
        without_positive=without_positive,
    )


def find_anchors(index: PlanIndex, plan: BatchPlan) -> Int64[SampleIndex, " b"]:
    """Find the anchors of a batch in the index.

    Raises
    ------
    ValueError
        The batch has an anchor that the index doesn't list.
    """
    anchor = index.find(plan.anchor, plan.anchor_choice)
    if (anchor < 0).any():
        raise ValueError(
            f"Batch {plan.number} has patch row {int(plan.anchor[anchor.argmin()])} as an anchor, which is not among "
            f"the {len(index.row):,} anchors of this index. Count batches with the index that they were planned from."
        )
    return cast(SampleIndex, anchor)


def _by_kind(item: tuple[str, _Quota]) -> int:  # the order in which quotas are reported
    return {"leak": 0, "focal window": 2}.get(item[0], 1)
