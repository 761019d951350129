"""Memory of a thread that is used again and again: new pages cost as much as a copy."""

from __future__ import annotations

import threading

import numpy as np
from jaxtyping import Shaped
from numpy.typing import DTypeLike

_MOST_KEPT = 1 << 26
"""What is larger is given back after use."""

_own = threading.local()


def borrow(name: str, size: int, dtype: DTypeLike) -> Shaped[np.ndarray, " size"]:
    """Return memory of this thread for one purpose; what was in it before is lost."""
    if size * np.dtype(dtype).itemsize > _MOST_KEPT:
        return np.empty(size, dtype)
    rooms: dict[str, Shaped[np.ndarray, " room"]] = _own.__dict__
    if name not in rooms or rooms[name].size < size:
        rooms[name] = np.empty(size, dtype)
    return rooms[name][:size]
