"""Every mistake of `tests/mistakes` is answered in one to three lines, without a traceback, and costs nobody work."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from dynaclr_wds import __main__ as command
from tests.conftest import build, write_collection
from tests.mistakes.document import PATH, as_pattern, parse_document
from tests.mistakes.in_experiments_yaml import IN_EXPERIMENTS_YAML
from tests.mistakes.in_sources import IN_SOURCES
from tests.mistakes.in_track_sources import IN_TRACK_SOURCES
from tests.mistakes.in_training import IN_TRAINING
from tests.mistakes.with_shards import WITH_SHARDS
from tests.mistakes.world import Mistake, World, shorten
from tests.remote import forget_credentials
from tests.shared_build import make_once

pytestmark = pytest.mark.slow

SECTIONS = {
    "In experiments.yaml and the options of a build": IN_EXPERIMENTS_YAML,
    "In plates and tables": IN_SOURCES,
    "In tracks of other programs, and in images": IN_TRACK_SOURCES,
    "With shards": WITH_SHARDS,
    "In training and embedding": IN_TRAINING,
}
ALL = [mistake for section in SECTIONS.values() for mistake in section]
SAID = parse_document(PATH.read_text())


@pytest.fixture(scope="session")
def unspoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collection and its shards. Read only."""

    def make(root: Path) -> None:
        build(write_collection(root, ("uint16", "uint16")), root / "shards")

    return make_once(tmp_path_factory, "mistakes", make)


@pytest.fixture
def world(unspoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    root = tmp_path / "w"
    shutil.copytree(unspoilt, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["dynaclr-wds"])
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("COLUMNS", "500")
    forget_credentials(monkeypatch, tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return World(root)


def run(mistake: Mistake, world: World) -> tuple[int, str, dict[str, tuple[int, int]]]:
    """Make a mistake; return exit status, what was said, and the files of before."""
    asked = mistake.make(world)
    before = dict(world.snapshot())
    if callable(asked):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is what is tested
            asked()
        return mistake.status, "error: " + str(caught.value), before
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command.main(asked)
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
    said = err.getvalue() if mistake.status == 2 else out.getvalue() + err.getvalue()
    return status, shorten(said, world.root), before


def test_the_document_lists_these_mistakes_section_by_section() -> None:
    assert list(SAID) == [mistake.what for mistake in ALL]
    assert re.findall(r"^## (.*)$", PATH.read_text(), re.MULTILINE) == list(SECTIONS)
    assert len(ALL) >= 60


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: mistake.what)
def test_mistake_is_answered_and_costs_nothing(mistake: Mistake, world: World) -> None:
    status, said, before = run(mistake, world)
    assert "Traceback" not in said
    assert status == mistake.status, said
    if status == 2:
        error = said[said.index("error: ") :]  # a build has said before what it is doing
        assert as_pattern(SAID[mistake.what]).fullmatch(error), error
        assert len(error.strip().splitlines()) <= 3
    else:
        assert as_pattern(SAID[mistake.what]).search(said), said
    after = world.snapshot()
    assert {path: after.get(path) for path in before} == before
