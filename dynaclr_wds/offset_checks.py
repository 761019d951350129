"""Checks where an index says that patches lie in their shards, of sets with and without a codec.

`index_checks.py` asks here. Pure; reads arrays in chunks, and never a shard.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped

from dynaclr_wds.contract import MEMBER_HEADER, Manifest, least_stored, most_stored, npy_header
from dynaclr_wds.errors import FormatError

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]
"""Name → array: all of `contract.ARRAYS` and one `label_<name>` for each label."""

_LEAST_MEMBER = 1024
"""Bytes of the smallest tar member that isn't empty: what lies between two clips of a block."""


class PlainOffsets:
    """Checks the offsets of patches that are stored as they are.

    Raises
    ------
    FormatError
        A clip begins with an observation that isn't there.
    """

    def __init__(self, manifest: Manifest, arrays: Arrays) -> None:
        self._arrays = arrays
        records = {e.name: row for row, e in enumerate(manifest.experiments)}
        of_fov = np.array([records[fov.experiment] for fov in manifest.fovs], np.min_scalar_type(len(records)))
        heads, count = arrays["patch_obs"][arrays["clip_first"][:-1]], len(arrays["obs_fov"])
        if heads.min(initial=0) < 0 or heads.max(initial=-1) >= count:
            bad = np.flatnonzero((heads < 0) | (heads >= count))
            what = f"is {heads[bad[0]]} at the head of clip {bad[0]}; there are {count} observations"
            raise index_error("patch_obs", what)
        self.experiment: Integer[np.ndarray, " clips"] = of_fov[arrays["obs_fov"][heads]]
        """Experiment of each clip."""
        self.edges: Int[np.ndarray, " blocks_and_one"] = arrays["clip_first"][arrays["block_first"]]
        """Edges of the blocks, in patches."""
        self._most = int(arrays["block_end"].max(initial=0))  # below it, no sum and no difference wraps around
        records_of = manifest.experiments
        self._header = np.array([len(npy_header(e.dtype, e.shape)) for e in records_of], np.int64)
        self._size = np.array([e.patch_bytes for e in records_of], np.int64)
        self._member = np.array([e.member_bytes for e in records_of], np.int64)[self.experiment]

    @property
    def strides(self) -> tuple[Int[np.ndarray, " clips"] | None, int]:
        """Bytes from patch to patch in each clip, None where they are not known; and the largest offset there is."""
        return self._member, self._most

    def check_rows(self, rows: slice) -> None:
        """Check that the patches of a clip lie side by side, and clips of a block behind each other."""
        check_range("patch_offset", self._arrays["patch_offset"][rows], 0, self._most, "a byte of a block", rows.start)
        begin = max(rows.start - 1, 0)
        offset, clip = self._arrays["patch_offset"][begin : rows.stop], self._arrays["patch_clip"][begin : rows.stop]
        gap = np.diff(offset) - self._member.take(clip[:-1])
        self._refuse(np.where(clip[1:] == clip[:-1], gap != 0, gap < _LEAST_MEMBER), begin)

    def check_blocks(self) -> None:
        """Check that the first patch of a block begins behind its headers, and that the last ends in it."""
        a = self._arrays
        found, first = a["patch_offset"][self.edges[:-1]], a["block_first"][:-1]
        good = found == a["block_begin"] + MEMBER_HEADER + self._header[self.experiment[first]]
        require("patch_offset", good, found, "must be behind the headers at block_begin", 0, "first row of block")
        last = self.edges[1:] - 1
        self._check_ends(a["patch_offset"][last] + self._size[self.experiment[a["patch_clip"][last]]])

    def _check_ends(self, end: Int[np.ndarray, " blocks"]) -> None:
        good = end <= self._arrays["block_end"]
        require("patch_offset", good, end, "must end in its block", 0, "last row of block")

    def _refuse(self, is_wrong: Bool[np.ndarray, " n"], begin: int) -> None:
        """Refuse rows that don't lie behind those before them; the first one is that before row `begin` + 1."""
        wrong = np.flatnonzero(is_wrong) + begin + 1
        wrong = wrong[self.edges[np.searchsorted(self.edges, wrong)] != wrong]  # a block may begin a new shard
        if wrong.size:
            row = int(wrong[0])
            what = f"row {row} is {self._arrays['patch_offset'][row]}; it must lie behind the patch before it"
            raise index_error("patch_offset", what)


class StoredOffsets(PlainOffsets):
    """Checks the offsets and lengths of patches that are compressed, channel by channel."""

    def __init__(self, manifest: Manifest, arrays: Arrays) -> None:
        super().__init__(manifest, arrays)
        sizes = [e.channel_bytes for e in manifest.experiments]
        self._least, self._largest = (
            np.array([limit(n) for n in sizes], np.int64) for limit in (least_stored, most_stored)
        )
        self._channels = np.array([e.shape[0] for e in manifest.experiments], np.int64)

    @property
    def strides(self) -> tuple[Int[np.ndarray, " clips"] | None, int]:
        """As above; patches differ in size."""
        return None, self._most

    def check_rows(self, rows: slice) -> None:
        """Check the lengths of channels, and that patches lie behind each other."""
        check_range("patch_offset", self._arrays["patch_offset"][rows], 0, self._most, "a byte of a block", rows.start)
        begin = max(rows.start - 1, 0)
        offset, clip = self._arrays["patch_offset"][begin : rows.stop], self._arrays["patch_clip"][begin : rows.stop]
        stored = self._arrays["patch_stored"][begin : rows.stop]
        experiment = self.experiment.take(clip)[:, None]
        used = np.arange(stored.shape[1]) < self._channels[experiment]
        good = np.where(used, (stored >= self._least[experiment]) & (stored <= self._largest[experiment]), stored == 0)
        what = "must be what gzip makes of a channel, and 0 beyond those that are stored"
        require("patch_stored", good.all(axis=1), stored, what, begin)
        gap = _skip_header(offset[1:]) - _fill_up(offset[:-1] + stored[:-1].sum(axis=1, dtype=np.int64))
        self._refuse(np.where(clip[1:] == clip[:-1], gap != 0, gap < _LEAST_MEMBER), begin)

    def check_blocks(self) -> None:
        """Check that the first patch of a block begins behind its headers, and that the last ends in it."""
        a = self._arrays
        found = a["patch_offset"][self.edges[:-1]]
        good = (_skip_header(found) == a["block_begin"]) & (found % MEMBER_HEADER != 0)
        require("patch_offset", good, found, "must be behind the headers at block_begin", 0, "first row of block")
        last = self.edges[1:] - 1
        self._check_ends(a["patch_offset"][last] + a["patch_stored"][last].sum(axis=1, dtype=np.int64))
        patches = np.diff(a["clip_first"]) * self._member  # no more than 1,032 times what is stored
        least = np.add.reduceat(patches, a["block_first"][:-1]) if patches.size else patches
        decoded, stored = a["block_decoded"], a["block_end"] - a["block_begin"]
        good = (decoded >= least) & (decoded - least <= stored) & (decoded % MEMBER_HEADER == 0)
        require("block_decoded", good, decoded, "must be the bytes of the block's members without a codec")


def _skip_header(offset: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return where a member begins, whose data begin less than 512 bytes before a byte: its npy header is small."""
    return (offset - 1) // MEMBER_HEADER * MEMBER_HEADER - MEMBER_HEADER


def _fill_up(end: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return -(-end // MEMBER_HEADER) * MEMBER_HEADER


def check_range(name: str, values: Int[np.ndarray, " n"], low: int, high: int, what: str, start: int) -> None:
    """Check that the values of an array, from row `start` on, lie in a range."""
    if values.size and (values.min() < low or values.max() > high):
        allowed = f"must be {what}: {low} to {high}" if high > low else f"must be {what}: {low}"
        require(name, (values >= low) & (values <= high), values, allowed, start)


def require(
    name: str,
    good: Bool[np.ndarray, " n"],
    values: Shaped[np.ndarray, "n ..."],
    allowed: str,
    offset: int = 0,
    rows: str = "row",
) -> None:
    """Check that all rows of an array are good; the error names the first other one."""
    if not good.all():
        at = int(np.argmin(good))
        raise index_error(name, f"{rows} {at + offset} is {values[at]}; it {allowed}")


def index_error(name: str, what: str) -> FormatError:
    """Make the error for an array."""
    return FormatError(f"arrays/{name}.npy: {what}. Copy the file again, or build the shards again.")
