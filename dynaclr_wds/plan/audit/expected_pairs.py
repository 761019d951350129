"""Strata and focal windows to expected pairs: counts how often a uniform draw puts two samples of a kind together.

Anchors are drawn uniformly from *bins*: a bin is one stratum, inside or outside a focal window. The anchors of each
stratum are kept sorted by HPI, so a focal window is a span of them. The sums of products that expectations need are
counted once per window, and a movie has as many windows as frames.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer, Real

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.focal_window import focal_edges, in_focal_window
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex

KINDS = ("fov", "lineage", "block")
"""What two anchors may share, whatever their strata."""


_FEW = 32
"""Strata in a batch up to which the sums of each pair of them are counted once and kept."""


class UniformDraw:
    """A uniform draw of anchors from the strata of a set, and the pairs that it makes.

    Parameters
    ----------
    index
        The whole set; 16 bytes an anchor are held beside it.
    """

    def __init__(self, index: PlanIndex) -> None:
        self.index = index
        self._order: list[Int32[np.ndarray, " _"]] = []
        self._hpi: list[tuple[Float64[np.ndarray, " _"], Int64[np.ndarray, " _"]]] = []
        # by stratum and kind, of each anchor in the order of HPI: number of its FOV, … within the stratum
        self._codes: list[list[Int32[np.ndarray, " _"]]] = []
        # by stratum and kind: what those numbers stand for in the set, ascending
        self._names: list[list[Integer[np.ndarray, " _"]]] = []
        for begin, end in zip(index.first[:-1].tolist(), index.first[1:].tolist(), strict=True):
            anchor = cast(SampleIndex, np.arange(begin, end))
            hpi = index.hpi(anchor)
            order = np.argsort(hpi, kind="stable")
            values, first = np.unique(hpi[order], return_index=True)
            self._order.append(order.astype(np.int32))
            self._hpi.append((values, np.append(first, end - begin)))
            found = [
                np.unique(c, return_inverse=True)
                for c in (index.fov(anchor), index.lineage(anchor), index.block(anchor))
            ]
            self._names.append([names for names, _ in found])
            self._codes.append([codes.astype(np.int32)[order] for _, codes in found])
        self._alike = lru_cache(maxsize=None)(self._count_alike)
        self._across = lru_cache(maxsize=1 << 16)(self._count_across)
        self._meet = lru_cache(maxsize=None)(self._find_common)

    def spans(self, focal_hpi: float, config: SamplingConfig) -> Int64[np.ndarray, "s 2"]:
        """Where the focal window lies in each stratum's order; all of it when there is none."""
        out = np.zeros((len(self._order), 2), np.int64)
        for s, (values, first) in enumerate(self._hpi):
            out[s] = (0, first[-1])
            if not np.isnan(focal_hpi):
                edges = np.array(focal_edges(focal_hpi, config.temporal_window_hours))
                out[s] = first[np.searchsorted(values, edges)]
        return out

    def inside(
        self, anchor: Int64[SampleIndex, " b"], focal_hpi: float, config: SamplingConfig
    ) -> Bool[np.ndarray, " b"]:
        """Whether each anchor is in the focal window; True without one."""
        return in_focal_window(self.index.hpi(anchor), focal_hpi, config.temporal_window_hours)

    def sample(
        self, rng: np.random.Generator, stratum: int, span: Int64[np.ndarray, " 2"], *, inside: bool, count: int
    ) -> Int64[SampleIndex, " count"]:
        """Draw anchors of a bin uniformly, without replacement unless it has fewer than `count`."""
        low, high = span.tolist()
        size = high - low if inside else len(self._order[stratum]) - (high - low)
        place = rng.choice(size, count, replace=count > size, shuffle=False)
        place = place + low if inside else np.where(place < low, place, place + (high - low))
        return cast(SampleIndex, self._order[stratum][place] + self.index.first[stratum])

    def expected(self, count: Int64[np.ndarray, "s 2"], spans: Int64[np.ndarray, "s 2"]) -> list[float]:
        """Pairs expected to share each of `KINDS`, when each stratum gives `count` samples (inside, outside).

        n(n−1)/2 · Σ K(K−1) / N(N−1) within a bin of N anchors, K of them of one FOV, …, and n m Σ K L / N M between
        two bins. A bin that gives more than it has is drawn from with replacement: Σ K² / N².
        """
        out = np.zeros(len(KINDS))
        given = np.flatnonzero(count.any(1)).tolist()
        size = {s: (int(np.diff(spans[s])[0]), len(self._order[s]) - int(np.diff(spans[s])[0])) for s in given}
        for s in given:
            (inside, outside), (near, far) = count[s].tolist(), size[s]
            same_near, same_far, across = self._alike(s, *spans[s].tolist())
            out += inside * (inside - 1) / 2 * _alike_pairs(same_near, near, inside)
            out += outside * (outside - 1) / 2 * _alike_pairs(same_far, far, outside)
            if len(given) <= _FEW:
                out += inside * outside * across / max(near * far, 1)
        if len(given) > _FEW:
            return (out + self._expect_between(count, spans, given)).tolist()
        for s, r in combinations(given, 2):
            if self._meet(s, r):
                rate = [count[k] / np.maximum(size[k], 1) for k in (s, r)]
                products = self._across(s, *spans[s].tolist(), r, *spans[r].tolist())
                out += np.einsum("a,b,abk->k", *rate, products)
        return out.tolist()

    def _expect_between(
        self, count: Int64[np.ndarray, "s 2"], spans: Int64[np.ndarray, "s 2"], given: list[int]
    ) -> Float64[np.ndarray, " k"]:
        """Pairs expected between any two bins of many strata: ½ Σ ((Σ e)² − Σ e²) over what may be shared.

        e is the number of samples expected of one FOV, … from one bin, n K / N.
        """
        names: list[list[Integer[np.ndarray, " _"]]] = [[] for _ in KINDS]
        shares: list[list[Float64[np.ndarray, " _"]]] = [[] for _ in KINDS]
        for s in given:
            for k, histogram in enumerate(self._histograms(s, *spans[s].tolist())):
                rate = count[s] / np.maximum(histogram.sum(1), 1)
                for bin_ in np.flatnonzero(count[s]).tolist():
                    names[k].append(self._names[s][k])
                    shares[k].append(rate[bin_] * histogram[bin_])
        out = np.zeros(len(KINDS))
        for k in range(len(KINDS)):
            share = np.concatenate(shares[k])
            total = np.bincount(np.unique(np.concatenate(names[k]), return_inverse=True)[1], share)
            out[k] = ((total**2).sum() - (share**2).sum()) / 2
        return out

    def _count_alike(self, stratum: int, low: int, high: int) -> Float64[np.ndarray, "3 k"]:
        """Σ K² inside, Σ L² outside, Σ K L, for each kind (K inside, L outside the window)."""
        out = np.zeros((3, len(KINDS)))
        for k, (near, far) in enumerate(self._histograms(stratum, low, high)):
            out[:, k] = (near**2).sum(), (far**2).sum(), (near * far).sum()
        return out

    def _count_across(
        self, s: int, s_low: int, s_high: int, r: int, r_low: int, r_high: int
    ) -> Float64[np.ndarray, "2 2 k"]:
        """Σ K L between the bins (inside, outside) of two strata, for each kind."""
        out = np.zeros((2, 2, len(KINDS)))
        ones, others = self._histograms(s, s_low, s_high), self._histograms(r, r_low, r_high)
        for k, (one, other) in enumerate(zip(ones, others, strict=True)):
            _, at, bt = np.intersect1d(self._names[s][k], self._names[r][k], assume_unique=True, return_indices=True)
            out[:, :, k] = one[:, at] @ other[:, bt].T
        return out

    def _histograms(self, stratum: int, low: int, high: int) -> list[Float64[np.ndarray, "2 _"]]:
        """Anchors inside and outside the window, of each FOV, lineage and block of a stratum."""
        out = []
        for codes, names in zip(self._codes[stratum], self._names[stratum], strict=True):
            near = np.bincount(codes[low:high], minlength=len(names))
            out.append(np.stack([near, np.bincount(codes, minlength=len(names)) - near]).astype(np.float64))
        return out

    def _find_common(self, s: int, r: int) -> bool:
        """Whether two strata have a FOV, lineage or block in common."""
        return any(len(np.intersect1d(a, b)) > 0 for a, b in zip(self._names[s], self._names[r], strict=True))


def pairs(count: Real[np.ndarray, " n"]) -> float:
    """Pairs that are alike, with `count` samples of each kind."""
    return float((count * (count - 1)).sum() / 2)


def probability(size: Integer[np.ndarray, " g"], drawn: int) -> float:
    """Probability that two of `drawn` anchors are alike, with kinds of these sizes."""
    return float(_alike_pairs(np.array([float((size.astype(np.float64) ** 2).sum())]), int(size.sum()), drawn)[0])


def _alike_pairs(squares: Float64[np.ndarray, " g"], size: int, drawn: int) -> Float64[np.ndarray, " g"]:
    """Probability that two of `drawn` anchors of a bin are alike, from Σ K²."""
    if drawn > size:
        return squares / max(size, 1) ** 2
    return (squares - size) / max(size * (size - 1), 1)
