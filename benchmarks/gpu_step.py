"""One training step on a device, in parts: copy, normalise, augment, crop and drop, learn. For `benchmarks/gpu.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.kornia_chain import our_chain
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.read.loader import ThreadDataLoader
from dynaclr_wds.read.side_stream import SideStreams
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train.encoder import MonaiEncoder
from dynaclr_wds.train.loss import NTXentHCL, plan_pairs
from dynaclr_wds.transforms import BatchTransform, ChannelDropout, NormalizeSampled

Batch = dict[str, Any]
KEYS = ("anchor", "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured."""

    shards: ShardSet
    device: torch.device
    batch_size: int
    threads: int
    final: int
    backbone: str
    steps: int

    @property
    def on_gpu(self) -> bool:
        """Whether there are streams and page-locked memory."""
        return self.device.type == "cuda"


class Step:
    """One training step, in parts."""

    def __init__(self, setting: Setting) -> None:
        channels, planes = setting.shards.manifest.experiments[0].shape[:2]
        size = None, setting.final, setting.final
        self.setting = setting
        self.normalise = BatchTransform([NormalizeSampled("fov")])
        self.augment = BatchTransform((), our_chain())
        self.finish = BatchTransform((), (), size, ChannelDropout([channels - 1], 0.5))
        self.whole = BatchTransform([NormalizeSampled("fov")], our_chain(), size, ChannelDropout([channels - 1], 0.5))
        for transform in (self.normalise, self.augment, self.finish, self.whole):
            transform.to(setting.device)
        self.encoder = MonaiEncoder(setting.backbone, 2, channels, planes).to(setting.device)
        self.loss = NTXentHCL(0.2, 0.5)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters())

    def copy(self, batch: Batch) -> Batch:
        """Send patches and statistics to the device; from page-locked memory nobody waits for that."""
        moved: Batch = {}
        for key in KEYS:
            moved[key] = batch[key].to(self.setting.device, non_blocking=True)
            norm_meta = batch[f"{key}_norm_meta"]
            moved[f"{key}_norm_meta"] = {
                level: values.to(self.setting.device, non_blocking=True) for level, values in norm_meta.items()
            }
        return moved

    def learn(self, batch: Batch) -> None:
        """Run encoder and loss forwards and backwards, and step the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.setting.device.type, torch.bfloat16):
            projections = self.encoder(torch.cat([batch[key] for key in KEYS]))[1]
        pairs = plan_pairs(len(batch["anchor"]), self.setting.device)
        self.loss(projections, indices_tuple=pairs).backward()
        self.optimizer.step()

    def run(self, batch: Batch) -> None:
        """Do all that comes after the copy."""
        self.learn(self.whole(batch, training=True))


def make_loader(setting: Setting) -> ThreadDataLoader:
    """Return our loader in exact mode; with a GPU its batches are in page-locked memory."""
    data = MultiExperimentDataModule(
        shards=str(setting.shards.root),
        batch_size=setting.batch_size,
        num_workers=setting.threads,
        tau_range=setting.shards.manifest.tau_range_hours,
    )
    data.setup("fit")
    return data.train_dataloader()


def endless(loader: ThreadDataLoader) -> Iterator[Batch]:
    """Yield epoch after epoch."""
    epoch = 0
    while True:
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        epoch += 1
        yield from loader


def copy_beside(batches: Iterable[Batch], step: Step) -> Iterator[Batch]:
    """Yield batches on the device, copied as the DataModule copies them: on a stream of their own, where there is one.

    A step is only asked of a GPU, not waited for, so that the copy of the next batch runs beside it.
    """
    streams = SideStreams()
    for batch in batches:
        yield streams.run(partial(step.copy, batch), step.setting.device)
