"""Laws of the demo: its votes are fair, and its commands lead from nothing to numbers and a picture."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dynaclr_wds.__main__ as command
from benchmarks import demo
from benchmarks.vote import (
    LabelledCells,
    principal_components,
    read_channel_embeddings,
    read_pixels,
    score_vote,
    unit_length,
)
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


def cells(folds: int, per_fov: int) -> LabelledCells:
    n = folds * 2 * per_fov
    return LabelledCells(
        condition=np.repeat(["infected", "uninfected"], n // 2),
        fold=np.tile(np.repeat(np.arange(folds), per_fov), 2),
        hpi=np.zeros(n),
    )


def test_vote_is_right_where_features_tell_conditions_apart():
    judged = cells(3, 30)
    features = (judged.condition == "infected")[:, None].astype(np.float32) * np.ones((1, 4), np.float32)
    assert score_vote(judged, features, np.ones(180, bool)) == 1.0


def test_vote_gains_nothing_from_knowing_the_field_of_view():
    """Features that name the FOV, and so within a FOV the condition, say nothing of the other FOVs."""
    judged, rng = cells(4, 50), np.random.default_rng(0)
    fov = judged.fold + 4 * (judged.condition == "infected")
    features = rng.standard_normal((8, 16))[rng.permutation(8)][fov] + 0.01 * rng.standard_normal((400, 16))
    scores = [
        score_vote(judged, (features @ rng.standard_normal((16, 16))).astype(np.float32), np.ones(400, bool))
        for _ in range(8)
    ]
    assert np.mean(scores) < 0.7


def test_vote_needs_two_fields_of_view():
    with pytest.raises(ValueError, match="at least two FOVs per condition"):
        score_vote(cells(1, 5), np.zeros((10, 2), np.float32), np.ones(10, bool))


def test_features_get_unit_length():
    np.testing.assert_allclose(unit_length(np.array([[3, 4], [0, 0]], np.float32)), [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_principal_components_keep_what_varies_most():
    rng = np.random.default_rng(1)
    pixels = (rng.standard_normal((50, 1)) @ np.ones((1, 6)) + 0.01 * rng.standard_normal((50, 6))).astype(np.float32)
    assert abs(np.corrcoef(principal_components(pixels, 1)[:, 0], pixels.sum(1))[0, 1]) > 0.999


def test_channels_of_a_cell_are_read_into_one_row_each(tmp_path: Path) -> None:
    rows = [(7, "GFP", 3.0), (5, "GFP", 1.0), (5, "Phase", 0.0), (7, "Phase", 2.0)]  # cell, channel, feature
    names = ("observation", "channel", "features")
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate(names[:2])})
    table = table.append_column("features", pa.array([[row[2]] for row in rows], pa.list_(pa.float32(), 1)))
    for name, value in {"experiment": "a", "condition": "mock", "fov_name": "A/1/0", "hpi": 2.5}.items():
        table = table.append_column(name, [[value] * 4])
    pq.write_table(table, tmp_path / "table.parquet")
    judged, features = read_channel_embeddings(tmp_path / "table.parquet", "a")
    assert judged.hpi.tolist() == [2.5, 2.5]
    assert {name: own.tolist() for name, own in features.items()} == {"GFP": [[1.0], [3.0]], "Phase": [[0.0], [2.0]]}
    pq.write_table(table.slice(1), tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=r"table.parquet: '\w+' and '\w+' are channels of different cells\. Embed all"):
        read_channel_embeddings(tmp_path / "table.parquet", "a")


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
    of_held_out, pixels = read_pixels(shards, "sim_03", (40, 40))
    assert pixels.shape == (len(of_held_out.hpi), 2 * 40 * 40)
    rows = embedded.filter(np.array(embedded["experiment"]) == "sim_03")
    np.testing.assert_allclose(of_held_out.hpi, np.array(rows["hpi"]))
    assert of_held_out.condition.tolist() == rows["condition"].to_pylist()

    bag = pq.read_table(tmp_path / "demo/bag/embeddings.parquet")
    assert len(bag) == 2 * len(embedded)
    of_bag, features = read_channel_embeddings(tmp_path / "demo/bag/embeddings.parquet", "sim_03")
    assert {name: own.shape for name, own in features.items()} == dict.fromkeys(
        ("Retardance", "mNeonGreen"), (len(rows), 128)
    )
    np.testing.assert_allclose(of_bag.hpi, of_held_out.hpi)
    last = bag.filter(np.array(bag["name"]) == f"{rows['name'][-1]}/mNeonGreen")
    np.testing.assert_array_equal(features["mNeonGreen"][-1], last["features"][0].as_py())


def test_failed_step_ends_the_demo_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"`dynaclr-wds simulate` ended with status 2"):
        demo.run("simulate", "somewhere", "--frames", "0")
    out, err = capfd.readouterr()
    assert "$ dynaclr-wds simulate somewhere --frames 0" in out
    assert "frames=0 must be >= 1" in err
