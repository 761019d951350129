"""Trainer to rank and world size: the one place where the environment is asked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch.distributed as dist
from lightning.pytorch import Trainer

_LOST = re.compile(r"gloo/transport|Connection (closed|reset) by peer|ncclRemoteError|ncclSystemError")
"""What gloo and NCCL say when another rank is gone."""


@dataclass(frozen=True, slots=True)
class World:
    """Number of this process (`rank`), and how many there are (`size`)."""

    rank: int
    size: int


def detect_world(trainer: Trainer | None) -> World:
    """Ask the trainer, else torch.distributed.

    Raises
    ------
    RuntimeError
        Several processes were launched, but neither knows of them: each would believe that it is alone.
    """
    if trainer is not None:
        return World(trainer.global_rank, trainer.world_size)
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        raise RuntimeError(
            f"WORLD_SIZE={launched}, but there is no trainer and torch.distributed is not initialised, so every "
            "process would read the same batches. Attach the DataModule to a Trainer, or call init_process_group first."
        )
    return World(0, 1)


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank has ended."""
    return dist.is_available() and dist.is_initialized() and _LOST.search(str(error)) is not None
