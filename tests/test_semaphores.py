"""Semaphores of builds that were killed with all their processes are removed by the next that starts processes."""

from __future__ import annotations

import gc
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from etl.run.engines import ProcessUnits

FOLDER = Path("/dev/shm")
PREFIX = f"sem.dynaclr-{re.sub(r'[^A-Za-z0-9]', '', socket.gethostname())[:30]}"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="only Linux shows semaphores as files")
def test_semaphores_are_removed_once_their_process_is_gone():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, held = (FOLDER / f"{PREFIX}-{process}-test0" for process in (ended.pid, os.getppid()))
    foreign = FOLDER / f"sem.mp-test-{os.getpid()}"
    try:
        for path in (left, held, foreign):
            path.touch()
        units = ProcessUnits(1)
        own = list(FOLDER.glob(f"{PREFIX}-{os.getpid()}-*"))
        assert not left.exists(), "its process is gone"
        assert held.exists(), "its process is there"
        assert foreign.exists(), "not of a build"
        assert own, "named after this process"
        units.shutdown()
        del units
        gc.collect()
        assert [path for path in own if path.exists()] == []
    finally:
        for path in (left, held, foreign):
            path.unlink(missing_ok=True)
