"""Runs a server as a process of its own, with own ports and an own folder, until it is killed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.servers.ports import free_ports, is_open

_SECONDS_TO_START = 30.0
_STARTS = 3  # a port may be taken between its choice and its use


class ServerDidNotStart(RuntimeError):
    """A test server ended, or never answered; holds the end of its log."""


class Daemon:
    """A server process. Subclasses say how it is called and how to see that it answers.

    It dies with the test process, however that ends, where the system can do this (Linux: `setpriv --pdeathsig`).
    """

    name = "server"
    port_count = 1

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"test-{self.name}-"))
        self.ports = free_ports(self.port_count)
        self._process: subprocess.Popen[bytes] | None = None
        self._has_run = False

    def command(self) -> list[str]:
        """Program and arguments; called in `folder`."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether requests succeed by now."""
        return is_open(self.ports[0])

    def start(self) -> Self:
        """Start the process and wait until it answers; at a first start, ports that others took are chosen anew."""
        attempts = 1 if self._has_run else _STARTS
        for attempt in range(attempts):
            if attempt:
                self.ports = free_ports(self.port_count)
            try:
                self._start_once()
            except BaseException as error:
                self.kill()
                if attempt == attempts - 1 or not isinstance(error, ServerDidNotStart):
                    self.close()
                    raise
            else:
                self._has_run = True
                break
        return self

    def kill(self) -> None:
        """End the process as a power cut would (SIGKILL). Folder and ports are kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill the process and start it again on the same ports and folder."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill the process and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_once(self) -> None:
        tie = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*tie, *self.command()], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _SECONDS_TO_START
        while self._process.poll() is None and time.monotonic() < deadline:
            if self.answers():
                return
            time.sleep(0.05)
        ended = self._process.poll()
        how = f"ended with status {ended}" if ended is not None else f"did not answer in {_SECONDS_TO_START:g} s"
        end_of_log = (self.folder / "log").read_text(errors="replace")[-2000:]
        raise ServerDidNotStart(f"{self.name} {how} on ports {self.ports}. Its log ends:\n{end_of_log}")
