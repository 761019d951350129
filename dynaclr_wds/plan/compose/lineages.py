"""Draws to batches: shares out one stratum's draws of a round so that lineages stay distinct within a batch.

Draws are sorted by lineage, then track, then observation, and given to one batch after another in turn. So no batch
gets two of a lineage unless the round holds more of it than it has batches; then tracks stay distinct as long as
possible, then observations. That is the stated order of relaxation, and no other sharing does better (Gale–Ryser).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer


def deal(
    rng: np.random.Generator,
    quota: Int64[np.ndarray, " r"],
    lineage: Integer[np.ndarray, " n"],
    track: Integer[np.ndarray, " n"],
    anchor: Integer[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Give each draw a batch.

    Parameters
    ----------
    quota
        Draws that each of r batches gets; adds up to n.
    lineage, track, anchor
        Of each draw; an anchor that is drawn twice stands there twice.

    Returns
    -------
    Batch of each draw.
    """
    if not len(lineage):
        return np.zeros(0, np.int64)
    # frequent lineages first: they meet the most batches there; equally frequent ones in random order
    _, where, count = np.unique(lineage, return_inverse=True, return_counts=True)
    rank = np.empty(len(count), np.int64)
    rank[np.lexsort((rng.random(len(count)), -count))] = np.arange(len(count))
    draws = np.lexsort((anchor, track, rank[where]))
    batches = np.lexsort((rng.random(len(quota)), -quota))
    # (turns, batches): in every turn, the batches that still lack a draw, in the same order each time
    open_slots = np.arange(int(quota.max()))[:, None] < quota[batches][None, :]
    slots = np.broadcast_to(batches, open_slots.shape)[open_slots]
    out = np.empty(len(draws), np.int64)
    out[draws] = slots
    return out


def separate(
    rng: np.random.Generator,
    batch: Int64[np.ndarray, " n"],
    stratum: Int64[np.ndarray, " n"],
    lineage: Integer[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Swap draws between batches so that lineages stay distinct across strata too.

    `deal` looks at one stratum. Where labels change along a track, a lineage may be drawn in several, and meet itself
    in a batch. Each such draw changes places with a random one of its stratum if then neither meets its lineage, so
    quotas are kept; where there is none it stays.

    Returns
    -------
    New batch of each draw.
    """
    batch, (_, code) = batch.copy(), np.unique(lineage, return_inverse=True)
    held = np.zeros((int(batch.max(initial=-1)) + 1, int(code.max(initial=-1)) + 1), np.int64)
    np.add.at(held, (batch, code), 1)
    members = {int(s): rng.permutation(np.flatnonzero(stratum == s)) for s in np.unique(stratum)}
    possible = np.bincount(code) <= len(held)  # a lineage with more draws than batches meets itself in any case
    for i in np.flatnonzero((held[batch, code] > 1) & possible[code]).tolist():
        if held[batch[i], code[i]] < 2:
            continue  # an earlier swap has solved it
        others = members[int(stratum[i])]
        free = (held[:, code[i]] == 0)[batch[others]] & (held[batch[i]] == 0)[code[others]]
        if free.any():
            j = others[int(free.argmax())]
            held[batch[i], code[i]] -= 1
            held[batch[j], code[j]] -= 1
            batch[i], batch[j] = batch[j], batch[i]
            held[batch[i], code[i]] += 1
            held[batch[j], code[j]] += 1
    return batch
