"""Checks rows of patches in a compiled pass (`row_checks.c`), where there was a compiler at installation.

It says that all is well or that something is not; `index_checks.py` does the same with numpy, and names the row.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import ARRAYS
from dynaclr_wds.optional import load_library

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]

_PATCHES = ("patch_obs", "patch_clip", "patch_t", "patch_is_sample", "patch_has_candidate", "patch_offset")
_CLIPS = ("clip_first", "clip_lineage", "clip_block")
_OBSERVATIONS = ("obs_t", "obs_lineage", "obs_patch")
_THREADS = 2


def count_samples(arrays: Arrays, member: Int[np.ndarray, " clips"] | None, most_offset: int) -> int | None:
    """Count the rows of patches that are samples; None where one is not as it must be, or nothing is compiled.

    Parameters
    ----------
    arrays
        All of the contract; their lengths fit, and `clip_first` ascends from 0 to the number of rows.
    member
        Bytes from patch to patch in each clip; None = offsets are not looked at.
    most_offset
        No offset is above it.
    """
    check, rows = _load(), len(arrays["patch_obs"])
    if check is None or not rows:
        return None
    columns = {n: np.ascontiguousarray(arrays[n], ARRAYS[n]) for n in (*_PATCHES, *_CLIPS, *_OBSERVATIONS)}
    members = np.ascontiguousarray(np.zeros(0) if member is None else member, np.int64)
    places = {name: column.ctypes.data for name, column in columns.items()}
    if member is None:
        places["patch_offset"] = 0
    counted = len(columns["obs_t"])
    patches = (ctypes.c_void_p * len(_PATCHES))(*(places[name] for name in _PATCHES))
    clips = (ctypes.c_void_p * (len(_CLIPS) + 1))(*(places[name] for name in _CLIPS), members.ctypes.data)
    observations = (ctypes.c_void_p * (len(_OBSERVATIONS) + 1))(*(places[name] for name in _OBSERVATIONS), counted)
    edges = np.linspace(0, rows, _THREADS + 1).astype(np.int64)
    of = (np.searchsorted(columns["clip_first"], edges[:-1], "right") - 1).tolist()

    def run(begin: int, stop: int, clip: int) -> int:
        return int(check(patches, clips, observations, begin, stop, clip, most_offset))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="dynaclr-check") as pool:
        found = list(pool.map(run, edges[:-1].tolist(), edges[1:].tolist(), of))
    return None if min(found) < 0 else sum(found)


@functools.cache
def _load() -> Any | None:
    library = load_library("dynaclr_wds._row_checks")
    if library is None or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    check = library.dynaclr_check_rows
    check.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4
    check.restype = ctypes.c_int64
    return check
