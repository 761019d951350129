"""Block schedule to resident blocks: reads ahead of need, front to back, and lets go of what the plan retires.

Obeys the schedules of the streams that a rank runs; decides nothing. Blocks are parts of local files: to fetch one is
to have the system read it into its page cache, from where patches are copied once, to where they are wanted. What is
fetched and not yet retired never exceeds the rank's share of the window: a block is fetched when the ones before it
are and there is room, which batches make as they finish. Retired blocks are let go of: they no longer count as memory
of the process, though the system may keep their pages as long as it likes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.read.patches import PatchReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """The blocks that a rank reads from where it (re)starts, in the order of reading."""

    stream: Int64[np.ndarray, " v"]
    block: Int64[np.ndarray, " v"]
    admit: Int64[np.ndarray, " v"]
    """First batch of the stream that needs each."""
    retire: Int64[np.ndarray, " v"]
    """Last batch of the stream that needs each."""
    bytes: Int64[np.ndarray, " v"]
    first: dict[int, int]
    """Stream → its first batch."""


def plan_visits(sampler: FlexibleBatchSampler) -> Visits:
    """Put what the rank's streams read into one order: as their schedules say, from where the epoch stands."""
    first = {}
    for number in range(sampler.start + sampler.rank, sampler.start + sampler.rank + sampler.num_streams):
        if (number - sampler.start - sampler.rank) % sampler.world_size == 0:
            first[number % sampler.num_streams] = number // sampler.num_streams
    parts = []
    for stream, batch in first.items():
        blocks = sampler.blocks(stream)
        assert blocks is not None
        at = np.flatnonzero(blocks.retire >= batch)
        columns = (blocks.fetch, blocks.admit, np.full(len(blocks.block), stream), blocks.block, blocks.retire)
        parts.append(np.stack([c[at] for c in (*columns, blocks.bytes)]))
    table = np.concatenate(parts, axis=1)
    # fetch and admit both rise within a stream, so what a batch needs comes before what a later one does
    _, admit, stream, block, retire, size = table[:, np.lexsort((table[2], table[1], table[0]))]
    return Visits(stream=stream, block=block, admit=admit, retire=retire, bytes=size, first=first)


class _StreamState:
    """How far one stream has come: which visits its batches need, and which they are done with."""

    def __init__(self, visits: Visits, stream: int) -> None:
        own = np.flatnonzero(visits.stream == stream)
        self._needed = own
        self._admit = visits.admit[own]  # rises
        by_end = np.argsort(visits.retire[own], kind="stable")
        self._leaving = own[by_end]
        self._retire = visits.retire[own][by_end]
        self._until = visits.first[stream]  # the first batch that is not finished
        self._done: set[int] = set()
        self._left = 0

    def count_needed(self, batch: int) -> int:
        """Count the visits of the rank, in order of reading, that have to be at hand for a batch."""
        last = int(np.searchsorted(self._admit, batch, "right"))
        return int(self._needed[last - 1]) + 1 if last else 0

    def finish(self, batch: int) -> Int64[np.ndarray, " k"]:
        """Note that a batch is copied; return the visits that no later batch needs."""
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
    sampler
        Whose epoch is read, from where it stands.
    reader
        Maps the shards.
    limit_bytes
        Most bytes of blocks that are fetched and not yet let go of: the rank's share of the window.

    Notes
    -----
    `wait` before a batch is read, `finish` after it, `close` at the end. An error while fetching is raised by `wait`.
    """

    def __init__(self, sampler: FlexibleBatchSampler, reader: PatchReader, limit_bytes: int) -> None:
        self.visits = visits = plan_visits(sampler)
        self.peak_bytes = 0
        self.resident_bytes = 0
        self._reader = reader
        self._limit = limit_bytes
        self._streams = {stream: _StreamState(visits, stream) for stream in visits.first}
        self._num_streams = sampler.num_streams
        self._changed = threading.Condition()
        self._fetched = 0
        self._kept: Bool[np.ndarray, " v"] = np.ones(len(visits.block), bool)
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
                raise self._error

    def finish(self, plan: BatchPlan) -> None:
        """Note that a batch is copied, and free the blocks that no later batch needs."""
        batch, stream = divmod(plan.number, self._num_streams)
        with self._changed:
            over = self._streams[stream].finish(batch)
            self._kept[over] = False
        self._forget(over)  # takes the system a while; only then is there room again
        with self._changed:
            self.resident_bytes -= int(self.visits.bytes[over].sum())
            self._changed.notify_all()

    def close(self) -> None:
        """Stop reading, and let go of what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._forget(np.flatnonzero(self._kept[: self._fetched]))

    def _forget(self, visits: Int64[np.ndarray, " k"]) -> None:
        for block in self.visits.block[visits].tolist():
            self._reader.forget(block)

    def _run(self) -> None:
        try:
            visits = zip(self.visits.block.tolist(), self.visits.bytes.tolist(), strict=True)
            for place, (block, size) in enumerate(visits):
                with self._changed:
                    while self.resident_bytes + size > self._limit and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    self.resident_bytes += size
                    self.peak_bytes = max(self.peak_bytes, self.resident_bytes)
                self._reader.fetch(block)
                with self._changed:
                    self._fetched = place + 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
