"""Trains an encoder on batches and writes its embeddings: module, losses, encoders, callbacks.

The names below are imported when they are first used, because Lightning and MONAI take seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynaclr_wds.lazy_names import make_lazy

if TYPE_CHECKING:
    from dynaclr_wds.train.checkpoints import TrainingCheckpoint
    from dynaclr_wds.train.embeddings import EmbeddingWriter
    from dynaclr_wds.train.encoder import BACKBONES, MonaiEncoder, ProjectedEncoder
    from dynaclr_wds.train.engine import ContrastiveModule
    from dynaclr_wds.train.epoch_ledger import EpochLedger
    from dynaclr_wds.train.finite_loss import FiniteLoss
    from dynaclr_wds.train.loss import NTXentHCL
    from dynaclr_wds.train.plan_verdict import PlanVerdict
    from dynaclr_wds.train.progress import ProgressLines

__all__ = [
    "BACKBONES",
    "ContrastiveModule",
    "EmbeddingWriter",
    "EpochLedger",
    "FiniteLoss",
    "MonaiEncoder",
    "NTXentHCL",
    "PlanVerdict",
    "ProgressLines",
    "ProjectedEncoder",
    "TrainingCheckpoint",
]

_MODULES = {
    "BACKBONES": "dynaclr_wds.train.encoder",
    "ContrastiveModule": "dynaclr_wds.train.engine",
    "EmbeddingWriter": "dynaclr_wds.train.embeddings",
    "EpochLedger": "dynaclr_wds.train.epoch_ledger",
    "FiniteLoss": "dynaclr_wds.train.finite_loss",
    "MonaiEncoder": "dynaclr_wds.train.encoder",
    "NTXentHCL": "dynaclr_wds.train.loss",
    "PlanVerdict": "dynaclr_wds.train.plan_verdict",
    "ProgressLines": "dynaclr_wds.train.progress",
    "ProjectedEncoder": "dynaclr_wds.train.encoder",
    "TrainingCheckpoint": "dynaclr_wds.train.checkpoints",
}

__getattr__, __dir__ = make_lazy(__name__, _MODULES)
