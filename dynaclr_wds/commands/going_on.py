"""What a training says first and last: what it trains on which device; where its checkpoints are, and how to go on."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dynaclr_wds.train.checkpoints import TrainingCheckpoint
from dynaclr_wds.train.device_names import describe_device
from dynaclr_wds.train.progress import name_epoch
from dynaclr_wds.train.stop_signals import Stopped
from dynaclr_wds.words import count_of


def find_program() -> list[str]:
    """Return the words by which this program was started, without its arguments."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if started.stem == "dynaclr-wds":
        return [started.name if shutil.which(started.name) else sys.argv[0]]
    return ["python", "-m", "dynaclr_wds"]


def format_resume(given: Sequence[str], checkpoint: str | None) -> str:
    """Return the command that was given, going on from a checkpoint.

    Parameters
    ----------
    given
        Its arguments.
    checkpoint
        Takes the place of the one that was given, if any; None = the command as it was.
    """
    if checkpoint is None:
        return shlex.join([*find_program(), *given])
    return shlex.join([*find_program(), *_replace_option(given, "--ckpt_path", checkpoint)])


def _replace_option(given: Sequence[str], option: str, value: str) -> list[str]:
    """Return arguments in which an option has this value, and stands last."""
    words, value_follows = [], False
    for word in given:
        if not (value_follows or word == option or word.startswith(f"{option}=")):
            words.append(word)
        value_follows = word == option and not value_follows
    return [*words, option, value]


class FirstLine(Callback):
    """Says what is done, when all that it needs was found: data and checkpoint are open by then.

    Parameters
    ----------
    doing
        `Training` or `Validating`.
    """

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self._said = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it before training."""
        self._say(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it before a validation; in the check before training only where training is sure to follow."""
        if not (trainer.sanity_checking and trainer.ckpt_path):
            self._say(trainer, pl_module)

    def _say(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._said and trainer.is_global_zero:
            print(describe_run(self.doing, trainer, module), flush=True)
        self._said = True


def describe_run(doing: str, trainer: Trainer, model: LightningModule) -> str:
    """Say in one line what is done with which network, how large it is, on which devices, and from which checkpoint."""
    network = type(getattr(model, "encoder", model)).__name__
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = f"{weights / 1e6:,.1f} million weights" if weights >= 100_000 else count_of(weights, "weight")
    said = f"{doing} {network} ({size}) on {describe_device(trainer)}, precision {trainer.precision}."
    if not trainer.ckpt_path:
        return said
    checkpoint = shorten(str(trainer.ckpt_path))
    if not trainer.training:
        return f"{said} Checkpoint: {checkpoint}."
    return f"{said} It goes on from {checkpoint}, in {name_epoch(trainer)} after step {trainer.global_step:,}."


def describe_stop(stopped: Stopped, trainer: Trainer, given: Sequence[str]) -> str:
    """Say where a training was stopped, where its checkpoint is, and how to go on."""
    saved = find_last(trainer)
    if saved is None:
        began = "the first step of this run" if trainer.ckpt_path else "the first step"
        again = format_resume(given, None)
        return f"Stopped by {stopped.cause} before {began}, so nothing was saved. Start again:\n  {again}"
    return (
        f"Stopped by {stopped.cause} in epoch {trainer.current_epoch + 1} after step {trainer.global_step}.\n"
        f"Checkpoint: {saved}\nGo on with:\n  {format_resume(given, saved)}"
    )


def describe_failure(trainer: Trainer, given: Sequence[str]) -> str | None:
    """Say from where a training that failed can go on; None if it has saved nothing."""
    saved = find_last(trainer)
    return (
        None
        if saved is None
        else f"The last checkpoint is {saved}. Go on from it with:\n  {format_resume(given, saved)}"
    )


def describe_end(trainer: Trainer) -> str:
    """Say where the checkpoints of a finished training are, and how to embed with them."""
    saved = find_last(trainer)
    lines = [f"Finished: {count_of(trainer.current_epoch, 'epoch')}, {count_of(trainer.global_step, 'step')}."]
    if saved is None:
        return "\n".join([*lines, "No checkpoint was saved."])
    best = next(
        (c for c in trainer.checkpoint_callbacks if isinstance(c, TrainingCheckpoint) and c.best_model_path), None
    )
    if best is not None and best.best_model_score is not None:
        score = f"{best.monitor} {float(best.best_model_score):.4g}"
        lines.append(f"Best checkpoint: {shorten(best.best_model_path)} ({score})")
    embed = [*find_program(), "predict", "--ckpt", saved, "--out", "embeddings.parquet"]
    if best is not None:
        embed[-3] = shorten(best.best_model_path)
    return "\n".join([*lines, f"Last checkpoint: {saved}", "Embed with:", f"  {shlex.join(embed)}"])


def describe_finished(trainer: Trainer, given: Sequence[str]) -> str:
    """Say that the checkpoint is of a training that is finished, and how to train longer."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        option, done = "--trainer.max_steps", trainer.global_step
        said = f"step {done:,} of {trainer.max_steps:,}"
    else:
        option, done = "--trainer.max_epochs", trainer.current_epoch
        said = f"epoch {done:,} of {trainer.max_epochs:,}, step {trainer.global_step:,}"
    longer = shlex.join([*find_program(), *_replace_option(given, option, str(2 * max(done, 1)))])
    return (
        f"This training is finished: {shorten(str(trainer.ckpt_path))} is at {said}. Nothing was trained.\n"
        f"To train longer, give a larger {option}:\n  {longer}"
    )


def find_last(trainer: Trainer) -> str | None:
    """Return the last checkpoint that this run wrote."""
    for callback in trainer.checkpoint_callbacks:
        path = callback.last_model_path if isinstance(callback, TrainingCheckpoint) else ""
        if path and callback._last_checkpoint_saved and Path(path).exists():  # type: ignore[attr-defined]
            return shorten(path)
    return None


def shorten(path: str) -> str:
    """Return the path from the working directory, if it lies below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else os.fspath(path)
