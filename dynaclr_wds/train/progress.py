"""Steps to lines of text or a bar: says how far a run is, how fast, and whether it waits for the loader."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor


class Pace:
    """Counts samples, and seconds of waiting for a loader, from when it is made; pauses are left out.

    Parameters
    ----------
    loader
        Counts its own `waited_seconds`, as `ThreadDataLoader` does; of others, waiting is not known.
    """

    def __init__(self, loader: Any) -> None:
        self.samples = 0
        self.steps = 0
        self._loader = loader
        self._waited = self._read_waited()
        self._begun = time.perf_counter()
        self._paused_at: float | None = None

    def add(self, batch: Any) -> None:
        """Count a batch."""
        self.steps += 1
        self.samples += len(batch["anchor"]) if isinstance(batch, Mapping) and "anchor" in batch else 0

    def pause(self) -> None:
        """Stop the clock."""
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Let the clock run again."""
        if self._paused_at is not None:
            self._begun += time.perf_counter() - self._paused_at
            self._paused_at = None

    @property
    def seconds(self) -> float:
        """Seconds on the clock."""
        return max((self._paused_at or time.perf_counter()) - self._begun, 1e-9)

    @property
    def waiting(self) -> float | None:
        """Fraction of the time in which the loop waited for the loader; None where it isn't counted."""
        waited = self._read_waited()
        return None if waited is None or self._waited is None else min((waited - self._waited) / self.seconds, 1.0)

    def describe(self, world_size: int) -> list[str]:
        """Say the rate, and what was waited for."""
        found = [f"{self.samples * world_size / self.seconds:,.0f} samples/s"] if self.samples else []
        found += [] if self.waiting is None else [f"{self.waiting:.0%} of the time waiting for the loader"]
        return found

    def _read_waited(self) -> float | None:
        return getattr(self._loader, "waited_seconds", None)


class ProgressLines(ProgressBar):
    """Prints a line every n steps and one per epoch, for output that is not a terminal, such as the log of a job.

    A line says epoch, step, loss, samples per second over all ranks, the share of time that the loop waited for the
    loader (the rest is the network's), and the time left. The first rank prints.

    Parameters
    ----------
    every_n_steps
        Steps from line to line; None = the trainer's `log_every_n_steps`.
    least_seconds
        Least time from line to line; a line that comes sooner is left out.
    """

    def __init__(self, every_n_steps: int | None = None, least_seconds: float = 10.0) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be >= 1, or null for log_every_n_steps.")
        if not 0 <= least_seconds < math.inf:
            raise ValueError(f"least_seconds={least_seconds} must be >= 0.")
        self.every_n_steps = every_n_steps
        self.least_seconds = least_seconds
        self._enabled = True
        self._epoch = self._since_line = self._other = Pace(None)
        self._run_begun, self._run_steps = 0.0, 0

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks, in the middle of an epoch too."""
        del pl_module
        self._run_begun, self._run_steps = time.perf_counter(), 0
        self._epoch, self._since_line = Pace(trainer.train_dataloader), Pace(trainer.train_dataloader)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks of the epoch."""
        del pl_module
        self._epoch, self._since_line = Pace(trainer.train_dataloader), Pace(trainer.train_dataloader)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line, if it is time for one."""
        del pl_module
        self._run_steps += 1
        self._epoch.add(batch)
        self._since_line.add(batch)
        every = self.every_n_steps or getattr(trainer, "log_every_n_steps", 0) or 1
        if (batch_idx + 1) % every or self._since_line.seconds < self.least_seconds or not self._enabled:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        parts = [f"loss {float(loss):.4g}"] if isinstance(loss, Tensor) else []
        parts += [*self._since_line.describe(trainer.world_size), *self._time_left(trainer, batch_idx + 1)]
        step = f"step {batch_idx + 1:,}{_of(self.total_train_batches)}"
        self.print(f"{name_epoch(trainer)}, {step}: {', '.join(parts)}", flush=True)
        self._since_line = Pace(trainer.train_dataloader)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch."""
        del pl_module
        if self._enabled:
            losses = sorted((name, value) for name, value in trainer.callback_metrics.items() if _is_epoch_loss(name))
            parts = [f"{name} {float(value):.4g}" for name, value in losses]
            parts += [f"{self._epoch.seconds:,.0f} s", *self._epoch.describe(trainer.world_size)]
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            parts += self._time_left(trainer, done)
            self.print(f"{name_epoch(trainer)}: {', '.join(parts)}", flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clocks of the training."""
        del pl_module
        self._epoch.pause()
        self._since_line.pause()
        self._other = Pace(trainer.val_dataloaders)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clocks of the training run again."""
        del trainer, pl_module
        self._epoch.resume()
        self._since_line.resume()
        self.reset_dataloader_idx_tracker()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print a line, if it is time for one."""
        del pl_module, outputs
        self.has_dataloader_changed(dataloader_idx)
        self._count_other("validation", batch, batch_idx, self.total_val_batches_current_dataloader, trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        del pl_module
        self._other = Pace(trainer.predict_dataloaders)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print a line, if it is time for one."""
        del pl_module, outputs
        self.has_dataloader_changed(dataloader_idx)
        self._count_other("prediction", batch, batch_idx, self.total_predict_batches_current_dataloader, trainer)

    def _count_other(self, what: str, batch: Any, batch_idx: int, total: float | int, trainer: Trainer) -> None:
        pace = self._other
        pace.add(batch)
        if pace.seconds >= self.least_seconds and self._enabled:
            left = [f"{_format_seconds((total - batch_idx - 1) * pace.seconds / pace.steps)} left"]
            parts = [*pace.describe(trainer.world_size), *(left if total < math.inf else [])]
            self.print(f"{what}, batch {batch_idx + 1:,}{_of(total)}: {', '.join(parts)}", flush=True)
            self._other = Pace(pace._loader)

    def _time_left(self, trainer: Trainer, done: int) -> list[str]:
        """Guess the time to the end of training from the steps so far, validation and checkpoints included."""
        each = self.total_train_batches
        total = each * trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
        if trainer.max_steps != -1:
            total = min(total, trainer.max_steps * trainer.accumulate_grad_batches)
        left = total - each * trainer.current_epoch - done
        if not self._run_steps or not 0 <= left < math.inf:
            return []
        return [f"{_format_seconds(left * (time.perf_counter() - self._run_begun) / self._run_steps)} left"]


class WaitingBar(RichProgressBar):
    """Lightning's bar for terminals, with the share of time that the loop waits for the loader."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._pace = Pace(trainer.train_dataloader)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        self._pace = Pace(trainer.train_dataloader)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the training."""
        super().on_validation_start(trainer, pl_module)
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it run again."""
        super().on_validation_end(trainer, pl_module)
        self._clock.resume()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what the module logs for the bar, and the share of waiting."""
        items = super().get_metrics(trainer, pl_module)
        waiting = self._clock.waiting
        return items if waiting is None else {**items, "waiting for the loader": f"{waiting:.0%}"}

    def _get_train_description(self, current_epoch: int) -> str:
        """Count epochs from 1; as wide as Lightning's own, so that nothing flickers."""
        del current_epoch
        return f"{name_epoch(self.trainer).capitalize():{len(self.validation_description)}}"

    @property
    def _clock(self) -> Pace:
        return self.__dict__.setdefault("_pace", Pace(None))


def choose_progress(enabled: bool, callbacks: list[Any]) -> list[ProgressBar]:
    """Choose how progress is told: a bar in a terminal, lines elsewhere; nothing where the user has chosen.

    Parameters
    ----------
    enabled
        The trainer's `enable_progress_bar`.
    callbacks
        Those that the user gave.
    """
    if not enabled or any(isinstance(callback, ProgressBar) for callback in callbacks):
        return []
    return [WaitingBar() if sys.stdout.isatty() else ProgressLines()]


def name_epoch(trainer: Trainer) -> str:
    """Name the epoch at hand, counted from 1: `epoch 1 of 100`. Names of checkpoint files count from 0."""
    last = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
    return f"epoch {trainer.current_epoch + 1}{last}"


def _is_epoch_loss(name: str) -> bool:
    return name.startswith("loss/") and not name.endswith("_step")


def _of(total: float | int) -> str:
    return f"/{int(total):,}" if total < math.inf else ""


def _format_seconds(seconds: float | int) -> str:
    return str(timedelta(seconds=round(seconds)))
