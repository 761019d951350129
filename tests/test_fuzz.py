"""Forged sets and sources by the thousand: the same content or one error of ours; `make fuzz` runs more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynaclr_wds import known_files
from tests.hostile import fuzz, sources

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_fsync")]


@pytest.fixture(autouse=True)
def _remember_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a set may be so old that its files are remembered as whole; that is no part of reading."""
    monkeypatch.setattr(known_files, "_SETTLED_NS", 1 << 62)


CHECKING = ("compile", "exec", "marshal")
"""What the check of shapes and dtypes in tests does when a function is first called; `make fuzz` runs without it."""


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Fuzzer:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        return fuzz.Fuzzer(fuzz.build_small_set(folder), folder, CHECKING)


@pytest.mark.parametrize(
    ("kinds", "cases"), [(("manifest",), 200), (("array", "table"), 100), (("npy",), 100), (("tar", "clip"), 60)]
)
def test_forged_sets_are_read_as_they_were_written_or_refused_by_name(
    fuzzer: fuzz.Fuzzer, kinds: tuple[str, ...], cases: int
):
    outcomes = [outcome for kind in kinds for outcome in fuzz.run_cases(fuzzer, kind, range(cases))]
    assert [outcome for outcome in outcomes if outcome.fault] == []
    answers = {outcome.answer for outcome in outcomes}
    assert {"same", "FormatError"} <= answers  # neither is all refused, nor all believed


def test_forged_plates_tracks_and_configs_are_built_or_refused_by_name(tmp_path: Path):
    fuzzer = sources.SourceFuzzer(tmp_path)
    outcomes = [outcome for kind in sources.KINDS for outcome in sources.run_cases(fuzzer, kind, range(40))]
    assert [outcome for outcome in outcomes if outcome.fault] == []
    assert {"built", "ConfigError", "PlateError"} <= {outcome.answer for outcome in outcomes}
