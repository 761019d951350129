"""Tracks the simulated cells as a real tracker would: with jitter, gaps, and cells that are lost and found again.

A cell that leaves the frame and comes back gets a new track without a parent, because a tracker could not know that it
is the same cell. A daughter gets her mother's track as parent if the mother was tracked until she divided.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Shaped

from etl.simulate.colony import inside

_MISSED = 0.02
_JITTER_PX = 0.3

Row = tuple[int, int, float, float, float, int, int, int]


@dataclass(slots=True, kw_only=True)
class Tracker:
    """Follows the cells of one FOV; `rows` is the table, ordered by frame."""

    size: int
    z: int
    rows: list[Row] = field(default_factory=list)
    """(track_id, t, z, y, x, id, parent_track_id, parent_id), -1 for none."""
    _tracks: int = 0
    _current: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Cell → (its track, the track's parent, id of its last observation)."""
    _seen_outside: set[int] = field(default_factory=set)

    def sample_observations(self, rng: np.random.Generator, frame: int, cells: Shaped[np.ndarray, " n"]) -> None:
        """Detect the cells (dtype `CELL`) of the next frame and link them."""
        within = inside(cells, self.size)
        outside = set(cells["cell"].tolist()) - set(cells["cell"][within].tolist())
        self._seen_outside |= outside
        for cell in outside:
            self._current.pop(cell, None)
        found = within[rng.random(len(within)) >= _MISSED]
        centre = np.stack([cells["y"][found], cells["x"][found]], axis=1).astype(np.float64)
        centre = np.clip(centre + rng.normal(0, _JITTER_PX, centre.shape), 0, self.size - 1)
        depth = np.clip(self.z / 2 - 0.5 + rng.normal(0, 0.2, len(found)), 0, self.z - 1)
        who = zip(cells["cell"][found].tolist(), cells["parent"][found].tolist(), strict=True)
        for (cell, mother), (y, x), z in zip(who, centre.tolist(), depth.tolist(), strict=True):
            track, parent, last = self._link(cell, mother)
            number = len(self.rows)
            self.rows.append((track, frame, z, y, x, number, parent, last))
            self._current[cell] = (track, parent, number)

    def _link(self, cell: int, mother: int) -> tuple[int, int, int]:
        if cell in self._current:
            return self._current[cell]
        parent, last = -1, -1
        if mother in self._current and cell not in self._seen_outside:
            parent, _, last = self._current[mother]
        self._tracks += 1
        return self._tracks - 1, parent, last
