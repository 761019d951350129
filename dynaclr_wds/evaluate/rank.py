"""Effective rank, and collapse in words: how many directions an embedding uses.

Source: Roy and Vetterli, "The effective rank" (EUSIPCO 2007): the exponential of the entropy of the singular values of
the centred features, taken as shares of their sum. Garrido et al., "RankMe" (ICML 2023) use it to judge self-supervised
training; Jing et al. (ICLR 2022) describe how contrastive training collapses to few dimensions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

_NEARLY_CONSTANT = 1e-3
"""Spread of the cells, as a share of the features' length, below which all cells have the same embedding."""
_FEW = 2.0


def effective_rank(x: Float32[np.ndarray, "n d"]) -> float:
    """Measure the effective rank; 0 where all rows are alike."""
    centred = x.astype(np.float64)
    centred -= centred.mean(axis=0)
    variance = np.linalg.eigvalsh(centred.T @ centred)
    singular = np.sqrt(np.clip(variance, 0, None))
    total = singular.sum()
    if total <= 1e-12 * max(1.0, float(np.abs(x).max(initial=0.0))):
        return 0.0
    share = singular[singular > singular.max() * 1e-9] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def describe_collapse(x: Float32[np.ndarray, "n d"], rank: float) -> str | None:
    """Say in a sentence that an embedding has collapsed, or nearly; None where it hasn't.

    Parameters
    ----------
    rank
        Its effective rank.
    """
    if not np.isfinite(x).all():
        return f"{int((~np.isfinite(x)).any(axis=1).sum()):,} of {len(x):,} cells have features that are not finite."
    spread = float(np.sqrt(x.astype(np.float64).var(axis=0).sum()))
    length = float(np.linalg.norm(x.astype(np.float64), axis=1).mean())
    if spread <= _NEARLY_CONSTANT * length or spread == 0:
        return (
            f"collapsed: all cells have the same embedding (they differ by {spread / max(length, 1e-300):.1e} of its "
            "length), so no other measure means anything."
        )
    if rank < _FEW and x.shape[1] > _FEW:
        return f"nearly collapsed: of {x.shape[1]} dimensions the cells use {rank:.1f} (effective rank)."
    return None
