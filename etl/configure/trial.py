"""Tries batches on what shards would hold: plans an epoch as a training does before its first step, and judges it.

The plan is the training's own (`dynaclr_wds.plan`), on an index that holds the cells with a positive and nothing else.
Clips and blocks matter only where shards are streamed, so here a lineage is one clip. No pixel is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from dynaclr_wds.plan.audit.batch_size import is_distinct
from dynaclr_wds.plan.audit.ledger import Ledger
from dynaclr_wds.plan.audit.verdict import count_judged, judge
from dynaclr_wds.plan.columns import CodeBook, ExperimentClock, PlanColumns
from dynaclr_wds.plan.config import PositiveRule, SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.listing import plan_index
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from etl.configure.facts import ExperimentFacts

MOST_SAMPLES, LEAST_SAMPLES = 256, 2
"""Of a batch."""
_SIZES = (256, 224, 192, 160, 128, 112, 96, 80, 64, 56, 48, 40, 32, 28, 24, 20, 16, 14, 12, 10, 8, 6, 4, 3, 2)
"""Sizes that are tried."""
_KEPT = 0.75
"""More than this share of a batch has to be left with temporal enrichment."""
_FROM, _SPARE = 8, 24
"""From this size on, lineages have to stay distinct in batches that are larger by one in so many samples, at least by
one: shards lay cells out in another order, and a size that is just so possible here may not be so there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """What batches of a training can be."""

    size: int
    enriched: bool
    """Whether most of a batch is near one time."""
    troubles: frozenset[str]
    """What the verdict on these batches is about; empty where all is well."""


def choose_batches(facts: Sequence[ExperimentFacts], asked: SamplingConfig, most: int) -> Batches:
    """Find the largest batches that the verdict of the training has nothing to say against.

    Temporal enrichment is left out where it alone would spoil the verdict, or cost a quarter of the batch.

    Parameters
    ----------
    facts
        The experiments that are trained on.
    asked
        The sampling of the config; its size is not looked at.
    most
        Size that is not worth trying above: as many distinct lineages as the poorest experiment has for a batch.
    """
    index = index_anchors(facts)
    if index is None:
        return Batches(size=LEAST_SAMPLES, enriched=asked.temporal_enrichment, troubles=frozenset())
    sizes = [size for size in _SIZES if size <= most] or [LEAST_SAMPLES]
    plain = _largest(index, replace(asked, temporal_enrichment=False), sizes)
    if not asked.temporal_enrichment:
        return plain
    enriched = _largest(index, asked, sizes, but=plain.troubles)
    keeps = enriched.troubles <= plain.troubles and enriched.size > _KEPT * plain.size
    return enriched if keeps else plain


def _largest(
    index: PlanIndex, asked: SamplingConfig, sizes: Sequence[int], but: frozenset[str] = frozenset()
) -> Batches:
    """Take the first size without troubles but these; where there is none, the first without shared lineages."""
    tried = []
    for size in sizes:
        found = Batches(
            size=size,
            enriched=asked.temporal_enrichment,
            troubles=find_troubles(index, replace(asked, batch_size=size)),
        )
        if found.troubles <= but:
            return found
        tried.append(found)
    return next((found for found in tried if "lineages" not in found.troubles), tried[-1])


def find_troubles(index: PlanIndex, config: SamplingConfig) -> frozenset[str]:
    """Return what the verdict on the first epoch is about."""
    sampler, ledger = FlexibleBatchSampler(index, config), Ledger(index, config)
    size, most = config.batch_size, count_judged(config.batch_size)
    spare = max(size // _SPARE, 1) if size >= _FROM else 0
    if not (is_distinct(sampler, size + spare, 0.0, most) and is_distinct(sampler, size, 0.0, most)):
        return frozenset({"lineages"})  # the verdict would also look for a size that does, which takes long
    numbers = sampler.sample_batches(most).tolist()
    for number in numbers:
        ledger.add(sampler.plan(number))
    report = ledger.report()
    notes = judge(sampler, report, None, whole=len(numbers) == sampler.global_batches)
    return frozenset(note.about for note in notes if note.level != "good")


def index_anchors(facts: Sequence[ExperimentFacts]) -> PlanIndex | None:
    """List the anchors of experiments; None where there is no anchor."""
    if not sum(fact.anchors for fact in facts):
        return None
    conditions = tuple(dict.fromkeys(name for fact in facts for name in fact.cells.conditions))
    experiment, condition, lineage, t = _sort_cells(facts, conditions)
    clip = _number_runs(experiment, condition, lineage)
    first = np.flatnonzero(np.diff(clip, prepend=-1))
    block = _number_runs(experiment[first], condition[first])
    block_first = np.flatnonzero(np.diff(block, prepend=-1))
    columns = PlanColumns(
        patch_obs=np.arange(len(t)),
        patch_clip=clip,
        patch_t=t,
        patch_is_sample=np.ones(len(t), bool),
        patch_has_candidate=np.ones(len(t), bool),
        clip_first=np.append(first, len(t)),
        clip_lineage=np.arange(len(first)),
        clip_block=block,
        block_first=np.append(block_first, len(first)),
        block_bytes=np.ones(len(block_first), np.int64),
        block_partition=np.arange(len(block_first)),
        obs_track=clip,
        obs_track_id=clip,
        obs_parent_track_id=np.full(len(t), -1),
        obs_fov=experiment,  # of FOVs nothing is asked
        fov_experiment=np.arange(len(facts)),
        labels={"experiment": experiment, "condition": condition},
    )
    begin = first[block_first]
    codes = _name_codes(facts, conditions, zip(experiment[begin].tolist(), condition[begin].tolist(), strict=True))
    alike = PositiveRule(kind="self")  # each of these cells has a positive; which one doesn't matter here
    return plan_index(
        columns, codes, (0.0, 0.0), batch_group_by=("experiment",), stratify_by=("condition",), positives=alike
    )


def _sort_cells(
    facts: Sequence[ExperimentFacts], conditions: Sequence[str]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return experiment, condition, lineage and frame of all cells, in this order."""
    experiment = np.repeat(np.arange(len(facts)), [fact.anchors for fact in facts])
    condition = np.concatenate(
        [np.array([conditions.index(n) for n in f.cells.conditions], np.int64)[f.cells.condition] for f in facts]
    )
    lineage = np.concatenate([fact.cells.lineage for fact in facts])
    t = np.concatenate([fact.cells.t for fact in facts])
    order = np.lexsort((t, lineage, condition, experiment))
    return experiment[order], condition[order], lineage[order], t[order]


def _name_codes(
    facts: Sequence[ExperimentFacts], conditions: tuple[str, ...], partitions: Iterable[tuple[int, int]]
) -> CodeBook:
    """Say what the codes stand for; partitions are pairs of experiment and condition."""
    clocks = [
        ExperimentClock(name=f.name, interval_minutes=f.interval_minutes, start_hpi=f.start_hpi, tau_frames=(0, 0))
        for f in facts
    ]
    names = [{"experiment": facts[e].name, "condition": conditions[c]} for e, c in partitions]
    values = {"experiment": [fact.name for fact in facts], "condition": conditions}
    return CodeBook(values=values, partitions=names, experiments=clocks)


def _number_runs(*columns: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number the runs of rows that are alike."""
    changes = np.zeros(len(columns[0]), bool)
    for column in columns:
        changes |= np.diff(column, prepend=column[:1]) != 0
    return np.cumsum(changes)
