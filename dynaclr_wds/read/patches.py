"""Offsets to pixels: local shards, memory-mapped, each patch copied once to where it is wanted."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, Shaped

from dynaclr_wds import contract
from dynaclr_wds.errors import FormatError
from dynaclr_wds.read.mapped import MappedFile, copy_rows
from dynaclr_wds.shardset import ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """What is wanted of a stored patch: slices of Z, Y and X."""

    z: slice
    """Within the stored slices; `slice(None)` is all of them."""
    y: slice
    x: slice

    @property
    def yx_shape(self) -> tuple[int, int]:
        """(Y, X) of what is wanted."""
        return self.y.stop - self.y.start, self.x.stop - self.x.start

    def shape(self, stored: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """(C, Z, Y, X) of what is wanted of a stored patch of such a shape."""
        return stored[0], len(range(*self.z.indices(stored[1]))), *self.yx_shape


def plan_crop(shards: ShardSet, z_range: tuple[int, int] | None, yx_patch_size: tuple[int, int] | None) -> Crop:
    """Say which part of the stored patches is wanted: slices of the plate's stack, and the middle in Y and X.

    Raises
    ------
    ValueError
        More is asked for than is stored.
    """
    stored, (_, _, height, width) = shards.z_range, shards.manifest.experiments[0].shape
    low, high = z_range or stored
    if not stored[0] <= low < high <= stored[1]:
        raise ValueError(
            f"z_range=({low}, {high}) is not within the stored slices {stored} of {shards.root}. "
            "Ask for slices inside it, or build the shards with a wider z_range."
        )
    want_y, want_x = yx_patch_size or (height, width)
    if not (0 < want_y <= height and 0 < want_x <= width):
        raise ValueError(
            f"yx_patch_size=({want_y}, {want_x}) is larger than the stored patches ({height}, {width}) of "
            f"{shards.root}. Ask for less, or build the shards with a larger yx_patch_size."
        )
    top, left = height // 2 - want_y // 2, width // 2 - want_x // 2
    z = slice(None) if z_range is None else slice(low - stored[0], high - stored[0])
    return Crop(z=z, y=slice(top, top + want_y), x=slice(left, left + want_x))


class PatchReader:
    """Copies patches out of the shards of a set.

    Parameters
    ----------
    shards
        The set.
    crop
        What is wanted of each patch.
    ahead
        Blocks are fetched before their patches are read, so that no patch has to be asked for by itself.

    Notes
    -----
    A shard that is cut short or a disk that fails while its patches are read ends the process with SIGBUS, as with
    every memory map: replace shards by renaming, as the ETL does, never in place.
    """

    def __init__(self, shards: ShardSet, crop: Crop, *, ahead: bool = False) -> None:
        self._shards = shards
        self._crop = crop
        self._files: dict[int, MappedFile] = {}
        self._lock = threading.Lock()
        manifest = shards.manifest
        a = shards.arrays
        self._clip_shard = a["block_shard"][a["clip_block"]]
        self._asked = None if ahead else np.zeros(len(a["patch_obs"]), bool)
        self._address = np.zeros(len(manifest.shards), np.int64)
        self._experiments = manifest.experiments
        self._dtypes = [np.dtype(e.dtype) for e in manifest.experiments]
        self._patch_bytes = np.array([e.patch_bytes for e in manifest.experiments], np.int64)
        self._whole = np.array([crop.shape(e.shape) == e.shape for e in manifest.experiments])
        self._shard_bytes = np.array([s.bytes for s in manifest.shards], np.int64)

    def layout(self, rows: Int64[np.ndarray, " b"]) -> tuple[tuple[int, int, int, int], np.dtype[Any]]:
        """Return the shape of each patch of a batch and its dtype: the stored one if all agree, else float32.

        Raises
        ------
        FormatError
            The batch mixes experiments whose patches differ in shape.
        """
        numbers = np.unique(self._shards.clip_experiment[self._shards.arrays["patch_clip"][rows]]).tolist()
        shapes = {self._experiments[n].name: self._crop.shape(self._experiments[n].shape) for n in numbers}
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
            Where to; cast on the way if it has another dtype.

        Raises
        ------
        FormatError
            A shard can't be read; a note says which member.
        """
        a = self._shards.arrays
        shard = self._clip_shard[a["patch_clip"][rows]]
        begin = a["patch_offset"][rows].astype(np.int64)
        experiment = self._shards.clip_experiment[a["patch_clip"][rows]]
        size = self._patch_bytes[experiment]
        self._open_all(rows, shard, begin, size)
        if self._asked is not None:
            self._ask(self._asked, rows, shard, begin, size)
        present = np.unique(experiment)
        plain = {self._dtypes[e] for e in present} == {out.dtype} and self._whole[present].all()
        if plain and out.flags.c_contiguous:
            copy_rows(self._address[shard] + begin, out)
            return
        crop = (slice(None), self._crop.z, self._crop.y, self._crop.x)
        for place, (s, at, e) in enumerate(zip(shard.tolist(), begin.tolist(), experiment.tolist(), strict=True)):
            data = self._files[s].data[at : at + self._patch_bytes[e]]
            out[place] = data.view(self._dtypes[e]).reshape(self._experiments[e].shape)[crop]

    def fetch(self, block: int) -> None:
        """Have the system read a block, front to back, and go on.

        Raises
        ------
        FormatError
            The shard is gone, or has been cut short since it was mapped.
        """
        file, begin, end = self._span(block)
        file.check()
        file.advise(begin, end)

    def forget(self, block: int) -> None:
        """Let go of a block."""
        file, begin, end = self._span(block)
        file.forget(begin, end)

    def name_member(self, row: int) -> str:
        """Say where a patch is stored: shard, member and offset."""
        a = self._shards.arrays
        clip = int(a["patch_clip"][row])
        shard = self._shards.manifest.shards[int(self._clip_shard[clip])]
        place = row - int(a["clip_first"][clip])
        return f"{self._shards.root / shard.path}, clip {clip}, patch {place:03d}, byte {int(a['patch_offset'][row])}"

    def _ask(
        self,
        asked: Bool[np.ndarray, " p"],
        rows: Int64[np.ndarray, " b"],
        shard: Integer[np.ndarray, " b"],
        begin: Int64[np.ndarray, " b"],
        size: Int64[np.ndarray, " b"],
    ) -> None:
        """Tell the kernel of all patches that were never read, so that a disk gets them at once and not page by page.

        Only the first time: on memory that is warm it costs a fifth of the copy.
        """
        new = np.flatnonzero(~asked[rows])
        asked[rows[new]] = True
        for s, at, count in zip(shard[new].tolist(), begin[new].tolist(), size[new].tolist(), strict=True):
            self._files[s].advise(at, at + count)

    def _open_all(
        self,
        rows: Int64[np.ndarray, " b"],
        shard: Integer[np.ndarray, " b"],
        begin: Int64[np.ndarray, " b"],
        size: Int64[np.ndarray, " b"],
    ) -> None:
        """Map the shards of some patches, and see to it that all of each patch is inside."""
        for place in np.flatnonzero(self._address[shard] == 0).tolist():
            self._open(int(shard[place]), int(rows[place]))
        outside = np.flatnonzero((begin < 0) | (begin + size > self._shard_bytes[shard]))
        if len(outside):
            row = int(rows[outside[0]])
            raise FormatError(f"{self.name_member(row)}: lies outside its shard. Build the shards again.")

    def _open(self, shard: int, row: int) -> MappedFile:
        """Map a shard, or recall its map; `row` is named if that fails."""
        found = self._files.get(shard)
        if found is not None:
            return found
        with self._lock:
            if shard not in self._files:  # a map that is replaced would be unmapped under those who read from it
                record = self._shards.manifest.shards[shard]
                try:
                    self._files[shard] = MappedFile(self._shards.root / record.path, record.bytes)
                except (OSError, ValueError) as error:
                    error.add_note(f"while reading {self.name_member(row)}")
                    raise
                self._address[shard] = self._files[shard].address
            return self._files[shard]

    def _span(self, block: int) -> tuple[MappedFile, int, int]:
        """Say where a block is: file, first byte, end."""
        a = self._shards.arrays
        row = int(a["clip_first"][a["block_first"][block]])
        return self._open(int(a["block_shard"][block]), row), int(a["block_begin"][block]), int(a["block_end"][block])


def level_statistics(
    shards: ShardSet, observations: Int64[np.ndarray, " b"]
) -> dict[str, Float32[np.ndarray, "b c k"]]:
    """Look up intensity statistics: level → (B, C, len(contract.STATISTICS)).

    Raises
    ------
    FormatError
        A statistic is not a number: whatever is normalised by it would silently be none either.
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
