"""Pictures of pairs: every patch in its place, labelled, in every logger or as a file beside its log."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger
from matplotlib.image import imread

from dynaclr_wds.train.pair_image import Pairs, describe_pair, draw_pairs, take_pairs
from dynaclr_wds.train.pair_logging import show_picture

PICTURE = np.full((4, 6, 3), 7, np.uint8)


def ramp(rows: int, channels: int) -> torch.Tensor:
    """Dark at the top left, bright at the bottom right."""
    line = torch.arange(40.0)
    return (line[:, None] + line).expand(rows, channels, 1, 40, 40).clone()


def test_patches_stand_in_rows_of_anchor_and_positive_per_channel():
    anchor = ramp(2, 2)
    picture = draw_pairs(Pairs(anchor=anchor, positive=anchor.flip(-1).flip(-2), labels=["first", "second"]))
    # 40 pixels are drawn as 160; beside 170 for labels, each channel takes 2 · 160 + 4 + 14; below 44, a row 160 + 4
    assert picture.shape == (44 + 2 * 164, 170 + 2 * 338, 3)
    for x in (170, 170 + 338):
        for y in (44, 44 + 164):
            one, other = picture[y : y + 160, x : x + 160, 0], picture[y : y + 160, x + 164 : x + 324, 0]
            assert one[2, 2] < 10 < 245 < one[-3, -3]
            assert other[-3, -3] < 10 < 245 < other[2, 2]
            assert (picture[y : y + 160, x + 161 : x + 163] == 255).all()
    for y in (44, 44 + 164):
        assert (picture[y : y + 160, :165] < 128).any(), "a label beside each row"
    for x in (170, 508):
        assert (picture[:24, x : x + 324] < 128).any(), "a channel's name above its columns"
        assert (picture[24:44, x : x + 160] < 128).any(), "anchor"
        assert (picture[24:44, x + 164 : x + 324] < 128).any(), "positive"


def test_small_patches_are_enlarged_and_large_ones_reduced():
    for pixels, drawn in ((8, 160), (192, 192), (512, 256)):
        x = torch.rand(1, 1, 1, pixels, pixels)
        assert draw_pairs(Pairs(anchor=x, positive=x)).shape == (44 + drawn + 4, 2 * drawn + 18, 3)


def test_an_enlarged_pixel_is_a_square_of_one_grey():
    x = torch.rand(1, 1, 1, 100, 100)
    picture = draw_pairs(Pairs(anchor=x, positive=x))[44:244, :200, 0]
    squares = picture.reshape(100, 2, 100, 2).swapaxes(1, 2).reshape(10_000, 4)
    assert (squares == squares[:, :1]).all()


def test_a_dropped_channel_says_that_it_is_empty():
    x = torch.zeros(1, 1, 1, 40, 40)
    picture = draw_pairs(Pairs(anchor=x, positive=ramp(1, 1)))
    coloured = np.ptp(picture.astype(int), axis=2) > 60
    assert coloured[44:204, :160].any()
    assert not coloured[44:204, 164:324].any()


def test_a_label_says_who_the_pair_is():
    anchor = {"experiment": "a", "condition": "mock", "fov_name": "A/1/0", "track_id": 3, "t": 5, "hpi": 5.5, "x": 1.0}
    positive = anchor | {"track_id": 8, "t": 8, "hpi": 7.0}
    assert describe_pair(anchor, positive, ["condition"]) == "a\nmock\nA/1/0, track 3 → 8\nframe 5, 5.5 h\nτ = +1.5 h"
    assert describe_pair(anchor, anchor | {"hpi": 5.0}, []) == "a\nA/1/0, track 3\nframe 5, 5.5 h\nτ = -0.5 h"
    assert describe_pair({"experiment": "x" * 40}, {}, []) == "x" * 25 + "…"


def test_pairs_are_kept_with_labels_and_names_of_channels():
    meta = [{"experiment": e, "condition": "mock", "hpi": 1.0, "t": 0} for e in ("a", "b")]
    data = SimpleNamespace(stratify_by=["condition"], channel_names={"a": ["Phase", "GFP"], "b": ["Phase", "RFP"]}.get)
    x = torch.rand(2, 2, 1, 4, 4)
    batch = {"anchor": x, "positive": x, "anchor_meta": meta, "positive_meta": meta}
    pairs = take_pairs(batch, 8, data)
    assert list(pairs.channels) == ["Phase", "GFP/RFP"]
    assert pairs.labels[1] == "b\nmock\nframe 0, 1 h\nτ = +0 h"
    assert len(take_pairs(batch, 1, data).anchor) == 1
    bare = take_pairs({"anchor": x, "positive": x}, 8)
    assert (list(bare.labels), list(bare.channels)) == ([], [])


def trainer(folder, *loggers) -> Mock:
    return Mock(spec=Trainer, loggers=list(loggers), default_root_dir=str(folder), current_epoch=3, global_step=40)


class FakeWandb(WandbLogger):
    experiment = None

    def __init__(self) -> None:
        self.log_image = Mock()


class FakeMLFlow(MLFlowLogger):
    experiment = Mock()
    run_id = "run"

    def __init__(self) -> None:
        pass


def test_every_logger_gets_the_picture(tmp_path):
    wandb, mlflow, csv = FakeWandb(), FakeMLFlow(), CSVLogger(tmp_path, name="n", version="v")
    show_picture(trainer(tmp_path, wandb, mlflow, csv), "pairs/train", PICTURE)
    wandb.log_image.assert_called_once_with(key="pairs/train", images=[PICTURE], step=40)
    mlflow.experiment.log_image.assert_called_once_with("run", PICTURE, artifact_file="pairs/train/epoch=003.png")
    (path,) = tmp_path.rglob("*.png")
    assert path == tmp_path / "n" / "v" / "pairs" / "train" / "epoch=003.png"
    assert (imread(path)[:, :, :3] * 255 == 7).all()


@pytest.mark.parametrize("tag", ["pairs/train", "pairs/val"])
def test_without_a_logger_a_file_is_written(tmp_path, tag):
    show_picture(trainer(tmp_path), tag, PICTURE)
    assert imread(tmp_path / tag / "epoch=003.png").shape[:2] == (4, 6)
