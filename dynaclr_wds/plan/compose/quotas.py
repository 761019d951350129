"""Shares to whole numbers: how many batches each group gets, how many samples each stratum gives.

All rounding of the plan happens here. A batch is within one sample of each of its quotas, and the epoch within one of
their sum: what a batch can't have as a fraction is spread evenly over the batches.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, Real

from dynaclr_wds.plan.rng import sort_places

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill [0, 1) more evenly than those of any other number (three-distance theorem)."""

_WIDE = 4
"""Times the numbers that are counted, up to which a table may be as long."""


def largest_remainder(total: int, share: Real[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Split `total` by `share` into integers that add up to it (Hamilton's method; ties go to the first)."""
    want = np.asarray(share, np.float64)
    want = want * (total / want.sum())
    out = np.floor(want + 1e-9).astype(np.int64)
    missing = total - int(out.sum())
    out[np.argsort(out - want, kind="stable")[:missing]] += 1
    return out


def count_numbers(number: Integer[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """List the different numbers, all ≥ 0, and count each; in a table where it is not much longer than they are."""
    if number.max(initial=0) > _WIDE * len(number):
        found, count = np.unique(number, return_counts=True)
        return found.astype(np.int64), count.astype(np.int64)
    table = np.bincount(number)
    found = np.flatnonzero(table)
    return found, table[found]


def interleave(counts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " total"]:
    """Lay out `counts[i]` copies of each label i so that every prefix holds each in proportion, to within one."""
    labels = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    key = (place + 0.5) / np.repeat(counts, counts)
    return labels[np.argsort(key, kind="stable")]


def sample_counts(rng: np.random.Generator, total: int, share: Real[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Split `total` by `share` into integers that add up to it, each its quota rounded up or down (Madow 1949).

    The start is random, so a quota of 0.3 becomes 1 in three of ten draws. Largest remainders would give it to the same
    columns every time.
    """
    return sample_nested_counts(rng, np.array([total]), np.zeros(len(share), np.int64), share)


def sample_nested_counts(
    rng: np.random.Generator,
    totals: Int64[np.ndarray, " v"],
    value: Int64[np.ndarray, " n"],
    share: Real[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Split the total of each value between its columns by `share`, as `sample_counts` does.

    Parameters
    ----------
    value
        Of each column, ascending; every value from 0 on has one.
    """
    within = np.cumsum(np.asarray(share, np.float64))
    last = np.searchsorted(value, np.arange(len(totals)), "right") - 1
    before = np.concatenate([[0.0], within[last[:-1]]])
    part = (within - before[value]) / (within[last] - before)[value]
    part[last] = 1.0
    until = np.floor(np.round(totals[value] * part, 6) + rng.random(len(totals))[value]).astype(np.int64)
    until += (np.cumsum(totals) - totals)[value]
    return np.diff(until, prepend=0)


def space_out(
    rng: np.random.Generator, counts: Int64[np.ndarray, " n"], value: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " total"]:
    """Lay out `counts[i]` copies of each label i, value by value, those of a label evenly over its value's stretch.

    Parameters
    ----------
    value
        Of each label, ascending.
    """
    labels = np.repeat(np.arange(len(counts)), counts)
    if len(np.unique(value)) == len(value):
        return labels
    order = np.lexsort((_even_places(rng, counts), np.repeat(value, counts)))
    return labels[order]


def merge_evenly(rng: np.random.Generator, counts: Int64[np.ndarray, " v"]) -> Int64[np.ndarray, " total"]:
    """Merge rows of `counts[v]` things, laid end to end, so that each is spread evenly over the whole.

    Returns
    -------
    Places of the things in the order of the merged row.
    """
    return sort_places(_even_places(rng, counts))


def _even_places(rng: np.random.Generator, counts: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " total"]:
    """Place `counts[i]` copies of each label evenly in [0, 1), each label from a start of its own."""
    start = (rng.permutation(len(counts)) + 0.5) / max(len(counts), 1)
    place = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return (place + np.repeat(start, counts)) / np.repeat(counts, counts)


def spread(totals: Int64[np.ndarray, " m"], share: Real[np.ndarray, " n"]) -> Int64[np.ndarray, "m n"]:
    """Split each row's total by `share`: every row adds up to its total, every entry is its quota rounded up or down.

    Rows of equal total are rounded by systematic sampling (Madow 1949): quotas are laid end to end, and a column gets
    as many samples as whole numbers fall into its stretch after a shift. The shifts of the rows are spread evenly over
    [0, 1), so the column's sum is its quota rounded up or down too. They come in the order of the golden ratio, so the
    sum of any first rows is near its quota.

    Parameters
    ----------
    totals
        Samples in each of m batches.
    share
        Of each of n columns, any positive scale.
    """
    edge = np.cumsum(np.asarray(share, np.float64) / np.sum(share))
    edge[-1] = 1.0
    out = np.zeros((len(totals), len(edge)), np.int64)
    for total in np.unique(totals).tolist():
        rows = np.flatnonzero(totals == total)
        place = np.argsort(np.argsort((np.arange(1, len(rows) + 1) * _GOLDEN) % 1.0))
        shift = (place + 0.5) / len(rows)
        # (row, column) → whole numbers before the column's end
        before = np.floor(np.round(total * edge, 9)[None, :] + shift[:, None]).astype(np.int64)
        out[rows] = np.diff(before, axis=1, prepend=0)
    return out


def proportional_matrix(
    rows: Real[np.ndarray, " n"],
    columns: Real[np.ndarray, " n"],
    allowed: Bool[np.ndarray, "n n"],
    iterations: int = 100,
) -> Float64[np.ndarray, "n n"]:
    """Flow from columns to rows, where it is allowed, that fits both margins if it can.

    Iterative proportional fitting (Deming & Stephan 1940). The rows, which are the leak that each group's batches
    take, always fit where anything is allowed; the columns fit as nearly as possible.
    """
    n = len(rows)
    flow = allowed * columns
    for _ in range(iterations):
        total = np.add.reduce(flow, 0)
        flow *= np.divide(columns, total, out=np.zeros(n), where=total > 0)
        total = np.add.reduce(flow, 1)
        flow *= np.divide(rows, total, out=np.zeros(n), where=total > 0)[:, None]
    return flow
