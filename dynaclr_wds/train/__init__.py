"""Trains an encoder on batches and writes its embeddings: module, losses, encoders, callbacks.

The names below are imported when they are first used, because Lightning and MONAI take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynaclr_wds.train.embeddings import EmbeddingWriter
    from dynaclr_wds.train.encoder import BACKBONES, MonaiEncoder, ProjectedEncoder
    from dynaclr_wds.train.engine import ContrastiveModule
    from dynaclr_wds.train.epoch_ledger import EpochLedger
    from dynaclr_wds.train.loss import NTXentHCL

__all__ = [
    "BACKBONES",
    "ContrastiveModule",
    "EmbeddingWriter",
    "EpochLedger",
    "MonaiEncoder",
    "NTXentHCL",
    "ProjectedEncoder",
]

_MODULES = {
    "BACKBONES": "dynaclr_wds.train.encoder",
    "ContrastiveModule": "dynaclr_wds.train.engine",
    "EmbeddingWriter": "dynaclr_wds.train.embeddings",
    "EpochLedger": "dynaclr_wds.train.epoch_ledger",
    "MonaiEncoder": "dynaclr_wds.train.encoder",
    "NTXentHCL": "dynaclr_wds.train.loss",
    "ProjectedEncoder": "dynaclr_wds.train.encoder",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
