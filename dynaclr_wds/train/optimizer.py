"""Parameters to an optimizer: AdamW over those that are trained, with a learning rate that may follow a schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from dynaclr_wds.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """The settings of `ContrastiveModule` that make its optimizer."""

    lr: float
    weight_decay: float
    schedule: Literal["constant", "cosine"]
    warmup_steps: int | float
    """Steps, or below 1 their share of all steps."""

    def __post_init__(self) -> None:
        """Refuse what is no number of steps.

        Raises
        ------
        ValueError
            A negative one, or a fraction above 1.
        """
        if self.warmup_steps < 0 or (self.warmup_steps >= 1 and self.warmup_steps % 1):
            raise ValueError(
                f"model.warmup_steps={self.warmup_steps} must be a number of steps, such as 500, or a share of all "
                "steps below 1, such as 0.05."
            )

    @property
    def depends_on_end(self) -> bool:
        """Whether the learning rate depends on the steps of the whole training."""
        return self.schedule == "cosine" or 0 < self.warmup_steps < 1


def make_optimizer(module: nn.Module, settings: OptimizerSettings, total_steps: float) -> OptimizerLRScheduler:
    """Return AdamW over the parameters that are not frozen, with a schedule per step where one is asked for.

    Parameters
    ----------
    module
        Whose parameters to train.
    settings
        How.
    total_steps
        Optimizer steps of the training; infinite where nothing says so.

    Raises
    ------
    ConfigError
        All parameters are frozen.
    ValueError
        A cosine schedule, or a share of all steps, without an end.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(
            "model: all parameters are frozen, so there is nothing to train. Freeze less (model.freeze), or give the "
            "encoder a projection that is trained, such as dynaclr_wds.train.heads.MLP."
        )
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.schedule == "constant" and settings.warmup_steps == 0:
        return optimizer
    if settings.depends_on_end and math.isinf(total_steps):
        is_cosine = settings.schedule == "cosine"
        what = "schedule='cosine'" if is_cosine else f"warmup_steps={settings.warmup_steps}, a share of all steps,"
        raise ValueError(
            f"model.{what} needs to know when training ends, but neither trainer.max_epochs nor trainer.max_steps says "
            "so. Give one of them, or schedule: constant with a whole number as warmup_steps."
        )
    warmup = int(total_steps * settings.warmup_steps if settings.warmup_steps < 1 else settings.warmup_steps)
    total = total_steps if settings.schedule == "cosine" else math.inf
    if warmup >= total:
        rank_zero_info(
            f"model.warmup_steps={warmup} is more than this training has, {total:.0f} steps: the learning rate never "
            "reaches model.lr. Give --model.warmup_steps 0.05, a share of all steps, or train for longer."
        )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan_lr_factor(step, warmup, total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def plan_lr_factor(step: int, warmup_steps: int, total_steps: float) -> float:
    """Return the share of the highest learning rate at a step: a linear rise, then half a cosine down to 0.

    Parameters
    ----------
    step
        Optimizer step, from 0.
    warmup_steps
        Steps of the rise.
    total_steps
        Steps of the whole training; infinite = stay at the top.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if math.isinf(total_steps):
        return 1.0
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
