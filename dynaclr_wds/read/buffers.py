"""Keeps memory for batches, and uses it again and again.

Fresh memory costs a page fault every 4 KiB, which is most of the time of a copy. A buffer goes back to the pool when
the last tensor that looks at it is gone, so callers never have to give it back.
"""

from __future__ import annotations

import weakref
from collections import deque
from math import prod

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import DTypeLike
from torch import Tensor

_ALIGN = 64
"""Bytes: patches start at multiples of it in shards; a copy to anywhere else takes up to twice as long."""


class BufferPool:
    """Buffers of a few sizes.

    Parameters
    ----------
    pinned
        Take page-locked memory from torch's caching host allocator instead, which itself uses memory again
        and knows when a transfer to the GPU has ended.
    keep
        Buffers of each size that are kept while they are not in use.
    """

    def __init__(self, *, pinned: bool = False, keep: int = 16) -> None:
        self._pinned = pinned
        self._keep = keep
        # no lock: a buffer may come back in the middle of anything, when the garbage collector runs
        self._free: dict[int, deque[Shaped[np.ndarray, " n"]]] = {}

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Shaped[np.ndarray, "*shape"], Tensor]:
        """Return uninitialised memory as an array and as a tensor over it."""
        dtype = np.dtype(dtype)
        size = prod(shape) * dtype.itemsize
        if self._pinned:
            raw = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            array = raw.numpy().view(dtype).reshape(shape)
            return array, raw.view(torch.from_numpy(np.empty(0, dtype)).dtype).reshape(shape)
        free = self._free.setdefault(size, deque(maxlen=self._keep))
        try:
            buffer = free.pop()
        except IndexError:
            memory = np.empty(size + _ALIGN, np.uint8)
            skip = -memory.ctypes.data % _ALIGN
            buffer = memory[skip : skip + size]
        array = buffer.view(dtype).reshape(shape)
        weakref.finalize(array, free.append, buffer).atexit = False
        return array, torch.from_numpy(array)
