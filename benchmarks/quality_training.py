"""A way of drawing batches to an embedding: the trainings of the quality benchmark.

All ways train the same network, from the same first weights, on as many batches of one size, with the same
augmentations. They differ in who shares a batch, and in nothing else.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from kornia.augmentation import RandomAffine, RandomHorizontalFlip
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.quality_sets import Task
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.evaluate.cells import Cells, Embedding
from dynaclr_wds.evaluate.reading import read_table
from dynaclr_wds.plain.pipeline import triplet_pipeline
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.compose.positives import draw_positives
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.read.loader import ThreadDataLoader
from dynaclr_wds.train import EmbeddingWriter
from dynaclr_wds.train.encoder import ProjectedEncoder
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.transforms import NormalizeSampled, RandomAdjustIntensity, RandomNoise

FEATURES = 128
EXACT, UNTRAINED = "exact", "untrained network"
WINDOW = "10%"
_TAG = 0x9A11
_ALL_CELLS = 1 << 40


class Fed(MultiExperimentDataModule):
    """The DataModule, with batches of the sampler or of a feed."""

    feed: Callable[[Fed], Any] | None = None

    def train_dataloader(self) -> Any:
        """Return the batches of the feed where there is one."""
        return super().train_dataloader() if self.feed is None else self.feed(self)


def feed_uniformly(data: Fed) -> ThreadDataLoader:
    """Deal the shuffled anchors of each experiment into batches: no balance, no focus, no law of lineages."""
    assert data.train_sampler is not None
    plans = list(draw_uniformly(data.train_sampler.index, data.batch_size, data.seed))
    return ThreadDataLoader(data.train_dataset, batch_sampler=plans, num_workers=data.num_workers)


def draw_uniformly(index: PlanIndex, batch_size: int, seed: int) -> Iterator[BatchPlan]:
    """Plan the whole batches of an epoch, each of one group, in random order."""
    rng = np.random.default_rng([_TAG, seed])
    group = index.group_of[index.stratum(cast(SampleIndex, np.arange(len(index.row))))]
    batches: list[Any] = []
    for number in np.unique(group):
        own = rng.permutation(np.flatnonzero(group == number))
        batches += list(own[: len(own) // batch_size * batch_size].reshape(-1, batch_size))
    for number, place in enumerate(rng.permutation(len(batches)).tolist()):
        positive = draw_positives(rng, index, batches[place], 0.0, None)
        anchor = cast(PatchRow, index.row[batches[place]].astype(np.int64))
        yield BatchPlan(number=number, anchor=anchor, positive=positive.row)


def feed_shards(data: Fed) -> Any:
    """Read shards one after another through a shuffle buffer, which holds a tenth of the anchors."""
    assert data.shard_set is not None
    assert data.train_sampler is not None
    manifest, held_out = data.shard_set.manifest, data.holding_out
    label = "experiment" if held_out.split == "experiments" else held_out.split
    trained = [part.labels[label] not in held_out.names for part in manifest.partitions]
    return triplet_pipeline(
        [str(data.shard_set.root / shard.path) for shard in manifest.shards if trained[shard.partition]],
        batch_size=data.batch_size,
        tau_range_hours=data.tau_range,
        tau_decay_rate=0.0,
        shuffle=len(data.train_sampler.index.row) // 10,
        seed=data.seed,
        partial=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way of drawing batches."""

    options: Mapping[str, Any]
    """For the DataModule."""
    feed: Callable[[Fed], Any] | None = None


ARMS: Mapping[str, Arm | None] = {
    EXACT: Arm(options={}),
    "streaming, window of 10 %": Arm(options={"window_bytes": WINDOW, "num_streams": 1, "relax_lineages": True}),
    "naive shards": Arm(options={}, feed=feed_shards),
    "exact, no rules": Arm(options={}, feed=feed_uniformly),
    UNTRAINED: None,
}
"""Name → how batches are drawn; None = the network isn't trained."""


def make_data(task: Task, arm: Arm | None, seed: int) -> Fed:
    """Make the DataModule of a training, or of what follows it."""
    data = Fed(
        shards=str(task.shards),
        **task.split,
        tau_range=task.tau_hours,
        tau_decay_rate=0.0,
        batch_size=task.batch_size,
        num_workers=0,
        temporal_enrichment=True,
        yx_patch_size=(task.read, task.read),
        final_yx_patch_size=(task.side, task.side),
        channel_dropout_prob=0.1,
        normalizations=[NormalizeSampled(level="fov", subtrahend="mean", divisor="std")],
        augmentations=[
            RandomAffine(degrees=180.0, translate=(0.05, 0.05), scale=(0.75, 1.3), shear=12.0, p=1.0),
            RandomHorizontalFlip(p=0.5),
            RandomAdjustIntensity(scale=(0.5, 2.0), shift=(-0.2, 0.2), p=0.9),
            RandomNoise(std=(0.0, 0.15), p=0.5),
        ],
        seed=seed,
        predict_experiments=list(task.held_out) if task.label == "experiment" else None,
        **({} if arm is None else arm.options),
    )
    data.feed = None if arm is None else arm.feed
    return data


def make_network(channels: int) -> ContrastiveModule:
    """Make the network of `configs/demo.yaml`, with a pooling after the first layer, which halves the work."""
    backbone = {
        "class_path": "monai.networks.nets.ResNet",
        "init_args": {
            "block": "basic",
            "layers": [1, 1, 1, 1],
            "block_inplanes": [16, 32, 64, 128],
            "spatial_dims": 2,
            "n_input_channels": channels,
            "conv1_t_size": 5,
            "conv1_t_stride": 2,
            "num_classes": FEATURES,
            "act": "relu",
        },
    }
    encoder = ProjectedEncoder(backbone, embedding_dim=FEATURES, projection_dim=64)
    encoder.to(memory_format=torch.channels_last)  # faster on a CPU, too
    return ContrastiveModule(encoder, temperature=0.3, lr=2e-3, schedule="cosine", warmup_steps=10, log_pairs=0)


class Company(Callback):
    """Counts samples of which a batch holds the lineage more than once."""

    def __init__(self) -> None:
        self.samples = 0
        self.again = 0

    @property
    def share(self) -> float | None:
        """Share of the samples whose lineage another sample of the batch has, one of each lineage not counted."""
        return self.again / self.samples if self.samples else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count those of a batch."""
        del trainer, pl_module, batch_idx
        lineages = [cell["lineage_id"] for cell in batch["anchor_meta"]]
        self.samples += len(lineages)
        self.again += len(lineages) - len(set(lineages))


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What came of a training."""

    cells: Cells
    """All of the experiments that are held out; where something else is, all of the set."""
    embedding: Embedding
    repeats: float | None
    """Share of the samples that repeat a lineage of their batch; None = nothing was trained."""


def embed(task: Task, name: str, seed: int) -> Embedded:
    """Train by an arm, and embed the cells of experiments that are held out, or all."""
    arm = ARMS[name]
    seed_everything(seed, verbose=False)
    data = make_data(task, arm, seed)
    data.setup("predict")
    assert data.shard_set is not None
    module, company = make_network(data.shard_set.manifest.experiments[0].shape[0]), Company()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        if arm is not None:
            _make_trainer(max_steps=task.steps, callbacks=[company]).fit(module, datamodule=data)
        path = Path(folder) / "embeddings.parquet"
        _make_trainer(callbacks=[EmbeddingWriter(str(path))]).predict(module, datamodule=data, return_predictions=False)
        table = read_table(path, name, "features", _ALL_CELLS)
    return Embedded(cells=table.cells, embedding=table.embeddings[0], repeats=company.share)


def _make_trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
