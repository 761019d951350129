"""Visits to draws: orders the anchors of blocks by random places in the stays of their blocks.

The compiled pass (`anchors.c`) does it where there was a compiler at installation, without the GIL; numpy does the
same, bit for bit.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from jaxtyping import Float64, Int32, Int64, Integer, UInt64

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compiled import address, fit, load_anchors
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.places import place_clips
from dynaclr_wds.plan.rng import sort_places
from dynaclr_wds.plan.streaming.partition import Part


def order_stays(
    rng: np.random.Generator, index: PlanIndex, visits: Part, span: Float64[np.ndarray, "2 v"]
) -> tuple[Integer[SampleIndex, " n"], Int32[np.ndarray, " n"]]:
    """Order the anchors of visits: each comes up at its random place in the stay of its visit.

    Parameters
    ----------
    visits
        A block for each visit.
    span
        When each visit begins, and how long it stays; no visit ends after 1.

    Returns
    -------
    The anchors in their order, and the visit of each.
    """
    row, patch_clip = index.row, index.columns.patch_clip
    base = np.zeros(0, row.dtype) if visits.base is None else visits.base
    if load_anchors() is not None and fit(np.int32, row, patch_clip, base):
        return _order_compiled(rng, index, visits, np.ascontiguousarray(span))
    # an anchor is sorted by the time at which its visit begins, plus its random place in the stay
    visit = np.repeat(np.arange(len(visits.blocks), dtype=np.int32), np.diff(visits.first))
    anchors = visits.anchors.astype(row.dtype)
    clip = patch_clip[row[anchors]].astype(np.int64) + (visit.astype(np.int64) << 32)
    head = np.flatnonzero(np.diff(clip, prepend=-1))
    begins, length = span
    place = place_clips(head, len(anchors), *_draw_bits(rng, len(head)))
    order = sort_places(begins[visit] + length[visit] * place)
    return cast(SampleIndex, anchors[order]), visit[order]


def _order_compiled(
    rng: np.random.Generator, index: PlanIndex, visits: Part, span: Float64[np.ndarray, "2 v"]
) -> tuple[Integer[SampleIndex, " n"], Int32[np.ndarray, " n"]]:
    compiled, count, most = load_anchors(), visits.size, len(visits.blocks)
    assert compiled is not None
    begin, first = (np.ascontiguousarray(of, np.int64) for of in (visits.begin, visits.first))
    base = None if visits.base is None else visits.base.ctypes.data
    head = np.empty(count + 1, np.int64)  # where clips begin; only as much as there are is ever touched
    clips = compiled.dynaclr_find_clips(
        base, *address(begin, first), most, *address(index.row, index.columns.patch_clip, head)
    )
    head[clips] = count
    bits = _draw_bits(rng, clips)
    scratch = np.empty(2 * count, np.uint64)
    out, visit = np.empty(count, np.int32), np.empty(count, np.int32)
    compiled.dynaclr_order_stays(
        *address(head), clips, *address(bits), base, *address(begin, first, span), most, *address(scratch, out, visit)
    )
    return cast(SampleIndex, out), visit


def find_spans(visit: Int32[np.ndarray, " n"], visits: int) -> tuple[Int64[np.ndarray, " v"], Int64[np.ndarray, " v"]]:
    """Find the first and the last draw that falls on each visit; the number of draws and −1 where none does."""
    first, last = np.full(visits, len(visit)), np.full(visits, -1)
    compiled = load_anchors()
    if compiled is not None and fit(np.int32, visit):
        compiled.dynaclr_find_spans(*address(visit), len(visit), *address(first, last))
        return first, last
    place = np.arange(len(visit))
    first[visit[::-1]] = place[::-1]  # of equal visits the last assignment stays
    last[visit] = place
    return first, last


def _draw_bits(rng: np.random.Generator, clips: int) -> UInt64[np.ndarray, "3 c"]:
    """Draw three random words for each clip."""
    return rng.integers(0, 1 << 63, (3, clips)).astype(np.uint64)
