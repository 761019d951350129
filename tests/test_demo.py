"""Laws of the demo: its commands lead from nothing to numbers and a picture."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest

import dynaclr_wds.__main__ as command
from benchmarks import demo
from benchmarks.demo_page import PAGES, Outcome, make_page
from dynaclr_wds.shardset import ShardSet
from tests.servers.chromium import Chromium
from tests.shared_build import make_once

SMALL = {
    "simulate": ["--fovs", "2", "--frames", "22", "--size", "96", "--cells", "5"],
    "inspect": [],
    "build": ["--quiet"],
    "fit": [
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
        *("--data.batch_size", "16", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    ],
    "preview": ["--batches", "2", "--samples", "2", "--data.batch_size", "16"],
    "predict": [],
    "evaluate": ["--cells", "500"],
}


def test_scores_make_a_table() -> None:
    scores = {"two": {"both": 0.875}, "one": {"both": 0.5, "GFP": 1.0}}
    assert demo.format_scores(scores).splitlines() == [
        "                           both    GFP",
        "  two                      0.88",
        "  one                      0.50   1.00",
    ]


def test_commands_are_spelled_as_they_are_typed(capfd: pytest.CaptureFixture[str]) -> None:
    demo.run("build", "--help")
    said = capfd.readouterr().out
    assert "$ dynaclr-wds build --help" in said
    assert "usage: dynaclr-wds build" in said


@pytest.fixture
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small demo was made, with what it printed in `said.txt`. Read only."""
    return make_once(tmp_path_factory, "demo", make_small_demo)


def make_small_demo(root: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def run_here(name: str, *options: str) -> float:
        assert command.main([name, *options, *SMALL[name]]) == 0
        return 1.0

    with pytest.MonkeyPatch.context() as patch, (root / "said.txt").open("w") as said, redirect_stdout(said):
        patch.chdir(root)
        patch.setattr(sys, "argv", ["python"])
        patch.setattr(demo, "run", run_here)
        assert demo.main([]) == 0


@pytest.mark.slow
def test_demo_ends_with_numbers_a_picture_and_a_page(small_demo: Path) -> None:
    said = (small_demo / "said.txt").read_text()
    assert said.splitlines()[-1] == (
        f"All of it on one page, with pictures: open {small_demo}/demo/report.html in a browser."
    )
    table = [line for line in said.splitlines() if re.match(r" {20}.*Retardance|  [a-zP].*\d\.\d\d$|  chance", line)]
    assert [line.split()[:2] for line in table] == [
        ["both", "Retardance"],
        *(["both", "channels"], ["bag", "of"], ["PCA", "of"]),
        ["chance", "0.50"],
    ]
    numbers = [re.findall(r"\d\.\d\d", line) for line in table]
    assert [len(row) for row in numbers] == [0, 1, 3, 3, 1]  # both channels; both and each; both and each; once
    assert all(0 <= float(number) <= 1 for row in numbers for number in row)
    height, width = matplotlib.image.imread(small_demo / "demo/patches.png").shape[:2]
    assert min(height, width) > 400

    shards = ShardSet.open(small_demo / "demo/shards")
    embedded = pq.read_table(small_demo / "demo/embeddings.parquet")
    assert len(embedded) == sum(part.observations for part in shards.manifest.partitions)
    rows = embedded.filter(np.array(embedded["experiment"]) == "sim_03")
    whole = demo._read(small_demo / "demo/embeddings.parquet", "sim_03")
    assert whole.cells.name.tolist() == rows["name"].to_pylist()

    bag = pq.read_table(small_demo / "demo/bag/embeddings.parquet")
    assert len(bag) == 2 * len(embedded)
    of_bag = demo._read(small_demo / "demo/bag/embeddings.parquet", "sim_03")
    assert [e.features.shape for e in of_bag.embeddings] == [(len(rows), width) for width in (256, 128, 128)]
    hpi = dict(zip(rows["name"].to_pylist(), rows["hpi"].to_pylist(), strict=True))
    assert of_bag.cells.hpi.tolist() == [hpi[name] for name in of_bag.cells.name]
    last = bag.filter(np.array(bag["name"]) == f"{of_bag.cells.name[-1]}/mNeonGreen")
    np.testing.assert_array_equal(of_bag.embeddings[2].features[-1], last["features"][0].as_py())


@pytest.mark.slow
def test_every_page_of_the_demo_opens_in_a_browser(small_demo: Path, chromium: Chromium) -> None:
    report = chromium.open(small_demo / "demo" / "report.html")
    assert report.images == 1
    assert list(report.links) == [file for file, *_ in PAGES]
    pages = {"report.html": report, **{file: chromium.open(small_demo / "demo" / file) for file in report.links}}
    assert {file: page.faults for file, page in pages.items()} == dict.fromkeys(pages, ())
    assert all(page.images > 10 for file, page in pages.items() if file != "report.html")
    for step in (
        "simulate demo/plates",
        "build demo/plates",
        "preview -c",
        "fit -c",
        "predict --ckpt",
        "evaluate both",
    ):
        assert f"dynaclr-wds {step}" in report.text
    assert "tell infected from uninfected cells best by" in report.text


def test_page_praises_a_network_only_where_it_beats_chance_and_pixels(tmp_path: Path) -> None:
    matplotlib.image.imsave(tmp_path / "p.png", np.zeros((4, 4)))
    made = {"steps": [], "seconds": 60.0, "cells": 9, "experiments": 2, "shards": 1, "shard_bytes": 10, "judged": 5}
    made |= {"held_out": "b", "conditions": ["x", "y"], "late_hpi": 8.0, "picture": tmp_path / "p.png"}
    chance = {"chance": {"both": 0.5}}
    for net, pixels, level in ((0.9, 0.6, "good"), (0.52, 0.4, "fair"), (0.7, 0.8, "fair")):
        scores = {"net": {"both": net}, "PCA of raw pixels": {"both": pixels}} | chance
        shown = make_page(Outcome(**made, scores=scores), tmp_path).render()
        assert f'<p class="note {level}"><b>{level}</b> In b, which no network has seen, ' in shown


def test_failed_step_ends_the_demo_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"`dynaclr-wds simulate` ended with status 2"):
        demo.run("simulate", "somewhere", "--frames", "0")
    out, err = capfd.readouterr()
    assert "$ dynaclr-wds simulate somewhere --frames 0" in out
    assert "frames=0 must be >= 1" in err
