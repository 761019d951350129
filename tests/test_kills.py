"""Whole or absent: a build that is killed at random, also while it puts the set in place, ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

import etl.run.update
from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.errors import BuildError
from etl.build_shards import build_shards
from etl.run.commit import commit, finish_commits
from etl.run.in_use import using
from etl.run.output import OutFolder, discard_work
from etl.scratch import scratch_folder
from etl.source.experiments import parse_build_config
from tests.plates import make_collection
from tests.set_files import digests
from tests.test_build import Killed, build

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_builds_that_are_killed_at_random_end_with_the_same_bytes():
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "2", "--kinds", "new", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "all ended in the same bytes" in done.stdout


PROCESSES = """
import time
from etl.run.engines import ProcessUnits
units = ProcessUnits(1)
units.submit(print, "a process that waits for units", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_processes_end_with_the_build_that_is_killed():
    """They hold its stdout, which is at its end when the last of them is gone."""
    build = subprocess.Popen([sys.executable, "-c", PROCESSES], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert build.stdout is not None
    assert build.stdout.readline() == "a process that waits for units\n"
    build.kill()
    assert build.communicate(timeout=60) == ("", None)


def test_what_a_unit_on_another_machine_leaves_is_removed_by_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Locks of folders end at the machine on NFS, so the unit may write while its folder is removed, and later."""
    folder = OutFolder(tmp_path / "out", "a" * 16)
    with folder.locked(lambda: None):
        folder.begin()
    remove, late = shutil.rmtree, folder.staged / "late.tar"

    def write_meanwhile(path: Path, **options: Any) -> None:
        remove(path, **options)
        path.mkdir()
        late.touch()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", write_meanwhile)
        discard_work(folder.work)
    assert late.exists()
    discard_work(folder.work)
    assert not folder.work.exists()
    late.parent.mkdir(parents=True)
    late.touch()
    folder.begin()
    discard_work(folder.work)
    assert not folder.work.exists()


ABANDONED = """
import os, signal
from etl.scratch import scratch_folder
with scratch_folder("index") as folder:
    (folder / "column").write_text("a gigabyte")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_temporary_folder_of_a_killed_process_is_removed_by_the_next_that_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", ABANDONED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    abandoned, foreign = Path(done.stdout.strip()), tmp_path / "dynaclr-wds-elsewhere-index-1"
    assert (abandoned / "column").exists()
    foreign.mkdir()  # of another machine
    with scratch_folder("tables") as used:
        assert not abandoned.exists()
        with scratch_folder("index") as other:
            assert used.exists()
            assert other != used
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_work_folder_that_units_of_a_killed_build_write_to_is_waited_for_and_never_made_anew(tmp_path: Path):
    folder, told = OutFolder(tmp_path / "out", "a" * 16), threading.Event()
    with folder.locked(lambda: None):
        folder.begin()
    begun: list[bool] = []

    def build() -> None:
        with folder.locked(told.set):
            begun.append(True)

    with using(folder.staged):
        next_build = threading.Thread(target=build)
        next_build.start()
        assert told.wait(60)
        assert not begun
        discard_work(folder.work)
        assert folder.staged.is_dir(), "removed under a unit that writes to it"
    next_build.join(60)
    assert begun
    discard_work(folder.work)
    assert not folder.work.exists()
    with (
        pytest.raises(BuildError, match=r"staged: is gone, because the build that this unit is of has ended"),
        using(folder.staged),
    ):
        pass
    assert not folder.work.exists()


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OutFolder, Manifest, dict[str, str]]:
    """A set whose successor is staged but not put in place; and the bytes that the successor must have."""
    root = tmp_path_factory.mktemp("staged")
    collection = make_collection(root / "collection", experiments=1, lineages=2)
    config = parse_build_config(collection, {"seed": 1, "yx_patch_size": [8, 8]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        build(collection, root / "out")
        manifest = build_shards(config, root / "expected")
        patch.setattr(etl.run.update, "commit", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            build_shards(config, root / "out", replace=True)
    return root / "out", OutFolder(root / "out", config.token), manifest, digests(root / "expected")


@pytest.mark.slow
def test_a_commit_that_is_killed_before_any_of_its_steps_is_carried_out_by_the_next_run(
    staged: tuple[Path, OutFolder, Manifest, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    ready, folder, manifest, expected = staged
    monkeypatch.setattr(os, "fsync", lambda _: None)
    old = digests(ready)
    for last in range(1, 1000, 3):
        out = tmp_path / f"out{last}"
        shutil.copytree(ready, out)
        copy = OutFolder(out, folder.token)
        ended = _commit_until(copy, manifest, last, monkeypatch)
        if not ended:
            absent = not (out / MANIFEST).exists()
            assert absent or digests(out)[MANIFEST] in (old[MANIFEST], expected[MANIFEST])
            finish_commits(copy)
            if (out / MANIFEST).exists() and digests(out)[MANIFEST] == old[MANIFEST]:
                commit(copy, manifest)  # killed before the first step that counts
        found = {path: digest for path, digest in digests(out).items() if not path.startswith(".build-")}
        assert found == expected
        shutil.rmtree(out)
        if ended:
            assert last > 50
            return
    pytest.fail("the commit has no end")


def _commit_until(folder: OutFolder, manifest: Manifest, last: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Commit, dying before a step; return whether it ended before."""
    steps = 0

    def counted(original: Any) -> Any:
        def step(*arguments: Any, **keywords: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps >= last:
                raise Killed
            return original(*arguments, **keywords)

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            commit(folder, manifest)
        except Killed:
            return False
    return True
