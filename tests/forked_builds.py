"""Runs `dynaclr-wds build` as processes that are forked after the imports, so that many can be killed soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from etl.build_shards import main

ROOT = Path(__file__).parent.parent


class ForkedBuilds:
    """A process that forks builds; a context manager."""

    def __enter__(self) -> ForkedBuilds:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_builds"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()

    def start(self, words: Sequence[str], said: Path, environment: Mapping[str, str]) -> int:
        """Start `dynaclr-wds build` with arguments; what it says goes to a file. Return its process id."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps([list(words), str(said), dict(environment)]) + "\n")
        self.server.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """Wait for the build that was started last; return its exit status, negative: the signal that killed it."""
        return self._read()

    def _read(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


def _serve() -> None:
    import etl.upload.build
    import etl.upload.transfer  # noqa: F401

    os.fsync = lambda _: None  # only a power cut could tell the difference
    for line in sys.stdin:
        child = os.fork() or _become(*json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(words: list[str], said: str, environment: dict[str, str]) -> NoReturn:
    target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.environ.update(environment)
    status = 1
    try:
        status = main(words)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
