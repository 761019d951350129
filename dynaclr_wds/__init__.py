"""Takes shards to training: plan, read, transform, train. Imports no duckdb and no zarr.

The names below are imported when they are first used, so `dynaclr_wds.contract` stays light.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError(
        "dynaclr-wds runs on Linux and macOS, not on Windows: it locks and maps files as POSIX does. Use it in WSL2 "
        "(https://learn.microsoft.com/windows/wsl/install)."
    )

from dynaclr_wds.lazy_names import make_lazy

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

__version__ = "0.1.0"
"""The one place that says it; pyproject.toml reads it from here."""

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

__getattr__, __dir__ = make_lazy(__name__, _MODULES)
