"""Patch rows to pixels: finds each patch in the shards, crops and casts it, and copies it where it is wanted."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8
from numpy.typing import DTypeLike

from dynaclr_wds import contract
from dynaclr_wds.errors import ChecksumError, FormatError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import BlockStore, RowFailure

_CAST_BYTES = 1 << 19  # of patches that are read at a time to be cast: stays in the processor's cache

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


def plan_crop(shards: ShardSet, z_range: tuple[int, int] | None, yx_patch_size: tuple[int, int] | None) -> Crop:
    """Say which part of the stored patches is wanted: slices of the plate's stack, and the middle in Y and X.

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


def check_one_shape(shards: ShardSet, crop: Crop, experiments: Collection[str]) -> None:
    """Check that the patches of some experiments can share a batch.

    Raises
    ------
    ValueError
        They differ in shape; names the experiments of each.
    """
    by_shape: dict[Shape, list[str]] = {}
    for e in shards.manifest.experiments:
        if e.name in experiments:
            by_shape.setdefault(crop.shape(e.shape), []).append(e.name)
    if len(by_shape) > 1:
        raise ValueError(
            f"Batches would mix patches of different shapes (C, Z, Y, X): {by_shape}. Draw each batch from one "
            "experiment (experiment_aware=True, leaky=0), or build the experiments with the same channels."
        )


class PatchReader:
    """Copies patches out of the shards of a set.

    Parameters
    ----------
    shards
        The set.
    crop
        What is wanted of each patch.
    store
        Where the bytes are.
    verify
        Check the checksum of each block before anything of it is read for the first time.
    """

    def __init__(self, shards: ShardSet, crop: Crop, store: BlockStore, *, verify: bool = False) -> None:
        self.verify = verify
        self._shards = shards
        self._store = store
        self._experiments = shards.manifest.experiments
        self._dtypes = [np.dtype(e.dtype) for e in self._experiments]
        self._shapes = [crop.shape(e.shape) for e in self._experiments]
        self._runs = [crop.runs(e.shape, e.dtype) for e in self._experiments]
        self._verified = np.zeros(len(shards.arrays["block_shard"]), bool)
        self._scratch = threading.local()

    def shape_of(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, "b 4"]:
        """Return the shape of each patch as it is read, (C, Z, Y, X)."""
        return np.array(self._shapes, np.int64)[self._experiment(rows)]

    def layout(self, rows: Int64[np.ndarray, " b"]) -> tuple[Shape, np.dtype[Any]]:
        """Return the shape of each patch of a batch and its dtype: the stored one if all agree, else float32.

        Raises
        ------
        FormatError
            The batch mixes experiments whose patches differ in shape.
        """
        numbers = np.unique(self._experiment(rows)).tolist()
        shapes = {self._experiments[n].name: self._shapes[n] for n in numbers}
        if len(set(shapes.values())) > 1:
            raise FormatError(
                f"{self._shards.root}: a batch holds patches of different shapes: {shapes}. Draw batches from one "
                "experiment (experiment_aware=True, leaky=0), or build the experiments with the same channels."
            )
        kinds = {self._dtypes[n] for n in numbers}
        return next(iter(shapes.values())), kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)

    def read(self, rows: Int64[np.ndarray, " b"], out: Shaped[np.ndarray, "b c z y x"]) -> None:
        """Copy patches into a batch.

        Parameters
        ----------
        rows
            Patch rows.
        out
            Where to, C-contiguous; cast on the way if it has another dtype.

        Raises
        ------
        FormatError, StorageError
            A shard can't be read; a note says which member.
        ChecksumError
            A block isn't what was written.
        """
        if self.verify:
            self.verify_blocks(self._shards.arrays["clip_block"][self._shards.arrays["patch_clip"][rows]])
        experiment = self._experiment(rows)
        for e in np.unique(experiment).tolist():
            places = np.flatnonzero(experiment == e)
            if self._dtypes[e] == out.dtype and len(places) == len(rows):
                self._copy(rows, e, out)
            else:
                self._cast(rows, e, places, out)

    def fetch(self, block: int) -> None:
        """Have a block brought near; returns before it is there."""
        self._store.fetch(*self._span(block))

    def forget(self, block: int) -> None:
        """Let go of a block."""
        self._store.forget(*self._span(block))

    def load(self, block: int) -> int:
        """Read a block from front to back, check it, and return its bytes."""
        shard, begin, end = self._span(block)
        found, expected = self._store.checksum(shard, begin, end), int(self._shards.arrays["block_xxh3"][block])
        if found != expected:
            raise ChecksumError(
                f"{self._shards.root / self._shards.manifest.shards[shard].path}: block {block}, bytes {begin:,} to "
                f"{end:,}, is not what was written: its checksum is {contract.format_checksum(found)}, the index says "
                f"{contract.format_checksum(expected)}. Run `python -m etl.verify {self._shards.root}` to see all that "
                "is damaged, and restore the shard or build it again."
            )
        self._verified[block] = True
        return end - begin

    def verify_blocks(self, blocks: Shaped[np.ndarray, " b"]) -> None:
        """Check the blocks that this process has not checked yet.

        Raises
        ------
        ChecksumError
            A block isn't what was written; names shard, block and byte range.
        """
        new = np.unique(blocks[~self._verified[blocks]]).tolist()
        if len(new) > 1:
            for block in new:  # all are asked for before the first is waited for
                self.fetch(block)
        for block in new:
            if not self._verified[block]:  # another thread may have done so meanwhile
                self.load(block)

    def name_member(self, row: int) -> str:
        """Say where a patch is stored: shard, clip, place in the clip and byte."""
        a = self._shards.arrays
        clip = int(a["patch_clip"][row])
        shard = self._shards.manifest.shards[int(a["block_shard"][a["clip_block"][clip]])]
        place = row - int(a["clip_first"][clip])
        return f"{self._shards.root / shard.path}, clip {clip}, patch {place:03d}, byte {int(a['patch_offset'][row])}"

    def _experiment(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        return self._shards.clip_experiment[self._shards.arrays["patch_clip"][rows]]

    def _copy(self, rows: Int64[np.ndarray, " b"], experiment: int, out: Shaped[np.ndarray, "b ..."]) -> None:
        """Copy patches of one experiment as they are stored, cropped."""
        assert out.flags.c_contiguous
        a = self._shards.arrays
        shard = a["block_shard"][a["clip_block"][a["patch_clip"][rows]]].astype(np.int64)
        offset, run_bytes = self._runs[experiment]
        target = out.reshape(-1).view(np.uint8).reshape(len(rows), len(offset), run_bytes)
        try:
            self._store.read(shard, a["patch_offset"][rows].astype(np.int64), offset, target)
        except RowFailure as failure:
            failure.error.add_note(f"while reading {self.name_member(int(rows[failure.row]))}")
            raise failure.error from failure.error.__cause__

    def _cast(
        self,
        rows: Int64[np.ndarray, " b"],
        experiment: int,
        places: Int64[np.ndarray, " p"],
        out: Shaped[np.ndarray, "b c z y x"],
    ) -> None:
        """Copy patches of one experiment to their places in a batch that also holds others, or is of another dtype."""
        shape, dtype = self._shapes[experiment], self._dtypes[experiment]
        patch_bytes = math.prod(shape) * dtype.itemsize
        step = max(1, _CAST_BYTES // patch_bytes)
        scratch = self._take_scratch(step * patch_bytes)
        for first in range(0, len(places), step):
            part = places[first : first + step]
            patches = scratch[: len(part) * patch_bytes].view(dtype).reshape(len(part), *shape)
            self._copy(rows[part], experiment, patches)
            out[part] = patches

    def _take_scratch(self, size: int) -> UInt8[np.ndarray, " n"]:
        """Return this thread's memory for what is cast."""
        found: UInt8[np.ndarray, " m"] | None = getattr(self._scratch, "buffer", None)
        if found is None or len(found) < size:
            found = self._scratch.buffer = np.empty(size, np.uint8)
        return found

    def _span(self, block: int) -> tuple[int, int, int]:
        """Say where a block is: shard, first byte, end."""
        a = self._shards.arrays
        return int(a["block_shard"][block]), int(a["block_begin"][block]), int(a["block_end"][block])


def level_statistics(
    shards: ShardSet, observations: Int64[np.ndarray, " b"]
) -> dict[str, Float32[np.ndarray, "b c k"]]:
    """Look up intensity statistics: level → (B, C, len(contract.STATISTICS)).

    Raises
    ------
    FormatError
        A statistic is not a number, so nothing that is normalised by it would be one.
    """
    a = shards.arrays
    fov = a["obs_fov"][observations]
    rows = {
        "timepoint": a["fov_first_frame"][fov] + a["obs_t"][observations],
        "fov": fov,
        "dataset": shards.fov_experiment[fov],
    }
    channels = {shards.manifest.experiments[e].shape[0] for e in np.unique(rows["dataset"]).tolist()}
    assert len(channels) == 1, "a batch holds patches of one shape"
    count = channels.pop()
    statistics = {level: a[f"stats_{level}"][rows[level], :count] for level in contract.LEVELS}
    for level, values in statistics.items():
        if np.isnan(values).any():
            place, channel, which = (int(axis[0]) for axis in np.nonzero(np.isnan(values)))
            record, t = shards.manifest.fovs[int(fov[place])], int(a["obs_t"][observations[place]])
            raise FormatError(
                f"{shards.root}: {contract.STATISTICS[which]} of level {level!r} is not a number in experiment "
                f"{record.experiment!r}, {record.fov_name}, t={t}, channel {channel}; every stored cell needs its "
                "statistics. Mend the plate (its pixels there, or its `normalization`), or leave the field of view "
                "out with exclude_fovs, and build the shards again."
            )
    return statistics
