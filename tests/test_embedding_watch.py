"""Laws of EmbeddingWatch: it logs what the validation set says, names collapse, and changes nothing of the training."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from dynaclr_wds import ContrastiveModule, MultiExperimentDataModule
from dynaclr_wds.evaluate.smoothness import compare_pairs
from dynaclr_wds.train import EmbeddingWatch, ProjectedEncoder
from tests.test_predict import Flat

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:The checkpoints will not say"),
]


class Constant(nn.Module):
    """A backbone that has collapsed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(x), 6)


def train(shards: Path, folder: Path, backbone: nn.Module, *callbacks: EmbeddingWatch) -> ContrastiveModule:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = MultiExperimentDataModule(
        str(shards),
        val_experiments=["e3"],
        tau_range=(0.5, 1.5),
        batch_size=16,
        num_workers=0,
        final_yx_patch_size=(12, 12),
    )
    module = ContrastiveModule(ProjectedEncoder(backbone, embedding_dim=6, projection_dim=4), lr=0.01, log_pairs=0)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=2, limit_val_batches=4, callbacks=list(callbacks),
        logger=CSVLogger(folder, version=0), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


def logged(folder: Path) -> dict[str, list[float]]:
    text = (folder / "lightning_logs/version_0/metrics.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    names = [name for name in rows[0] if name.startswith("embedding/")]
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


@pytest.mark.slow
def test_it_logs_every_n_epochs_and_changes_nothing(shards: Path, tmp_path: Path):
    weights = []
    for watch in ([], [EmbeddingWatch(every_n_epochs=2, most_cells=40)]):
        seed_everything(3, verbose=False)
        module = train(shards, tmp_path / str(len(watch)), Flat(6), *watch)
        weights.append(torch.cat([p.flatten() for p in module.parameters()]))
    assert torch.equal(*weights)
    found = logged(tmp_path / "1")
    assert set(found) == {f"embedding/{name}/val" for name in ("rank", "smoothness", "vote")}
    assert [len(values) for values in found.values()] == [1, 1, 1]
    assert 1 < found["embedding/rank/val"][0] <= 6
    assert 0 < found["embedding/smoothness/val"][0] < 1.5
    assert 0 <= found["embedding/vote/val"][0] <= 1
    pictures = [path.name for path in (tmp_path / "1").rglob("embeddings/val/*.png")]
    assert pictures == ["epoch=001.png"]


@pytest.mark.slow
def test_collapse_is_named_in_words(shards: Path, tmp_path: Path):
    watch = EmbeddingWatch(every_n_epochs=2, plot=False)
    with pytest.warns(UserWarning, match=r"of the validation set after epoch 2: collapsed: all cells have the same"):
        train(shards, tmp_path, Constant(), watch)
    found = logged(tmp_path)
    assert found["embedding/rank/val"] == [0]
    assert math.isnan(found["embedding/smoothness/val"][0])


def test_pairs_that_agree_are_smooth_and_pairs_by_chance_are_not():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 400, 5)).astype(np.float32)
    assert compare_pairs(x, x) == pytest.approx(0, abs=1e-6)
    assert compare_pairs(x, y) == pytest.approx(1, abs=0.1)
    assert compare_pairs(np.ones_like(x), np.ones_like(x)) is None


def test_settings_that_judge_nothing_are_refused():
    with pytest.raises(ValueError, match=r"EmbeddingWatch: every_n_epochs=0 must be >= 1."):
        EmbeddingWatch(every_n_epochs=0)
    with pytest.raises(ValueError, match=r"EmbeddingWatch: most_cells=3 must be >= 10."):
        EmbeddingWatch(most_cells=3)
