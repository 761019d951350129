"""Watches what a piece of code does to the process and the machine: programs, pickles, files, sockets, memory, time."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pickle.find_class",
)
_FORBIDDEN += ("socket.connect", "socket.bind", "ctypes.dlopen", "code.__new__", "marshal.loads", "compile", "exec")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")

_watched: list[tuple[Path, list[str]]] = []
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    folder, found = _watched[-1]
    if event in _FORBIDDEN:
        found.append(f"{event}{arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (isinstance(mode, str) and set(mode) & set("wax+")):
            _check_inside(event, path, folder, found)
    elif event in _CHANGES and arguments[-1] in (-1, None):  # else below an open folder, as rmtree does
        _check_inside(event, arguments[0], folder, found)


def _check_inside(event: str, path: Any, folder: Path, found: list[str]) -> None:
    if isinstance(path, str | bytes | os.PathLike) and folder not in Path(os.fsdecode(path)).absolute().parents:
        found.append(f"{event} {path!r}")


@contextmanager
def watch(folder: Path) -> Iterator[list[str]]:
    """List what is done that reading data never needs, and what is written outside a folder.

    Everything that is used inside must have been imported, and run once, before.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    found: list[str] = []
    _watched.append((folder, found))
    try:
        yield found
    finally:
        _watched.pop()


class TooSlow(BaseException):
    """A case that takes too long; no `except Exception` may take it for something else."""


@contextmanager
def limit_seconds(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` after so many seconds; in the main thread only."""

    def stop(_: int, frame: FrameType | None) -> None:
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"
        raise TooSlow(f"still running after {seconds:g} s, in {where}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limit_memory(more: int) -> Iterator[None]:
    """Let this process have so many bytes of addresses more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def peak_bytes() -> int:
    """Return the most memory that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
