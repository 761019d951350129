"""Temporary folders of this machine that don't outlive their process by more than one command, even after a kill.

A process that gets SIGKILL removes nothing. So each folder is locked while it is in use, and whoever makes the next one
removes those that nobody holds. Only folders of this user and this machine are looked at.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "dynaclr-wds-"


@contextmanager
def scratch_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder; it is removed when the block ends.

    Parameters
    ----------
    purpose
        A word for its name.
    parent
        Where it is made, and those of killed processes are looked for; made if absent. None = the system's folder for
        temporary files (`TMPDIR`).
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    folder, lock = _make(parent, f"{_own_prefix()}{purpose}-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def machine_name() -> str:
    """Return the name of this machine as file names may hold it; folders of others may be in use there."""
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:30]


def _own_prefix() -> str:
    return f"{_PREFIX}{machine_name()}-"


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder and lock it; return its descriptor, too."""
    while True:
        if not parent.is_dir():
            parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # removed before it was locked, by another process that makes one
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of processes of this machine that were killed."""
    for folder in parent.glob(f"{_own_prefix()}*"):
        with suppress(OSError):  # in use, of another user, or removed by another process
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
