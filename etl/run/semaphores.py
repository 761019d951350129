"""Finds and removes semaphores of builds that were killed with all their processes.

Python's multiprocessing names semaphores by chance, and a process of its own removes the names of those that end
without doing so. A kill that hits this process, too, leaves them in shared memory, 32 bytes each, and nobody could say
whose they are. So ours are named after machine and process, and whoever starts processes next removes those of
processes that are no more. Only where Linux shows semaphores as files.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etl.scratch import machine_name

_FOLDER = Path("/dev/shm")
_SETTING = "semprefix"


@contextmanager
def naming_semaphores() -> Iterator[None]:
    """Name the semaphores that are made in the block after this process; remove those of processes that were killed."""
    config: dict[str, str] | None = getattr(multiprocessing.current_process(), "_config", None)
    if config is None or _SETTING not in config or not _FOLDER.is_dir():
        yield  # another system, or another Python: names are as they were
        return
    prefix = f"dynaclr-{machine_name()}"
    _remove_abandoned(prefix)
    before = config[_SETTING]
    config[_SETTING] = f"/{prefix}-{os.getpid()}"
    try:
        yield
    finally:
        config[_SETTING] = before


def _remove_abandoned(prefix: str) -> None:
    for path in _FOLDER.glob(f"sem.{prefix}-*"):
        found = re.fullmatch(rf"sem\.{prefix}-(\d+)-\w+", path.name)
        if found is not None and not _is_running(int(found[1])):
            with suppress(OSError):  # of another user, or removed by another process
                path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
