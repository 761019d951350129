"""What a training says first and last: what it trains on which device; where its checkpoints are, and how to go on."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from dynaclr_wds.train.checkpoints import TrainingCheckpoint
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
    words, value_follows = [], False
    for word in given:
        if checkpoint is None or not (value_follows or word == "--ckpt_path" or word.startswith("--ckpt_path=")):
            words.append(word)
        value_follows = word == "--ckpt_path" and not value_follows
    return shlex.join([*find_program(), *words, *(["--ckpt_path", checkpoint] if checkpoint else [])])


def describe_run(doing: str, trainer: Trainer, model: LightningModule) -> str:
    """Say in one line what is done with which network, how large it is, and on which devices."""
    network = type(getattr(model, "encoder", model)).__name__
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = f"{weights / 1e6:,.1f} million weights" if weights >= 100_000 else count_of(weights, "weight")
    kind = trainer.strategy.root_device.type
    device = torch.cuda.get_device_name(trainer.strategy.root_device) if kind == "cuda" else kind.upper()
    return f"{doing} {network} ({size}) on {trainer.world_size} × {device}, precision {trainer.precision}."


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
