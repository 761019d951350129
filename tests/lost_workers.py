"""Units whose process is killed, and units that are counted; a module of their own, because each process imports it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any


def die_once(mark: str) -> str:
    """A unit whose first process is killed."""
    path = Path(mark)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done {path.name}"


def die_always(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(what: str) -> None:
    raise ValueError(f"no {what}")


def count_units(make: Any, log: Path, *, kill_at: int = -1) -> Callable[[int, Any], Executor]:
    """Wrap what makes an executor, so that a file says which units began and ended; one that is found doesn't begin.

    Parameters
    ----------
    kill_at
        The process that begins a unit as this one, counted from 0, is killed when the unit has read its pixels.
    """

    def wrapped(workers: int, advance: Any) -> Executor:
        executor: Executor = make(workers, advance)
        submit = executor.submit
        executor.submit = lambda unit, job: submit(partial(_run, str(log), kill_at, unit), job)  # type: ignore[method-assign,assignment]
        return executor

    return wrapped


def read_units(log: Path) -> dict[str, list[str]]:
    """Return the digests of the units that began, and of those that ended."""
    lines = [line.split() for line in (log.read_text() if log.exists() else "").splitlines()]
    return {what: [digest for kind, digest in lines if kind == what] for what in ("begin", "end")}


def _run(log: str, kill_at: int, unit: Callable[[Any], Any], job: Any) -> Any:
    import etl.unit.build as module

    if module.find_staged(job) is not None:
        return unit(job)
    if _append(log, f"begin {job.digest}") == kill_at:
        module.plan_shard_job = lambda *_: die_always("")  # type: ignore[assignment]
    result = unit(job)
    _append(log, f"end {job.digest}")
    return result


def _append(log: str, line: str) -> int:
    """Add a line, which several processes may do at a time; return how many of its kind were there."""
    with Path(log).open("a+") as file:
        file.write(f"{line}\n")
        file.flush()
        file.seek(0)
        return sum(other.startswith(line.split()[0]) for other in file) - 1
