"""A process that has imported what commands need, and forks one for each line of JSON that it reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

ROOT = Path(__file__).parent.parent


class Forks:
    """The process; a context manager."""

    module: ClassVar[str]
    """What runs there as `python -m`."""

    def __enter__(self) -> Self:
        self.server = subprocess.Popen(
            [sys.executable, "-m", self.module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()

    def ask(self, job: Any) -> Any:
        """Give it a line, and return its first answer."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return self.read()

    def read(self) -> Any:
        """Wait for its next answer."""
        assert self.server.stdout is not None
        return json.loads(self.server.stdout.readline())


def become(said: str, environment: Mapping[str, str], run: Callable[[], int]) -> NoReturn:
    """Run a command in a process that was forked, with what it says in a file, and end with its status."""
    target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.environ.update(environment)
    status = 1
    try:
        status = run()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
