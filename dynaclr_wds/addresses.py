"""Index rows to byte addresses: where patches and blocks are, as whoever reads them counts bytes.

Without a codec these are the bytes of the shard files. With one, a shard is read as if it were not compressed: each
block then has as many bytes as it would have without the codec, its clips follow each other from its beginning, and
the patches of a clip lie as far apart as in a tar. So whatever plans, counts or copies bytes is the same for both.
What stands between the patches of such a block can't be read. Only the stores of `read/decoding.py` know both counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, Integer, Shaped

from dynaclr_wds.contract import NO_CODEC, Manifest

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]


class StoredAddresses:
    """Addresses in the files themselves."""

    def __init__(self, arrays: Arrays) -> None:
        self._offset = arrays["patch_offset"]
        self._shard, self._begin, self._end = (arrays[f"block_{name}"] for name in ("shard", "begin", "end"))

    @property
    def block_bytes(self) -> Integer[np.ndarray, " blocks"]:
        """Bytes of each block."""
        return self._end - self._begin

    def patches(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the first byte of patches."""
        return self._offset[rows].astype(np.int64)

    def block(self, number: int) -> tuple[int, int, int]:
        """Return where a block is: shard, first byte, end."""
        return int(self._shard[number]), int(self._begin[number]), int(self._end[number])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRuns:
    """Runs of channels, each of one patch."""

    row: Int64[np.ndarray, " n"]
    """Patch."""
    first: Int64[np.ndarray, " n"]
    """First channel."""
    count: Int64[np.ndarray, " n"]
    skip: Int64[np.ndarray, " n"]
    """Bytes that are not wanted at the beginning of the first channel."""
    size: Int64[np.ndarray, " n"]
    """Bytes of one channel."""

    def key(self, place: int) -> tuple[int, int, int]:
        """Return one of them: patch, first channel, count."""
        return int(self.row[place]), int(self.first[place]), int(self.count[place])

    def take(self, part: slice) -> ChannelRuns:
        """Return some of them."""
        return ChannelRuns(
            row=self.row[part],
            first=self.first[part],
            count=self.count[part],
            skip=self.skip[part],
            size=self.size[part],
        )


class DecodedAddresses:
    """Addresses in shards as they would be without their codec."""

    def __init__(self, manifest: Manifest, arrays: Arrays, clip_experiment: Int64[np.ndarray, " clips"]) -> None:
        experiments = manifest.experiments
        self._arrays = arrays
        self._clip_experiment = clip_experiment
        self._step = np.array([e.member_bytes for e in experiments], np.int64)
        self._channel_bytes = np.array([e.channel_bytes for e in experiments], np.int64)
        self._channels = np.array([e.shape[0] for e in experiments], np.int64)
        block_first, block_shard = arrays["block_first"].astype(np.int64), arrays["block_shard"]
        self.block_bytes: Int64[np.ndarray, " blocks"] = arrays["block_decoded"].astype(np.int64)
        end = np.cumsum(self.block_bytes)
        edges = np.searchsorted(block_shard, np.arange(len(manifest.shards) + 1))
        self.shard_at: Int64[np.ndarray, " shards_and_one"] = np.concatenate([[0], end])[edges]
        """CSR: first byte of each shard, if they lay behind each other."""
        self.block_at: Int64[np.ndarray, " blocks"] = end - self.block_bytes
        """First byte of each block, counted through all shards."""
        size = np.diff(arrays["clip_first"]) * self._step[clip_experiment]
        before = np.cumsum(size) - size
        block = arrays["clip_block"]
        self._clip_at: Int64[np.ndarray, " clips"] = self.block_at[block] + before - before[block_first[block]]

    def patches(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the first byte of patches, in their shards."""
        clip = self._arrays["patch_clip"][rows]
        return self.patches_at(rows) - self.shard_at[self._arrays["block_shard"][self._arrays["clip_block"][clip]]]

    def patches_at(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the first byte of patches, counted through all shards."""
        clip = self._arrays["patch_clip"][rows]
        place = rows - self._arrays["clip_first"][clip]
        return self._clip_at[clip] + place * self._step[self._clip_experiment[clip]]

    def block(self, number: int) -> tuple[int, int, int]:
        """Return where a block is: shard, first byte, end."""
        shard = int(self._arrays["block_shard"][number])
        begin = int(self.block_at[number] - self.shard_at[shard])
        return shard, begin, begin + int(self.block_bytes[number])

    def find_block(self, at: int) -> int:
        """Return the number of the block that begins at a byte, counted through all shards."""
        return int(np.searchsorted(self.block_at, at, "right")) - 1

    def stored_block(self, number: int) -> tuple[int, int, int]:
        """Return where a block is in the file: shard, first byte, end."""
        a = self._arrays
        return int(a["block_shard"][number]), int(a["block_begin"][number]), int(a["block_end"][number])

    def block_rows(self, number: int) -> tuple[int, int]:
        """Return the first patch of a block, and the one after its last."""
        first, last = self._arrays["clip_first"][self._arrays["block_first"][number : number + 2]].tolist()
        return first, last

    def find_channels(self, begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"]) -> ChannelRuns:
        """Find the channels that hold ranges, counted through all shards; each lies in one patch."""
        clip = np.searchsorted(self._clip_at, begin, "right") - 1
        experiment = self._clip_experiment[clip]
        place, inside = np.divmod(begin - self._clip_at[clip], self._step[experiment])
        size = self._channel_bytes[experiment]
        first, skip = np.divmod(inside, size)
        last = -(-(inside + end - begin) // size)
        row = self._arrays["clip_first"][clip] + place
        if (row >= self._arrays["clip_first"][clip + 1]).any() or (last > self._channels[experiment]).any():
            raise ValueError("A range does not lie in one patch.")
        return ChannelRuns(row=row, first=first, count=last - first, skip=skip, size=size)

    def size_rows(self, first: int, last: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return where the patches of a run of rows begin in the file, and where the data of each end."""
        begin = self._arrays["patch_offset"][first:last].astype(np.int64)
        return begin, begin + self._arrays["patch_stored"][first:last].sum(axis=1, dtype=np.int64)

    def find_stored(self, runs: ChannelRuns) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return where runs of channels are in the file: first byte and end."""
        edges = np.cumsum(self._arrays["patch_stored"][runs.row], axis=1, dtype=np.int64)
        edges = np.pad(edges, ((0, 0), (1, 0)))
        number = np.arange(len(runs.row))
        offset = self._arrays["patch_offset"][runs.row].astype(np.int64)
        return offset + edges[number, runs.first], offset + edges[number, runs.first + runs.count]

    def channel_sizes(self, row: int) -> tuple[int, list[int]]:
        """Return the bytes of each channel of a patch, and those that each takes in the file."""
        experiment = self._clip_experiment[self._arrays["patch_clip"][row]]
        stored = self._arrays["patch_stored"][row, : self._channels[experiment]].tolist()
        return int(self._channel_bytes[experiment]), stored


Addresses: TypeAlias = StoredAddresses | DecodedAddresses


def find_addresses(manifest: Manifest, arrays: Arrays, clip_experiment: Int64[np.ndarray, " clips"]) -> Addresses:
    """Make the addresses of a set."""
    if manifest.codec == NO_CODEC:
        return StoredAddresses(arrays)
    return DecodedAddresses(manifest, arrays, clip_experiment)
