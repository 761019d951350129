"""Order of batches to leak: chooses the strata of other groups that each batch takes its leaked samples from.

Only groups that are within reach at the same time leak into each other. In exact mode these are all; in streaming they
change as groups come and go, so the epoch is cut into pieces in which they don't. A group that no batch may be about
is none of the groups here, so nothing leaks from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.compose.quotas import interleave, largest_remainder, proportional_matrix, spread
from dynaclr_wds.plan.compose.schedule import Group
from dynaclr_wds.plan.config import SamplingConfig


def plan_leaks(
    groups: Sequence[Group],
    order: Int64[np.ndarray, " n"],
    reach: Int64[np.ndarray, "g 2"],
    sizes: Int64[np.ndarray, " s"],
    config: SamplingConfig,
) -> list[Int64[np.ndarray, "_ s"]]:
    """Count the samples that each batch takes from each stratum of other groups.

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
    Per group, (its batches, strata). The number of leaked samples is exact over each group's batches, as long as
    another group is within reach.
    """
    counts = np.bincount(order, minlength=len(groups))
    out = [np.zeros((m, len(sizes)), np.int64) for m in counts]
    if config.leaky == 0 or len({g.name for g in groups}) < 2:
        return out
    fraction = np.array([config.leaky, 1 - config.leaky])
    wanted = [spread(np.full(m, config.batch_size), fraction)[:, 0] for m in counts]
    done = np.zeros(len(groups), np.int64)
    edges = np.unique(reach)
    for begin, end in pairwise(edges.tolist()):
        here = np.bincount(order[begin:end], minlength=len(groups))
        active = np.flatnonzero((reach[:, 0] <= begin) & (reach[:, 1] >= end))
        demand = [wanted[g][done[g] : done[g] + here[g]] for g in active]
        for g, row, source in zip(active, demand, _sources(groups, active, demand, sizes), strict=True):
            if row.sum() and source.sum():
                labels = interleave(largest_remainder(int(row.sum()), source))
                np.add.at(out[g], (done[g] + np.repeat(np.arange(len(row)), row), labels), 1)
        done += here
    return out


def _sources(
    groups: Sequence[Group],
    active: Int64[np.ndarray, " a"],
    demand: Sequence[Int64[np.ndarray, " _"]],
    sizes: Int64[np.ndarray, " s"],
) -> Float64[np.ndarray, "a s"]:
    """How much each active group takes from each stratum, none from its own group."""
    total = np.array([float(d.sum()) for d in demand])
    supply = np.array([float(sizes[groups[g].strata].sum()) for g in active])
    allowed = np.array([[groups[g].name != groups[h].name for h in active] for g in active])
    flow = proportional_matrix(total, supply * (total.sum() / max(supply.sum(), 1.0)), allowed)
    out = np.zeros((len(active), len(sizes)))
    for column, h in enumerate(active):
        out[:, groups[h].strata] += flow[:, column, None] * groups[h].share
    return out
