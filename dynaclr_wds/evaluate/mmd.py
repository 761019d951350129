"""Maximum mean discrepancy: whether two groups of cells have the same distribution in the embedding.

Source: Gretton et al., "A kernel two-sample test" (JMLR 2012): the unbiased estimate of MMD², with a Gaussian kernel
whose bandwidth is the median of the squared distances. Between conditions of one experiment it says whether a
perturbation shows; between experiments with the same condition, how large the batch effect is. For p, the groups' names
are dealt out anew among lineages, not rows: frames of a cell can't be exchanged one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.spatial.distance import cdist

from dynaclr_wds.evaluate.cells import Cells, number
from dynaclr_wds.evaluate.smoothness import standardise

_TAG = 0x33D
MOST_CELLS = 1000
"""Of each group, drawn as whole lineages."""
_LEAST_LINEAGES = 3
PERMUTATIONS = 500
MOST_PAIRS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """How different two groups are."""

    kind: str
    """`condition`, within an experiment, or `experiment`, within a condition."""
    within: str
    first: str
    second: str
    mmd2: float
    p: float
    excess: float
    """MMD² less its mean under the permutations, in their standard deviations."""
    cells: tuple[int, int]
    lineages: tuple[int, int]


def compare_groups(x: Float32[np.ndarray, "n d"], cells: Cells, seed: int = 0) -> tuple[list[Discrepancy], int]:
    """Compare conditions within experiments, and experiments within conditions.

    Returns
    -------
    tuple
        What was compared, and how many pairs were left out: they have too few lineages, or there are too many pairs.
    """
    standard = standardise(x)
    condition = cells.labels.get("condition", np.full(len(cells), "", object))
    found, left_out = [], 0
    for kind, outer, inner in (("condition", cells.experiment, condition), ("experiment", condition, cells.experiment)):
        kept = 0
        for within in np.unique(outer.astype(str)):
            own = outer == within
            for first, second in combinations([name for name in np.unique(inner[own].astype(str)) if name], 2):
                groups = own & (inner == first), own & (inner == second)
                if kept == MOST_PAIRS or (one := compare(standard, cells, groups, seed)) is None:
                    left_out += 1
                    continue
                kept += 1
                mmd2, p, excess, counts, lineages = one
                found.append(
                    Discrepancy(
                        kind=kind,
                        within=str(within),
                        first=str(first),
                        second=str(second),
                        mmd2=mmd2,
                        p=p,
                        excess=excess,
                        cells=counts,
                        lineages=lineages,
                    )
                )
    return found, left_out


def compare(
    x: Float64[np.ndarray, "n d"],
    cells: Cells,
    groups: tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]],
    seed: int,
) -> tuple[float, float, float, tuple[int, int], tuple[int, int]] | None:
    """Compare two groups of rows; None where one has fewer than three lineages.

    Returns
    -------
    MMD², p, its excess, cells of both groups and lineages of both.
    """
    rng = np.random.default_rng([_TAG, seed])
    rows = [_sample(np.flatnonzero(group), cells, rng) for group in groups]
    counts = [len(np.unique(cells.lineage[r].astype(str))) for r in rows]
    if min(counts) < _LEAST_LINEAGES:
        return None
    sums, sizes = _kernel_of_lineages(x, cells, rows)
    is_first = np.arange(sum(counts)) < counts[0]
    dealt = np.stack([is_first, *(rng.permutation(is_first) for _ in range(PERMUTATIONS))]).astype(np.float64)
    mmd2 = _unbiased(sums, sizes, dealt)
    null = mmd2[1:]
    excess = float((mmd2[0] - null.mean()) / max(float(null.std()), 1e-12))
    p = float((1 + (null >= mmd2[0] - 1e-12).sum()) / (1 + len(null)))
    return float(mmd2[0]), p, excess, (len(rows[0]), len(rows[1])), (counts[0], counts[1])


def _sample(rows: Int64[np.ndarray, " k"], cells: Cells, rng: np.random.Generator) -> Int64[np.ndarray, " k"]:
    """Keep whole lineages, in random order, until there are enough cells."""
    if len(rows) <= MOST_CELLS:
        return rows
    lineage = number(cells.lineage[rows])[1]
    order = rng.permutation(lineage.max() + 1)
    size = np.bincount(lineage)[order]
    kept = order[: max(int((np.cumsum(size) <= MOST_CELLS).sum()), _LEAST_LINEAGES)]
    return rows[np.isin(lineage, kept)]


def _kernel_of_lineages(
    x: Float64[np.ndarray, "n d"], cells: Cells, rows: list[Int64[np.ndarray, " _"]]
) -> tuple[Float64[np.ndarray, "l l"], Float64[np.ndarray, " l"]]:
    """Sum the kernel over the cells of every two lineages, a cell with itself left out; and count their cells."""
    both = np.concatenate(rows)
    squared = cdist(x[both], x[both], "sqeuclidean")
    bandwidth = float(np.median(squared[np.triu_indices(len(both), 1)])) + 1e-12
    kernel = np.exp(-squared / (2 * bandwidth))
    np.fill_diagonal(kernel, 0.0)
    codes = [number(cells.lineage[r])[1] for r in rows]
    code = np.concatenate([codes[0], codes[1] + codes[0].max() + 1])
    member = np.zeros((code.max() + 1, len(both)))
    member[code, np.arange(len(both))] = 1.0
    return member @ kernel @ member.T, member.sum(axis=1)


def _unbiased(
    sums: Float64[np.ndarray, "l l"], sizes: Float64[np.ndarray, " l"], dealt: Float64[np.ndarray, "k l"]
) -> Float64[np.ndarray, " k"]:
    """MMD² of every deal: which lineages are of the first group."""
    other = 1 - dealt
    n, m = dealt @ sizes, other @ sizes
    to_first, to_second = dealt @ sums, other @ sums
    xx, yy, xy = (to_first * dealt).sum(1), (to_second * other).sum(1), (to_first * other).sum(1)
    return xx / np.maximum(n * (n - 1), 1) + yy / np.maximum(m * (m - 1), 1) - 2 * xy / np.maximum(n * m, 1)
