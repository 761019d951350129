"""Order of batches to leak: chooses the strata of other groups that each batch takes its leaked samples from.

Only groups that are within reach at the same time leak into each other. In exact mode these are all; in streaming they
change as groups come and go, so the epoch is cut into pieces in which they don't. A group that no batch may be about
is none of the groups here, so nothing leaks from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.compose.group_quotas import MANY, Group, Leak
from dynaclr_wds.plan.compose.quotas import (
    interleave,
    largest_remainder,
    merge_evenly,
    proportional_matrix,
    sample_counts,
    spread,
)
from dynaclr_wds.plan.config import SamplingConfig


def plan_leaks(
    rng: np.random.Generator,
    groups: Sequence[Group],
    order: Int64[np.ndarray, " n"],
    reach: Int64[np.ndarray, "g 2"],
    sizes: Int64[np.ndarray, " s"],
    config: SamplingConfig,
) -> list[Leak]:
    """Choose the strata that each batch takes its leaked samples from.

    Parameters
    ----------
    groups
        What main parts are drawn from.
    order
        Group of every batch, in order.
    reach
        Of each group, the batches (begin, end) of the order during which it is within reach.
    sizes
        Anchors per stratum: others take from a group in proportion to its size.
    config
        Gives `leaky` and `batch_size`.

    Returns
    -------
    Per group. The number of leaked samples is exact over each group's batches, as long as another group is within
    reach.
    """
    counts = np.bincount(order, minlength=len(groups))
    if config.leaky == 0 or len({g.name for g in groups}) < 2:
        return [Leak(stratum=np.zeros(0, np.int32), first=np.zeros(m + 1, np.int64)) for m in counts.tolist()]
    fraction = np.array([config.leaky, 1 - config.leaky])
    wanted = [spread(np.full(m, config.batch_size), fraction)[:, 0] for m in counts]
    parts = [[np.zeros(0, np.int64)] for _ in groups]
    done = np.zeros(len(groups), np.int64)
    edges = np.unique(reach)
    for begin, end in pairwise(edges.tolist()):
        here = np.bincount(order[begin:end], minlength=len(groups))
        active = np.flatnonzero((reach[:, 0] <= begin) & (reach[:, 1] >= end))
        demand = [wanted[g][done[g] : done[g] + here[g]] for g in active]
        for g, row, source in zip(active, demand, _sources(groups, active, demand, sizes), strict=True):
            if row.sum() and source.any():
                parts[g].append(_lay_out(rng, int(row.sum()), source))
            else:
                row[:] = 0  # nothing is within reach to leak from
        done += here
    return [
        Leak(stratum=np.concatenate(own).astype(np.int32), first=np.concatenate([[0], np.cumsum(n)]).astype(np.int64))
        for own, n in zip(parts, wanted, strict=True)
    ]


def _lay_out(rng: np.random.Generator, total: int, source: Float64[np.ndarray, " s"]) -> Int64[np.ndarray, " total"]:
    """Lay out so many leaked samples by source, those of a stratum evenly over the batches."""
    some = np.flatnonzero(source)
    if len(some) <= MANY:
        return some[interleave(largest_remainder(total, source[some]))]
    count = sample_counts(rng, total, source[some])
    return np.repeat(some, count)[merge_evenly(rng, count)]


def _sources(
    groups: Sequence[Group],
    active: Int64[np.ndarray, " a"],
    demand: Sequence[Int64[np.ndarray, " _"]],
    sizes: Int64[np.ndarray, " s"],
) -> Iterator[Float64[np.ndarray, " s"]]:
    """How much each active group takes from each stratum, none from its own group."""
    total = np.array([float(d.sum()) for d in demand])
    supply = np.array([float(sizes[groups[g].strata].sum()) for g in active])
    _, name = np.unique([groups[g].name for g in active], return_inverse=True)
    flow = proportional_matrix(total, supply * (total.sum() / max(supply.sum(), 1.0)), name[:, None] != name[None, :])
    for row in flow:
        out = np.zeros(len(sizes))
        for part, h in zip(row.tolist(), active.tolist(), strict=True):
            out[groups[h].strata] += part * groups[h].share
        yield out
