"""Laws of `export`: the file computes what the checkpoint's network does, for any batch, and is whole or absent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dynaclr_wds import __main__ as command
from dynaclr_wds.train import onnx_export
from dynaclr_wds.train.checkpoint_content import read_checkpoint
from dynaclr_wds.train.prediction import make_network
from tests.stand_ins import hide
from tests.test_predict import ckpt as ckpt


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_file_computes_what_the_network_does(
    ckpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command.main(["export", str(ckpt), "a.onnx"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Wrote a.onnx: patches (batch, 2 × 3 × 12 × 12) to features (6) and projections (4).")
    session = onnxruntime.InferenceSession("a.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(5, 2, 3, 12, 12, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = make_network(read_checkpoint(str(ckpt))).eval()(x)
    for one, other in zip(expected, session.run(["features", "projections"], {"patches": x.numpy()}), strict=True):
        np.testing.assert_allclose(other, one.numpy(), rtol=1e-4, atol=1e-5)
    made = session.get_modelmeta().custom_metadata_map
    assert json.loads(made["normalizations"])[0]["class_path"].endswith("NormalizeSampled")
    assert made["checkpoint_sha256"] == read_checkpoint(str(ckpt)).sha256
    assert command.main(["export", str(ckpt), "a.onnx"]) == 2
    assert "a.onnx: is there already. Give another name, or --overwrite" in capsys.readouterr().err
    monkeypatch.setattr(onnx_export, "_TOLERANCE", -1.0)
    assert command.main(["export", str(ckpt), "b.onnx"]) == 2
    assert "as ONNX its encoder computes something else: by " in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["a.onnx"]


def test_what_is_missing_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert command.main(["export", "x.ckpt", "x.pt"]) == 2
    assert capsys.readouterr().err == "error: x.pt: must end in .onnx, which is what is written. Give such a name.\n"
    hide(monkeypatch, "onnxscript")
    assert command.main(["export", "x.ckpt", "x.onnx"]) == 2
    assert capsys.readouterr().err == (
        "error: export needs onnxscript, which is not installed. Install it with: pip install 'dynaclr-wds[onnx]'\n"
    )
