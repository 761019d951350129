"""Block schedule to resident blocks: reads ahead of need, front to back, and lets go of what the plan retires.

Obeys the schedules of the streams that a rank runs; decides nothing. Blocks are parts of local files: to fetch one is
to have the system read it into its page cache, from where patches are copied once, to where they are wanted. What is
fetched and not yet retired never exceeds the rank's share of the window: a block is fetched when the ones before it are
and there is room, which batches make as they finish. Pages of retired blocks stay with the system as long as it likes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from dynaclr_wds.plan.batches import BatchPlan
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


class BlockWindow:
    """The resident blocks of one rank.

    Parameters
    ----------
    sampler
        Whose epoch is read, from where it stands.
    reader
        Maps the shards.
    limit_bytes
        Most bytes resident at a time: the rank's share of the window.

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
        self._streams = sampler.num_streams
        self._changed = threading.Condition()
        self._fetched = 0
        self._freed: Bool[np.ndarray, " v"] = np.zeros(len(visits.block), bool)
        self._done: dict[int, set[int]] = {}
        self._until = dict(visits.first)  # per stream, the first batch that is not finished
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dynaclr-fetch", daemon=True)
        self._thread.start()

    def wait(self, plan: BatchPlan) -> None:
        """Return when all blocks of a batch are at hand."""
        batch, stream = divmod(plan.number, self._streams)
        own = np.flatnonzero((self.visits.stream == stream) & (self.visits.admit <= batch))
        needed = int(own[-1]) + 1 if len(own) else 0
        with self._changed:
            self._changed.wait_for(lambda: self._fetched >= needed or self._error or self._closed)
            if self._error:
                raise self._error

    def finish(self, plan: BatchPlan) -> None:
        """Note that a batch is copied, and free the blocks that no later batch needs."""
        batch, stream = divmod(plan.number, self._streams)
        with self._changed:
            done = self._done.setdefault(stream, set())
            done.add(batch)
            until = self._until[stream]
            while until in done:
                done.discard(until)
                until += 1
            self._until[stream] = until
            v = self.visits
            over = np.flatnonzero((v.stream[: self._fetched] == stream) & (v.retire[: self._fetched] < until))
            over = over[~self._freed[over]]
            self._freed[over] = True
            self.resident_bytes -= int(v.bytes[over].sum())
            self._changed.notify_all()

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

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
