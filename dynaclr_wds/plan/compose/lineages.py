"""Draws to batches: shares out the draws of a round so that lineages stay distinct within a batch.

Draws of a stratum are sorted by lineage, then track, then observation, and given to one batch after another in turn.
So no batch gets two of a lineage unless the round holds more of it than it has batches; then tracks stay distinct as
long as possible, then observations. That is the stated order of relaxation. No other sharing does better (Gale–Ryser)
unless a lineage has more draws than the round has batches: then others may meet where they need not, in rare cases.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer

from dynaclr_wds.plan.rng import sort_small


def deal(
    rng: np.random.Generator,
    quota: Int64[np.ndarray, "r k"],
    lineage: Integer[np.ndarray, " n"],
    track: Integer[np.ndarray, " n"],
    anchor: Integer[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Give each draw a batch.

    Parameters
    ----------
    quota
        Draws of each of k strata that each of r batches gets; a stratum's add up to its draws.
    lineage, track, anchor
        Of each draw, stratum after stratum; an anchor that is drawn twice stands there twice.

    Returns
    -------
    Batch of each draw.
    """
    stratum = np.repeat(np.arange(quota.shape[1]), quota.sum(0))
    # frequent lineages first: they meet the most batches there; equally frequent ones in random order
    span = int(lineage.max(initial=0)) + 1
    known, where, count = np.unique(stratum * span + lineage, return_inverse=True, return_counts=True)
    rank = np.empty(len(count), np.int64)
    rank[_order_frequent(rng, known // span, count)] = np.arange(len(count))
    draws = sort_small(rank[where])
    several = (count > 1)[where[draws]]  # draws of a lineage by track and observation; they stand together
    again = draws[several]
    draws[several] = again[np.lexsort((anchor[again], track[again], rank[where[again]]))]
    # in every turn of a stratum, the batches that still lack a draw, in the same order each time
    of, batch = np.nonzero(quota.T)
    size = quota[batch, of]
    order = _order_frequent(rng, of, size)
    of, batch, size = of[order], batch[order], size[order]
    turn = np.arange(len(stratum)) - np.repeat(np.cumsum(size) - size, size)
    slots = sort_small(np.repeat(of, size) * (int(turn.max(initial=0)) + 1) + turn)
    out = np.empty(len(draws), np.int64)
    out[draws] = np.repeat(batch, size)[slots]
    return out


def _order_frequent(
    rng: np.random.Generator, part: Integer[np.ndarray, " n"], count: Integer[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Order things part by part, those of large counts first, equal ones in random order."""
    most = int(count.max(initial=0))
    order = np.argsort(rng.random(len(count)), kind="stable")
    return order[sort_small((part * (most + 1) + most - count)[order])]


def separate(
    rng: np.random.Generator,
    batch: Int64[np.ndarray, " n"],
    stratum: Int64[np.ndarray, " n"],
    lineage: Integer[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Swap draws between batches so that lineages stay distinct across strata too.

    `deal` looks at one stratum. Where labels change along a track, a lineage may be drawn in several, and meet itself
    in a batch. Each such draw changes places with a random one of its stratum if then neither meets its lineage, so
    quotas are kept. This goes on until no exchange is left that helps.

    Returns
    -------
    New batch of each draw.
    """
    batch, (_, code) = batch.copy(), np.unique(lineage, return_inverse=True)
    held = np.zeros((int(batch.max(initial=-1)) + 1, int(code.max(initial=-1)) + 1), np.int64)
    np.add.at(held, (batch, code), 1)
    members: dict[int, Int64[np.ndarray, " _"]] = {}
    moved = True
    while moved:
        moved = False
        for i in np.flatnonzero(held[batch, code] > 1).tolist():
            lacking = held[:, code[i]] == 0
            if held[batch[i], code[i]] < 2 or not lacking.any():
                continue  # an earlier exchange has solved it, or none can
            own = int(stratum[i])
            if own not in members:
                members[own] = rng.permutation(np.flatnonzero(stratum == own))
            others = members[own]
            free = lacking[batch[others]] & (held[batch[i]] == 0)[code[others]]
            if free.any():
                _exchange(batch, held, code, i, int(others[int(free.argmax())]))
                moved = True
    return batch


def _exchange(
    batch: Int64[np.ndarray, " n"], held: Int64[np.ndarray, "r l"], code: Integer[np.ndarray, " n"], i: int, j: int
) -> None:
    """Exchange the batches of two draws, and keep count of what each batch holds."""
    held[batch[[i, j]], code[[i, j]]] -= 1
    batch[i], batch[j] = batch[j], batch[i]
    held[batch[[i, j]], code[[i, j]]] += 1
