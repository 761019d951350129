"""Places in a queue to anchors, one by one: the order of a stratum without a sort, for sets of very many strata.

Where strata are few, a queue is sorted once and kept. With tens of thousands of them, the first batches of an epoch
would have to sort nearly all queues, for a draw or two each. So here each place is computed by itself, in any
order, and nothing is kept.

The anchors of a stratum, which stand clip by clip, are cut into cells of eight. A pass goes through all cells eight
times, in a new order each time, and takes one anchor of each: so any stretch of a queue holds few of each lineage.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer, UInt64

from dynaclr_wds.plan.rng import hash_parts

_CELL = 8
_TRIES = 4


def find_places(
    rng: np.random.Generator,
    strata: Integer[np.ndarray, " n"],
    number: Int64[np.ndarray, " n"],
    place: Int64[np.ndarray, " n"],
    size: Int64[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Find the anchors at some places of the queues, as numbers within their strata.

    Parameters
    ----------
    rng
        Gives the key of the order: generators in the same state give the same.
    strata, size
        Stratum of each place, and its anchors.
    number
        Which pass through the stratum.
    place
        Within the pass, below `size`. The places of a pass fall on all of its anchors, on each once.
    """
    key = hash_parts(rng, strata, number)
    out, left = place.copy(), np.arange(len(place))
    while len(left):  # cells that are not full have places without an anchor, which are followed on to one that has
        out[left] = _permute(key[left], out[left], size[left])
        left = left[out[left] >= size[left]]
    return out


def _permute(
    key: UInt64[np.ndarray, " n"], place: Int64[np.ndarray, " n"], size: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Permute the places of whole cells: in which cell, and where in it."""
    width = np.minimum(size, _CELL)
    cells = -(-size // width)
    turn, slot = place // cells, place % cells
    cell = _multiply(_mix(key, turn), slot, cells)
    return cell * width + _multiply(_mix(key, cell + _CELL), turn, width)


def _multiply(
    bits: UInt64[np.ndarray, " n"], number: Int64[np.ndarray, " n"], modulus: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Map x to (a x + b) mod m, with a and b from random bits: a permutation, as a and m are made coprime."""
    offset = (bits >> np.uint64(32)).astype(np.int64)
    factor = np.ones_like(number)
    left = np.flatnonzero(modulus > 2)
    for shift in range(_TRIES):  # most numbers are coprime; the few that are not after all tries keep a = 1
        some = ((bits[left] >> np.uint64(7 * shift)) % modulus[left].astype(np.uint64)).astype(np.int64)
        fits = np.gcd(some, modulus[left]) == 1
        factor[left[fits]] = some[fits]
        left = left[~fits]
    return (factor * number + offset) % modulus


def _mix(key: UInt64[np.ndarray, " n"], number: Int64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Return random bits for each pair (the finalizer of splitmix64)."""
    out = key + number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return out ^ (out >> np.uint64(31))
