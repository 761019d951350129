"""Whole or absent: a build that is killed at random, also while it puts the set in place, ends with the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import etl.run.commit
import etl.run.stages
from dynaclr_wds.contract import MANIFEST
from etl.run.commit import list_files
from tests.test_build import SMALL, Killed, build, digests
from tests.plates import make_collection


@pytest.mark.slow
def test_builds_that_are_killed_at_random_end_with_the_same_bytes():
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "5", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert "all ended in the same bytes" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("step", ["rename_whole", "_remove", "discard_work", "write_whole"])
def test_a_build_killed_at_any_step_of_its_commit_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    monkeypatch.setattr("os.fsync", lambda _: None)
    collection = make_collection(tmp_path / "collection", experiments=1, **SMALL)
    build(collection, tmp_path / "expected", seed=1, yx_patch_size=[8, 8])
    build(collection, tmp_path / "old")
    for last in range(1, 60, 9):
        out, calls = tmp_path / f"out{last}", 0
        subprocess.run(["cp", "-a", str(tmp_path / "old"), str(out)], check=True)
        original = getattr(etl.run.commit, step)

        def dying(*arguments: Any, original: Any = original, last: int = last) -> Any:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(etl.run.commit, step, dying)
            try:
                replace(collection, out)
            except Killed:
                assert not (out / MANIFEST).exists() or step in ("write_whole", "discard_work")
                replace(collection, out)
            else:
                assert digests(out) == digests(tmp_path / "expected")
                return
        assert digests(out) == digests(tmp_path / "expected")


def replace(collection: Path, out: Path) -> None:
    from etl.build_shards import build_shards
    from etl.source.experiments import parse_build_config

    build_shards(parse_build_config(collection, {"seed": 1, "yx_patch_size": [8, 8]}), out, replace=True)
    assert set(list_files(etl.run.stages.parse_manifest((out / MANIFEST).read_bytes()))) <= set(digests(out))
