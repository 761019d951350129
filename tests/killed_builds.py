"""Builds in processes that are forked after the imports, and that kill themselves at a moment of their progress."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import etl.run.update
import etl.unit.build  # noqa: F401
from etl.build_shards import build_part, build_shards
from etl.run.engines import Engine
from etl.run.progress import Progress
from etl.source.experiments import parse_build_config
from tests.lost_workers import count_units, read_units

PHASES = ("index", "units", "join", "commit")
WORKERS = 2
_OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to kill."""

    phase: str
    operation: int | None = None
    """Number of a file operation in the phase; None goes by time."""
    notes: int = 0
    """Units that must have begun or ended, both counted, before time is counted."""
    seconds: float = 0.0
    group: bool = True
    """Kill the processes of the build, too, and not only the one that leads them."""

    def __str__(self) -> str:
        after = f"{self.seconds:.3f} s" if self.operation is None else f"operation {self.operation}"
        notes = f" behind note {self.notes}" if self.notes else ""
        return f"{self.phase}, {after}{notes}{'' if self.group else ', its processes live'}"


class Followed(Progress):
    """Follows the phases of a build, and kills it."""

    def __init__(self, moment: Moment | None, log: Path, tell: int) -> None:
        self.moment, self._log, self._tell = moment, log, tell
        self.phase, self.operations, self.begun = "index", Counter[str](), {"index": time.monotonic()}
        sys.addaudithook(self._hear)
        self._enter("index")

    @contextmanager
    def stage(self, *_: Any) -> Iterator[Callable[[int, int], None]]:  # type: ignore[override]
        self._enter("units")
        yield lambda _done, _size: None
        self._enter("join")

    def measure(self) -> dict[str, Any]:
        """Return the operations and seconds of each phase."""
        ends = [*list(self.begun.values())[1:], time.monotonic()]
        seconds = {phase: end - begin for (phase, begin), end in zip(self.begun.items(), ends, strict=True)}
        return {"operations": dict(self.operations), "seconds": seconds}

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self.begun[phase] = time.monotonic()
        os.write(self._tell, phase[:1].encode())
        if self.moment is not None and self.moment.phase == phase and self.moment.operation is None:
            threading.Thread(target=self._wait, args=(self.moment,), daemon=True).start()

    def _wait(self, moment: Moment) -> None:
        while moment.notes and sum(map(len, read_units(self._log).values())) < moment.notes:
            time.sleep(0.0005)
        time.sleep(moment.seconds)
        self._kill(moment)

    def _kill(self, moment: Moment) -> None:
        if moment.group:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS:
            return
        if event == "open" and self.phase != "commit" and "manifest.next" in str(arguments[0]):
            self._enter("commit")
        self.operations[self.phase] += 1
        moment = self.moment
        if moment is not None and (moment.phase, moment.operation) == (self.phase, self.operations[self.phase]):
            self._kill(moment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one set is built, again and again."""

    root: Path
    out: Path
    collection: Path
    engine: str
    groups: list[int] = field(default_factory=list)
    """Process groups that were started."""

    @classmethod
    def of(cls, root: Path, name: str, engine: str, before: Path | None) -> Place:
        """Make one in a folder that holds a collection, with a copy of a set that is there before."""
        own = root / name
        own.mkdir()
        if before is not None:
            shutil.copytree(before, own / "out")
        return cls(root=own, out=own / "out", collection=root / "collection/experiments.yaml", engine=engine)

    @property
    def log(self) -> Path:
        """Which units began and ended."""
        return self.root / "units.log"

    def start(self, flags: dict[str, Any], moment: Moment | None, part: str = "") -> tuple[int, int]:
        """Build in a process of its own; return its id, and a descriptor that says what becomes of it."""
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        process = os.fork()
        if process:
            os.close(write)
            self.groups.append(process)
            return process, read
        status = 1
        try:
            os.setsid()
            sys.modules["__main__"] = ModuleType("__main__")  # processes of the build need not import this one
            os.environ["TMPDIR"], tempfile.tempdir = str(self.root / "tmp"), None
            os.fsync = lambda _: None  # only a power cut could tell the difference
            followed = Followed(moment, self.log, write)
            more = {"progress": followed, "make_executor": count_units(Engine(name=self.engine).maker(), self.log)}
            config = parse_build_config(self.collection, {"workers": WORKERS})
            build_part(config, self.out, part, **more) if part else build_shards(config, self.out, **more, **flags)
            os.write(write, json.dumps(followed.measure()).encode())
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)

    def check_left(self) -> None:
        """Check that no temporary file and no process is left.

        Raises
        ------
        RuntimeError
            Some are.
        """
        left = [str(path) for path in (self.root / "tmp").rglob("*")]
        if left:
            raise RuntimeError(f"temporary files are left: {left}")
        end = time.monotonic() + 60
        while running := [group for group in self.groups if _is_running(group)]:
            if time.monotonic() > end:
                raise RuntimeError(f"processes of the groups {running} are left")
            time.sleep(0.05)
        self.groups.clear()


def _is_running(group: int) -> bool:
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(int(line.split()[0]) == group and "Z" not in line.split()[1] for line in listed.splitlines())


def wait_for(process: int, read: int) -> tuple[bool, str]:
    """Wait for a build; return whether it ended well, False when it was killed, and what it said of itself.

    Raises
    ------
    RuntimeError
        It failed by itself.
    """
    _, status = os.waitpid(process, 0)
    with os.fdopen(read) as file:
        said = file.read()
    if os.WIFSIGNALED(status):
        return False, said
    if os.WEXITSTATUS(status):
        raise RuntimeError("a build failed; what it printed says why")
    return True, said
