"""Loads the compiled passes over pixels (`pixels.c`), where there was a compiler at installation.

What has such a pass has the same in numpy, with the same results; without a compiler only time is lost.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

from dynaclr_wds.optional import load_library

_SIZE, _POINTER = ctypes.c_size_t, ctypes.c_void_p

_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "count_8": (_POINTER, _SIZE, _POINTER, _POINTER),
    "count_16": (_POINTER, _SIZE, _POINTER, _POINTER, _POINTER),
    "measure_float32": (_POINTER, _SIZE, _POINTER, _POINTER),
    "bin_float32": (_POINTER, _SIZE, _POINTER, _POINTER, _POINTER),
    "pick_float32": (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER),
    "crop": (_POINTER, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER, ctypes.c_int64),
    "put": (_POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER),
}
_RESULTS: Mapping[str, Any] = {"count_16": ctypes.c_int, "measure_float32": ctypes.c_int, "pick_float32": _SIZE}


@functools.cache
def load_compiled() -> Mapping[str, Any] | None:
    """Return the compiled functions by name; None where no compiler was at hand at installation."""
    library, functions = load_library("etl.cut._pixels"), {}
    if library is None:
        return None
    for name, arguments in _ARGUMENTS.items():
        function = functions[name] = getattr(library, f"dynaclr_{name}")
        function.argtypes, function.restype = arguments, _RESULTS.get(name)
    return functions
