"""Index to batch size: finds the largest one at which no two samples of a batch share a lineage, by planning it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.audit.ledger import find_anchors
from dynaclr_wds.plan.compose.schedule import plan_groups
from dynaclr_wds.plan.config import PositiveRule
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.sampler import FlexibleBatchSampler

_WHOLE = 1 << 14  # anchors up to which whole epochs are planned
_TRIED, _VERIFIED = 64, 512  # batches that are planned to try a size, and to verify the one that is found


def count_lineages(index: PlanIndex) -> Int64[np.ndarray, " s"]:
    """Count the lineages that have anchors in each stratum."""
    seen = np.zeros(int(index.columns.clip_lineage.max(initial=-1)) + 1, bool)
    out = np.zeros(len(index.strata), np.int64)
    for s, (begin, end) in enumerate(zip(index.first[:-1].tolist(), index.first[1:].tolist(), strict=True)):
        clip = index.columns.patch_clip[index.row[begin:end]]  # ascending
        lineage = index.columns.clip_lineage[clip[np.flatnonzero(np.diff(clip, prepend=-1))]]
        seen[lineage] = True
        out[s] = np.count_nonzero(seen)
        seen[lineage] = False
    return out


def find_batch_size(sampler: FlexibleBatchSampler, tolerated: float = 0.0) -> int:
    """Find the largest batch size, below the sampler's, at which no two samples of a batch share a lineage.

    Sizes are tried by cutting the interval again and again, each with a whole epoch. Where the set is large, each is
    tried with a few rounds of batches; the one that is found is planned once more with more of them, and gives way to a
    smaller one until none of these shares a lineage.

    Parameters
    ----------
    sampler
        Everything but the size stays as it is there.
    tolerated
        Fraction of the samples that may be of a lineage that their batch already holds.

    Returns
    -------
    The size; 1 when there is no larger one.
    """
    whole = len(sampler.index.row) <= _WHOLE
    best, limit = 1, sampler.config.batch_size if tolerated else _most_possible(sampler) + 1
    while limit - best > 1:
        middle = max(math.isqrt(best * limit), best + 1)
        if is_distinct(sampler, middle, tolerated, _WHOLE if whole else _TRIED):
            best = middle
        else:
            limit = middle
    while best > 1 and not whole and not is_distinct(sampler, best, tolerated, _VERIFIED):
        best = best * 3 // 4
    return best


def _most_possible(sampler: FlexibleBatchSampler) -> int:
    """Bound the size from above: a batch takes no more samples of a stratum than it has lineages."""
    index, config = sampler.index, sampler.epoch_config
    lineages, most = count_lineages(index), config.batch_size - 1
    for group in plan_groups(index, index.sizes, config):
        for stratum, share in zip(group.strata.tolist(), group.share.tolist(), strict=True):
            # a batch may be one sample below its quota
            most = min(most, int((lineages[stratum] + 1) / max(share * (1 - config.leaky), 1e-9)))
    return max(most, 1)


def is_distinct(sampler: FlexibleBatchSampler, batch_size: int, tolerated: float, most: int) -> bool:
    """Whether lineages are distinct in the planned batches of this size, but for what is tolerated."""
    config = dataclasses.replace(sampler.config, batch_size=batch_size)
    index = dataclasses.replace(sampler.index, positives=PositiveRule(kind="self"), match=None)  # only anchors matter
    streams = None if sampler.window_bytes is None else sampler.num_streams
    try:
        other = FlexibleBatchSampler(index, config, window_bytes=sampler.window_bytes, num_streams=streams)
        other.set_epoch(sampler.epoch)
        numbers = other.sample_batches(most).tolist()
        left = tolerated * len(numbers) * batch_size
        for number in numbers:
            anchor = find_anchors(index, other.plan(number))
            left -= batch_size - len(np.unique(index.lineage(anchor)))
            if left < 0:
                return False
    except ConfigError:  # a window that can't hold the rounds of this size
        return False
    return True
