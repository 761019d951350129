"""Runs a build's units on anything that has the shape of `concurrent.futures.Executor`.

A unit is a module-level function of one picklable job. It owns the files that it writes, takes no callback, and calls
`report` now and then. Threads are the default; the same units run in processes or on a cluster that sees the same
files: the caller passes `build_shards` a function that makes the executor (`engines.py` has some). Pass
`ProcessPoolExecutor` a context of "spawn": libraries have threads by then, which a fork may not survive.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from etl.run.unit_counts import UnitCounts

Job = TypeVar("Job")
Result = TypeVar("Result")

Advance = Callable[[int, int], None]
"""Called with (things done, bytes done); any thread may call it."""

MakeExecutor = Callable[[int, Advance], Executor]
"""(workers, advance) → executor, shut down when a stage ends. One that runs units elsewhere ignores `advance`: then the
bar moves when a unit ends."""


class Elsewhere:
    """Makes an executor whose units run on other machines, with memory of their own.

    Parameters
    ----------
    make
        As `MakeExecutor`.
    """

    def __init__(self, make: MakeExecutor) -> None:
        self._make = make

    def __call__(self, workers: int, advance: Advance) -> Executor:
        """Make the executor."""
        return self._make(workers, advance)


_LOOK_SECONDS = 1.0
"""How often is looked at units that run, while none ends."""
AHEAD = 4
"""Jobs per worker that are made before the first of them ends: they hold arrays."""

_ambient = threading.local()


class Interrupted(Exception):
    """A unit was told to stop: another one failed, or the build was stopped."""


def report(done: int, size: int = 0) -> None:
    """Say that a unit got on; every unit calls this often.

    In a thread of `ThreadUnits` this moves the bar. In another process it does nothing: the unit counts when it ends.

    Parameters
    ----------
    done
        Frames or patches since the last call.
    size
        Their bytes.

    Raises
    ------
    Interrupted
        The build is stopping.
    """
    listener: Advance | None = getattr(_ambient, "listener", None)
    if listener is not None:
        listener(done, size)


def reporter() -> Advance:
    """Return what `report` does in this thread, for threads that a library starts on behalf of a unit."""
    listener: Advance | None = getattr(_ambient, "listener", None)
    return listener if listener is not None else lambda _done, _size: None


def share_out(work: Callable[[Job], Result], items: Sequence[Job]) -> list[Result]:
    """Do some work of a unit for each item; return the results in order.

    In a thread of `ThreadUnits`, threads that have no unit of their own help: the last units of a build, or its only
    one, then take all cores. In another process the items are done one after the other.

    Parameters
    ----------
    work
        May run for several items at a time.
    """
    pool: ThreadUnits | None = getattr(_ambient, "pool", None)
    return [work(item) for item in items] if pool is None else pool.share_out(work, items)


class ThreadUnits(ThreadPoolExecutor):
    """Threads whose units report to `advance`, and stop at their next report when the pool is called off."""

    def __init__(self, workers: int, advance: Advance) -> None:
        self._stop = threading.Event()
        self._advance = advance
        self._workers, self._busy, self._counting = workers, 0, threading.Lock()
        self._helpers = ThreadPoolExecutor(workers, "helper", initializer=self._listen)
        super().__init__(workers, "unit", initializer=self._listen)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a unit in one of the threads."""
        return super().submit(self._run, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when their units have ended."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._helpers.shutdown(wait, cancel_futures=cancel_futures)

    def stop_units(self) -> None:
        """Have every unit that runs end at its next report."""
        self._stop.set()

    def share_out(self, work: Callable[[Job], Result], items: Sequence[Job]) -> list[Result]:
        """See the function of this name."""
        results: dict[int, Result] = {}
        waiting = deque(range(len(items)))
        helping: list[Future[None]] = []

        def do_next() -> None:
            with suppress(IndexError):  # another thread took the last one
                number = waiting.popleft()
                results[number] = work(items[number])

        def help_out() -> None:
            try:
                while waiting and self._busy <= self._workers:  # a unit that begins has the core
                    do_next()
            finally:
                self._count(-1)

        try:
            while waiting:
                while len(waiting) > 1 and self._count(1, self._workers):
                    helping.append(self._helpers.submit(help_out))
                do_next()
        finally:
            waiting.clear()
            wait(helping)
        for helper in helping:
            helper.result()
        return [results[number] for number in range(len(items))]

    def _run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._count(1)
        try:
            return fn(*args, **kwargs)
        finally:
            self._count(-1)

    def _count(self, more: int, most: int | None = None) -> bool:
        """Count threads that have work; where there would be too many, don't, and say so."""
        with self._counting:
            if most is not None and self._busy + more > most:
                return False
            self._busy += more
            return True

    def _listen(self) -> None:
        _ambient.listener, _ambient.pool = self._hear, self

    def _hear(self, done: int, size: int) -> None:
        if self._stop.is_set():
            raise Interrupted
        self._advance(done, size)


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_memory() -> int:
    """Return the bytes of memory of this machine, or of the control groups that hold this process to fewer."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_read_limits()])


def _read_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield the limits of the control groups of this process: those of a container, or of a job of SLURM."""
    places = [root / "memory.max", root / "memory/memory.limit_in_bytes"]
    with suppress(OSError):  # no control groups
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            folder, name = (root, "memory.max") if not kinds else (root / "memory", "memory.limit_in_bytes")
            if not kinds or "memory" in kinds.split(","):
                inner = Path(path.lstrip("/"))
                places += [folder / part / name for part in (inner, *inner.parents)]
    for place in places:
        with suppress(OSError, ValueError):  # `max`, or no such file, where nothing holds it
            yield int(place.read_text(encoding="ascii"))


def run_units(
    executor: Executor,
    unit: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    counts: UnitCounts[Job] | None = None,
) -> tuple[Result, ...]:
    """Do every job; return the results in the order of the jobs.

    At the first failure, or when the caller is interrupted, the executor is shut down: jobs that have not begun are
    dropped, and units that listen stop.

    Parameters
    ----------
    executor
        `submit` must return a `concurrent.futures.Future`; of the rest only `shutdown(wait=True)` and `with` are used.
    unit
        Module-level function of one picklable job.
    jobs
        Made as they are needed.
    workers
        Decides how many jobs are submitted at a time: a few for each.
    counts
        Is told how far the units are.
    """
    told: UnitCounts[Job] = counts or UnitCounts(0, lambda _job: (0, 0))
    results: dict[int, Result] = {}
    running: dict[Future[Result], _Unit] = {}
    try:
        for number, job in enumerate(jobs):
            weight = (0, 0) if isinstance(executor, ThreadUnits) else told.weigh(job)
            running[executor.submit(unit, job)] = number, weight
            if len(running) >= AHEAD * workers:
                _collect(executor, running, results, told)
        while running:
            _collect(executor, running, results, told)
    except BaseException:
        if isinstance(executor, ThreadUnits):
            executor.stop_units()
        for future in running:
            future.cancel()
        executor.shutdown(wait=True)  # without cancel_futures, which Dask's does not take
        raise
    return tuple(results[number] for number in range(len(results)))


_Unit = tuple[int, tuple[int, int]]
"""Number of a job; its frames and bytes, which are told when it ends."""


def _collect(
    executor: Executor, running: dict[Future[Result], _Unit], results: dict[int, Result], counts: UnitCounts[Job]
) -> None:
    """Wait for the next jobs to end; raises the error of one that failed."""
    done: set[Future[Result]] = set()
    while not done:
        counts.look(executor, running)
        done, _ = wait(running, _LOOK_SECONDS, FIRST_COMPLETED)
    for future in done:
        number, weight = running.pop(future)
        results[number] = future.result()
        counts.end(*weight)
