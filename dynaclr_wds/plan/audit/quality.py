"""Batches to numbers on how well they are mixed, beside a uniform draw of the same composition.

Counts pairs within a batch that share a stratify value, FOV, lineage or block, and how soon a lineage comes back.
The expectation is exact, not simulated: anchors drawn uniformly without replacement from the whole set's *bins*, a
bin being one stratum, inside or outside the batch's focal window. `docs/SAMPLING.md` defines every number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Float64, Int, Int64, Integer

from dynaclr_wds.plan.audit.expected_pairs import KINDS as SHARED
from dynaclr_wds.plan.audit.expected_pairs import UniformDraw, pairs, probability
from dynaclr_wds.plan.audit.ledger import find_anchors
from dynaclr_wds.plan.audit.targets import Targets
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.compose.positives import draw_positives, make_partners
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.compose.schedule import may_be_drawn
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator

KINDS = ("value", *SHARED)
"""What two anchors of a batch may share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collisions:
    """Pairs within a batch that share one kind of thing."""

    ratio: float | None
    """Pairs over those expected, all batches together: 1 is ideal, above is clumped; None where none is expected."""
    worst: float | None
    """The same of the worst batch; noisy where less than some ten pairs are expected in a batch."""
    expected: float
    """Pairs expected in a batch."""
    effective: float
    """Effective sample size of a batch, at most its size; from all batches together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a sequence of batches is mixed."""

    batches: int
    batch_size: int
    value_label: str
    """Labels that make a stratify value."""
    collisions: Mapping[str, Collisions]
    """Kind (value, fov, lineage, block) → its collisions."""
    repeat_median: float | None
    """Batches between two uses of a lineage, median; None when none is used twice."""
    repeat_tenth: float | None
    """The same, 10th percentile."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)


class QualityMeter:
    """Adds up batches.

    Parameters
    ----------
    uniform
        Over the index that the batches were planned from.
    config
        What was asked of them.
    """

    def __init__(self, uniform: UniformDraw, config: SamplingConfig) -> None:
        self._uniform = uniform
        self._config = config
        self._targets = Targets(uniform.index, config)
        self._sizes = uniform.index.sizes * may_be_drawn(uniform.index, config)
        self._rows: list[tuple[float, ...]] = []
        self._lineages: list[Int[np.ndarray, " _"]] = []

    def add(self, plan: BatchPlan) -> None:
        """Count one batch."""
        index = self._uniform.index
        anchor = find_anchors(index, plan)
        stratum = index.stratum(anchor)
        count = np.bincount(stratum, minlength=len(index.strata))
        lineage = index.lineage(anchor)
        own = {"fov": index.fov(anchor), "lineage": lineage, "block": index.block(anchor)}
        seen = [pairs(np.bincount(self._targets.value_of, count))]
        seen += [pairs(np.unique(own[kind], return_counts=True)[1]) for kind in SHARED]
        expected = [self._expected_values(plan, count)]
        expected += self._uniform.expected(*self._split(plan, anchor, stratum))
        self._rows.append((len(plan), *seen, *expected))
        self._lineages.append(np.unique(lineage).astype(np.int32))

    def _split(
        self, plan: BatchPlan, anchor: Int64[SampleIndex, " b"], stratum: Int64[np.ndarray, " b"]
    ) -> tuple[Int64[np.ndarray, "s 2"], Int64[np.ndarray, "s 2"]]:
        """Samples of each bin, and where its window lies."""
        spans = self._uniform.spans(plan.focal_hpi, self._config)
        inside = self._uniform.inside(anchor, plan.focal_hpi, self._config)
        strata = len(self._sizes)
        return np.bincount(2 * stratum + ~inside, minlength=2 * strata).reshape(strata, 2), spans

    def _expected_values(self, plan: BatchPlan, count: Int64[np.ndarray, " s"]) -> float:
        """Pairs of one stratify value: in the asked proportions, or in those of each group when nothing is asked."""
        targets, config = self._targets, self._config
        if config.condition_balanced:
            asked = targets.for_group(plan.group)
            by_value = np.bincount(targets.value_of, count, minlength=len(targets.values)).astype(np.int64)
            own = list(asked.values)
            by_value[own] = largest_remainder(int(by_value[own].sum()), np.array(asked.share))
            return pairs(by_value)
        source = targets.group_of if config.experiment_aware else np.zeros_like(targets.group_of)
        size = np.zeros((int(source.max()) + 1, len(targets.values)), np.int64)
        np.add.at(size, (source, targets.value_of), self._sizes)
        drawn = np.bincount(source, count)
        share = size / np.maximum(size.sum(1, keepdims=True), 1)
        within = sum(pairs(np.array([n])) * probability(k, int(n)) for n, k in zip(drawn, size, strict=True))
        mixed = (drawn[:, None] * share).sum(0)
        return float(within + ((mixed**2).sum() - ((drawn[:, None] * share) ** 2).sum()) / 2)

    def quality(self) -> Quality:
        """Sum up."""
        table = np.array(self._rows, np.float64).reshape(-1, 1 + 2 * len(KINDS))
        size, seen, expected = table[:, 0], table[:, 1 : 1 + len(KINDS)], table[:, 1 + len(KINDS) :]
        median, tenth = _repeat_distances(self._lineages)
        return Quality(
            batches=len(table),
            batch_size=self._config.batch_size,
            value_label=self._uniform.index.value_label,
            collisions={kind: _sum_up(size, seen[:, k], expected[:, k]) for k, kind in enumerate(KINDS)},
            repeat_median=median,
            repeat_tenth=tenth,
        )


def measure_quality(index: PlanIndex, config: SamplingConfig, plans: Iterable[BatchPlan]) -> Quality:
    """Measure a sequence of batches against the whole set that `index` lists."""
    meter = QualityMeter(UniformDraw(index), config)
    for plan in plans:
        meter.add(plan)
    return meter.quality()


def sample_ideal(
    uniform: UniformDraw, config: SamplingConfig, plans: Iterable[BatchPlan], epoch: int
) -> Iterator[BatchPlan]:
    """Draw batches of the same composition as others, but uniformly from the whole set: the control.

    Each takes as many anchors from each bin as its original has, without replacement unless the bin has fewer.
    """
    index = uniform.index
    partners = make_partners(index, np.arange(len(index.strata)))
    for plan in plans:
        rng = make_generator(Tag.IDEAL, config.seed, epoch, plan.number)
        anchor = find_anchors(index, plan)
        stratum, inside = index.stratum(anchor), uniform.inside(anchor, plan.focal_hpi, config)
        spans = uniform.spans(plan.focal_hpi, config)
        number, count = np.unique(2 * stratum + inside, return_counts=True)
        drawn = [
            uniform.sample(rng, c // 2, spans[c // 2], inside=c % 2 == 1, count=n)
            for c, n in zip(number.tolist(), count.tolist(), strict=True)
        ]
        ideal = cast(SampleIndex, rng.permutation(np.concatenate(drawn)))
        positive = draw_positives(rng, index, ideal, config.tau_decay_rate, partners)
        yield dataclasses.replace(
            plan,
            anchor=cast(PatchRow, index.row[ideal].astype(np.int64)),
            positive=positive.row,
            negative=None,
            anchor_choice=index.choice_of(ideal),
            positive_choice=positive.choice,
            negative_choice=None,
        )


def effective_size(
    size: Float64[np.ndarray, "*n"], seen: Float64[np.ndarray, "*n"], expected: Float64[np.ndarray, "*n"]
) -> Float64[np.ndarray, "*n"]:
    """Effective sample size B / (1 + (B − 1) ρ): B over the design effect (Kish 1965, *Survey Sampling*).

    ρ, the intra-class correlation, is estimated by the share of pairs that collide in excess of expectation,
    (P − E) / (1 − E) with P and E the fractions of pairs (the chance correction of Cohen 1960). Samples of a group are
    taken to be wholly alike, so the size is a lower bound. A batch mixed better than uniformly counts as uniform.
    """
    total = size * (size - 1) / 2
    share, by_chance = np.divide([seen, expected], total, out=np.zeros((2, *total.shape)), where=total > 0)
    rho = np.divide(share - by_chance, 1 - by_chance, out=np.zeros_like(share), where=by_chance < 1 - 1e-12)
    return size / (1 + (size - 1) * np.clip(rho, 0, 1))


def _sum_up(
    size: Float64[np.ndarray, " m"], seen: Float64[np.ndarray, " m"], expected: Float64[np.ndarray, " m"]
) -> Collisions:
    can = expected > 1e-12
    mean_size = size.mean(keepdims=True) if len(size) else np.zeros(1)
    together = [v.mean(keepdims=True) if len(v) else np.zeros(1) for v in (seen, expected)]
    return Collisions(
        ratio=float(seen.sum() / expected.sum()) if can.any() else None,
        worst=float((seen[can] / expected[can]).max()) if can.any() else None,
        expected=float(together[1][0]),
        effective=float(effective_size(mean_size, *together)[0]),
    )


def _repeat_distances(lineages: list[Int[np.ndarray, " _"]]) -> tuple[float | None, float | None]:
    """Median and 10th percentile of the batches between two uses of a lineage; uses in one batch are one."""
    if not lineages:
        return None, None
    lineage = np.concatenate(lineages)
    batch = np.repeat(np.arange(len(lineages), dtype=np.int32), [len(part) for part in lineages])
    order = np.argsort(lineage, kind="stable")
    again = np.diff(lineage[order]) == 0
    gaps: Integer[np.ndarray, " g"] = np.diff(batch[order])[again]
    if not len(gaps):
        return None, None
    median, tenth = np.quantile(gaps, [0.5, 0.1])
    return float(median), float(tenth)
