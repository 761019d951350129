"""Counts the units of a build for people: how many have ended, run, and wait, wherever they run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

Job_contra = TypeVar("Job_contra", contravariant=True)


@runtime_checkable
class CountsRunning(Protocol):
    """An executor that knows better than its futures how many of them run."""

    def count_running(self) -> int:
        """Return how many units run now, as far as it is known; more than there are left does no harm."""
        ...


class UnitCounts(Generic[Job_contra]):
    """How far the units of a stage are; one thread counts, any thread may ask.

    Parameters
    ----------
    total
        Units of the stage.
    weigh
        Returns the frames of a job, and the bytes that reading them takes: 0 where they need not be read again.
    """

    def __init__(self, total: int, weigh: Callable[[Job_contra], tuple[int, int]]) -> None:
        self._total, self.weigh = total, weigh
        self._ended = self._running = 0
        self.advance: Callable[[int, int], None] = lambda _frames, _size: None
        """Told of the frames of units that end where nobody heard them, and, with zeros, that time passes."""

    def look(self, executor: Executor, left: Collection[Future[Any]]) -> None:
        """Count those that run; called now and then."""
        if isinstance(executor, CountsRunning):
            count = executor.count_running()
        else:
            count = sum(future.running() for future in left)
        self._running = min(count, len(left))
        self.advance(0, 0)

    def end(self, frames: int, size: int) -> None:
        """Count a unit that has ended; of frames and bytes only those that nobody told yet."""
        self._ended, self._running = self._ended + 1, max(self._running - 1, 0)
        if frames:
            self.advance(frames, size)

    def describe(self) -> str:
        """Say how many units there are of each kind."""
        waiting = self._total - self._ended - self._running
        return f"groups: {self._ended:,} of {self._total:,} built, {self._running:,} running, {waiting:,} waiting"
