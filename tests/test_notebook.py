"""The notebook of docs/ does what it says: its cells run from top to bottom, and it holds no output."""

from __future__ import annotations

import ast
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "first_steps.ipynb"


def read_cells(kind: str) -> list[dict[str, Any]]:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    return [cell for cell in document["cells"] if cell["cell_type"] == kind]


def test_the_notebook_holds_no_output_and_its_links_lead_somewhere() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in read_cells("code"))
    names = [cell["id"] for kind in ("code", "markdown") for cell in read_cells(kind)]
    assert len(set(names)) == len(names)
    words = "".join("".join(cell["source"]) for cell in read_cells("markdown"))
    links = [part.partition(")")[0].partition("#")[0] for part in words.split("](")[1:]]
    assert len(links) > 3
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.mark.slow
def test_the_cells_run_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a notebook runs them; progress bars and device notes of Lightning are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python"])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    small = {'accelerator="auto"': 'accelerator="cpu", enable_progress_bar=False, num_sanity_val_steps=0'}
    small |= {"frames=16, size=128, cells=8": "frames=12, size=96, cells=6"}
    small |= {"max_epochs=1": "max_epochs=1, limit_train_batches=4, limit_val_batches=1, enable_model_summary=False"}
    small |= {"overwrite=True": 'overwrite=True, accelerator="cpu"'}
    names: dict[str, Any] = {"__name__": "__main__"}
    shown: list[Any] = []
    for cell in read_cells("code"):
        source = "".join(cell["source"])
        for given in [given for given in small if given in source]:
            source = source.replace(given, small.pop(given))
        tree = ast.parse(source, str(NOTEBOOK))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), names))
    assert small == {}  # all were there
    picture, metrics = (one for one in shown if one is not None)
    assert min(picture.size) > 400
    assert metrics["loss/train"] > 0
    out = capsys.readouterr().out
    assert "name: sim_02" in (tmp_path / "first_steps/plates/experiments.yaml").read_text()
    assert "good: All pixels are finite" in out
    assert "Measures" in out
    rows = pq.read_table(tmp_path / "first_steps/embeddings.parquet")
    assert f"{len(rows)} rows: name, " in out
    assert set(rows["experiment"].to_pylist()) == {"sim_00", "sim_01", "sim_02"}
    for page in ("before.html", "preview.html", "evaluation.html"):
        assert (tmp_path / "first_steps" / page).stat().st_size > 100_000
