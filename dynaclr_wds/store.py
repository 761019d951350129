"""Byte ranges of shards to memory: the protocol that all pixels come through.

Everything in `read/` is written against `BlockStore`. `read/mapped.py` implements it for local files that are mapped,
`read/files.py` for local files without the compiled copy, `read/object_store.py` with range requests: the protocol
speaks of shard numbers and byte ranges only, never of files, patches or the index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from threading import Thread
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

Check: TypeAlias = Callable[[int, UInt8[np.ndarray, " b"]], Exception | None]
"""Number of a range and its bytes → what is wrong with them; None where they are what was written."""


class RowFailure(Exception):
    """Says which row of a `read` failed, and why.

    It never leaves `read/`: the caller knows which patch the row is, adds that to the error as a note, and raises it.
    """

    def __init__(self, row: int, error: Exception) -> None:
        super().__init__(row, error)
        self.row = row
        self.error = error


@runtime_checkable
class BlockStore(Protocol):
    """The shards of one set, as numbered byte sequences; all methods may be called from several threads at once.

    Errors are `FormatError` (a shard is gone, has another size, or ends before the range) or `StorageError` (the
    disk or server fails); both name the shard and say what to do.
    """

    def read(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        offset: Int64[np.ndarray, " k"],
        out: UInt8[np.ndarray, "n k bytes"],
    ) -> None:
        """Copy `n` patches, each as the same `k` runs of bytes, into consecutive memory.

        Parameters
        ----------
        shard
            Shard of each patch.
        begin
            Byte at which each patch begins in its shard.
        offset
            Where the runs begin, from the patch's beginning; ascending. A whole patch is one run at 0; a cropped one
            has a run per row of pixels. A store may so read the span of a patch at once.
        out
            Where to; C-contiguous.

        Raises
        ------
        RowFailure
            A patch can't be read; names the first such row.
        """
        ...

    def fetch(self, shard: int, begin: int, end: int) -> None:
        """Have a block brought near, because it is about to be read; may return before it is there."""
        ...

    def forget(self, shard: int, begin: int, end: int) -> None:
        """Let go of a block that is no longer needed; reading it again stays possible."""
        ...

    def checksum(self, shard: int, begin: int, end: int) -> int:
        """Read a block from front to back and return its XXH3."""
        ...

    def close(self) -> None:
        """Give back what is held: memory, connections."""
        ...


@runtime_checkable
class RemoteStore(BlockStore, Protocol):
    """A store whose bytes come over a network: asked for early and many at a time, and checked whenever they come.

    `fetch` and `forget` count: a block that was fetched twice is let go when it was forgotten twice. `read` gives only
    what was fetched or gathered, so nothing gets into a batch unchecked.
    """

    ahead: int
    """Blocks worth having on their way at a time."""

    def gather(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
        check: Check,
    ) -> AbstractContextManager[None]:
        """Ask for ranges that this thread reads inside the context, or parts of them, all at once.

        Returns at once; `read` waits for what it needs. Blocks that were fetched are not asked for again.

        Parameters
        ----------
        shard, begin, end
            The ranges.
        check
            Checks each range once, when it comes, in any thread. One that is not what was written is asked for once
            more; if it comes damaged again, `read` raises what `check` says.
        """
        ...

    def give_up(self, threads: Collection[Thread]) -> None:
        """Give up what threads have gathered and not read yet: their reads fail at once.

        Without it, who closes a loader while the server is away would wait for the last try of what nobody looks at.
        """
        ...

    def fetch_again(self, shard: int, begin: int, end: int, found: int) -> None:
        """Ask anew for a block whose bytes, of checksum `found`, are not those that were written.

        Does nothing where it was asked for anew already, or nobody holds it.
        """
        ...
