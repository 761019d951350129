"""Chooses the metric by which checkpoints are ranked, and knows when it is new."""

from __future__ import annotations

from collections.abc import Collection

from lightning.pytorch import Trainer
from torch import Tensor

from dynaclr_wds.errors import ConfigError

AUTO = "auto"


def choose_monitor(trainer: Trainer, asked: str) -> str:
    """Return the metric to monitor.

    Raises
    ------
    ConfigError
        The metric is of a validation, and there is none.
    """
    validates = has_validation(trainer)
    if asked == AUTO:
        return "loss/val" if validates else "loss/train"
    if asked.endswith("/val") and not validates:
        raise ConfigError(
            f"checkpoint.monitor={asked!r} will never be logged, because there is no validation. Set "
            "checkpoint.monitor to auto or loss/train; or hold cells out (data.val_experiments, data.split), with "
            "limit_val_batches > 0."
        )
    return asked


def has_validation(trainer: Trainer) -> bool:
    """Whether there are batches to validate with. Makes the loaders of the validation if they are not there yet."""
    if not trainer.enable_validation:
        return False
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.val_dataloaders is None:
        trainer.validating = True
        loop.setup_data()
        trainer.training = True
    return sum(loop.max_batches) > 0


def is_new_after_validation(trainer: Trainer, monitor: str) -> bool:
    """Whether the metric is new after each validation, and not at the end of each epoch."""
    each_epoch = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
    return has_validation(trainer) and not each_epoch and not monitor.endswith("/train")


def describe_unranked(monitor: str, value: Tensor | None, logged: Collection[str]) -> str:
    """Say why a checkpoint can't be ranked, and what to set."""
    why = f"was not logged; logged are {sorted(logged)}" if value is None else f"is {float(value)}"
    return (
        f"checkpoint.monitor={monitor!r} {why}. The last checkpoint is saved all the same, but none can be called "
        "best. Set checkpoint.monitor to a metric that is logged. Those of the validation are logged when "
        "trainer.val_check_interval and trainer.check_val_every_n_epoch say so."
    )
