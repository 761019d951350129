"""Draws to batches: deal one stratum's draws of a round to its batches so that lineages stay apart.

Cards sorted by lineage, then track, then observation, dealt one to each player in turn: no batch gets two of a
lineage unless the round holds more of it than it has batches, then tracks stay apart as long as possible, then
observations. That is the stated order of relaxation, and the best that can be done (Gale–Ryser).
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
    # frequent lineages first: they meet the most batches there; equals in random order
    _, where, count = np.unique(lineage, return_inverse=True, return_counts=True)
    rank = np.empty(len(count), np.int64)
    rank[np.lexsort((rng.random(len(count)), -count))] = np.arange(len(count))
    cards = np.lexsort((anchor, track, rank[where]))
    players = np.lexsort((rng.random(len(quota)), -quota))
    # (levels, players): in every turn, those who still lack a card, the same order each time
    open_seats = np.arange(int(quota.max()))[:, None] < quota[players][None, :]
    seats = np.broadcast_to(players, open_seats.shape)[open_seats]
    out = np.empty(len(cards), np.int64)
    out[cards] = seats
    return out
