"""Runs a command as people call it: its name in texts, its errors in a few lines, its exit status.

Every command of both halves goes through `run_command`. An error that is ours, or a file that can't be read, ends the
command with status 2 and the message alone; `--debug` anywhere, or `DYNACLR_DEBUG=1`, shows the traceback above it. Any
other error keeps its traceback, with a line that says where to report it. Imports the standard library only.
"""

from __future__ import annotations

import argparse
import difflib
import linecache
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dynaclr_wds.errors import DynaCLRError

ISSUES = "https://github.com/dynaclr-wds/dynaclr-wds/issues"
"""As in pyproject.toml."""

_REPORT = f"This looks like a fault of dynaclr-wds. Please report it with the lines above: {ISSUES}"
_OURS = tuple(str(Path(__file__).parents[1] / package) + os.sep for package in ("dynaclr_wds", "etl"))
_STATED = (ValueError, TypeError, RuntimeError, OSError)
"""Builtin errors that our own code raises about what a user gave."""

_INTERRUPTED = ("Query interrupted", "INTERRUPT Error: Interrupted!")
"""What DuckDB raises, as an error of its own, after Ctrl-C in the middle of a query."""

_debug: ContextVar[bool] = ContextVar("debug", default=False)


def called_as(command: str, module: str | None = None) -> str:
    """Say how the user called a command, for usage texts.

    Parameters
    ----------
    command
        Name of the subcommand; empty for the program itself.
    module
        Module that runs the same command as `python -m <module>`.
    """
    given = Path(sys.argv[0])
    place = (given.parent if given.name == "__main__.py" else given.with_suffix("")).as_posix()
    if module is not None and f"/{place}".endswith("/" + module.replace(".", "/")):
        return f"python -m {module}"
    program = (
        "python -m dynaclr_wds" if given.name == "__main__.py" and place.endswith("dynaclr_wds") else "dynaclr-wds"
    )
    return f"{program} {command}".rstrip()


def suggest(name: str, known: Collection[str]) -> str:
    """Return ` Did you mean …?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def explain_option(given: str, known: Collection[str], shows: str) -> str:
    """Say that there is no such option, and which one was probably meant.

    Parameters
    ----------
    given
        What was given.
    known
        The options that there are, with their dashes.
    shows
        Command that lists them.
    """
    if not given.startswith("-"):
        return f"{given!r} is no option. Options begin with --; `{shows}` lists all there are."
    near = suggest(given, [name for name in known if name.startswith("--")])
    return f"there is no option {given}.{near or f' `{shows}` lists all there are.'}"


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage that hides it. Options must be written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Name the option, the nearest one that there is, and where all of them stand."""
        unknown = re.match(r"unrecognized arguments: ([^\s=]+)", message)
        if unknown is None:
            said = f"{message}. `{self.prog} --help` lists what there is."
        else:
            said = explain_option(unknown[1], self._option_string_actions, f"{self.prog} --help")
        self.exit(2, f"error: {said}\n")


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads an option that is a whole number, and not a smaller one (a `type=` of argparse)."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} must be >= {least}")
        return number

    return parse


def run_command(
    run: Callable[[Sequence[str]], int], argv: Sequence[str] | None, *, when_stopped: str = "stopped."
) -> int:
    """Run a command and turn its errors into messages.

    Parameters
    ----------
    run
        Takes the arguments, without `--debug`, and returns the exit status.
    argv
        Arguments after the command's name; None = those of the process.
    when_stopped
        Said after Ctrl-C.

    Returns
    -------
    int
        Exit status: that of `run`, 2 for an error that is explained, 130 after Ctrl-C, 143 after SIGTERM.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    with _debugging("--debug" in given), _ended_by_sigterm():
        try:
            return run([word for word in given if word != "--debug"])
        except KeyboardInterrupt as stopped:
            print(when_stopped, file=sys.stderr)
            return 143 if isinstance(stopped, Terminated) else 130
        except Exception as error:
            if str(error) in _INTERRUPTED or _is_interrupt(error):
                print(when_stopped, file=sys.stderr)
                return 130
            lines = explain_error(error)
            if lines is None:
                if _REPORT not in getattr(error, "__notes__", ()):
                    error.add_note(_REPORT)
                raise
            if _debug.get():
                traceback.print_exception(error)
            print("error: " + "\n".join(lines), file=sys.stderr)
            return 2


def _is_interrupt(error: BaseException) -> bool:
    """Whether an error was made of Ctrl-C by somebody else, as Python does with one that comes within an import."""
    seen: set[int] = set()
    below: BaseException | None = error
    while below is not None and id(below) not in seen:
        if isinstance(below, KeyboardInterrupt):
            return True
        seen.add(id(below))
        below = below.__cause__ or below.__context__
    return False


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end a command as Ctrl-C does, where nobody else handles it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _debugging(asked: bool) -> Iterator[None]:
    """Note that the traceback is wanted, also for a command that runs inside another."""
    token = _debug.set(asked or _debug.get() or os.environ.get("DYNACLR_DEBUG", "0") not in ("", "0"))
    try:
        yield
    finally:
        _debug.reset(token)


def explain_error(error: BaseException) -> list[str] | None:
    """Return the lines that tell a user what to mend; None where only a traceback helps.

    What a library wraps is explained by the error of ours that it wraps.
    """
    cause: BaseException | None = error
    while cause is not None:
        if is_ours(cause):
            return [str(cause), *getattr(cause, "__notes__", ())]
        cause = cause.__cause__
    if isinstance(error, OSError):
        return [f"{str(error).rstrip('.')}. --debug shows what wanted it.", *getattr(error, "__notes__", ())]
    return None


def is_ours(error: BaseException) -> bool:
    """Whether our own code raised an error in order to say something: its last frame is a `raise` of this project."""
    if isinstance(error, DynaCLRError):
        return True
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, _STATED) else []
    if not frames or not frames[-1].filename.startswith(_OURS) or frames[-1].lineno is None:
        return False
    return linecache.getline(frames[-1].filename, frames[-1].lineno).lstrip().startswith("raise")
