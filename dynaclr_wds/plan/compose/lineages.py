"""Draws to batches: shares out the draws of a round so that lineages stay distinct within a batch.

Draws of a stratum are sorted by lineage and given to one batch after another in turn. Where a lineage would then meet
itself, each goes to the batches that lack most. So the draws that share their lineage with one of their batch are as
few as can be, whatever the quotas. The tracks of a lineage that meets itself are dealt likewise, then the observations
of a track: that is the stated order of relaxation.

No other way of dealing does better. Of a lineage that has more draws than the stratum has batches, as many part as
there are batches, and each other one shares its lineage wherever it goes: it can come last, like a lineage of one draw.
The others are a table of 0 and 1 with given sums, of which giving to those that lack most makes the fullest (Gale 1957,
Ryser 1957). Where no lineage of several draws meets itself, none is lacking.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from dynaclr_wds.plan.rng import sort_small


class Slots(NamedTuple):
    """What the batches get of each part; parts ascending, each (part, batch) once."""

    part: Int64[np.ndarray, " c"]
    batch: Int64[np.ndarray, " c"]
    size: Int64[np.ndarray, " c"]
    """Draws, > 0."""


def deal(
    rng: np.random.Generator,
    quota: Int64[np.ndarray, "r k"],
    lineage: Integer[np.ndarray, " n"],
    track: Integer[np.ndarray, " n"],
    anchor: Integer[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Give each draw a batch.

    The draws of a stratum that share their lineage with another of their batch are as few as can be; of a lineage,
    given how many of it each batch has, those that share their track; and of a track those that are one observation.

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
    stratum, batch = np.nonzero(quota.T)
    slots = Slots(stratum, batch, quota[batch, stratum])
    return _deal_parts(rng, np.repeat(np.arange(quota.shape[1]), quota.sum(0)), (lineage, track, anchor), slots)


def _deal_parts(
    rng: np.random.Generator,
    part: Int64[np.ndarray, " n"],
    values: Sequence[Integer[np.ndarray, " n"]],
    slots: Slots,
) -> Int64[np.ndarray, " n"]:
    """Give each draw a batch, so that those of a value part; where they can't, those of its next value.

    Parameters
    ----------
    part
        Of each draw, ascending; a part's draws are as many as its slots.
    values
        What is to be distinct in a batch; each of the next ones only where the one before it isn't.
    """
    span = int(values[0].max(initial=0)) + 1
    known, where, count = np.unique(part * span + values[0], return_inverse=True, return_counts=True)
    owner = known // span
    # frequent values first: they meet the most batches there; equally frequent ones in random order
    order = _order_frequent(rng, owner, count)
    slots = Slots(*(of[_order_frequent(rng, slots.part, slots.size)] for of in slots))
    batch, width = _take_turns(slots)
    parted = np.minimum(count, np.bincount(slots.part)[owner])  # draws of each value that get a batch each
    draws = _line_up(part, where, order, count, parted)
    uneven = _find_meetings(where[draws], part, width, parted)
    uneven = np.union1d(uneven, _find_uneven(np.unique(owner[parted < count]), slots))
    for p in uneven.tolist():
        drawn, own, of = (slice(*np.searchsorted(parts, [p, p + 1])) for parts in (part, owner, slots.part))
        parted[order[own]], place = _deal_largest(count[order[own]], slots.size[of])
        batch[drawn] = slots.batch[of][place]
    if len(uneven):
        draws = _line_up(part, where, order, count, parted)
    out = np.empty(len(draws), np.int64)
    out[draws] = batch
    again = np.flatnonzero((parted < count)[where])
    if len(again) and len(values) > 1:
        again = again[np.argsort(where[again], kind="stable")]
        out[again] = _deal_finer(rng, where[again], out[again], [of[again] for of in values[1:]])
    return out


def _deal_finer(
    rng: np.random.Generator,
    value: Int64[np.ndarray, " n"],
    batch: Int64[np.ndarray, " n"],
    finer: Sequence[Integer[np.ndarray, " n"]],
) -> Int64[np.ndarray, " n"]:
    """Deal the draws of each value, which meets itself, to the same batches anew, so that finer values part."""
    number = np.cumsum(np.diff(value, prepend=-1) != 0) - 1
    most = int(batch.max()) + 1
    cells, size = np.unique(number * most + batch, return_counts=True)
    return _deal_parts(rng, number, finer, Slots(cells // most, cells % most, size))


def _line_up(
    part: Int64[np.ndarray, " n"],
    where: Int64[np.ndarray, " n"],
    order: Int64[np.ndarray, " v"],
    count: Int64[np.ndarray, " v"],
    parted: Int64[np.ndarray, " v"],
) -> Int64[np.ndarray, " n"]:
    """Line up the draws of each part: those that part from others of their value, those that don't, and single ones.

    Parameters
    ----------
    part, where
        Part and value of each draw.
    order
        The values, part by part, frequent ones first.
    count, parted
        Draws of each value, and how many of them are to part.
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    draws = sort_small(rank[where])
    if (parted == count).all():
        return draws
    own = where[draws]
    place = np.arange(len(draws)) - np.repeat(np.cumsum(count[order]) - count[order], count[order])
    return draws[sort_small(3 * part + np.where(place < parted[own], 2 * (count[own] == 1), 1))]


def _find_meetings(
    value: Int64[np.ndarray, " n"],
    part: Int64[np.ndarray, " n"],
    width: Int64[np.ndarray, " n"],
    parted: Int64[np.ndarray, " v"],
) -> Int64[np.ndarray, " p"]:
    """Find the parts in which draws that are to part would meet; turns that get narrower can do that.

    Parameters
    ----------
    value, part, width
        Of each slot, in turns: the value of its draw, its part, and the batches of its turn.
    parted
        Draws of each value that are to part: the first of those that stand in a row.
    """
    place = np.arange(len(value))
    end = np.empty(len(parted), np.int64)
    end[value[::-1]] = place[::-1]  # of equal values the last assignment stays: the first place
    end += parted
    # the next slot of the same batch is as far away as its turn is wide, or it has none, and others meet before
    return np.unique(part[place + width < end[value]])


def _find_uneven(parts: Int64[np.ndarray, " p"], slots: Slots) -> Int64[np.ndarray, " u"]:
    """Find those of some parts whose batches differ by two draws or more: in turns, some would get many of a value.

    Parameters
    ----------
    slots
        Part by part, the batches that get most first.
    """
    first, stop = (np.searchsorted(slots.part, parts, side) for side in ("left", "right"))
    return parts[slots.size[first] > slots.size[stop - 1] + 1]


def _deal_largest(
    count: Int64[np.ndarray, " v"], size: Int64[np.ndarray, " r"]
) -> tuple[Int64[np.ndarray, " v"], Int64[np.ndarray, " n"]]:
    """Give the draws of each value of a part, one value after another, to the batches that lack most.

    Nothing is lost by that: where another way of dealing gives a draw to a batch that lacks less, it can be moved, or
    change places with a draw of a value that this batch doesn't have, as the other batch holds more values.

    Parameters
    ----------
    count
        Draws of each value, descending.
    size
        Draws of each batch, descending.

    Returns
    -------
    How many draws of each value part, and the batches, by place: of these, value after value, then of all others.
    """
    several = int(np.count_nonzero(count > 1))
    lacking, parted = (-size).tolist(), count.copy()  # stays sorted
    at: list[int] = []
    for v, wanted in enumerate(count[:several].tolist()):
        here = min(wanted, bisect_left(lacking, 0))
        least = lacking[here - 1] if here else 0
        low, high = bisect_left(lacking, least), bisect_right(lacking, least)
        chosen = [*range(low), *range(high - (here - low), high)]  # of batches that lack as much, the last
        for b in chosen:
            lacking[b] += 1
        at += chosen
        parted[v] = here
    left = -np.array(lacking, np.int64)
    turn = np.arange(int(left.sum())) - np.repeat(np.cumsum(left) - left, left)
    others = np.repeat(np.arange(len(left)), left)[np.argsort(turn, kind="stable")]
    return parted, np.concatenate([np.array(at, np.int64), others])


def _take_turns(slots: Slots) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Lay out the slots of each part in turns: the batches that still lack a draw, in the same order each time.

    Parameters
    ----------
    slots
        Part by part, the batches that get most first.

    Returns
    -------
    Batch of each slot, and batches of its turn.
    """
    part, batch, size = slots
    turn = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
    key = np.repeat(part, size) * (int(turn.max(initial=0)) + 1) + turn
    by_turn = sort_small(key)
    first = np.flatnonzero(np.diff(key[by_turn], prepend=-1))
    width = np.diff(first, append=len(key))
    return np.repeat(batch, size)[by_turn], np.repeat(width, width)


def _order_frequent(
    rng: np.random.Generator, part: Integer[np.ndarray, " n"], count: Integer[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Order things part by part, those of large counts first, equal ones in random order."""
    most = int(count.max(initial=0))
    order = rng.permutation(len(count))
    return order[sort_small((part * (most + 1) + most - count)[order])]


def separate(
    rng: np.random.Generator,
    batch: Int64[np.ndarray, " n"],
    stratum: Int64[np.ndarray, " n"],
    lineage: Integer[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Swap draws between batches so that lineages stay distinct across strata too.

    `deal` looks at one stratum. Where labels change along a track, a lineage may be drawn in several, and meet itself
    in a batch. Each such draw changes places with a random one of its stratum if then fewer share their lineage, so
    quotas are kept. This goes on until no exchange is left that helps. It is no proof of the fewest: with draws that
    are tied to strata, finding these is a timetable problem, which is NP-hard (Even, Itai & Shamir 1976).

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
            # the other one may meet its lineage here if it has left it there
            free = (held[batch[i]] == 0)[code[others]] | (held[batch[others], code[others]] > 1)
            free &= lacking[batch[others]]
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
