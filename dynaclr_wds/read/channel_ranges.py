"""Patches to ranges of whole channels, the least that has a checksum, and the check of what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from dynaclr_wds.contract import channel_checksum
from dynaclr_wds.errors import ChecksumError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRanges:
    """Ranges of bytes, each some channels of a patch that lie side by side."""

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

    @classmethod
    def join(cls, parts: Sequence[ChannelRanges]) -> ChannelRanges:
        """Put ranges behind each other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__})

    def checker(
        self, explain: Callable[[int, int, str], ChecksumError]
    ) -> Callable[[int, UInt8[np.ndarray, " b"]], ChecksumError | None]:
        """Make the function that checks the bytes of a range, given its number.

        Parameters
        ----------
        explain
            Makes the error: of which row and channel, and how the checksums differ.
        """
        row, channel, count, xxh3 = (getattr(self, name).tolist() for name in ("row", "channel", "count", "xxh3"))

        def check(number: int, data: UInt8[np.ndarray, " b"]) -> ChecksumError | None:
            view, size, first = data.data, len(data) // count[number], channel[number]
            for place in range(count[number]):
                found = channel_checksum(view[place * size : (place + 1) * size])
                said = xxh3[number][first + place]
                if found != said:
                    what = f"its checksum is {found:08x}, the index says {said:08x}"
                    return explain(row[number], first + place, what)
            return None

        return check
