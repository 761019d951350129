"""Keys to generators: the one place where randomness of the plan comes from.

Every generator is keyed by a tag (what is drawn) and a fixed-length tuple (for which epoch, stream,
round …), so any part of the plan can be recomputed alone and no draw depends on another.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int64, Integer, UInt64


class Tag(IntEnum):
    """What a generator draws; part of its key."""

    BATCH_ORDER = 1
    QUEUE = 2
    ROUND = 3
    POSITIVE = 4
    NEGATIVE = 5
    BLOCKS = 6
    STREAMS = 7
    IDEAL = 8
    PLAIN = 9
    VALIDATION = 10
    QUOTAS = 11
    STAND_IN = 12


def make_generator(tag: Tag, seed: int, *key: int) -> np.random.Generator:
    """Return the generator of one part of the plan.

    Parameters
    ----------
    tag
        What is drawn.
    seed
        The user's seed, ≥ 0.
    key
        Up to four non-negative integers that say which part (epoch, stream, …); padded to a fixed length.
    """
    if len(key) > 4:
        raise ValueError(f"key={key} has {len(key)} parts; at most 4 are allowed.")
    padded = (*key, 0, 0, 0, 0)[:4]
    return np.random.default_rng([int(tag), seed, *padded, len(key)])


def hash_parts(rng: np.random.Generator, *parts: Integer[np.ndarray, " n"] | int) -> UInt64[np.ndarray, " n"]:
    """Return 64 random bits for each row of numbers, whichever rows stand beside it (splitmix64, Steele et al. 2014).

    For thousands of small things of which each would have a generator of its own.

    Parameters
    ----------
    rng
        Gives the key: rows hashed with generators in the same state are hashed alike.
    parts
        Columns of numbers ≥ 0, at least one of them an array.
    """
    out = np.full(1, rng.integers(0, 1 << 63), np.uint64)
    for part in parts:
        out = (out ^ np.asarray(part, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out


def sort_places(place: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Argsort numbers in [0, 1], the same way on every machine.

    A radix sort of 32 bits: ten times as fast as a stable sort of floats, and unlike numpy's default one, which depends
    on what the processor can do, it keeps those in order that are equal (to 2⁻³²).
    """
    key = np.minimum(np.asarray(place, np.float64) * 2.0**32, 2.0**32 - 1).astype(np.uint32)
    order = np.argsort(key.astype(np.uint16), kind="stable")
    return order[np.argsort((key >> 16).astype(np.uint16)[order], kind="stable")]


def sort_small(number: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Argsort numbers ≥ 0, keeping equal ones in order; by radix where all are below 2¹⁶."""
    return np.argsort(number.astype(np.min_scalar_type(int(number.max(initial=0)))), kind="stable")
