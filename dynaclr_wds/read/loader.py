"""Plans to batches: threads read ahead, and batches keep the order of the plans.

Threads, not processes: copying pixels releases the GIL, and nothing has to be sent from one process to another. The
loader knows no sampler. A batch sampler that keeps a position (`PlannedBatches`) is told what was delivered.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader

from dynaclr_wds.plan.batch import BatchPlan, PlannedBatches
from dynaclr_wds.words import count_of

PLANS_AHEAD = 64
"""Maximum number of queued plans; the queue absorbs bursts of planning."""
_PATIENCE = 0.05
"""Seconds between two looks whether a thread that reads has ended."""


def _describe(plan: Any) -> str:
    """Name what the batch sampler yielded."""
    if isinstance(plan, BatchPlan):
        return f"batch {plan.number} of the epoch"
    return f"samples {plan[0]} to {plan[-1]} in sequence"


def _identity(batch: Any) -> Any:
    return batch


class ThreadDataLoader(DataLoader[dict[str, Any]]):
    """A DataLoader whose workers are threads, for datasets that read whole batches (`__getitems__`).

    Parameters
    ----------
    dataset
        Has `__getitems__`, which takes what the batch sampler yields and returns a batch.
    num_workers
        Threads that read; 0 reads in the caller's.
    prefetch_factor
        Batches per thread that may be read ahead.
    collate_fn
        Applied to what the dataset returns; by default nothing is done.
    **kwargs
        As for `torch.utils.data.DataLoader`: `batch_sampler`, or `batch_size`, `shuffle`, `sampler`, `drop_last`.

    Notes
    -----
    Batches come in the sampler's order whatever the threads do. An exception in a thread is raised here, with
    a note that says which batch it was. Leaving the loop early, or Ctrl-C, stops the threads. Page-locked memory is
    the dataset's business (`MultiExperimentTripletDataset(pinned=True)`), so `pin_memory` does nothing here.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        num_workers: int = 1,
        prefetch_factor: int = 2,
        collate_fn: Callable[[Any], Any] = _identity,
        **kwargs: Any,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be >= 0.")
        if prefetch_factor < 1:
            raise ValueError(f"prefetch_factor={prefetch_factor} must be >= 1.")
        super().__init__(dataset, num_workers=0, collate_fn=collate_fn, **kwargs)
        # kept under the names of the arguments, because Lightning makes new loaders from them
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.ahead = num_workers * prefetch_factor
        self.waited_seconds = 0.0
        """Time that the training loop has waited for batches, in all epochs."""

    def __len__(self) -> int:
        """Batches of the whole epoch on this rank, those before a restart included (as Lightning counts)."""
        planned = self._planned
        return len(self.batch_sampler) + (0 if planned is None else planned.steps_before)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        planned = "planned" if self._planned is not None else "sequential"
        batches, threads = count_of(len(self), "batch", "batches"), count_of(self.num_workers, "thread")
        return f"ThreadDataLoader({self.dataset!r}, {batches}, {planned}, {threads})"

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield batches from where the epoch stands; nothing is read before the first is asked for."""
        planned = self._planned
        reads = None if planned is None else planned.block_reads()
        if reads is not None:
            self.dataset.open_window(reads)  # type: ignore[attr-defined]
        batches = self._read_here() if self.num_workers == 0 else self._read_ahead()
        try:
            for step, batch in enumerate(self._count_waiting(batches), start=1):
                if planned is not None:
                    planned.deliver(step)
                yield batch
        finally:
            if reads is not None:
                self.dataset.close_window()  # type: ignore[attr-defined]
            batches.close()

    def _count_waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Add up the time until each batch is there."""
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_seconds += time.perf_counter() - begun
            yield batch
            del batch

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, in batches delivered; empty for sequential reading."""
        return {} if self._planned is None else self._planned.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`."""
        if self._planned is not None and state:
            self._planned.load_state_dict(state)

    @property
    def _planned(self) -> PlannedBatches | None:
        """The batch sampler, if it keeps a position."""
        return self.batch_sampler if isinstance(self.batch_sampler, PlannedBatches) else None

    def _fetch(self, plan: Any) -> Any:
        try:
            return self.collate_fn(self.dataset.__getitems__(plan))  # type: ignore[attr-defined]
        except Exception as error:
            error.add_note(f"while reading {_describe(plan)}")
            raise

    def _read_here(self) -> Generator[Any, None, None]:
        for plan in self.batch_sampler:  # type: ignore[union-attr]
            yield self._fetch(plan)

    def _read_ahead(self) -> Generator[Any, None, None]:
        """Plan in one thread, read in others, and hand over in order."""
        plans: queue.SimpleQueue[Any] = queue.SimpleQueue()
        room = threading.Semaphore(PLANS_AHEAD)
        stop = threading.Event()
        reading_threads: list[threading.Thread] = []
        readers = ThreadPoolExecutor(
            self.num_workers, "dynaclr-read", lambda: reading_threads.append(threading.current_thread())
        )
        planner = threading.Thread(target=self._plan_ahead, args=(plans, room, stop), name="dynaclr-plan", daemon=True)
        planner.start()
        reading: deque[Future[Any]] = deque()
        ended = False
        try:
            while True:
                # waits for a plan only when nothing is being read
                while not ended and len(reading) < self.ahead and not (reading and plans.empty()):
                    plan = plans.get()
                    ended = plan is None or isinstance(plan, BaseException)
                    if plan is not None:
                        reading.append(_failed(plan) if ended else readers.submit(self._fetch, plan))
                        room.release()
                if not reading:
                    return
                batch = reading.popleft().result()
                yield batch
                del batch
        finally:
            stop.set()
            room.release()
            planner.join()
            readers.shutdown(wait=False, cancel_futures=True)
            self._end(reading_threads)
            readers.shutdown(wait=True)

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Wait until threads have ended, and let none of them wait for a server meanwhile."""
        let_go = getattr(self.dataset, "let_go", None)
        for thread in threads:
            while thread.is_alive():
                if let_go is not None:
                    let_go(threads)
                thread.join(_PATIENCE)

    def _plan_ahead(self, plans: queue.SimpleQueue[Any], room: threading.Semaphore, stop: threading.Event) -> None:
        """Put plans into the queue, and at the end None or the error that ended planning."""
        try:
            for plan in self.batch_sampler:  # type: ignore[union-attr]
                room.acquire()
                if stop.is_set():
                    return
                plans.put(plan)
            plans.put(None)
        except BaseException as error:
            plans.put(error)


def _failed(error: BaseException) -> Future[Any]:
    """Make a batch that raises when its turn comes."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
