"""Takes shards to training: plan, read, transform, train. Imports no duckdb and no zarr.

The names below are imported when they are first used, so `dynaclr_wds.contract` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynaclr_wds.datamodule import MultiExperimentDataModule
    from dynaclr_wds.plain.pipeline import triplet_pipeline
    from dynaclr_wds.plan.config import SamplingConfig
    from dynaclr_wds.plan.index import PlanIndex
    from dynaclr_wds.plan.sampler import FlexibleBatchSampler
    from dynaclr_wds.read.crop import Crop
    from dynaclr_wds.read.dataset import MultiExperimentTripletDataset
    from dynaclr_wds.read.loader import ThreadDataLoader
    from dynaclr_wds.shardset import ShardSet
    from dynaclr_wds.train.engine import ContrastiveModule
    from dynaclr_wds.train.loss import NTXentHCL
    from dynaclr_wds.transforms.channel_dropout import ChannelDropout

__all__ = [
    "ChannelDropout",
    "ContrastiveModule",
    "Crop",
    "FlexibleBatchSampler",
    "MultiExperimentDataModule",
    "MultiExperimentTripletDataset",
    "NTXentHCL",
    "PlanIndex",
    "SamplingConfig",
    "ShardSet",
    "ThreadDataLoader",
    "triplet_pipeline",
]

_MODULES = {
    "ChannelDropout": "dynaclr_wds.transforms.channel_dropout",
    "ContrastiveModule": "dynaclr_wds.train.engine",
    "Crop": "dynaclr_wds.read.crop",
    "FlexibleBatchSampler": "dynaclr_wds.plan.sampler",
    "MultiExperimentDataModule": "dynaclr_wds.datamodule",
    "MultiExperimentTripletDataset": "dynaclr_wds.read.dataset",
    "NTXentHCL": "dynaclr_wds.train.loss",
    "PlanIndex": "dynaclr_wds.plan.index",
    "SamplingConfig": "dynaclr_wds.plan.config",
    "ShardSet": "dynaclr_wds.shardset",
    "ThreadDataLoader": "dynaclr_wds.read.loader",
    "triplet_pipeline": "dynaclr_wds.plain.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
