"""Offsets to pixels: local shards, memory-mapped, each patch copied once to where it is wanted."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from dynaclr_wds import contract
from dynaclr_wds.contract import FormatError
from dynaclr_wds.shardset import ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """What is wanted of a stored patch: slices of Z, Y and X."""

    z: slice
    y: slice
    x: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) of what is wanted."""
        return self.z.stop - self.z.start, self.y.stop - self.y.start, self.x.stop - self.x.start


def plan_crop(shards: ShardSet, z_range: tuple[int, int] | None, yx_patch_size: tuple[int, int] | None) -> Crop:
    """Say which part of the stored patches is wanted: slices of the plate's stack, and the middle in Y and X.

    Raises
    ------
    ValueError
        More is asked for than is stored.
    """
    stored, (_, _, height, width) = shards.z_range, shards.manifest.patch_shape
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
    return Crop(z=slice(low - stored[0], high - stored[0]), y=slice(top, top + want_y), x=slice(left, left + want_x))


class PatchReader:
    """Copies patches out of the shards of a set.

    Parameters
    ----------
    shards
        The set.
    crop
        What is wanted of each patch.
    mapped
        Copy from memory-mapped files, which is fastest when everything stays mapped; else read at offsets, which costs
        no page faults where patches come and go with a window.

    Notes
    -----
    A shard that is cut short or a disk that fails *after* the shard was mapped ends the process (SIGBUS), as with
    every memory map: replace shards by renaming, as the ETL does, never in place.
    """

    def __init__(self, shards: ShardSet, crop: Crop, *, mapped: bool = True) -> None:
        self._shards = shards
        self._crop = crop
        self._maps: dict[int, tuple[mmap.mmap, UInt8[np.ndarray, " n"]]] = {}
        self._mapped = mapped
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close_all, self._files)
        self._lock = threading.Lock()
        manifest = shards.manifest
        by_name = {e.name: np.dtype(e.dtype) for e in manifest.experiments}
        self._dtypes = [by_name[manifest.strata[s.stratum].experiment] for s in manifest.shards]
        a = shards.arrays
        self._clip_shard = a["block_shard"][a["clip_block"]]
        self._asked = np.zeros(len(a["patch_obs"]), bool)
        channels, _, height, width = manifest.patch_shape
        self.shape = (channels, *crop.shape)
        kinds = set(self._dtypes)
        self.dtype = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
        """Of a batch: the stored one if all experiments agree, else float32."""
        self._whole = (crop.shape[0], height, width) == (manifest.patch_shape[1], *crop.shape[1:])

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
        a, stored = self._shards.arrays, self._shards.manifest.patch_shape
        shard_of = self._clip_shard[a["patch_clip"][rows]].tolist()
        offsets = a["patch_offset"][rows].tolist()
        count = int(np.prod(stored))
        crop = (slice(None), self._crop.z, self._crop.y, self._crop.x)
        if self._mapped:
            self._ask(rows, shard_of, offsets, count)
        for place, (shard, offset) in enumerate(zip(shard_of, offsets, strict=True)):
            dtype, row = self._dtypes[shard], int(rows[place])
            if self._mapped:
                data = self._map(shard, row)[1][offset : offset + count * dtype.itemsize]
            elif self._whole and dtype == out.dtype:
                self._pread(shard, row, offset, out[place].reshape(-1).view(np.uint8))
                continue
            else:
                data = np.empty(count * dtype.itemsize, np.uint8)
                self._pread(shard, row, offset, data)
            patch = data.view(dtype).reshape(stored)
            out[place] = patch if self._whole else patch[crop]

    def fetch(self, block: int) -> None:
        """Have the system read a block from front to back, ahead of need."""
        a = self._shards.arrays
        file = self._open(int(a["block_shard"][block]), int(a["clip_first"][a["block_first"][block]]))
        if hasattr(os, "posix_fadvise"):
            begin, end = int(a["block_begin"][block]), int(a["block_end"][block])
            os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def name_member(self, row: int) -> str:
        """Say where a patch is stored: shard, member and offset."""
        a = self._shards.arrays
        clip = int(a["patch_clip"][row])
        shard = self._shards.manifest.shards[int(self._clip_shard[clip])]
        place = row - int(a["clip_first"][clip])
        return f"{self._shards.root / shard.path}, clip {clip}, patch {place:03d}, byte {int(a['patch_offset'][row])}"

    def _ask(self, rows: Int64[np.ndarray, " b"], shard_of: list[int], offsets: list[int], count: int) -> None:
        """Tell the kernel of all patches that were never read, so that a disk gets them at once and not page by page.

        Only the first time: on memory that is warm it costs a fifth of the copy.
        """
        new = np.flatnonzero(~self._asked[rows])
        self._asked[rows[new]] = True
        for place in new.tolist():
            shard, begin = shard_of[place], offsets[place] // mmap.PAGESIZE * mmap.PAGESIZE
            end = offsets[place] + count * self._dtypes[shard].itemsize
            self._map(shard, int(rows[place]))[0].madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def _pread(self, shard: int, row: int, offset: int, out: UInt8[np.ndarray, " n"]) -> None:
        """Read bytes at an offset."""
        got = os.preadv(self._open(shard, row), [out.data], offset)
        if got != out.nbytes:
            raise FormatError(f"{self.name_member(row)}: ends after {got:,} of {out.nbytes:,} bytes. Copy it again.")

    def _open(self, shard: int, row: int) -> int:
        """Open a shard, or recall its descriptor; `row` is named if that fails."""
        found = self._files.get(shard)
        if found is None:
            with self._lock:
                record = self._shards.manifest.shards[shard]
                try:
                    found = self._files[shard] = _open_file(self._shards.root / record.path, record.bytes)
                except (OSError, ValueError) as error:
                    error.add_note(f"while reading {self.name_member(row)}")
                    raise
        return found

    def _map(self, shard: int, row: int) -> tuple[mmap.mmap, UInt8[np.ndarray, " n"]]:
        """Map a shard, or recall its map; `row` is named if that fails."""
        found = self._maps.get(shard)
        if found is None:
            with self._lock:
                record = self._shards.manifest.shards[shard]
                try:
                    mapped = _map_file(self._shards.root / record.path, record.bytes)
                except (OSError, ValueError) as error:
                    error.add_note(f"while reading {self.name_member(row)}")
                    raise
                found = self._maps[shard] = mapped, np.frombuffer(mapped, np.uint8)
        return found


def _close_all(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)


def _open_file(path: Path, size: int) -> int:
    if not path.is_file():
        raise FormatError(f"{path}: is gone. Restore it, or build the shards again.")
    found = path.stat().st_size
    if found != size:
        raise FormatError(f"{path}: has {found:,} bytes, the manifest says {size:,}. Build the shards again.")
    return os.open(path, os.O_RDONLY)


def _map_file(path: Path, size: int) -> mmap.mmap:
    file = _open_file(path, size)
    try:
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(file)


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
    statistics = {level: a[f"stats_{level}"][rows[level]] for level in contract.LEVELS}
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
