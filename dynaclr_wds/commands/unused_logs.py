"""Takes back the folder of a log where a training makes no step: `version_N` counts trainings.

Loggers make it before the data are looked at. What was there before stays, and so does a folder that holds anything but
what loggers and Lightning write at the start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

_WRITTEN_AT_START = ("config.yaml", "hparams.yaml", "metrics.csv")


class CountSteps(Callback):
    """Count the batches that this run has trained on, and know whether it began at all."""

    def __init__(self) -> None:
        self.began = False
        """False also where the checkpoint is of a training that is finished."""
        self.batches = 0

    def on_train_start(self, *_: object) -> None:
        """Note that there is something to do."""
        self.began = True

    def on_train_batch_end(self, *_: object) -> None:
        """Count one more."""
        self.batches += 1


@contextmanager
def take_back_unused_logs(trainer: Trainer) -> Iterator[CountSteps]:
    """Remove the new folders of the trainer's loggers if the block fails before a batch, or has nothing to train."""
    folders = [Path(folder) for logger in trainer.loggers if (folder := getattr(logger, "log_dir", None))]
    made = [(folder, [path for path in (folder, *folder.parents) if not path.exists()]) for folder in folders]
    steps = CountSteps()
    trainer.callbacks.append(steps)  # type: ignore[attr-defined]
    is_used = False
    try:
        yield steps
        is_used = steps.began
    finally:
        in_this_process = not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
        if trainer.is_global_zero and in_this_process and not (is_used or steps.batches):
            for folder, missing in made:
                _remove_unused(folder, missing)


def _remove_unused(folder: Path, missing: list[Path]) -> None:
    """Remove a folder and those above it, as far as they were missing before and hold nothing else."""
    if folder not in missing or not folder.is_dir():
        return
    files = list(folder.iterdir())
    if not all(file.name in _WRITTEN_AT_START or _is_events_of_this_process(file) for file in files):
        return
    with suppress(OSError):  # something else is in it by now
        for file in files:
            file.unlink()
        for path in missing:
            path.rmdir()


def _is_events_of_this_process(file: Path) -> bool:
    """Whether TensorBoard wrote a file here: `events.out.tfevents.<seconds>.<host>.<process>.<number>`."""
    return file.name.startswith("events.out.tfevents.") and file.name.split(".")[-2] == str(os.getpid())
