"""Checkpoints to files and back: whole or absent, whatever kills the process while it writes; plain data when read."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, get_filesystem
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer

from dynaclr_wds.errors import CheckpointError
from dynaclr_wds.files import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their place, force them to disk, and then give them their name.

    Lightning writes to the folder of temporary files first. Where that is on another disk, the checkpoint is copied
    from there over the one that it replaces, and a kill meanwhile leaves neither. It also holds a second copy of the
    checkpoint in memory. Remote checkpoints are left to Lightning.
    Only tensors and plain data are read.
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

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors and plain data unless told otherwise; Lightning would unpickle what comes from an http URL."""
        loaded: dict[str, Any] = super().load_checkpoint(
            path, map_location or (lambda storage, _: storage), weights_only is not False
        )
        return loaded


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write all its checkpoints so, unless it was given a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def load_plain(path: str | Path) -> tuple[dict[str, Any], str]:
    """Load a file's tensors and plain data, and its SHA-256, of the same bytes even while a training replaces the file.

    Raises
    ------
    CheckpointError
        There is no such file, it can't be read, or it holds other objects.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise CheckpointError(f"{path}: {what}. Give the .ckpt file of a training{_list_near(path)}.")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            raw = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes lead to
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = f"{first:.200}" if zipfile.is_zipfile(path) else "it is no zip file, as every checkpoint is"
        raise CheckpointError(
            f"{path}: can't be read as a checkpoint ({why}). It is damaged, still being copied, or holds more "
            "than weights and plain data. Copy it again, or give another one."
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}, not a checkpoint. Give the .ckpt of a training.")
    return raw, sha256


def _list_near(path: Path) -> str:
    """Name the newest checkpoints in the first folder of a path that is there, or in logs below it."""
    near = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())
    files = [
        file for pattern in ("*.ckpt", "checkpoints/*.ckpt", "*/checkpoints/*.ckpt") for file in near.glob(pattern)
    ]
    found = sorted(files, key=lambda file: -file.stat().st_mtime)[:3]
    return f", such as {', '.join(map(str, found))}" if found else ""
