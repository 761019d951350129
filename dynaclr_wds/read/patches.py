"""Offsets to pixels: local shards, memory-mapped, each patch copied once to where it is wanted."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

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
    """

    def __init__(self, shards: ShardSet, crop: Crop) -> None:
        self._shards = shards
        self._crop = crop
        self._maps: dict[int, UInt8[np.ndarray, " n"]] = {}
        self._lock = threading.Lock()
        manifest = shards.manifest
        by_name = {e.name: np.dtype(e.dtype) for e in manifest.experiments}
        self._dtypes = [by_name[manifest.strata[s.stratum].experiment] for s in manifest.shards]
        a = shards.arrays
        self._clip_shard = a["block_shard"][a["clip_block"]]
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
        shard_of = self._clip_shard[a["patch_clip"][rows]]
        count = int(np.prod(stored))
        crop, whole = (slice(None), self._crop.z, self._crop.y, self._crop.x), self._whole
        for place, (shard, offset) in enumerate(zip(shard_of.tolist(), a["patch_offset"][rows].tolist(), strict=True)):
            dtype = self._dtypes[shard]
            try:
                data = self._map(shard)[offset : offset + count * dtype.itemsize].view(dtype).reshape(stored)
            except (OSError, ValueError) as error:
                error.add_note(f"while reading {self.name_member(int(rows[place]))}")
                raise
            out[place] = data if whole else data[crop]

    def name_member(self, row: int) -> str:
        """Say where a patch is stored: shard, member and offset."""
        a = self._shards.arrays
        clip = int(a["patch_clip"][row])
        shard = self._shards.manifest.shards[int(self._clip_shard[clip])]
        place = row - int(a["clip_first"][clip])
        return f"{self._shards.root / shard.path}, clip {clip}, patch {place:03d}, byte {int(a['patch_offset'][row])}"

    def _map(self, shard: int) -> UInt8[np.ndarray, " n"]:
        data = self._maps.get(shard)
        if data is None:
            with self._lock:
                record = self._shards.manifest.shards[shard]
                path = self._shards.root / record.path
                if not path.is_file():
                    raise FormatError(f"{path}: is gone. Restore it, or build the shards again.")
                data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
                if data.nbytes != record.bytes:
                    raise FormatError(
                        f"{path}: has {data.nbytes:,} bytes, the manifest says {record.bytes:,}. "
                        "Build the shards again."
                    )
                self._maps[shard] = data
        return data


def level_statistics(shards: ShardSet, observations: Int64[np.ndarray, " b"]) -> dict[str, Shaped[np.ndarray, "b c k"]]:
    """Look up intensity statistics: level → (B, C, len(contract.STATISTICS)) float32."""
    a, manifest = shards.arrays, shards.manifest
    fov = a["obs_fov"][observations]
    number = {e.name: i for i, e in enumerate(manifest.experiments)}
    experiment = np.array([number[f.experiment] for f in manifest.fovs])
    rows = {
        "timepoint": a["fov_first_frame"][fov] + a["obs_t"][observations],
        "fov": fov,
        "dataset": experiment[fov],
    }
    return {level: a[f"stats_{level}"][rows[level]] for level in contract.LEVELS}
