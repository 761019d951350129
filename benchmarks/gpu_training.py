"""A training by Lightning's Trainer on one device, with all that `dynaclr-wds fit` adds. For `benchmarks/gpu.py`."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.gpu_step import Setting
from benchmarks.kornia_chain import our_chain
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.train.encoder import MonaiEncoder
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.train.finite_loss import FiniteLoss
from dynaclr_wds.transforms import NormalizeSampled

WARM = 5
"""Steps of an epoch that do not count: the loader starts."""


class StepClock(Callback):
    """Times a run of steps, then profiles as many more.

    Parameters
    ----------
    warm
        Steps that do not count.
    steps
        That are timed, and then profiled.
    on_gpu
        Whether there is something to wait for and to profile.
    """

    def __init__(self, warm: int, steps: int, on_gpu: bool) -> None:
        self.warm, self.steps, self.on_gpu = warm, steps, on_gpu
        self.seconds = 0.0
        """A step."""
        self.profile: torch.profiler.profile | None = None
        self._begun = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Start the clock, stop it and profile, or stop profiling."""
        del pl_module
        done = trainer.global_step - self.warm
        if done not in (0, self.steps, 2 * self.steps):
            return
        if self.on_gpu:
            torch.cuda.synchronize()
        if done == 0:
            self._begun = time.perf_counter()
        elif done == self.steps:
            self.seconds = (time.perf_counter() - self._begun) / self.steps
            if self.on_gpu:
                self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profile.start()
        elif self.profile is not None:
            self.profile.stop()


def run_training(setting: Setting) -> StepClock:
    """Train for an epoch, in which mapped pages are touched for the first time, and time steps within the next one."""
    channels, planes = setting.shards.manifest.experiments[0].shape[:2]
    data = MultiExperimentDataModule(
        shards=str(setting.shards.root),
        batch_size=setting.batch_size,
        num_workers=setting.threads,
        tau_range=setting.shards.manifest.tau_range_hours,
        normalizations=[NormalizeSampled("fov")],
        augmentations=our_chain(),
        final_yx_patch_size=(setting.final, setting.final),
        channel_dropout_channels=[channels - 1],
    )
    data.setup("fit")
    batches = len(data.train_dataloader())
    warm, steps = (batches + WARM, min(setting.steps, (batches - WARM) // 2)) if setting.on_gpu else (2, setting.steps)
    clock = StepClock(warm, steps, setting.on_gpu)
    trainer = Trainer(
        accelerator="gpu" if setting.on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=clock.warm + 2 * clock.steps,
        callbacks=[clock, FiniteLoss()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = ContrastiveModule(MonaiEncoder(setting.backbone, 2, channels, planes), temperature=0.2, log_pairs=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
    return clock
