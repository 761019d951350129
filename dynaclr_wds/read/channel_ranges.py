"""Patches to ranges of whole channels, the least that has a checksum, and the check of what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from dynaclr_wds.contract import channel_checksum
from dynaclr_wds.errors import ChecksumError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRanges:
    """Ranges of bytes, each a whole patch or one channel of it."""

    row: Int64[np.ndarray, " n"]
    """Patch row of each range."""
    shard: Int64[np.ndarray, " n"]
    begin: Int64[np.ndarray, " n"]
    """First byte in the shard."""
    end: Int64[np.ndarray, " n"]
    channel: Int64[np.ndarray, " n"]
    """First channel."""
    count: Int64[np.ndarray, " n"]
    """Channels."""
    xxh3: UInt32[np.ndarray, "n c"]
    """Checksums of all channels of the patch."""

    def checker(self, shards: ShardSet) -> Check:
        """Make the function that checks the bytes of a range, given its number."""
        row, channel, count, xxh3 = (values.tolist() for values in (self.row, self.channel, self.count, self.xxh3))

        def check(number: int, data: UInt8[np.ndarray, " b"]) -> ChecksumError | None:
            view, size, first = data.data, len(data) // count[number], channel[number]
            for place in range(count[number]):
                found = channel_checksum(view[place * size : (place + 1) * size])
                if found != xxh3[number][first + place]:
                    return _explain(shards, row[number], first + place, found)
            return None

        return check


def locate_channels(
    shards: ShardSet, wanted: Sequence[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"] | None]]
) -> ChannelRanges:
    """Say where patches are; whole channels also where less of them is wanted, because a part has no checksum.

    Parameters
    ----------
    shards
        The set.
    wanted
        Patch rows, and the bytes before the one channel that is wanted of each; None = all channels.
    """
    a, experiments = shards.arrays, shards.manifest.experiments
    row = np.concatenate([rows for rows, _ in wanted])
    before = np.concatenate([np.full(len(rows), -1) if skip is None else skip for rows, skip in wanted])
    experiment = shards.clip_experiment[a["patch_clip"][row]]
    channels = np.array([e.shape[0] for e in experiments], np.int64)[experiment]
    size = np.array([e.patch_bytes // e.shape[0] for e in experiments], np.int64)[experiment]
    count = np.where(before < 0, channels, 1)
    begin = shards.addresses.patches(row) + np.maximum(before, 0)
    return ChannelRanges(
        row=row,
        shard=a["block_shard"][a["clip_block"][a["patch_clip"][row]]].astype(np.int64),
        begin=begin,
        end=begin + count * size,
        channel=np.maximum(before, 0) // size,
        count=count,
        xxh3=a["patch_xxh3"][row],
    )


def name_member(shards: ShardSet, row: int) -> str:
    """Say where a patch is stored: shard, clip, place in the clip and byte."""
    a = shards.arrays
    clip = int(a["patch_clip"][row])
    shard = shards.manifest.shards[int(a["block_shard"][a["clip_block"][clip]])]
    place = row - int(a["clip_first"][clip])
    where, offset = shards.root / shard.path, int(a["patch_offset"][row])
    return f"{where}, clip {clip}, patch {place:03d}, byte {offset}"


def _explain(shards: ShardSet, row: int, channel: int, found: int) -> ChecksumError:
    said = int(shards.arrays["patch_xxh3"][row, channel])
    return explain_damage(shards, row, channel, f"its checksum is {found:08x}, the index says {said:08x}")


def explain_damage(shards: ShardSet, row: int, channel: int, what: str) -> ChecksumError:
    """Make the error for a channel of a patch that is damaged; from a server, it came so twice."""
    a = shards.arrays
    observation = int(a["patch_obs"][row])
    fov = shards.manifest.fovs[int(a["obs_fov"][observation])]
    twice = "" if shards.remote is None else ", though it was asked for twice"
    cell = f"{fov.experiment}/{fov.fov_name}/{int(a['obs_track_id'][observation])}"
    return ChecksumError(
        f"{name_member(shards, row)}, channel {channel}, of the cell {cell} at t={int(a['patch_t'][row])}: is not what "
        f"was written{twice}: {what}. Run `dynaclr-wds verify "
        f"{shards.root}` to see all that is damaged, and restore the shard or build it again."
    )
