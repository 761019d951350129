"""Epoch to a value that changes during training: temperatures and weights of losses."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]
"""How a value goes from where it starts to where it stays."""


def anneal(start: float, end: float, epoch: int, epochs: int) -> float:
    """Return the value of an epoch: half a cosine from `start` to `end`, as in mehta-lab/VisCy, then `end`.

    Parameters
    ----------
    start
        Value in epoch 0.
    end
        Value from epoch `epochs` on.
    epoch
        Counted from 0.
    epochs
        How many epochs it takes.
    """
    if epoch >= epochs:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
