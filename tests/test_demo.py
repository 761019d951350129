"""Laws of the demo: its commands lead from nothing to numbers and a picture."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest

import dynaclr_wds.__main__ as command
from benchmarks import demo
from dynaclr_wds.shardset import ShardSet

SMALL = {
    "simulate": ["--fovs", "2", "--frames", "22", "--size", "96", "--cells", "5"],
    "build": ["--quiet"],
    "fit": [
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
        *("--data.batch_size", "16", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    ],
    "predict": [],
}


def test_scores_make_a_table() -> None:
    scores = {"two": {"both": 0.875}, "one": {"both": 0.5, "GFP": 1.0}}
    assert demo.format_scores(scores).splitlines() == [
        "                           both    GFP",
        "  two                      0.88",
        "  one                      0.50   1.00",
    ]


@pytest.mark.slow
def test_demo_ends_with_a_number_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python"])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def run_here(name: str, *options: str) -> None:
        assert command.main([name, *options, *SMALL[name]]) == 0

    monkeypatch.setattr(demo, "run", run_here)
    assert demo.main([]) == 0
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if re.match(r" {20}.*Retardance|  [a-zP].*\d\.\d\d$|  chance", line)]
    assert [line.split()[:2] for line in table] == [
        ["both", "Retardance"],
        *(["both", "channels"], ["bag", "of"], ["PCA", "of"]),
        ["chance", "0.50"],
    ]
    numbers = [re.findall(r"\d\.\d\d", line) for line in table]
    assert [len(row) for row in numbers] == [0, 1, 3, 3, 1]  # both channels; both and each; both and each; once
    assert all(0 <= float(number) <= 1 for row in numbers for number in row)
    height, width = matplotlib.image.imread(tmp_path / "demo/patches.png").shape[:2]
    assert min(height, width) > 400

    shards = ShardSet.open(tmp_path / "demo/shards")
    embedded = pq.read_table(tmp_path / "demo/embeddings.parquet")
    assert len(embedded) == sum(part.observations for part in shards.manifest.partitions)
    rows = embedded.filter(np.array(embedded["experiment"]) == "sim_03")
    whole = demo._read(tmp_path / "demo/embeddings.parquet", "sim_03")
    assert whole.cells.name.tolist() == rows["name"].to_pylist()

    bag = pq.read_table(tmp_path / "demo/bag/embeddings.parquet")
    assert len(bag) == 2 * len(embedded)
    of_bag = demo._read(tmp_path / "demo/bag/embeddings.parquet", "sim_03")
    assert [e.features.shape for e in of_bag.embeddings] == [(len(rows), width) for width in (256, 128, 128)]
    hpi = dict(zip(rows["name"].to_pylist(), rows["hpi"].to_pylist(), strict=True))
    assert of_bag.cells.hpi.tolist() == [hpi[name] for name in of_bag.cells.name]
    last = bag.filter(np.array(bag["name"]) == f"{of_bag.cells.name[-1]}/mNeonGreen")
    np.testing.assert_array_equal(of_bag.embeddings[2].features[-1], last["features"][0].as_py())


def test_failed_step_ends_the_demo_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"`dynaclr-wds simulate` ended with status 2"):
        demo.run("simulate", "somewhere", "--frames", "0")
    out, err = capfd.readouterr()
    assert "$ dynaclr-wds simulate somewhere --frames 0" in out
    assert "frames=0 must be >= 1" in err
