"""The documents are true: every fenced block of README and docs runs here, or says why not."""

from __future__ import annotations

import gc
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import dynaclr_wds.__main__ as program
from etl import build_shards
from etl.simulate.__main__ import SimulationConfig, simulate_collection
from etl.source.experiments import parse_build_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL_FIT = shlex.split(
    "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.num_sanity_val_steps 0 "
    "--trainer.log_every_n_steps 1 --data.batch_size 8 --model.encoder.init_args.backbone resnet10"
)


class Block(NamedTuple):
    """A fenced block that runs, and where it stands."""

    document: Path
    line: int
    language: str
    text: str


def parse_blocks(document: Path, text: str) -> list[Block]:
    """List the blocks that run: all but listings (`text`) and those below a comment `<!-- not run: reason -->`."""
    found = re.finditer(r"^(<!-- not run: \S[^\n]*-->\n)?```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [
        Block(document, text.count("\n", 0, m.start(2)) + 1, m[2], m[3]) for m in found if not m[1] and m[2] != "text"
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as a reader of the README has: plates, experiments.yaml, shards."""
    root = tmp_path_factory.mktemp("reader")
    path = simulate_collection(
        root, SimulationConfig(experiments=2, fovs=2, frames=8, size=64, cells=5, cell_radius=7.0)
    )
    document = yaml.safe_load(path.read_text())
    for number, experiment in enumerate(document["experiments"], start=1):
        experiment["name"] = f"a549_zikv_{number}"
    path.write_text(yaml.safe_dump(document))
    assert build_shards.main([str(path), "--out", str(root / "shards"), "--quiet"]) == 0
    return root


@pytest.fixture(autouse=True)
def _reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["python"])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def run_bash(text: str) -> None:
    """Run `dynaclr-wds …` lines in this process, trainings made small."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "dynaclr-wds", f"can't run {line!r} here; say why above the block: <!-- not run: … -->"
        small = {"fit": SMALL_FIT, "predict": ["--accelerator", "cpu"]}.get(words[1], [])
        assert program.main([*words[1:], *small]) == 0


def test_only_listings_and_blocks_with_a_reason_are_left_out() -> None:
    text = "```text\na listing\n```\n<!-- not run: it downloads -->\n```bash\nmake\n```\n\n```python\nx = 1\n```\n"
    text += "<!-- not run: -->\n```yaml\na: 1\n```\n"
    assert [(b.line, b.language, b.text) for b in parse_blocks(ROOT / "a.md", text)] == [
        (9, "python", "x = 1\n"),
        (13, "yaml", "a: 1\n"),
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run(document: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__doc__"}
    for block in parse_blocks(document, document.read_text()):
        where = f"{document.name}:{block.line}"
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(document), "exec"), names)
        elif block.language == "bash":
            run_bash(block.text)
        elif block.language == "yaml" and "experiments:" in block.text:
            path = tmp_path / "experiments.yaml"
            path.write_text(block.text)
            assert parse_build_config(path).experiments
        elif block.language == "yaml":
            assert yaml.safe_load(block.text) is not None
        else:
            pytest.fail(f"{where}: {block.language or 'no language'} can't run; say why above: <!-- not run: … -->")
    names.clear()
    gc.collect()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    commands = (*program.COMMANDS, *program.LIGHTNING)
    assert [command for command in commands if f"dynaclr-wds {command}" not in text] == []
