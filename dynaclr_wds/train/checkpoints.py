"""Keeps checkpoints of a training: the last one always, the best ones, and one where a signal stops it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.train.checkpoint_files import write_whole_checkpoints
from dynaclr_wds.train.finite_loss import FiniteLoss, check_weights
from dynaclr_wds.train.monitor import AUTO, choose_monitor, describe_unranked, is_new_after_validation
from dynaclr_wds.train.random_state import collect_random_states, resume_random_states
from dynaclr_wds.train.stopping import (
    TrainingStops,
    forget_unfinished_validation,
    is_between_steps,
    is_in_earnest,
    unfinished_validation,
)


class TrainingCheckpoint(ModelCheckpoint):
    """Save `last.ckpt` every so many steps and after every epoch, and the best checkpoints by a metric.

    Ctrl-C and SIGTERM end the training after the step at hand, or in the middle of validation, with a `last.ckpt` of
    that very state and exit status 130 or 143. SLURM's signal to requeue waits for the same moment. Training that goes
    on from a checkpoint draws the same batches, augmentations and dropout as one that was never stopped; a validation
    that was cut off is made again.

    A checkpoint never holds weights that are not finite, and is whole or absent on a local disk.

    Parameters
    ----------
    dirpath
        Folder; None = `checkpoints` in the folder of the log.
    filename
        Of the best checkpoints, as for Lightning's ModelCheckpoint; None = `{epoch}-{step}`.
    monitor
        Metric that says which checkpoints are best; auto = loss/val if there is a validation, else loss/train.
    mode
        Whether the best is the smallest (min) or the largest (max).
    save_top_k
        How many of the best to keep; 0 = only the last, -1 = all.
    every_n_train_steps
        Optimizer steps from one `last.ckpt` to the next, besides one after every epoch; 0 = only these.

    Raises
    ------
    ConfigError
        When training starts: `monitor` is of a validation, and nothing is held out.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str | None = None,
        monitor: str = AUTO,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 3,
        every_n_train_steps: int = 500,
    ) -> None:
        if every_n_train_steps < 0:
            raise ConfigError(
                f"checkpoint.every_n_train_steps={every_n_train_steps} must be >= 0 (0: after epochs only)."
            )
        super().__init__(dirpath, filename, monitor, save_last=True, save_top_k=save_top_k, mode=mode, every_n_epochs=1)
        self.asked_monitor = monitor
        self.save_every = every_n_train_steps
        self._stops = TrainingStops()
        self._loaded: dict[str, Any] = {}
        self._warned = False

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the state of this callback; the same whatever is monitored."""
        return type(self).__name__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder; make checkpoints whole or absent."""
        write_whole_checkpoints(trainer)
        with warnings.catch_warnings():  # names are counted up, so nothing that is there is replaced
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the metric, go on where the checkpoint was, and receive signals from now on."""
        super().on_train_start(trainer, pl_module)
        self.monitor = choose_monitor(trainer, self.asked_monitor)
        self._resume(trainer)
        if is_in_earnest(trainer):
            self._stops.install(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop where the end of the epoch before was saved."""
        self._stops.follow(trainer, None)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save every n steps; stop or requeue if asked to."""
        if not is_in_earnest(trainer) or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if self.save_every and trainer.global_step % self.save_every == 0:
            self._save_last(trainer)
        if is_between_steps(trainer):
            self._stops.follow(trainer, lambda: self._save_last(trainer))

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop before a validation if asked to."""
        if is_in_earnest(trainer):
            forget_unfinished_validation(trainer)
            with unfinished_validation(trainer):
                self._stops.follow(trainer, lambda: self._save_last(trainer))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop in the middle of a validation. Ranks may have different numbers of batches, so they can't agree here."""
        if is_in_earnest(trainer) and trainer.world_size == 1:
            with unfinished_validation(trainer):
                self._stops.follow(trainer, lambda: self._save_last(trainer))

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Rank the checkpoint, where validation is not at the end of every epoch."""
        if is_in_earnest(trainer) and is_new_after_validation(trainer, str(self.monitor)):
            self._save_best(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Rank the checkpoint, and save the last."""
        if not is_in_earnest(trainer):
            return
        if not is_new_after_validation(trainer, str(self.monitor)):
            self._save_best(trainer)
        self._save_last(trainer)
        self._stops.requeue_if_asked(trainer)

    def on_train_end(self, *_: Any) -> None:
        """Give the signals back."""
        self._stops.restore()

    def on_exception(self, *_: Any) -> None:
        """Give the signals back."""
        self._stops.restore()

    def state_dict(self) -> dict[str, Any]:
        """Return what the best checkpoints are, and the random generators of all ranks."""
        return {**super().state_dict(), "random": collect_random_states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts and the metric is known."""
        self._loaded = state_dict
        self.best_model_path = state_dict["best_model_path"]

    def _resume(self, trainer: Trainer) -> None:
        state, self._loaded = self._loaded, {}
        if not state:
            return
        self.last_model_path = state["last_model_path"]
        restore_ranking(self, state["best_k_models"] if state["monitor"] == self.monitor else {})
        resume_random_states(state["random"], trainer.global_rank, trainer.world_size)

    def _save_best(self, trainer: Trainer) -> None:
        metrics = self._monitor_candidates(trainer)
        value = metrics.get(str(self.monitor))
        if self.save_top_k == 0:
            return
        if value is not None and bool(torch.isfinite(value)):
            self._save_monitor_checkpoint(trainer, metrics)
        elif not self._warned:
            self._warned = True
            rank_zero_warn(describe_unranked(str(self.monitor), value, set(metrics) - {"epoch", "step"}))

    def _save_last(self, trainer: Trainer) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FiniteLoss):
                callback.check_all(trainer)
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        check_weights(trainer.lightning_module)
        super()._save_checkpoint(trainer, filepath)


def restore_ranking(checkpoint: ModelCheckpoint, scores: dict[str, Tensor]) -> None:
    """Rank checkpoints of an earlier run with those to come. They stay in their folder, also when they are beaten.

    Parameters
    ----------
    checkpoint
        Whose ranking to set.
    scores
        Path → metric; those that are gone are left out.
    """
    kept = {path: score for path, score in scores.items() if Path(path).exists()}
    ranked = sorted(kept, key=lambda path: float(kept[path]), reverse=checkpoint.mode == "max")
    checkpoint.best_k_models = kept
    checkpoint.best_model_path, checkpoint.kth_best_model_path = (ranked[0], ranked[-1]) if ranked else ("", "")
    if ranked:
        checkpoint.best_model_score, checkpoint.kth_value = kept[ranked[0]], kept[ranked[-1]]
