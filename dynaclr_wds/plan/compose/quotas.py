"""Shares to whole numbers: how many batches of each experiment, how many samples of each stratum.

All rounding of the plan happens here, by largest remainder, and is exact over the epoch: what a batch
can't have as a fraction is spread evenly over the batches.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real


def largest_remainder(total: int, share: Real[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Split `total` by `share` into integers that add up to it (Hamilton's method; ties go to the first)."""
    want = np.asarray(share, np.float64)
    want = want * (total / want.sum())
    out = np.floor(want + 1e-9).astype(np.int64)
    missing = total - int(out.sum())
    out[np.argsort(out - want, kind="stable")[:missing]] += 1
    return out


def interleave(counts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " total"]:
    """Lay out `counts[i]` copies of each label i so that every prefix holds each in proportion, to within one."""
    labels = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    key = (place + 0.5) / np.repeat(counts, counts)
    return labels[np.argsort(key, kind="stable")]


def spread(totals: Int64[np.ndarray, " m"], share: Real[np.ndarray, " n"]) -> Int64[np.ndarray, "m n"]:
    """Split each row's total by `share`; columns are exact over all rows, every row adds up to its total.

    A row gets the whole part of its share; the fractions are saved up and handed out evenly.

    Parameters
    ----------
    totals
        Samples in each of m batches.
    share
        Of each of n columns, any positive scale.
    """
    share = np.asarray(share, np.float64) / np.sum(share)
    if not len(totals):
        return np.zeros((0, len(share)), np.int64)
    whole = np.floor(int(totals.min()) * share + 1e-9).astype(np.int64)
    extra = totals - whole.sum()
    want = np.maximum(totals.sum() * share - len(totals) * whole, 0.0)
    out = np.tile(whole, (len(totals), 1))
    if extra.sum():
        labels = interleave(largest_remainder(int(extra.sum()), want))
        np.add.at(out, (np.repeat(np.arange(len(totals)), extra), labels), 1)
    return out


def proportional_matrix(
    rows: Real[np.ndarray, " n"],
    columns: Real[np.ndarray, " n"],
    allowed: Bool[np.ndarray, "n n"],
    iterations: int = 100,
) -> Float64[np.ndarray, "n n"]:
    """Flow from columns to rows, where it is allowed, that fits both margins if it can.

    Iterative proportional fitting (Deming & Stephan 1940); the rows (the leak that each experiment's batches
    take) always fit where anything is allowed, the columns as near as possible.
    """
    n = len(rows)
    flow = allowed * columns
    for _ in range(iterations):
        flow *= np.divide(columns, flow.sum(0), out=np.zeros(n), where=flow.sum(0) > 0)
        total = flow.sum(1)
        flow *= np.divide(rows, total, out=np.zeros(n), where=total > 0)[:, None]
    return flow
