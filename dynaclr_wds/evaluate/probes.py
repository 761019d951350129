"""Linear probe and vote of neighbours: how well a label can be read off an embedding, by cells that are held out.

Sources: Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016), a logistic
regression on standardised features; Wu et al. (CVPR 2018) for the vote of the k nearest by cosine. Both are judged by
balanced accuracy (Brodersen et al., 2010), the mean over the values of a label of the share that is found, so chance is
one over the number of values.

No lineage and, where the data allow it, no field of view is on both sides: cells of one image share light and focus,
and would find each other whatever the embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier

from dynaclr_wds.evaluate.cells import Cells, number
from dynaclr_wds.evaluate.resampling import Estimate, Weights, estimate
from dynaclr_wds.evaluate.smoothness import standardise, unit_length

NEIGHBOURS = 20
_FOLDS = 5
MOST_VALUES = 50
"""A label with more values is not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Which cells are judged together, by all the others."""

    number: Int64[np.ndarray, " n"]
    """-1: not judged."""
    held_out: str
    """What is never on both sides: `FOV`, `lineage` or `experiment`."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How well one label is found."""

    label: str
    held_out: str
    """`FOV` (and with it the lineage), `lineage` where there are too few FOVs, or `experiment`."""
    linear: Estimate
    vote: Estimate
    chance: float
    values: int
    cells: int
    """Cells that were judged."""


def plan_folds(values: Shaped[np.ndarray, " n"], cells: Cells) -> Folds | None:
    """Deal cells into folds by FOV, or by lineage where a value has too few FOVs; None where that can't be either."""
    for held_out, names in (("FOV", cells.fov), ("lineage", cells.lineage)):
        group = number(names)[1]
        known, code = np.unique(values, return_inverse=True)
        least = min(len(np.unique(group[code == v])) for v in range(len(known)))
        if least >= 2:
            count = min(_FOLDS, least)
            fold = np.full(len(values), -1, np.int64)
            splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a value with fewer cells than folds: judged all the same
                for n, (_, judged) in enumerate(splitter.split(code[:, None], code, group)):
                    fold[judged] = n
            return Folds(number=fold, held_out=held_out, count=count)
    return None


def plan_experiments(values: Shaped[np.ndarray, " n"], cells: Cells) -> Folds | None:
    """Make a fold of every experiment; those with a value that no other has are not judged."""
    known, fold = number(cells.experiment)
    judged = fold.copy()
    for n in range(len(known)):
        if len(np.unique(values[fold != n])) < 2 or not set(values[fold == n]) <= set(values[fold != n]):
            judged[fold == n] = -1
    many = len(np.unique(values[judged >= 0])) > 1
    return Folds(number=judged, held_out="experiment", count=len(known)) if many else None


def probe_label(x: Float64[np.ndarray, "n d"], label: str, cells: Cells, folds: Folds, weights: Weights) -> Probe:
    """Judge how well a label is found.

    Parameters
    ----------
    x
        Features of the cells that have the label.
    cells
        Those cells.
    weights
        How often each lineage is drawn, lineages in the order of their sorted names among these cells.
    """
    code = number(cells.labels[label])[1]
    linear, vote = guess_linear(x, code, folds), guess_vote(x, code, folds)
    judged = folds.number >= 0
    lineage = number(cells.lineage)[1]

    def score(guess: Int64[np.ndarray, " n"]) -> Estimate:
        return balanced_accuracy(guess[judged], code[judged], lineage[judged], weights)

    values = len(np.unique(code[judged]))
    return Probe(
        label=label,
        held_out=folds.held_out,
        linear=score(linear),
        vote=score(vote),
        chance=1 / values,
        values=values,
        cells=int(judged.sum()),
    )


def vote_accuracy(x: Float64[np.ndarray, "n d"], values: Shaped[np.ndarray, " n"], cells: Cells) -> float | None:
    """Balanced accuracy of the vote of neighbours of other FOVs (or lineages); None where nothing can be held out."""
    rows = np.flatnonzero(values != "")
    code = number(values[rows])[1]
    own = cells.take(rows)
    folds = plan_folds(code, own) if len(np.unique(code)) > 1 else None
    if folds is None:
        return None
    guess = guess_vote(x[rows], code, folds)
    return balanced_accuracy(guess, code, np.zeros(len(code), np.int64), np.ones((1, 1))).value


def guess_linear(x: Float64[np.ndarray, "n d"], code: Int64[np.ndarray, " n"], folds: Folds) -> Int64[np.ndarray, " n"]:
    """Guess the value of each judged cell by a logistic regression on the cells that are not judged with it."""
    return _guess(standardise(x.astype(np.float32)), code, folds, _make_linear)


def guess_vote(x: Float64[np.ndarray, "n d"], code: Int64[np.ndarray, " n"], folds: Folds) -> Int64[np.ndarray, " n"]:
    """Guess the value of each judged cell by the nearest cells that are not judged with it."""
    return _guess(unit_length(x), code, folds, _make_vote)


def _make_linear(_: int) -> Any:
    return LogisticRegression(max_iter=200, tol=1e-3)


def _make_vote(voters: int) -> Any:
    return KNeighborsClassifier(min(NEIGHBOURS, voters), algorithm="brute")


def _guess(
    x: Float64[np.ndarray, "n d"], code: Int64[np.ndarray, " n"], folds: Folds, make: Callable[[int], Any]
) -> Int64[np.ndarray, " n"]:
    guess = np.full(len(code), -1, np.int64)
    for n in np.unique(folds.number[folds.number >= 0]):
        judged = folds.number == n
        others = ~judged
        if len(np.unique(code[others])) < 2:
            guess[judged] = code[others][0]
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough after so many steps
            guess[judged] = make(int(others.sum())).fit(x[others], code[others]).predict(x[judged])
    return guess


def balanced_accuracy(
    guess: Int64[np.ndarray, " n"], truth: Int64[np.ndarray, " n"], lineage: Int64[np.ndarray, " n"], weights: Weights
) -> Estimate:
    """Mean over values of the share of their cells that is found, with its interval over lineages.

    Parameters
    ----------
    lineage
        Number of each cell's lineage, as `weights` counts them.
    """
    values, code = np.unique(truth, return_inverse=True)
    place = lineage * len(values) + code
    size = weights.shape[1] * len(values)
    total = np.bincount(place, minlength=size).reshape(-1, len(values)).astype(np.float64)
    found = np.bincount(place, guess == truth, minlength=size).reshape(-1, len(values))
    there = weights @ total
    share = np.where(there > 0, (weights @ found) / np.maximum(there, 1e-12), np.nan)
    missing = np.isnan(share).any(axis=1)  # a draw without any cell of a value
    return estimate(float((found.sum(0) / total.sum(0)).mean()), share[~missing].mean(axis=1))
