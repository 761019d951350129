"""Checkpoints to files that are whole or absent, whatever kills the process while it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, get_filesystem
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer

from dynaclr_wds.files import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their place, force them to disk, and then give them their name.

    Lightning writes to the folder of temporary files first. Where that is on another disk, the checkpoint is copied
    from there over the one that it replaces, and a kill meanwhile leaves neither. It also holds a second copy of the
    checkpoint in memory. Remote checkpoints are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Save a checkpoint.

        Parameters
        ----------
        checkpoint
            What `torch.save` takes.
        path
            Where to; replaced when the new file is whole.
        storage_options
            Not supported.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with write_whole(Path(get_filesystem(path)._strip_protocol(str(path)))) as file:
            torch.save(checkpoint, file)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write all its checkpoints so, unless it was given a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
