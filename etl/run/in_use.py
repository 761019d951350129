"""Tells which work folders units still write to: units may outlive the build that started them.

A build that is killed can leave jobs of SLURM or workers of Dask behind. Each unit holds a shared lock on the folder of
staged files. So the next build waits for them, nobody removes a folder under them, and a unit that begins when its
folder is gone says so and makes no new one. A file system may keep such locks to one machine, as NFS does; what units
on another one leave then is removed by the build after.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dynaclr_wds.errors import BuildError


@contextmanager
def using(staged: Path) -> Iterator[None]:
    """Hold a folder of staged files while a unit writes to it.

    Raises
    ------
    BuildError
        It is gone.
    """
    descriptor = _open(staged)
    if descriptor is None:
        raise BuildError(
            f"{staged}: is gone, because the build that this unit is of has ended, or was given up. Nothing is lost: "
            "give the build's command again if its set is not there."
        )
    try:
        yield
    finally:
        os.close(descriptor)


def _open(staged: Path) -> int | None:
    """Open and lock a folder; None where there is none."""
    while True:
        try:
            descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if staged.exists() and os.path.samestat(os.fstat(descriptor), staged.stat()):
            return descriptor
        os.close(descriptor)  # removed in between


@contextmanager
def keeping_units_out(staged: Path, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Keep units from a folder for a while; yields whether none writes to it.

    Parameters
    ----------
    waiting
        Called before units that write to it are waited for; None doesn't wait, and yields False.
    """
    try:
        descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock_alone(descriptor, waiting)
    finally:
        os.close(descriptor)


def _lock_alone(descriptor: int, waiting: Callable[[], None] | None) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            return False
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True
