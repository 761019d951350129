"""A planned batch to who is in it: cells of each experiment and condition, beside what was asked of the batch.

Counted from the batch itself; what was asked comes from the ledger, which works it out from the config. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.plan.audit.ledger import Ledger, find_anchors
from dynaclr_wds.plan.audit.report import Composition
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The samples of a batch that are of one experiment, group and value."""

    name: str
    samples: int
    lineages: int
    fovs: int
    hpi: tuple[float, float, float]
    """Earliest, median and latest, in hours post infection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Who shares a batch."""

    number: int
    """Place in the epoch, from 0."""
    group: str
    """Group that the batch is about; empty when it is about all."""
    focal_hpi: float
    """Time that most samples are near; NaN without temporal enrichment."""
    parts: tuple[Part, ...]
    hpi: Float64[np.ndarray, " b"]
    """Of each sample."""
    part_of: Int64[np.ndarray, " b"]
    """Place in `parts` of each sample."""
    asked: tuple[Composition, ...]
    """Shares that were asked for, beside those of this batch."""
    meet: Bool[np.ndarray, " b"]
    """Samples whose lineage another sample of the batch has: their negatives are positives."""
    lineages: int
    tau_hours: dict[float, int]
    """τ in hours → positives; empty where positives are not later cells."""

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.hpi)


def describe_company(plan: BatchPlan, index: PlanIndex, config: SamplingConfig) -> Company:
    """Say who is in a batch.

    Parameters
    ----------
    plan
        The batch.
    index
        What it was planned from.
    config
        What was asked of it, in its epoch.
    """
    anchor = find_anchors(index, plan)
    stratum, hpi = index.stratum(anchor), index.hpi(anchor)
    lineage, fov = index.lineage(anchor), index.fov(anchor)
    present, part_of = np.unique(stratum, return_inverse=True)
    parts = []
    for place, number in enumerate(present.tolist()):
        own = part_of == place
        early, middle, late = np.quantile(hpi[own], [0, 0.5, 1]).tolist()
        parts.append(
            Part(
                name=index.strata[number].name,
                samples=int(own.sum()),
                lineages=len(np.unique(lineage[own])),
                fovs=len(np.unique(fov[own])),
                hpi=(early, middle, late),
            )
        )
    _, of, count = np.unique(lineage, return_inverse=True, return_counts=True)
    ledger = Ledger(index, config)
    ledger.add(plan)
    counted = ledger.report()
    return Company(
        number=plan.number,
        group=plan.group,
        focal_hpi=plan.focal_hpi,
        parts=tuple(parts),
        hpi=hpi,
        part_of=part_of.reshape(-1).astype(np.int64),
        asked=counted.composition,
        meet=count[of.reshape(-1)] > 1,
        lineages=len(count),
        tau_hours=dict(counted.tau_hours),
    )


def choose_samples(part_of: Int64[np.ndarray, " b"], count: int) -> Int64[np.ndarray, " k"]:
    """Choose samples to show, as many of each part as can be, in the order of the batch."""
    queues: Sequence[list[int]] = [np.flatnonzero(part_of == part).tolist() for part in np.unique(part_of)]
    longest = max((len(queue) for queue in queues), default=0)
    dealt = [queue[n] for n in range(longest) for queue in queues if n < len(queue)]
    return np.sort(np.array(dealt[:count], np.int64))
