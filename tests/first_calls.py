"""Checks shapes and types in the first calls of every function of a test, and lets the others run at full speed.

jaxtyping's pytest hook checks every call, which was four fifths of the CPU time of the planning tests: they call the
same functions thousands of times. `install` puts a counter before its decorator. Counting starts anew in every test
(`start`), so which calls are checked depends on the test alone. The check of a function is made when it is first
called: those of all functions took a third of the time to collect the tests, in every process.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping

CHECKED_CALLS = 20
"""Of each function, in each test."""

_jaxtyped = jaxtyping.jaxtyped
_test = 0


def install() -> None:
    """Count calls of all functions that jaxtyping's hook decorates from now on."""
    jaxtyping.jaxtyped = _count_calls


def start() -> None:
    """Begin to check anew: a test begins."""
    global _test
    _test += 1


def _count_calls(fn: Any = None, **options: Any) -> Any:
    if fn is None:
        return functools.partial(_count_calls, **options)
    if "ModuleOrDescription" in str(getattr(fn, "__annotations__", {})):  # says less than it means; see describe.py
        return fn
    if inspect.isfunction(fn):
        return _first_calls(fn, functools.cache(lambda: _jaxtyped(fn, **options)))
    init = getattr(fn, "__init__", None)
    checked = _jaxtyped(fn, **options)
    if inspect.isclass(checked) and checked.__init__ is not init:  # of a dataclass, which is checked by its __init__
        checking = checked.__init__
        checked.__init__ = _first_calls(init, lambda: checking)
    return checked


def _first_calls(fn: Callable[..., Any], get_checked: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    test = left = 0

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal test, left
        if test != _test:
            test, left = _test, CHECKED_CALLS
        if left == 0:
            return fn(*args, **kwargs)
        left -= 1
        return get_checked()(*args, **kwargs)

    return call
