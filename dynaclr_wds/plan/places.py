"""Anchors to places in a queue: lays the anchors of a clip out evenly over a pass, and sorts by that.

The compiled pass (`anchors.c`) does it where there was a compiler at installation, without the GIL; numpy does the
same, bit for bit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int32, Int64, Integer, UInt64

from dynaclr_wds.plan.columns import PatchRow
from dynaclr_wds.plan.compiled import address, fit, load_anchors
from dynaclr_wds.plan.rng import hash_parts, sort_places


def order_pass(
    rng: np.random.Generator,
    row: Integer[PatchRow, " n"],
    patch_clip: Integer[np.ndarray, " p"],
    stratum: int,
    number: int,
    out: Int32[np.ndarray, " n"],
) -> None:
    """Order the anchors of a stratum for one pass, as numbers within it.

    Parameters
    ----------
    rng
        Gives the key of the order: generators in the same state give the same.
    row, patch_clip
        Patch row of each anchor, ascending; clip of each patch row.
    stratum, number
        Which stratum, and which pass through it.
    out
        Is written to.
    """
    compiled = load_anchors()
    if compiled is not None and fit(np.int32, row, patch_clip) and out.flags.c_contiguous:
        keys = np.array([rng.integers(0, 1 << 63) for _ in range(3)], np.uint64)
        scratch = np.empty(2 * len(row), np.uint64)
        compiled.dynaclr_order_pass(
            *address(row, patch_clip), len(row), *address(keys), stratum, number, *address(scratch), *address(out)
        )
        return
    clip = patch_clip[row]
    first = np.flatnonzero(np.diff(clip, prepend=-1))
    bits = [hash_parts(rng, stratum, number, clip[first], kind) for kind in range(3)]
    out[:] = sort_places(place_clips(first, len(clip), *bits))


def place_clips(
    first: Int64[np.ndarray, " c"],
    total: int,
    some: UInt64[np.ndarray, " c"],
    other: UInt64[np.ndarray, " c"],
    third: UInt64[np.ndarray, " c"],
) -> Float[np.ndarray, " n"]:
    """Place each anchor in [0, 1) so that those of a clip lie evenly, from a random start, in random order.

    Parameters
    ----------
    first
        Where each clip begins among the anchors.
    some, other, third
        Random words for each clip.
    """
    count = np.diff(first, append=total)
    # j → (a j + b) mod n is a permutation when a and n are coprime: shuffles every clip without a sort
    wide = count.astype(np.uint64)
    factor = (1 + some % np.maximum(wide - 1, 1)).astype(np.int64)
    factor[np.gcd(factor, count) != 1] = 1
    offset = (other % np.maximum(wide, 1)).astype(np.int64)
    phase = (third >> np.uint64(40)).astype(np.float64) * 2.0**-24
    kind = np.int32 if total < 1 << 31 and count.max(initial=0) < 1 << 15 else np.int64  # products have to fit
    start, factor, offset, each = (np.repeat(a.astype(kind), count) for a in (first, factor, offset, count))
    rank = ((np.arange(total, dtype=kind) - start) * factor + offset) % each  # type: ignore[operator]
    return ((rank + np.repeat(phase, count)) / each).astype(np.float32)
