"""Whole or absent: a build that is killed at random, also while it puts the set in place, ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import etl.run.update
from dynaclr_wds.contract import MANIFEST, Manifest
from etl.build_shards import build_shards
from etl.run.commit import commit, finish_commits
from etl.run.output import OutFolder
from etl.source.experiments import parse_build_config
from tests.plates import make_collection
from tests.set_files import digests
from tests.test_build import Killed, build

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_builds_that_are_killed_at_random_end_with_the_same_bytes():
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "5", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert "all ended in the same bytes" in done.stdout


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
