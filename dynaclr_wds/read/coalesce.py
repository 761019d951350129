"""Byte ranges to requests: joins ranges that lie near each other, and cuts what is too large. Pure.

Ranges are in one address space: the shards of a set behind each other.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Int64


def join_ranges(
    begin: Int64[np.ndarray, " n"],
    end: Int64[np.ndarray, " n"],
    edges: Int64[np.ndarray, " e"],
    most_gap: int,
    most_bytes: int,
) -> tuple[Int64[np.ndarray, "m 2"], Int64[np.ndarray, " n"]]:
    """Join ranges of one shard whose gap is small.

    Parameters
    ----------
    begin, end
        Ranges, ascending by begin.
    edges
        Where shards begin; ranges of two shards are not joined.
    most_gap
        Bytes between two ranges that may be read in vain.
    most_bytes
        Bytes of a joined range; one range alone may be larger.

    Returns
    -------
    Joined ranges, ascending, and the joined range of each range.
    """
    owner = np.zeros(len(begin), np.int64)
    shard = np.searchsorted(edges, begin, "right")
    joined: list[list[int]] = []
    last = -1
    for place, (a, b, own) in enumerate(zip(begin.tolist(), end.tolist(), shard.tolist(), strict=True)):
        if joined and own == last and a - joined[-1][1] <= most_gap and b - joined[-1][0] <= most_bytes:
            joined[-1][1] = max(joined[-1][1], b)
        else:
            joined.append([a, b])
        last = own
        owner[place] = len(joined) - 1
    return np.array(joined, np.int64).reshape(-1, 2), owner


def cut_range(begin: int, end: int, most_bytes: int) -> list[tuple[int, int]]:
    """Cut a range into parts of at most so many bytes, about equal in size."""
    if end - begin <= most_bytes:
        return [(begin, end)]
    count = -(-(end - begin) // most_bytes)
    edges = [begin + (end - begin) * place // count for place in range(count + 1)]
    return list(itertools.pairwise(edges))
