"""The plan's unit of output: one batch as row numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Which patches make up one batch; all an executor needs."""

    number: int
    """Place in the global sequence of the epoch, over all ranks."""
    anchor: Int64[np.ndarray, " b"]
    """Patch rows."""
    positive: Int64[np.ndarray, " b"] | None
    """Patch rows; None where only the cells themselves are asked for (prediction)."""
    negative: Int64[np.ndarray, " b"] | None = None
    """Patch rows; None unless asked for."""
    group: str = ""
    """Experiment that the batch is about; empty when it is about all."""
    focal_hpi: float = float("nan")
    """Centre of the focal window in hours; NaN without temporal enrichment."""

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.anchor)
