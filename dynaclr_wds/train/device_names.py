"""Trainer to the words for what it runs on: `CPU`, `1 GPU (NVIDIA H200)`."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from dynaclr_wds.words import count_of


def describe_device(trainer: Trainer) -> str:
    """Name the devices of a run."""
    device, processes = trainer.strategy.root_device, trainer.world_size
    if device.type == "cuda":
        return f"{count_of(processes, 'GPU')} ({torch.cuda.get_device_name(device)})"
    name = "Apple GPU" if device.type == "mps" else device.type.upper()
    return name if processes == 1 else f"{name}, {processes} processes"
