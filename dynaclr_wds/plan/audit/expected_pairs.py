"""Strata and focal windows to cells: whom a uniform draw could have taken, and how often two of them are alike.

A cell is one stratum, inside or outside a focal window. The anchors of each stratum are kept sorted by HPI, so a
window is a slice; the sums of squares that expectations need are counted once per (stratum, window), and a movie
has as many windows as frames.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer, Real

from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex

GROUPS = ("fov", "lineage", "block")
"""What two anchors of one stratum may share; no two strata share any of them."""

_SLACK = 1e-6  # hours; frames at the window's very edge belong to it


class Cells:
    """Anchors of each stratum in the order of their HPI, with their FOV, lineage and block.

    Parameters
    ----------
    index
        The whole set; 16 bytes an anchor are held beside it.
    """

    def __init__(self, index: PlanIndex) -> None:
        self.index = index
        self._order: list[Int32[np.ndarray, " _"]] = []
        self._hpi: list[tuple[Float64[np.ndarray, " _"], Int64[np.ndarray, " _"]]] = []
        self._codes: list[list[Int32[np.ndarray, " _"]]] = []
        self._totals: list[list[Int64[np.ndarray, " _"]]] = []
        for begin, end in zip(index.first[:-1].tolist(), index.first[1:].tolist(), strict=True):
            anchor = np.arange(begin, end)
            hpi = index.hpi(anchor)
            order = np.argsort(hpi, kind="stable")
            values, first = np.unique(hpi[order], return_index=True)
            self._order.append(order.astype(np.int32))
            self._hpi.append((values, np.append(first, end - begin)))
            columns = (index.fov(anchor), index.lineage(anchor), index.block(anchor))
            codes = [np.unique(c, return_inverse=True)[1].astype(np.int32)[order] for c in columns]
            self._codes.append(codes)
            self._totals.append([np.bincount(c) for c in codes])
        self._alike = lru_cache(maxsize=None)(self._count_alike)

    def windows(self, focal_hpi: float, config: SamplingConfig) -> Int64[np.ndarray, "s 2"]:
        """Where the focal window lies in each stratum's order; all of it when there is none."""
        out = np.zeros((len(self._order), 2), np.int64)
        reach = config.temporal_window_hours + _SLACK
        for s, (values, first) in enumerate(self._hpi):
            out[s] = (0, first[-1])
            if not np.isnan(focal_hpi):
                out[s] = first[np.searchsorted(values, [focal_hpi - reach, focal_hpi + reach])]
        return out

    def inside(
        self, anchor: Int64[np.ndarray, " b"], focal_hpi: float, config: SamplingConfig
    ) -> Bool[np.ndarray, " b"]:
        """Whether each anchor is in the focal window; True without one."""
        if np.isnan(focal_hpi):
            return np.ones(len(anchor), bool)
        return np.abs(self.index.hpi(anchor) - focal_hpi) <= config.temporal_window_hours + _SLACK

    def sample(
        self, rng: np.random.Generator, stratum: int, window: Int64[np.ndarray, " 2"], *, inside: bool, count: int
    ) -> Int64[np.ndarray, " count"]:
        """Draw anchors of a cell uniformly, without replacement unless it has fewer than `count`."""
        low, high = window.tolist()
        size = high - low if inside else len(self._order[stratum]) - (high - low)
        place = rng.choice(size, count, replace=count > size, shuffle=False)
        place = place + low if inside else np.where(place < low, place, place + (high - low))
        return self._order[stratum][place] + self.index.first[stratum]

    def expected(self, count: Int64[np.ndarray, "s 2"], windows: Int64[np.ndarray, "s 2"]) -> list[float]:
        """Pairs expected to share each of `GROUPS`, when each stratum gives `count` samples (inside, outside).

        n(n−1)/2 · Σ K(K−1) / N(N−1) within a cell of N anchors, K of them of one group, and n m Σ K L / N M between the
        two cells of a stratum. A cell that gives more than it has is drawn from with replacement: Σ K² / N².
        """
        out = np.zeros(len(GROUPS))
        for s in np.flatnonzero(count.any(1)).tolist():
            (inside, outside), (low, high) = count[s].tolist(), windows[s].tolist()
            near, far = high - low, len(self._order[s]) - (high - low)
            same_near, same_far, across = self._alike(s, low, high)
            out += inside * (inside - 1) / 2 * _alike_pairs(same_near, near, inside)
            out += outside * (outside - 1) / 2 * _alike_pairs(same_far, far, outside)
            out += inside * outside * across / max(near * far, 1)
        return out.tolist()

    def _count_alike(self, stratum: int, low: int, high: int) -> Float64[np.ndarray, "3 g"]:
        """Σ K² inside, Σ L² outside, Σ K L, over the groups of each kind (K inside, L outside the window)."""
        out = np.zeros((3, len(GROUPS)))
        for g, (codes, total) in enumerate(zip(self._codes[stratum], self._totals[stratum], strict=True)):
            near = codes[low:high]
            squares = float((np.bincount(near) ** 2).sum())
            with_all = float(total[near].sum())
            out[:, g] = squares, float((total**2).sum()) - 2 * with_all + squares, with_all - squares
        return out


def pairs(count: Real[np.ndarray, " n"]) -> float:
    """Pairs that are alike among `count` samples of each group."""
    return float((count * (count - 1)).sum() / 2)


def probability(size: Integer[np.ndarray, " g"], drawn: int) -> float:
    """Probability that two of `drawn` anchors are of one group, of groups of these sizes."""
    return float(_alike_pairs(np.array([float((size.astype(np.float64) ** 2).sum())]), int(size.sum()), drawn)[0])


def _alike_pairs(squares: Float64[np.ndarray, " g"], size: int, drawn: int) -> Float64[np.ndarray, " g"]:
    """Probability that two of `drawn` anchors of a cell share a group, from Σ K²."""
    if drawn > size:
        return squares / max(size, 1) ** 2
    return (squares - size) / max(size * (size - 1), 1)
