"""What takes the files of units away as they end, where a set is not to stay in the folder that it is built in.

A thread builds a unit and has its files taken before it begins another one, so the folder holds those of as many units
as there are workers. Where units run elsewhere, a thread for each waits until it has ended, and then does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, wait
from typing import Protocol, TypeVar, runtime_checkable

from dynaclr_wds.contract import FileRecord
from etl.run.executors import Interrupted, report

Job = TypeVar("Job")
_LOOK_SECONDS = 0.5


@runtime_checkable
class Outlet(Protocol):
    """Takes the files of units; see `etl.upload.outlet`."""

    @property
    def where(self) -> str:
        """The place, as people know it."""
        ...

    def look(self, digests: Sequence[str]) -> None:
        """Find what has been taken before of groups that are not in the set; called before anything else."""

    def begin(self, digests: Sequence[str]) -> None:
        """Hear which groups will be built, before the first is."""

    def is_taken(self, digest: str) -> bool:
        """Whether all of a group was taken before, and is whole where it is."""

    def list_taken(self, digest: str) -> Mapping[str, str]:
        """Return path → checksum of the shards of a group that were taken before, and are whole where they are."""

    def read_counts(self, digests: Sequence[str]) -> set[int]:
        """Return in how many parts some of these groups were to be built, as far as that is known."""

    def take(self, part: FileRecord) -> None:
        """Take the shards of a unit that has ended, and remove them here; called in any thread."""


def then_take(build: Callable[[Job], FileRecord], outlet: Outlet) -> Callable[[Job], FileRecord]:
    """Make a unit of one, after which its files are taken; for threads."""

    def run(job: Job) -> FileRecord:
        part = build(job)
        outlet.take(part)
        return part

    return run


def run_in(
    executor: Executor, build: Callable[[Job], FileRecord], weigh: Callable[[Job], tuple[int, int]]
) -> Callable[[Job], FileRecord]:
    """Make a unit for threads of one that runs in an executor."""

    def run(job: Job) -> FileRecord:
        future, weight = executor.submit(build, job), weigh(job)
        try:
            while not wait([future], _LOOK_SECONDS).done:
                report(0)
        except Interrupted:
            future.cancel()
            raise
        part = future.result()
        report(*weight)
        return part

    return run
