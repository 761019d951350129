"""Carries out trials: what was read must be equal in every byte, or one error must name the object, in time."""

from __future__ import annotations

import collections
import dataclasses
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dynaclr_wds import errors
from dynaclr_wds.errors import DynaCLRError, FormatError
from tests.matrix.objects import OBJECTS, Object, Scene
from tests.matrix.trials import MOST_SECONDS, TRIALS, Trial
from tests.servers.faults import identify
from tests.servers.proxy import Proxy

_AT_A_TIME = 4
"""Trials mostly wait."""

EQUAL, EITHER = "equal", "equal, or an error by the byte"

_CAUSES = (
    (r"the request failed \([\d,]+ of [\d,]+ bytes came", "too few bytes came"),
    (r"the request failed \(bytes [\d,]+ to [\d,]+ of", "other bytes came"),
    (r"the request failed \((status \d+)", r"\1"),
    (r"the request failed \(([^;]+);", r"\1"),
    (r"the server refused the credentials \((status \d+).*, new ones too", r"keys refused, \1"),
    (r"came with other bytes each time", "other bytes each time"),
)
"""What a message says → what the page says of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial."""

    words: str
    """`equal`, or class and cause of the error."""
    tries: int
    """How often one request was disturbed, at most."""
    seconds: float


def run_trials(name: str, scene: Scene, trials: tuple[Trial, ...] = TRIALS) -> dict[Trial, Outcome]:
    """Carry out trials with one kind of object, several at a time."""
    thing = OBJECTS[name]
    expected = thing.expected(scene)
    with thing.prepare(), ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="trial") as pool:
        outcomes = pool.map(lambda trial: _run(thing, scene, trial, expected), trials)
        return dict(zip(trials, outcomes, strict=True))


def _run(thing: Object, scene: Scene, trial: Trial, expected: Any) -> Outcome:
    schedule = trial.schedule(thing.target, thing.methods, thing.least_share)
    with Proxy(scene.bucket.endpoint, schedule) as proxy, _folder() as base:
        folder = Path(base) / trial.name
        folder.mkdir()
        near = proxy.before(scene.bucket)
        options = {**near.storage_options(), **trial.options}
        begun = time.monotonic()
        found = _read_in_time(thing, scene, options, folder)
        seconds = time.monotonic() - begun
        disturbed = collections.Counter(identify(seen.head) for seen in list(proxy.seen) if seen.fault)
    where = f"{trial}, {seconds:.1f} s: "
    assert disturbed, f"{where}no request was disturbed"
    if isinstance(found, BaseException):
        assert isinstance(found, DynaCLRError), f"{where}{found!r} is no error of ours"
        assert scene.bucket.url in str(found), f"{where}does not name the bucket: {found}"
        assert re.search(thing.name, str(found)), f"{where}does not name the object: {found}"
        words = EITHER if trial.kind in thing.by_place else _describe(found, trial)
        return Outcome(words, max(disturbed.values()), seconds)
    assert found == expected, f"{where}other bytes, silently"
    return Outcome(EITHER if trial.kind in thing.by_place else EQUAL, max(disturbed.values()), seconds)


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="trial-", ignore_cleanup_errors=True)


def _read_in_time(thing: Object, scene: Scene, options: Mapping[str, Any], folder: Path) -> Any:
    """Read, in a thread that is left behind if it hangs; return what was read, or the error."""
    found: list[Any] = []

    def read() -> None:
        try:
            found.append(thing.read(scene, options, folder))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=read, name="trial", daemon=True)
    thread.start()
    thread.join(MOST_SECONDS)
    assert found, f"not over after {MOST_SECONDS:g} s"
    return found[0]


def _describe(error: DynaCLRError, trial: Trial) -> str:
    """Say class and cause of an error; what is found out about a flipped bit depends on its place."""
    if trial.kind == "flip" and isinstance(error, FormatError):
        return "FormatError: not what was written"
    text, name = str(error), next(base.__name__ for base in type(error).mro() if hasattr(errors, base.__name__))
    for pattern, words in _CAUSES:
        if cause := re.search(pattern, text):
            return f"{name}: {cause.expand(words)}"
    return f"{name}: {text}"
