"""Anchors to explicit negatives: another lineage of the same experiment, from the focal window where there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.index import PlanIndex

_WIDTH = 8
_TRIES = 16


def sample_negatives(
    index: PlanIndex,
    anchors: Int64[np.ndarray, " n"],
    focal_hpi: Float64[np.ndarray, " n"],
    window: float,
    draw: Callable[[str, int], Int64[np.ndarray, " m"]],
) -> Int64[np.ndarray, " n"]:
    """Draw a negative for each anchor.

    Parameters
    ----------
    anchors
        Positions in `index.row`.
    focal_hpi
        Centre of the batch's focal window in hours, NaN without one.
    window
        Half-width of the focal window in hours.
    draw
        (experiment, count) → anchors drawn uniformly from the experiment's pool.

    Returns
    -------
    Position in `index.row` of each negative. The window is given up where it holds no other lineage.

    Raises
    ------
    ValueError
        The experiment's pool holds one lineage only.
    """
    out = np.full(len(anchors), -1, np.int64)
    lineage = index.lineage(anchors)
    experiment = np.array([s.experiment for s in index.strata])[index.stratum(anchors)]
    for name in np.unique(experiment):
        open_ = np.flatnonzero(experiment == name)
        for attempt in range(2 * _TRIES):
            offer = draw(str(name), len(open_) * _WIDTH).reshape(len(open_), _WIDTH)
            fits = index.lineage(offer) != lineage[open_, None]
            if attempt < _TRIES:
                near = np.abs(index.hpi(offer) - focal_hpi[open_, None]) <= window + 1e-6
                fits &= near | np.isnan(focal_hpi[open_, None])
            found = fits.any(1)
            out[open_[found]] = offer[found, fits[found].argmax(1)]
            open_ = open_[~found]
            if not len(open_):
                break
        if len(open_):
            raise ValueError(
                f"return_negative=True, but experiment {name!r} has one lineage within reach. "
                "Leave it out, or train without explicit negatives."
            )
    return out
