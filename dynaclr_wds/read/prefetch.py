"""Block reads to resident blocks: reads ahead of need, front to back, and lets go of what the plan retires.

Blocks are fetched in the order of the plan, each when those before it are fetched and there is room for it; batches
make room as they finish. What is fetched and not yet retired never exceeds the rank's share of the window. From a
local disk, to fetch means that the system reads the block into its page cache, and a patch is copied once, from there
to its batch. From object storage it means that the block comes into memory of its own, and counts from when it is asked
for. Retired blocks no longer count as memory of the process, though the system may keep their pages.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int64

from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.plan.batch import BatchPlan, BlockReads
from dynaclr_wds.read.patches import PatchReader, is_unreadable

_PATIENCE = 0.05
"""Seconds between two looks whether the thread that fetches has ended."""


class _StreamState:
    """Keeps how far one stream has come: which reads its batches need, and which they are done with."""

    def __init__(self, reads: BlockReads, stream: int) -> None:
        own = np.flatnonzero(reads.stream == stream)
        self._needed = own
        self._admit = reads.admit[own]  # rises
        by_end = np.argsort(reads.retire[own], kind="stable")
        self._leaving = own[by_end]
        self._retire = reads.retire[own][by_end]
        self._until = reads.first[stream]  # the first batch that is not finished
        self._done: set[int] = set()
        self._left = 0

    def count_needed(self, batch: int) -> int:
        """Count the reads of the rank, from the first, that have to be done before a batch."""
        last = int(np.searchsorted(self._admit, batch, "right"))
        return int(self._needed[last - 1]) + 1 if last else 0

    def finish(self, batch: int) -> Int64[np.ndarray, " k"]:
        """Note that a batch is copied; return the reads that no later batch needs."""
        self._done.add(batch)
        while self._until in self._done:
            self._done.discard(self._until)
            self._until += 1
        left, self._left = self._left, int(np.searchsorted(self._retire, self._until, "left"))
        return self._leaving[left : self._left]


class BlockWindow:
    """The resident blocks of one rank.

    Parameters
    ----------
    reads
        What to read, in which order, and how much of it may be held at a time.
    reader
        Fetches blocks and lets go of them.
    note
        Told of each block whether it is as it should be, or why not; then those that can't be read are no error.

    Notes
    -----
    `wait` before a batch is read, `finish` after it, `close` at the end. An error while fetching is raised by `wait`.
    """

    def __init__(
        self, reads: BlockReads, reader: PatchReader, note: Callable[[int, Exception | None], None] | None = None
    ) -> None:
        self.reads = reads
        self.peak_bytes = 0
        self.resident_bytes = 0
        self._reader = reader
        self._note = note
        self._limit = reads.limit_bytes
        self._streams = {stream: _StreamState(reads, stream) for stream in reads.first}
        self._num_streams = reads.num_streams
        self._changed = threading.Condition()
        self._begun = 0
        self._fetched = 0
        self._kept: Bool[np.ndarray, " v"] = np.ones(len(reads.block), bool)
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dynaclr-fetch", daemon=True)
        self._thread.start()

    def wait(self, plan: BatchPlan) -> None:
        """Return when all blocks of a batch are at hand."""
        batch, stream = divmod(plan.number, self._num_streams)
        needed = self._streams[stream].count_needed(batch)
        with self._changed:
            self._changed.wait_for(lambda: self._fetched >= needed or self._error or self._closed)
            if self._error:
                raise copy.copy(self._error)  # several threads may get it, and each adds its own notes
            if self._closed and self._reader.remote:  # to go on would ask a server for what nobody looks at
                raise StorageError("The window was closed while a batch waited for its blocks.")

    def finish(self, plan: BatchPlan) -> None:
        """Note that a batch is copied, and free the blocks that no later batch needs."""
        batch, stream = divmod(plan.number, self._num_streams)
        with self._changed:
            over = self._streams[stream].finish(batch)
            self._kept[over] = False
        self._forget(over)  # takes the system a while; only then is there room again
        with self._changed:
            self.resident_bytes -= int(self.reads.bytes[over].sum())
            self._changed.notify_all()

    def close(self) -> None:
        """Stop reading, and let go of what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        while self._thread.is_alive():
            # ends a wait for what is on its way
            self._forget(self._fetched + np.flatnonzero(self._kept[self._fetched : self._begun]))
            self._thread.join(_PATIENCE)
        self._forget(np.flatnonzero(self._kept[: self._begun]))

    def _forget(self, reads: Int64[np.ndarray, " k"]) -> None:
        for block in self.reads.block[reads].tolist():
            self._reader.forget(block)

    def _run(self) -> None:
        """Fetch every block in its turn; a few are on their way while an earlier one is checked."""
        waiting: deque[int] = deque()
        most = self._reader.ahead
        try:
            for place, size in enumerate(self.reads.bytes.tolist()):
                while waiting and (len(waiting) > most or self.resident_bytes + size > self._limit):
                    self._settle(waiting.popleft())
                if not self._make_room(size):
                    return
                self._fetch(int(self.reads.block[place]))
                self._begun = place + 1
                waiting.append(place)
            while waiting:
                self._settle(waiting.popleft())
        except BaseException as error:  # raised again by `wait`, in the thread that needs the block
            with self._changed:
                if not self._closed:
                    self._error = error
                self._changed.notify_all()

    def _make_room(self, size: int) -> bool:
        """Wait until a block fits and count it as resident; False when the window was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.resident_bytes + size <= self._limit or self._closed)
            if self._closed:
                return False
            self.resident_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.resident_bytes)
            return True

    def _settle(self, place: int) -> None:
        """Check a block that was fetched, if that is asked for, and let batches read it."""
        if self._closed:
            return
        if self._reader.verify:
            self._verify(int(self.reads.block[place]))
        with self._changed:
            self._fetched = place + 1
            self._changed.notify_all()

    def _fetch(self, block: int) -> None:
        try:
            self._reader.fetch(block)
        except (FormatError, StorageError) as error:
            self._tell(block, error)

    def _verify(self, block: int) -> None:
        try:
            self._reader.verify_blocks(np.array([block]))
        except (FormatError, StorageError) as error:
            self._tell(block, error)
        else:
            if self._note is not None:
                self._note(block, None)

    def _tell(self, block: int, error: Exception) -> None:
        """Tell that a block can't be read, or raise that where it is an error."""
        if self._closed or self._note is None or not is_unreadable(error, remote=self._reader.remote):
            raise error
        self._note(block, error)
