"""What docs/MODELS.md and docs/CHECKPOINTS.md show of `model:` is a config that `fit` takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

import dynaclr_wds.__main__ as command
from tests.test_docs import ROOT, parse_blocks

BLOCKS = [
    block
    for name in ("MODELS.md", "CHECKPOINTS.md")
    for block in parse_blocks(ROOT / "docs" / name, (ROOT / "docs" / name).read_text())
    if block.text.startswith("model:")
]


def test_there_are_such_configs():
    assert [block.document.name for block in BLOCKS] == ["MODELS.md"] * 4 + ["CHECKPOINTS.md"]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.document.name}:{block.line}")
def test_config_is_understood(block, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
    given = yaml.safe_load(block.text)
    Path("fit.yaml").write_text(yaml.safe_dump(given | {"data": {"shards": "shards"}}))
    with pytest.raises(SystemExit, match=r"^0$"):
        command.main(["fit", "-c", "fit.yaml", "--print_config"])
    understood = yaml.safe_load(capsys.readouterr().out)["model"]
    for name, value in given["model"].items():
        assert_holds(understood[name], value)


def assert_holds(understood: object, given: object) -> None:
    """All that was given is there, among defaults."""
    if isinstance(given, dict):
        for name, value in given.items():
            assert_holds(understood[name], value)
    else:
        assert understood == given
