"""Temporal smoothness: how near the same cell is to itself one frame later, beside two cells at random.

Source: DynaCLR (Hirata-Miyasaki et al., arXiv:2410.11281) and its code in mehta-lab/VisCy. Features are standardised;
smoothness is the mean cosine distance of adjacent frames of a track over that of random pairs, and the dynamic range is
the peak of the random distances less that of the adjacent ones. Two things differ: frames are adjacent when their `t`
differs by one, so that what comes after a gap in a track is left out, not counted as the next frame; and the mean over
random pairs is that over all pairs, which the sum of unit vectors gives exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from scipy.stats import gaussian_kde

from dynaclr_wds.evaluate.cells import Cells, number
from dynaclr_wds.evaluate.resampling import Estimate, Weights, estimate, sum_by

_TAG = 0x5300
_MOST_DISTANCES = 20_000
"""Distances that a peak is looked for in; more don't move it."""
_RANDOM_PAIRS = 5000
_GRID = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothness:
    """What frames that follow each other have in common."""

    score: Estimate | None
    """Lower is smoother; about 1 means that a cell is no nearer to itself than to others. None: nothing to compare."""
    dynamic_range: float | None
    """0 to 2. Smooth and near 0 means that everything is alike."""
    adjacent: float | None
    """Mean distance of adjacent frames."""
    random: float | None
    """Mean distance of two rows at random."""
    pairs: int
    """Pairs of adjacent frames."""
    gaps: int
    """Pairs that follow each other in a track with frames missing between; they are left out."""


def standardise(x: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Give every column mean 0 and standard deviation 1; a constant column becomes 0."""
    values = x.astype(np.float64)
    values -= values.mean(axis=0)
    spread = values.std(axis=0)
    return values / np.where(spread > 0, spread, 1.0)


def unit_length(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scale rows to length 1; a row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def find_adjacent(cells: Cells) -> tuple[Int64[np.ndarray, "k 2"], int]:
    """Find rows of a track whose frames follow each other.

    Returns
    -------
    tuple
        Pairs of rows, earlier first; and how many pairs there are with frames missing between them.
    """
    track = number(cells.track)[1]
    order = np.lexsort((cells.t, track))
    same = track[order[1:]] == track[order[:-1]]
    step = cells.t[order[1:]] - cells.t[order[:-1]]
    pairs = np.stack([order[:-1], order[1:]], axis=1)[same & (step == 1)]
    return pairs.astype(np.int64), int((same & (step > 1)).sum())


def measure_smoothness(x: Float32[np.ndarray, "n d"], cells: Cells, weights: Weights, seed: int = 0) -> Smoothness:
    """Measure smoothness and dynamic range of an embedding.

    Parameters
    ----------
    weights
        How often each lineage is drawn, lineages in the order of their sorted names.
    seed
        Of the random pairs that the dynamic range looks at.
    """
    pairs, gaps = find_adjacent(cells)
    unit = unit_length(standardise(x))
    if len(pairs) == 0 or not unit.any():
        return Smoothness(score=None, dynamic_range=None, adjacent=None, random=None, pairs=len(pairs), gaps=gaps)
    lineages, lineage = number(cells.lineage)
    adjacent = 1 - np.einsum("kd,kd->k", unit[pairs[:, 0]], unit[pairs[:, 1]])
    of = lineage[pairs[:, 0]]
    near = sum_by(of, adjacent, len(lineages)), sum_by(of, np.ones(len(of)), len(lineages))
    all_pairs = _mean_distances(unit, lineage, np.concatenate([np.ones((1, len(lineages))), weights]))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ near[0]) / (weights @ near[1]) / all_pairs[1:]
    return Smoothness(
        score=estimate(adjacent.mean() / all_pairs[0], drawn) if all_pairs[0] > 0 else None,
        dynamic_range=_dynamic_range(adjacent, unit, seed),
        adjacent=float(adjacent.mean()),
        random=float(all_pairs[0]),
        pairs=len(pairs),
        gaps=gaps,
    )


def compare_pairs(anchor: Float32[np.ndarray, "n d"], positive: Float32[np.ndarray, "n d"]) -> float | None:
    """Mean cosine distance of anchors to their positives, over that of any two rows; None where all are alike.

    It is smoothness over τ in place of one frame, for batches, which hold no adjacent frames.
    """
    unit = unit_length(standardise(np.concatenate([anchor, positive])))
    near = 1 - np.einsum("nd,nd->n", unit[: len(anchor)], unit[len(anchor) :])
    rows = np.zeros(len(unit), np.int64)
    random = float(_mean_distances(unit, rows, np.ones((1, 1)))[0])
    return float(near.mean()) / random if unit.any() and random > 0 else None


def _mean_distances(
    unit: Float64[np.ndarray, "n d"], lineage: Int64[np.ndarray, " n"], weights: Weights
) -> Float64[np.ndarray, " draws"]:
    """Mean cosine distance of all pairs of different rows, for each draw of lineages.

    The sum of all dot products is the squared length of the sum of the vectors; a row's product with itself, and with
    its copies in a draw, is taken off.
    """
    count = weights.shape[1]
    sums = np.zeros((count, unit.shape[1]))
    np.add.at(sums, lineage, unit)
    rows = np.bincount(lineage, minlength=count).astype(np.float64)
    itself = sum_by(lineage, np.einsum("nd,nd->n", unit, unit), count)
    dots = ((weights @ sums) ** 2).sum(axis=1) - weights**2 @ itself
    pairs = (weights @ rows) ** 2 - weights**2 @ rows
    return 1 - dots / np.maximum(pairs, 1)


def _dynamic_range(adjacent: Float64[np.ndarray, " k"], unit: Float64[np.ndarray, "n d"], seed: int) -> float | None:
    rng = np.random.default_rng([_TAG, seed])
    first = rng.integers(len(unit), size=_RANDOM_PAIRS)
    second = (first + rng.integers(1, len(unit), size=_RANDOM_PAIRS)) % len(unit)  # never itself
    random = 1 - np.einsum("kd,kd->k", unit[first], unit[second])
    peaks = find_peak(random), find_peak(adjacent[:_MOST_DISTANCES])
    return None if None in peaks else float(peaks[0] - peaks[1])  # type: ignore[operator]


def find_peak(distances: Float64[np.ndarray, " k"]) -> float | None:
    """Find where distances are densest, by a Gaussian kernel estimate (Scott's rule); None where all are alike."""
    if len(distances) < 2 or np.ptp(distances) < 1e-9:
        return float(distances[0]) if len(distances) else None
    places = np.linspace(distances.min(), distances.max(), _GRID)
    return float(places[np.argmax(gaussian_kde(distances)(places))])
