"""Semaphores of builds that were killed with all their processes are removed by the next that starts processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path("/dev/shm")
SCRIPT = """
import gc, os, subprocess, sys
from pathlib import Path
from etl.run.engines import ProcessUnits
from etl.scratch import machine_name

folder = Path("/dev/shm")
prefix = f"sem.dynaclr-{machine_name()}"
ended = subprocess.Popen([sys.executable, "-c", ""])
ended.wait()
left, held = (folder / f"{prefix}-{process}-test0" for process in (ended.pid, os.getppid()))
foreign = folder / f"sem.mp-test-{os.getpid()}"
try:
    for path in (left, held, foreign):
        path.touch()
    units = ProcessUnits(1)
    own = list(folder.glob(f"{prefix}-{os.getpid()}-*"))
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
"""


@pytest.mark.skipif(not FOLDER.is_dir(), reason="only Linux shows semaphores as files")
def test_semaphores_are_removed_once_their_process_is_gone():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
