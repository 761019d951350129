"""The cells of embeddings: who they are, row by row with their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

Text = Shaped[np.ndarray, " n"]
"""Text of every row, as objects; empty where there is none."""
Rows = Int64[np.ndarray, " k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Observations: one row for each cell and frame."""

    name: Text
    """`<experiment>/<fov>/<track_id>/<t>`, which no other row has."""
    experiment: Text
    fov: Text
    """`<experiment>/<fov>`."""
    track: Text
    """`<experiment>/<fov>/<track_id>`."""
    lineage: Text
    """Track of the lineage's root."""
    t: Int64[np.ndarray, " n"]
    hpi: Float64[np.ndarray, " n"]
    labels: Mapping[str, Text] = field(default_factory=dict)
    """Label → its value; `condition` is one of them, where there is one."""

    def __len__(self) -> int:
        return len(self.name)

    def take(self, rows: Rows) -> Cells:
        """Keep some rows, in their order."""
        return Cells(
            name=self.name[rows],
            experiment=self.experiment[rows],
            fov=self.fov[rows],
            track=self.track[rows],
            lineage=self.lineage[rows],
            t=self.t[rows],
            hpi=self.hpi[rows],
            labels={label: values[rows] for label, values in self.labels.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """An embedding of cells."""

    name: str
    """As it is called in tables and pictures."""
    features: Float32[np.ndarray, "n d"]
    """Row i is that of row i of the cells."""


def number(values: Text) -> tuple[Shaped[np.ndarray, " values"], Int64[np.ndarray, " n"]]:
    """Number distinct values; returns them, sorted, and the number of each row's."""
    known, numbers = np.unique(values.astype(str), return_inverse=True)
    return known.astype(object), numbers.astype(np.int64)
