"""Trains an encoder on batches and writes its embeddings: module, losses, encoders, callbacks.

The names below are imported when they are first used, because Lightning and MONAI take seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynaclr_wds.lazy_names import make_lazy

if TYPE_CHECKING:
    from dynaclr_wds.train.checkpoints import TrainingCheckpoint
    from dynaclr_wds.train.embedding_watch import EmbeddingWatch
    from dynaclr_wds.train.embeddings import EmbeddingWriter
    from dynaclr_wds.train.encoder import BACKBONES, MonaiEncoder, ProjectedEncoder
    from dynaclr_wds.train.engine import ContrastiveModule
    from dynaclr_wds.train.epoch_ledger import EpochLedger
    from dynaclr_wds.train.finite_loss import FiniteLoss
    from dynaclr_wds.train.frozen_backbone import ChannelImages, FrozenBackbone, RGBImage, TransformersBackbone
    from dynaclr_wds.train.loss import NTXentHCL
    from dynaclr_wds.train.plan_verdict import PlanVerdict
    from dynaclr_wds.train.progress import ProgressLines
    from dynaclr_wds.train.timm_encoder import TimmBackbone, TimmEncoder
    from dynaclr_wds.train.warm_start import WarmStart

__all__ = [
    "BACKBONES",
    "ChannelImages",
    "ContrastiveModule",
    "EmbeddingWatch",
    "EmbeddingWriter",
    "EpochLedger",
    "FiniteLoss",
    "FrozenBackbone",
    "MonaiEncoder",
    "NTXentHCL",
    "PlanVerdict",
    "ProgressLines",
    "ProjectedEncoder",
    "RGBImage",
    "TimmBackbone",
    "TimmEncoder",
    "TrainingCheckpoint",
    "TransformersBackbone",
    "WarmStart",
]

_MODULES = {
    "BACKBONES": "dynaclr_wds.train.encoder",
    "ChannelImages": "dynaclr_wds.train.frozen_backbone",
    "ContrastiveModule": "dynaclr_wds.train.engine",
    "EmbeddingWatch": "dynaclr_wds.train.embedding_watch",
    "EmbeddingWriter": "dynaclr_wds.train.embeddings",
    "EpochLedger": "dynaclr_wds.train.epoch_ledger",
    "FiniteLoss": "dynaclr_wds.train.finite_loss",
    "FrozenBackbone": "dynaclr_wds.train.frozen_backbone",
    "MonaiEncoder": "dynaclr_wds.train.encoder",
    "NTXentHCL": "dynaclr_wds.train.loss",
    "PlanVerdict": "dynaclr_wds.train.plan_verdict",
    "ProgressLines": "dynaclr_wds.train.progress",
    "ProjectedEncoder": "dynaclr_wds.train.encoder",
    "RGBImage": "dynaclr_wds.train.frozen_backbone",
    "TimmBackbone": "dynaclr_wds.train.timm_encoder",
    "TimmEncoder": "dynaclr_wds.train.timm_encoder",
    "TrainingCheckpoint": "dynaclr_wds.train.checkpoints",
    "TransformersBackbone": "dynaclr_wds.train.frozen_backbone",
    "WarmStart": "dynaclr_wds.train.warm_start",
}

__getattr__, __dir__ = make_lazy(__name__, _MODULES)
