"""Ctrl-C and SIGTERM: end a command at once, or let a training finish the step at hand. Standard library only.

A second Ctrl-C ends the process at once, whatever it is doing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SAME_PRESS_SECONDS = 0.5
"""A second Ctrl-C within this time is the first one again: launchers pass on what the terminal has sent already."""

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(SystemExit):
    """Ends a command that was asked to stop. The exit status is that of the signal: 130 for Ctrl-C, 143 for SIGTERM.

    Parameters
    ----------
    signum
        The signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.code: int = 128 + signum
        self.signum = signal.Signals(signum)
        self.said = False
        """Whether the user was told already."""

    @property
    def cause(self) -> str:
        """How people call the signal."""
        return NAMES.get(self.signum, self.signum.name)


class StopSignals:
    """Receives Ctrl-C and SIGTERM between `install` and `restore`; as a context manager it does both.

    Parameters
    ----------
    waits
        False raises `Stopped` where the program stands. True keeps the signal in `received` and says so, and the
        program looks there when it can stop.
    """

    def __init__(self, waits: bool = False) -> None:
        self.waits = waits
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._deferred: list[tuple[Callable[[int, FrameType | None], Any], int]] = []

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def install(self) -> None:
        """Take over both signals. Other threads than the main one can't receive signals, and nothing happens there."""
        self.received, self._deferred = None, []
        if threading.current_thread() is threading.main_thread():
            for signum in NAMES:
                self._before.setdefault(signum, signal.getsignal(signum))
                signal.signal(signum, self._receive)

    def restore(self) -> None:
        """Give the signals back to those who had them."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self._before = {}

    def defer(self, signum: int) -> None:
        """Keep a signal that somebody else handles until `run_deferred`, when the state is whole."""
        handler = signal.getsignal(signum)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._before.setdefault(signum, handler)
            signal.signal(signum, lambda received, _: self._deferred.append((handler, received)))

    @property
    def has_deferred(self) -> bool:
        """Whether a deferred signal has come."""
        return bool(self._deferred)

    def run_deferred(self) -> None:
        """Handle the deferred signals that have come."""
        waiting, self._deferred = self._deferred, []
        for handler, signum in waiting:
            handler(signum, None)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = signum, now
            if not self.waits:
                raise Stopped(signum)
            again = " Ctrl-C again stops at once." if signum == signal.SIGINT else ""
            _say(f"{NAMES[signal.Signals(signum)]}: finishing the step, then saving.{again}")
        elif signum == signal.SIGINT and now - self._since > SAME_PRESS_SECONDS:
            _say("Stopped at once, without saving.")
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)


def _say(text: str) -> None:
    """Print a line on stderr from a signal handler, where `print` may find the stream in use."""
    if is_first_process():
        os.write(2, f"\n{text}\n".encode())


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those of a distributed run. Known before torch is imported."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))
