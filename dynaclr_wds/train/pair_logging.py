"""Pictures to loggers: shows an image in whichever logger there is, or leaves a PNG beside the log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imsave

from dynaclr_wds.files import write_whole

Picture = UInt8[np.ndarray, "height width 3"]


def show_picture(trainer: Trainer, tag: str, picture: Picture) -> None:
    """Give a picture to all loggers; where one takes none, or there is no logger, write it as a PNG file.

    Call it on the first rank only.

    Parameters
    ----------
    tag
        Such as `pairs/train`; the name of the picture, and of the folder of the files.
    """
    if not trainer.loggers:
        _write_png(Path(trainer.default_root_dir), tag, trainer.current_epoch, picture)
    for logger in trainer.loggers:
        _show(logger, trainer, tag, picture)


def _show(logger: Logger, trainer: Trainer, tag: str, picture: Picture) -> None:
    epoch, step = trainer.current_epoch, trainer.global_step
    experiment: Any = getattr(logger, "experiment", None)
    if isinstance(logger, TensorBoardLogger):
        experiment.add_image(tag, picture, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(key=tag, images=[picture], step=step)
    elif isinstance(logger, MLFlowLogger):
        experiment.log_image(logger.run_id, picture, artifact_file=f"{tag}/epoch={epoch:03d}.png")
    elif isinstance(logger, CometLogger):
        experiment.log_image(picture, name=tag, step=step)
    else:
        folder = getattr(logger, "log_dir", None) or logger.save_dir or trainer.default_root_dir
        _write_png(Path(folder), tag, epoch, picture)


def _write_png(folder: Path, tag: str, epoch: int, picture: Picture) -> None:
    path = folder / tag / f"epoch={epoch:03d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    imsave(content, picture, format="png")
    with write_whole(path) as file:
        file.write(content.getvalue())
