"""Distances from the middle to the side of a crop that holds them. Pure; `init` and a training's verdict share it."""

from __future__ import annotations


def least_side(before: int | float, behind: int | float) -> int:
    """Return the smallest even side of a centre crop that holds pixels so far off the middle of a patch.

    Pixel `side // 2` of a crop is the middle, so an even side has one pixel less behind it than before it.

    Parameters
    ----------
    before, behind
        How far pixels lie towards smaller and towards larger numbers, as whole numbers ≥ 0.
    """
    return 2 * int(max(before, behind + 1))
