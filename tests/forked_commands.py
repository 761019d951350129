"""Runs commands of `python -m dynaclr_wds`, or code, as processes that are forked after the imports: most of a start.

Each is a process of its own, which receives signals and has an exit status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from lightning.pytorch import Callback
from torch import nn

import dynaclr_wds.__main__ as command
from tests.forking import Forks, become

SIGNAL_AT = "DYNACLR_TEST_SIGNAL_AT"
"""Name of the variable: hook:nth:signal:signal …; signals are sent 0.6 seconds apart."""
CALLBACK = "--trainer.callbacks+=tests.forked_commands.SignalSelf"


class Backbone(nn.Module):
    """A network that takes no time and whose checkpoints are small; it draws random numbers in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(2), nn.AdaptiveAvgPool1d(16), nn.Flatten(), nn.Linear(32, 8), nn.Dropout(0.2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class SignalSelf(Callback):
    """Sends its process signals when a hook is called for the nth time."""

    def __init__(self) -> None:
        self.calls = 0
        if given := os.environ.get(SIGNAL_AT):
            hook, nth, *signals = given.split(":")

            def count(*_: Any, **__: Any) -> None:
                self.calls += 1
                for number, name in enumerate(signals if self.calls == int(nth) else ()):
                    time.sleep(0.6 * bool(number))
                    os.kill(os.getpid(), signal.Signals[name])

            setattr(self, hook, count)


class SayAndWait(Callback):
    """Says that it is in the third step of the first epoch, and waits there for a signal."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2 and not trainer.ckpt_path:
            print("in the third step", flush=True)
            time.sleep(1)  # a signal handler that returns lets the rest of this time pass


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    """Negative: the signal that killed it."""
    said: str
    """Both streams, of the first rank."""
    others: tuple[int, ...]
    """Status of each other rank."""


class ForkedCommands(Forks):
    """Commands, of one rank or several at a time."""

    module = "tests.forked_commands"

    def run(self, folder: Path, words: Sequence[str], *ranks: dict[str, str], **environment: str) -> Ended:
        """Run `python -m dynaclr_wds` with arguments, in a folder; as many processes as environments are given."""
        return self._run({"folder": str(folder), "words": list(words)}, *ranks, **environment)

    def run_code(
        self, folder: Path, code: str, arguments: Sequence[str], *ranks: dict[str, str], **environment: str
    ) -> Ended:
        """Run Python code with the words that it finds in `sys.argv[1:]`, as `run` does a command."""
        return self._run({"folder": str(folder), "code": code, "words": list(arguments)}, *ranks, **environment)

    def _run(self, job: dict[str, Any], *ranks: dict[str, str], **environment: str) -> Ended:
        each = [environment | rank for rank in ranks or ({},)]
        said = [Path(job["folder"], f"said-{rank}.txt") for rank in range(len(each))]
        jobs = [job | {"environment": variables, "said": str(path)} for variables, path in zip(each, said, strict=True)]
        first, *others = self.ask(jobs)
        return Ended(first, said[0].read_text(), tuple(others))


def _serve() -> None:
    import dynaclr_wds.commands.lightning
    import dynaclr_wds.train.embeddings
    import dynaclr_wds.train.encoder  # noqa: F401

    os.fsync = lambda _: None  # only a power cut could tell the difference
    for line in sys.stdin:
        children = [os.fork() or _become(job) for job in json.loads(line)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _become(job: dict[str, Any]) -> NoReturn:
    os.chdir(job["folder"])
    if code := job.get("code"):
        sys.argv = ["-c", *job["words"]]
        become(job["said"], job["environment"], lambda: exec(code, {"__name__": "__main__"}) or 0)
    sys.argv = [command.__file__, *job["words"]]
    sys.orig_argv = ["python", "-m", "dynaclr_wds", *job["words"]]
    become(job["said"], job["environment"], command.run)


if __name__ == "__main__":
    _serve()
