"""Loads the compiled passes over anchors (`anchors.c`), where there was a compiler at installation.

Whoever calls them does the same with numpy where there was none.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.optional import load_library

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def load_anchors() -> Any | None:
    """Load them; None where there are none."""
    library = load_library("dynaclr_wds.plan._anchors")
    if library is None or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    word = ctypes.c_uint64
    takes = {
        "order_pass": [_POINTER, _POINTER, _NUMBER, _POINTER, word, word, _POINTER, _POINTER],
        "find_clips": [_POINTER, _POINTER, _POINTER, _NUMBER, _POINTER, _POINTER, _POINTER],
        "order_stays": [_POINTER, _NUMBER, *[_POINTER] * 5, _NUMBER, *[_POINTER] * 3],
        "find_spans": [_POINTER, _NUMBER, _POINTER, _POINTER],
        "list_samples": [_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER],
    }
    for name, types in takes.items():
        function = getattr(library, f"dynaclr_{name}")
        function.argtypes, function.restype = types, _NUMBER
    library.dynaclr_order_pass.restype = library.dynaclr_order_stays.restype = None
    library.dynaclr_find_spans.restype = None
    return library


def fit(dtype: type[Any], *arrays: Shaped[np.ndarray, " _"]) -> bool:
    """Whether arrays are as a compiled pass takes them."""
    return all(array.dtype == dtype and array.flags.c_contiguous for array in arrays)


def address(*arrays: Shaped[np.ndarray, ...]) -> list[int]:
    """List where the numbers of arrays are in memory; the arrays have to live on meanwhile."""
    return [array.ctypes.data for array in arrays]
