"""A slow training to one sentence of advice: too many threads for this machine, or a loader that is waited for."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dynaclr_wds.train.pace import Pace

_CROWDED = 1.5
"""So many times the usual load is too much."""
_WAITING = 0.5
"""Of the time; a loader that is waited for longer decides how fast a training is."""


class SlowHint(Callback):
    """Says once, after a while of training, what makes it slow, if that can be told and helped.

    Parameters
    ----------
    after_seconds
        Seconds of training before it looks; validation doesn't count.
    """

    def __init__(self, after_seconds: float = 60.0) -> None:
        self.after_seconds = after_seconds
        self._pace: Pace | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"SlowHint(after_seconds={self.after_seconds})"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        del pl_module
        self._pace = self._pace or Pace(trainer.train_dataloader)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Look, when it is time to."""
        del batch
        if self._over or self._pace is None or self._pace.seconds < self.after_seconds:
            return
        self._over = True
        workers = int(getattr(trainer.train_dataloader, "num_workers", 0))
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        own_threads = torch.get_num_threads() if pl_module.device.type == "cpu" else 1
        advice = advise_on_threads(busy, count_processors(), own_threads, workers) or advise_on_loader(
            self._pace.waiting, count_processors(), workers
        )
        if advice and trainer.is_global_zero:
            print(advice, flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        del trainer, pl_module
        if self._pace is not None:
            self._pace.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it run again."""
        del trainer, pl_module
        if self._pace is not None:
            self._pace.resume()


def count_processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def advise_on_threads(load: float, processors: int, torch_threads: int, workers: int) -> str | None:
    """Advise where other programs want the same processors; threads of torch then wait for each other.

    Parameters
    ----------
    load
        Threads that want to run, of the whole machine, over the last minute.
    processors
        Those that this process may use.
    torch_threads, workers
        Threads of this process.
    """
    if torch_threads < 2 or load < _CROWDED * max(processors, torch_threads + workers):
        return None
    return (
        f"This machine is crowded: about {load:.0f} threads want to run on {processors} processors, and the "
        f"{torch_threads} threads of torch wait for each other. End other programs, or start again with "
        "OMP_NUM_THREADS=1 before the command: one thread often trains faster then."
    )


def advise_on_loader(waiting: float | None, processors: int, workers: int) -> str | None:
    """Advise where the network waits for the loader; `waiting` is the share of the time, None = not known."""
    if waiting is None or waiting < _WAITING:
        return None
    head = f"The network waits for the loader {waiting:.0%} of the time"
    if workers < processors:
        return (
            f"{head}. data.num_workers is {workers}, and this process may use {processors} processors: set it higher."
        )
    return (
        f"{head}, though data.num_workers={workers} uses all {processors} processors. Fewer bytes for each sample "
        "help: a smaller data.yx_patch_size, data.channels_per_sample: 1, or shards built with --dtype source; so do "
        "shards on a faster disk."
    )
