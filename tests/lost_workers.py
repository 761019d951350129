"""Units whose process is killed; a module of their own, because each process imports it."""

from __future__ import annotations

import os
import signal
from pathlib import Path


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
