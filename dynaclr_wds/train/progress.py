"""Steps to lines of text or a bar: says how far a run is, how fast, and whether it waits for the loader."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor

from dynaclr_wds.train.pace import Pace, Remaining, Stride


class ProgressLines(ProgressBar):
    """Prints a line every n steps and one per epoch, for output that is not a terminal, such as the log of a job.

    A line says epoch, step, loss, samples per second over all ranks, the share of time that the loop waited for the
    loader (the rest is the network's), and, once it can be told, the time left. The first rank prints.

    Parameters
    ----------
    every_n_steps
        Steps from line to line, exactly. None = the trainer's `log_every_n_steps`, or a round multiple of it where
        lines would be less than `least_seconds` apart.
    least_seconds
        Least time from line to line, where `every_n_steps` is None and in validation and prediction.
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
        self._remaining = self._other_left = Remaining(least_seconds)
        self._stride = Stride(1, 0.0)
        self._skipped: int | None = None
        """Steps of the epoch that an earlier run made; None before the first of this run."""

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks, in the middle of an epoch too."""
        del pl_module
        self._remaining = Remaining(self.least_seconds)
        self._skipped = None
        logged = getattr(trainer, "log_every_n_steps", 0) or 1
        self._stride = Stride(self.every_n_steps or logged, 0.0 if self.every_n_steps else self.least_seconds)
        self._epoch, self._since_line = Pace(trainer.train_dataloader), Pace(trainer.train_dataloader)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks of the epoch."""
        del pl_module
        self._remaining.add_between()
        self._epoch, self._since_line = Pace(trainer.train_dataloader), Pace(trainer.train_dataloader)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note with which step of the epoch this run begins."""
        del trainer, pl_module, batch
        if self._skipped is None:
            self._skipped = batch_idx

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line, if it is time for one."""
        del pl_module
        self._remaining.add_step()
        self._epoch.add(batch)
        self._since_line.add(batch)
        if not self._stride.is_due(batch_idx + 1, self._since_line.seconds / self._since_line.steps):
            return
        if not self._enabled:
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
        self._remaining.end_epoch()
        if self._enabled:
            losses = sorted((name, value) for name, value in trainer.callback_metrics.items() if _is_epoch_loss(name))
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            of = f" (of steps {self._skipped + 1:,} to {done:,})" if self._skipped else ""
            parts = [f"{name} {float(value):.4g}{of if 'train' in name else ''}" for name, value in losses]
            parts += [f"{self._epoch.seconds:,.0f} s", *self._epoch.describe(trainer.world_size)]
            parts += self._time_left(trainer, done, ended=1)
            self.print(f"{name_epoch(trainer)}: {', '.join(parts)}", flush=True)
        self._skipped = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clocks of the training."""
        del pl_module
        self._remaining.add_between()
        self._epoch.pause()
        self._since_line.pause()
        self._other, self._other_left = Pace(trainer.val_dataloaders), Remaining(self.least_seconds)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clocks of the training run again."""
        del trainer, pl_module
        self._remaining.add_between()
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
        self._other, self._other_left = Pace(trainer.predict_dataloaders), Remaining(self.least_seconds)

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
        self._other_left.add_step()
        if pace.seconds >= self.least_seconds and self._enabled:
            parts = [*pace.describe(trainer.world_size), *self._other_left.describe(total - batch_idx - 1, 0)]
            self.print(f"{what}, batch {batch_idx + 1:,}{_of(total)}: {', '.join(parts)}", flush=True)
            self._other = Pace(pace._loader)

    def _time_left(self, trainer: Trainer, done: int, ended: int = 0) -> list[str]:
        """Guess the time to the end of training, `done` batches into the epoch; `ended` is 1 if it is its end."""
        each = self.total_train_batches
        left = _count_left(trainer, each, done)
        if not 0 < left < math.inf:
            return []
        return self._remaining.describe(left, left // each + 1 - ended, sum(trainer.num_val_batches) > 0)


def _count_left(trainer: Trainer, each: float | int, done: int) -> float | int:
    """Count the batches to the end of training, from `each` of an epoch and those `done` of the one at hand."""
    total = each * trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    if trainer.max_steps != -1:
        total = min(total, trainer.max_steps * trainer.accumulate_grad_batches)
    return total - each * trainer.current_epoch - done


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
