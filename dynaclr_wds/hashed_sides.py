"""Names to sides of a split: a keyed hash of each name says whether it is held out. Pure.

`init` shares this with the DataModule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool

_TRIED_SEEDS = 256


def hash_place(name: str, seed: int) -> float:
    """Return a number in [0, 1), uniform over names, that depends on a name and a seed alone (BLAKE2b, RFC 7693)."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def hold_out(names: Sequence[str], ratio: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Draw which of some names are held out: each by itself, with probability 1 − ratio.

    More data change nothing for a name that was there, and a larger ratio holds out fewer of the same names.
    """
    place = {name: hash_place(name, seed) for name in set(names)}
    return np.array([place[name] >= ratio for name in names], bool)


def find_seed(names: Collection[str], ratio: float) -> int | None:
    """Find the first seed whose share of training is nearest to the ratio, both sides having some; None if none has."""
    distinct = sorted(set(names))
    best, found = float("inf"), None
    for seed in range(_TRIED_SEEDS if len(distinct) > 1 else 0):
        kept = int(len(distinct) - hold_out(distinct, ratio, seed).sum())
        distance = abs(kept / len(distinct) - ratio)
        if 0 < kept < len(distinct) and distance < best - 1e-12:
            best, found = distance, seed
    return found
