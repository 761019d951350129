"""Trains an encoder on batches and embeds batches in prediction: the LightningModule."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor
from torch.nn.functional import normalize

from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.describe import ModuleOrDescription, keep_arguments, make_module, settle_arguments
from dynaclr_wds.train.auxiliary import AuxiliaryHeads, HeadSettings
from dynaclr_wds.train.checkpoint_content import (
    CONTENT_KEY,
    check_weights,
    describe_training,
    warn_of_other_data,
    warn_of_undescribed,
)
from dynaclr_wds.train.encoder import MonaiEncoder, check_planes
from dynaclr_wds.train.freezing import freeze_parts, keep_frozen
from dynaclr_wds.train.loss import NTXentHCL, plan_pairs
from dynaclr_wds.train.optimizer import OptimizerSettings, make_optimizer
from dynaclr_wds.train.pair_image import Pairs, draw_pairs, take_pairs
from dynaclr_wds.train.pair_logging import show_picture
from dynaclr_wds.train.trained_cells import compare_splits
from dynaclr_wds.train.warm_start import Loaded, WarmStartOrData, load_weights


class ContrastiveModule(LightningModule):
    """Learns from triplets: a positive must be nearer to its anchor than the rest of the batch is.

    Under DDP each rank compares within its own batch, as mehta-lab/VisCy does. A checkpoint says how the network was
    made and what data it saw, so `load_from_checkpoint(path)` needs nothing else; see docs/CHECKPOINTS.md.

    Parameters
    ----------
    encoder
        Maps patches (B, C, Z, Y, X) to (features, projections), or to features alone, which are then compared in
        place of projections; None = `MonaiEncoder()`, which takes 2 channels of 1 plane. A module, or its description:
        the `class_path` and `init_args` that a config would have.
    loss
        A loss of pytorch-metric-learning, which is called with the embeddings and their pairs; or one such as
        `torch.nn.TripletMarginLoss`, which is called with (anchor, positive, negative) and needs data.return_negative;
        None = `NTXentHCL(temperature, hcl_beta)`.
    temperature
        Temperature of the loss where `loss` is None.
    hcl_beta
        Hard-negative concentration of the loss where `loss` is None; 0 = NT-Xent.
    lr
        Highest learning rate of AdamW.
    weight_decay
        Weight decay of AdamW.
    schedule
        "constant", or "cosine": the learning rate falls to 0 over the whole training.
    warmup_steps
        Optimizer steps over which the learning rate rises linearly from 0 at the start; a number below 1 is their share
        of all steps of the training.
    log_pairs
        Pairs of patches from the first batch of each epoch (or of what is left of it, where a training goes on) to show
        in the logger, or to write as PNG files beside the log; 0 = none.
    auxiliary_heads
        Name → what to predict from the features of the anchors besides; its loss is added. See `AuxiliaryHead`.
    freeze
        Parts of the encoder that are not trained, such as `backbone`.
    init_from
        Weights that the encoder begins with, of a checkpoint of ours or of somebody else. See `WarmStart`.
    """

    def __init__(
        self,
        encoder: ModuleOrDescription | None = None,
        loss: ModuleOrDescription | None = None,
        temperature: float = 0.07,
        hcl_beta: float = 0.5,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int | float = 0,
        log_pairs: int = 8,
        auxiliary_heads: HeadSettings | None = None,
        freeze: list[str] | None = None,
        init_from: WarmStartOrData | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["encoder", "loss", "auxiliary_heads", "init_from"])
        self.encoder = MonaiEncoder() if encoder is None else make_module(encoder, "encoder")
        self.loss = NTXentHCL(temperature, hcl_beta) if loss is None else make_module(loss, "loss")
        keep_arguments(self, {"encoder": self.encoder if encoder is None else encoder, "loss": loss})
        self.hparams["encoder"] = settle_arguments(self.hparams["encoder"], self.encoder)
        self.auxiliary_heads = AuxiliaryHeads(auxiliary_heads or {}, self.encoder)
        self.hparams["auxiliary_heads"] = self.auxiliary_heads.describe()
        self.started_from: Loaded | None = None if init_from is None else load_weights(self.encoder, init_from)
        self.hparams["init_from"] = None  # so that a checkpoint can be loaded where that file is not
        self.frozen = list(freeze or ())
        freeze_parts(self.encoder, self.frozen)
        self.lr = float(lr)  # a number of numpy would make the optimizer's state more than plain data
        self.settings = OptimizerSettings(
            lr=self.lr, weight_decay=float(weight_decay), schedule=schedule, warmup_steps=warmup_steps
        )
        self.log_pairs = log_pairs
        self.validates_trained_cells = False
        """Whether `validate` may run on cells that the checkpoint was trained on."""
        self._pairs: dict[str, Pairs] = {}  # by stage, from an epoch's first batch to its end

    def setup(self, stage: str) -> None:
        """Ask the shards for the values of the labels that heads predict."""
        del stage
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, MultiExperimentDataModule) and data.shard_set is not None:
            self.auxiliary_heads.build({label.name: label.values for label in data.shard_set.manifest.labels})
            self.hparams["auxiliary_heads"] = self.auxiliary_heads.describe()

    def check_data(self, shapes: Collection[tuple[int, int]], has_negative: bool) -> None:
        """Refuse data that can't be trained on: the DataModule calls it before anything is read or said.

        Parameters
        ----------
        shapes
            (channels, planes) of the patches that come.
        has_negative
            Whether a batch has explicit negatives.
        """
        for channels, planes in shapes:
            check_planes(self.encoder, channels, planes)
        self._check_negative(has_negative)

    def train(self, mode: bool = True) -> ContrastiveModule:
        """Set the mode of all but the frozen parts."""
        super().train(mode)
        keep_frozen(self.encoder, self.frozen)
        return self

    def forward(self, x: Float[Tensor, "b c z y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b p"]]:
        """Return features and projections."""
        encoded = self.encoder(x)
        features, projections = (encoded, encoded) if isinstance(encoded, Tensor) else encoded
        return features, projections

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        del batch_idx
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        del batch_idx
        return self._step(batch, "val")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return `features` and `projections` of the anchors, what the heads predict, and the batch's `index`."""
        del batch_idx
        features, projections = self(batch["anchor"])
        predicted = self.auxiliary_heads.predict(features)
        return {"features": features, "projections": projections, "predicted": predicted, "index": batch["index"]}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, with a schedule per step where one is asked for."""
        total = float(self.trainer.estimated_stepping_batches) if self.settings.depends_on_end else math.inf
        return make_optimizer(self, self.settings, total)

    def on_fit_start(self) -> None:
        """Say what the checkpoints of this training will lack."""
        self._pairs.clear()
        warn_of_undescribed(self)

    def on_train_epoch_start(self) -> None:
        """Move schedules of losses to this epoch."""
        self._follow_epoch(self.current_epoch)
        temperature = getattr(self.loss, "temperature", None)
        if isinstance(temperature, float):
            self.log("temperature", temperature)
        for name, head in self.auxiliary_heads.settings.items():
            self.log(f"weight/aux/{name}", head.weight(self.current_epoch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what prediction needs to know of the data."""
        checkpoint[CONTENT_KEY] = describe_training(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another network; say where data are shown in another way, or other cells are held out."""
        trainer = self._trainer
        self._follow_epoch(checkpoint.get("epoch", 0))  # of a training that goes on within an epoch, no epoch starts
        self.auxiliary_heads.check_saved(checkpoint.get("hyper_parameters", {}).get("auxiliary_heads") or {})
        if trainer is not None:
            saved = checkpoint.get("datamodule_hyper_parameters", {})
            warn_of_other_data(self, saved)
            compare_splits(self, checkpoint.get(CONTENT_KEY, {}), saved)
        if trainer is None or not trainer.strategy.restore_checkpoint_after_setup:  # else in pieces by now
            check_weights(self, checkpoint["state_dict"], "the checkpoint")

    def on_train_epoch_end(self) -> None:
        """Show the pairs of the epoch's first batch; where a training goes on within an epoch, of its first one."""
        self._show_pairs("train")

    def on_validation_epoch_end(self) -> None:
        """Show the pairs of the first batch, in a training."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._show_pairs("val")

    def _step(self, batch: dict[str, Any], stage: Literal["train", "val"]) -> Tensor:
        anchor = batch["anchor"]
        self._check_negative("negative" in batch)
        explicit = self._compares_with_negative
        keys = ("anchor", "positive", "negative") if explicit else ("anchor", "positive")
        # one pass, so that batch normalisation sees anchors, positives and negatives together
        features, projections = self(torch.cat([batch[key] for key in keys]))
        if explicit:
            loss = self.loss(*projections.chunk(3))
        else:
            loss = self.loss(projections, indices_tuple=plan_pairs(len(anchor), projections.device))
        self._log_step(loss, projections.detach().chunk(len(keys)), stage)
        if stage not in self._pairs and self._shows_pairs():
            data = getattr(self.trainer, "datamodule", None)
            self._pairs[stage] = take_pairs(batch, self.log_pairs, data)
        return loss + self._score_heads(features[: len(anchor)], batch.get("anchor_meta"), stage)

    @property
    def _compares_with_negative(self) -> bool:
        return not isinstance(self.loss, BaseMetricLossFunction)

    def _check_negative(self, there: bool) -> None:
        if self._compares_with_negative and not there:
            raise ValueError(
                f"model.loss={type(self.loss).__name__} compares with a negative, but the batch has none. "
                "Set data.return_negative: true, or use a loss of pytorch-metric-learning."
            )

    def _score_heads(self, features: Tensor, meta: Any, stage: str) -> Tensor | float:
        total: Tensor | float = 0.0
        for scored in self.auxiliary_heads.score(features, meta):
            total = total + self.auxiliary_heads.settings[scored.name].weight(self.current_epoch) * scored.loss
            epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
            self.log_dict({f"{n}/{stage}": v for n, v in scored.metrics.items()}, batch_size=scored.count, **epoch)
            self.log(f"labelled/{scored.name}/{stage}", scored.labelled, batch_size=len(features), **epoch)
        return total

    def _follow_epoch(self, epoch: int) -> None:
        if callable(step := getattr(self.loss, "step", None)):
            step(epoch)

    def _log_step(self, loss: Tensor, projections: tuple[Tensor, ...], stage: Literal["train", "val"]) -> None:
        count = len(projections[0])
        similarity = {f"similarity/{name}/{stage}": value for name, value in measure_similarity(*projections).items()}
        # sync_dist: ranks exchange nothing but the means of an epoch
        epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": count}
        self.log(f"loss/{stage}", loss.detach(), prog_bar=True, **epoch)
        self.log_dict(similarity, **epoch)
        if stage == "train":
            self.log("loss/train_step", loss.detach(), on_step=True, on_epoch=False, batch_size=count)

    def _shows_pairs(self) -> bool:
        trainer = self._trainer
        return self.log_pairs > 0 and trainer is not None and not trainer.sanity_checking and trainer.is_global_zero

    def _show_pairs(self, stage: Literal["train", "val"]) -> None:
        pairs = self._pairs.pop(stage, None)
        if pairs is not None:
            show_picture(self.trainer, f"pairs/{stage}", draw_pairs(pairs))


def measure_similarity(
    anchor: Float[Tensor, "b p"], positive: Float[Tensor, "b p"], negative: Float[Tensor, "b p"] | None = None
) -> dict[str, Float[Tensor, ""]]:
    """Mean cosine similarity of anchors to their positives and to their negatives.

    Parameters
    ----------
    anchor, positive
        Projections. Row i of both is one lineage.
    negative
        Explicit negatives, one per anchor; None = the positives of all the other anchors.

    Returns
    -------
    `positive` and `negative`; without `negative` where a single pair leaves none.
    """
    anchor, positive = normalize(anchor.float(), dim=1), normalize(positive.float(), dim=1)
    count = len(anchor)
    every = anchor @ positive.T
    to_positive = every.diagonal()
    result = {"positive": to_positive.mean()}
    if negative is not None:
        result["negative"] = (anchor * normalize(negative.float(), dim=1)).sum(1).mean()
    elif count > 1:
        result["negative"] = (every.sum() - to_positive.sum()) / (count * (count - 1))
    return result
