"""Runs `dynaclr-wds build` as processes that are forked after the imports, so that many can be killed soon."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from etl.build_shards import main
from tests.forking import Forks, become


class ForkedBuilds(Forks):
    """Builds, one at a time."""

    module = "tests.forked_builds"

    def start(self, words: Sequence[str], said: Path, environment: Mapping[str, str]) -> int:
        """Start `dynaclr-wds build` with arguments; what it says goes to a file. Return its process id."""
        return int(self.ask([list(words), str(said), dict(environment)]))

    def wait(self) -> int:
        """Wait for the build that was started last; return its exit status, negative: the signal that killed it."""
        return int(self.read())


def _serve() -> None:
    import etl.upload.build
    import etl.upload.transfer  # noqa: F401

    os.fsync = lambda _: None  # only a power cut could tell the difference
    for line in sys.stdin:
        words, said, environment = json.loads(line)
        child = os.fork() or become(said, environment, partial(main, words))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
