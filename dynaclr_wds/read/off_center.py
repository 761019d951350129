"""Index to cells that the network doesn't see: they lie in their patch, but outside the middle that is cropped of it.

A build with `border: shift` moves patches of cells near the border into the image, so such a cell is away from the
middle of its patch. With `pad` and `drop` every cell is in the middle.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from dynaclr_wds import contract
from dynaclr_wds.crop_sides import least_side
from dynaclr_wds.errors import FormatError
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.read.crop import Crop
from dynaclr_wds.shardset import ShardSet


class OffCenter(NamedTuple):
    """How many cells a crop leaves out, and which crop would leave out none."""

    outside: int
    cells: int
    """All that were looked at."""
    least: tuple[int, int]
    """(Y, X) of the smallest centre crop, of even sides, that holds every cell."""


def count_outside(shards: ShardSet, index: PlanIndex, seen: Crop) -> OffCenter:
    """Count the cells that lie outside a crop of their patch, and all cells, among the anchors.

    Parameters
    ----------
    shards
        The set.
    index
        Lists the anchors; the channels of one cell count once.
    seen
        What the network sees of a patch, before augmentations move it.
    """
    experiments = shards.manifest.experiments
    is_anchor = np.zeros(len(shards.arrays["obs_fov"]), bool)
    is_anchor[shards.arrays["patch_obs"][index.row]] = True
    cells = int(np.count_nonzero(is_anchor))
    shown = np.array([seen.shape(e.shape)[2:] for e in experiments], np.int64)
    stored = np.array([e.shape[2:] for e in experiments], np.int64)
    if shards.manifest.config["border"] != "shift" or (shown == stored).all():
        return OffCenter(0, cells, (0, 0))
    scale = np.array([e.scale[1:] for e in experiments])
    outside, least = np.zeros(len(is_anchor), bool), [0, 0]
    for axis, (name, centre) in enumerate(read_centres(shards).items()):
        moved = np.flatnonzero(is_anchor & (np.floor(shards.arrays[f"obs_{name}"]) != centre))
        off = np.floor(shards.arrays[f"obs_{name}"][moved]) - centre[moved]
        experiment = shards.fov_experiment[shards.arrays["obs_fov"][moved]]
        size = shown[experiment, axis]
        off = np.floor(off / scale[experiment, axis] + 0.5)  # pixels of the crop
        place = size // 2 + off
        outside[moved] |= (place < 0) | (place >= size)
        least[axis] = min(least_side(-off.min(initial=0), off.max(initial=0)), int(stored[:, axis].min()))
    return OffCenter(int(np.count_nonzero(outside)), cells, (least[0], least[1]))


def read_centres(shards: ShardSet) -> dict[str, Integer[np.ndarray, " n"]]:
    """Read the centre of each observation's patch along y and x, in pixels of the image, from the index table.

    Raises
    ------
    FormatError
        The table can't be read, or isn't that of the mapped arrays.
    """
    import pyarrow.parquet as pq  # only those who look at centres need it

    path = shards.find_table(contract.OBSERVATIONS)
    try:
        table = pq.read_table(path, columns=["y_clamp", "x_clamp"])
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{path}: the centres of patches can't be read ({error}). Build the shards again.") from error
    if len(table) != len(shards.arrays["obs_fov"]):
        raise FormatError(
            f"{path}: has {len(table):,} rows, the index arrays have {len(shards.arrays['obs_fov']):,}. Build the "
            "shards again."
        )
    return {name: table[f"{name}_clamp"].to_numpy() for name in "yx"}
