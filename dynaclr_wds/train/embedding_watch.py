"""Judges the embedding while it is trained: effective rank, smoothness and a vote on the validation set, in any logger.

It takes the features that validation computes anyway, so the network runs no more than without it. What it measures,
and the sources, stand in `dynaclr_wds.evaluate`, which judges a finished table more thoroughly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynaclr_wds.evaluate.cells import Cells
from dynaclr_wds.evaluate.rank import describe_collapse, effective_rank
from dynaclr_wds.evaluate.smoothness import compare_pairs
from dynaclr_wds.train.pair_image import glance
from dynaclr_wds.train.pair_logging import show_picture

Features = Float32[np.ndarray, "n d"]


class EmbeddingWatch(Callback):
    """Log what the validation set says of the embedding, and say in words when it has collapsed.

    Logged are `embedding/rank/val` (effective rank), `embedding/smoothness/val` (distance of anchors to their positives
    over that of two cells at random; lower is smoother) and `embedding/vote/val` (balanced accuracy of the vote of the
    nearest cells of other fields of view on a label), and a picture of the first two principal components. Each rank
    judges its own cells; means are logged. What can't be measured is logged as NaN.

    Parameters
    ----------
    every_n_epochs
        Judge after every so many epochs.
    most_cells
        Anchors to judge; the first ones of validation, which is mixed and the same in every epoch.
    label
        Label that neighbours vote on.
    plot
        Show the picture.
    """

    def __init__(
        self, every_n_epochs: int = 5, most_cells: int = 2000, label: str = "condition", plot: bool = True
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"EmbeddingWatch: every_n_epochs={every_n_epochs} must be >= 1.")
        if most_cells < 10:
            raise ValueError(f"EmbeddingWatch: most_cells={most_cells} must be >= 10.")
        self.every_n_epochs, self.most_cells, self.label, self.plot = every_n_epochs, most_cells, label, plot
        self._hook: RemovableHandle | None = None
        self._latest: Tensor | None = None
        self._anchors: list[Tensor] = []
        self._positives: list[Tensor] = []
        self._rows: list[Mapping[str, Any]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the encoder, if it is time."""
        self._forget()
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        encoder = getattr(pl_module, "encoder", None)
        if due and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and encoder is not None:
            self._hook = encoder.register_forward_hook(self._listen)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the features of a batch and who its anchors are."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        left = self.most_cells - sum(len(part) for part in self._anchors)
        if self._hook is None or self._latest is None or left <= 0:
            return
        count = len(batch["anchor"])
        anchor, positive = (
            part[:left].float().cpu() for part in (self._latest[:count], self._latest[count : 2 * count])
        )
        self._anchors.append(anchor)
        self._positives.append(positive)
        self._latest = None
        meta = batch.get("anchor_meta")
        self._rows += [] if meta is None else [glance(meta, place) for place in range(len(anchor))]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge and log."""
        if self._hook is None:
            return
        anchors, positives, rows = self._anchors, self._positives, self._rows
        self._forget()
        if not anchors:
            return
        x, y = (torch.cat(parts).numpy() for parts in (anchors, positives))
        cells = describe_cells(rows, self.label) if len(rows) == len(x) else None
        rank = effective_rank(np.nan_to_num(x, posinf=0.0, neginf=0.0))
        measured = {"rank": rank, "smoothness": compare_pairs(x, y), "vote": self._vote(x, cells)}
        logged = {f"embedding/{name}/val": math.nan if v is None else v for name, v in measured.items()}
        pl_module.log_dict(logged, sync_dist=True, batch_size=len(x))
        if said := describe_collapse(x, rank):
            rank_zero_warn(f"Embeddings of the validation set after epoch {trainer.current_epoch + 1}: {said}")
        if self.plot and trainer.is_global_zero:
            show_picture(trainer, "embeddings/val", draw_cells(x, cells, self.label))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        del trainer, pl_module, exception
        self._forget()

    def _listen(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        self._latest = (output if isinstance(output, Tensor) else output[0]).detach()

    def _vote(self, x: Features, cells: Cells | None) -> float | None:
        from dynaclr_wds.evaluate.probes import vote_accuracy  # scikit-learn, which takes a second to import

        if cells is None or self.label not in cells.labels or not np.isfinite(x).all():
            return None
        return vote_accuracy(x.astype(np.float64), cells.labels[self.label], cells)

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._latest = None, None
        self._anchors, self._positives, self._rows = [], [], []


def describe_cells(rows: list[Mapping[str, Any]], label: str) -> Cells:
    """Put the identities of samples into columns."""

    def column(name: str) -> np.ndarray:
        return np.array([str(row.get(name) or "") for row in rows], object)

    experiment = column("experiment")
    found = any(label in row for row in rows)
    return Cells(
        name=column("name"),
        experiment=experiment,
        fov=experiment + "/" + column("fov_name"),
        track=column("global_track_id"),
        lineage=np.array([str(row["lineage"]) for row in rows], object),
        t=np.array([row["t"] for row in rows], np.int64),
        hpi=np.array([row["hpi"] for row in rows], np.float64),
        labels={label: column(label)} if found else {},
    )


def draw_cells(x: Features, cells: Cells | None, label: str) -> UInt8[np.ndarray, "height width 3"]:
    """Draw cells on two principal components: by label, and by hours."""
    from dynaclr_wds.evaluate.projections import project_pca
    from dynaclr_wds.pages.pictures import PALETTE, new_figure, to_pixels

    plane, shares = project_pca(np.nan_to_num(x, posinf=0.0, neginf=0.0))
    figure = new_figure(8.8, 4.2)
    left, right = figure.subplots(1, 2)
    values = cells.labels[label] if cells is not None and label in cells.labels else np.full(len(x), "", object)
    for n, value in enumerate(np.unique(values.astype(str))[: len(PALETTE)]):
        own = plane[values == value]
        left.scatter(own[:, 0], own[:, 1], s=6, c=PALETTE[n], alpha=0.6, linewidths=0, label=value or "no label")
    left.legend(fontsize=8, frameon=False)
    left.set_title(f"PCA ({shares[0]:.0%}, {shares[1]:.0%}), by {label}")
    hours = np.zeros(len(x)) if cells is None else cells.hpi
    figure.colorbar(right.scatter(plane[:, 0], plane[:, 1], s=6, c=hours, cmap="viridis", linewidths=0), ax=right)
    right.set_title("by HPI")
    return to_pixels(figure)
