"""Says which part of the stored patches a training reads: slices of Z, and the middle in Y and X."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy.typing import DTypeLike

from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.shardset import ShardSet

Shape = tuple[int, int, int, int]
"""(C, Z, Y, X)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """Which part of a stored patch is wanted: slices of Z, and the middle in Y and X."""

    z: slice
    """Within the stored slices; `slice(None)` is all of them."""
    yx: tuple[int, int] | None = None
    """(Y, X) in pixels; None is all of them."""

    def slices(self, stored: Shape) -> tuple[slice, slice, slice]:
        """(Z, Y, X) slices of a stored patch of such a shape."""
        _, depth, height, width = stored
        want_y, want_x = self.yx or (height, width)
        top, left = height // 2 - want_y // 2, width // 2 - want_x // 2
        return slice(*self.z.indices(depth)), slice(top, top + want_y), slice(left, left + want_x)

    def shape(self, stored: Shape) -> Shape:
        """(C, Z, Y, X) of what is wanted of a stored patch of such a shape."""
        z, y, x = self.slices(stored)
        return stored[0], z.stop - z.start, y.stop - y.start, x.stop - x.start

    def runs(self, stored: Shape, dtype: DTypeLike) -> tuple[Int64[np.ndarray, " k"], int]:
        """Contiguous runs of bytes that make up what is wanted: where each begins in the patch, and bytes of each."""
        itemsize = np.dtype(dtype).itemsize
        begin = [0, *(axis.start for axis in self.slices(stored))]
        wanted = self.shape(stored)
        stride = [itemsize * math.prod(stored[axis + 1 :]) for axis in range(4)]
        inner = 3  # first axis of a run: all axes after it are wanted whole
        while inner > 0 and wanted[inner] == stored[inner]:
            inner -= 1
        offset = np.zeros(1, np.int64)
        for axis in range(inner):
            offset = (offset[:, None] + stride[axis] * (begin[axis] + np.arange(wanted[axis]))).ravel()
        return offset + stride[inner] * begin[inner], stride[inner] * wanted[inner]


def plan_crop(
    shards: ShardSet,
    z_range: tuple[int, int] | None,
    yx_patch_size: tuple[int, int] | None,
    experiments: Collection[str] | None = None,
) -> Crop:
    """Say which part of the stored patches is wanted: slices of the plate's stack, and the middle in Y and X.

    Parameters
    ----------
    experiments
        Those that patches are read of; None = all.

    Raises
    ------
    ValueError
        More is asked for than is stored.
    """
    stored = shards.z_range
    low, high = z_range or stored
    if not stored[0] <= low < high <= stored[1]:
        raise ValueError(
            f"z_range=({low}, {high}) is not within the stored slices {stored} of {shards.root}. "
            "Ask for slices inside it, or build the shards with a wider z_range."
        )
    for experiment in shards.manifest.experiments:
        if experiments is not None and experiment.name not in experiments:
            continue
        _, depth, height, width = experiment.shape
        want_y, want_x = yx_patch_size or (height, width)
        if not (0 < want_y <= height and 0 < want_x <= width):
            raise ValueError(
                f"yx_patch_size=({want_y}, {want_x}) is larger than the stored patches ({height}, {width}) of "
                f"{experiment.name!r} in {shards.root}. Ask for less, or build the shards with a larger yx_patch_size."
            )
        if z_range is not None and high - stored[0] > depth:
            raise ValueError(
                f"z_range=({low}, {high}) is more than the {depth} stored slices of {experiment.name!r} in "
                f"{shards.root}. Ask for slices that every experiment has."
            )
    z = slice(None) if z_range is None else slice(low - stored[0], high - stored[0])
    return Crop(z=z, yx=yx_patch_size)


def check_one_shape(shards: ShardSet, crop: Crop, index: PlanIndex, *, groups_meet: bool) -> None:
    """Check that patches that may share a batch have one shape.

    Parameters
    ----------
    index
        What batches are drawn from.
    groups_meet
        Whether a batch may draw from several groups. Where samples hold some of the channels, only Z, Y, X matter.

    Raises
    ------
    ValueError
        The experiments of a group, or of groups that meet, differ in shape; names the experiments of each shape.
    """
    members: dict[str, set[str]] = {}
    for stratum in index.strata:
        members.setdefault("" if groups_meet else stratum.group_name, set()).add(stratum.experiment)
    for experiments in members.values():
        by_shape: dict[Shape, list[str]] = {}
        for e in shards.manifest.experiments:
            if e.name in experiments:
                shape = crop.shape(e.shape)
                if index.choices is not None:
                    shape = (index.choices.per_sample, *shape[1:])
                by_shape.setdefault(shape, []).append(e.name)
        if len(by_shape) > 1:
            raise ValueError(
                f"Batches would mix patches of different shapes (C, Z, Y, X): {by_shape}. Draw each batch from one "
                "experiment (experiment_aware=True, batch_group_by=['experiment'], leaky=0), or build the experiments "
                "with the same channels."
            )
