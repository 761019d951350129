"""Puts shard sets into buckets of test servers, and reads the batches of a training from anywhere."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch

from dynaclr_wds import MultiExperimentDataModule
from dynaclr_wds.storage import credentials
from tests.servers.bucket import Bucket
from tests.servers.nginx import Nginx

EXACT: dict[str, Any] = {}
STREAMING = {"window_bytes": "60%", "num_streams": 1, "relax_lineages": True}


def forget_credentials(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take away all keys that this process could find, on a machine of a cloud too."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        patch.delenv(name)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
    patch.setattr(credentials, "_runs_there", lambda _: False)


def upload(bucket: Bucket, shards: Path, prefix: str = "sets/first") -> str:
    """Copy a set into a bucket, manifest last; return its URL."""
    store = bucket.store(retries=3)
    files = sorted(
        (path for path in shards.rglob("*") if path.is_file()), key=lambda path: path.name == "manifest.json"
    )
    for path in files:
        obstore.put(store, f"{prefix}/{path.relative_to(shards)}", path.read_bytes())
    return f"{bucket.url}/{prefix}"


def serve(nginx: Nginx, name: str, shards: Path) -> str:
    """Have nginx serve a set; return its https URL."""
    nginx.files(name).symlink_to(shards, target_is_directory=True)
    return f"{nginx.endpoint}/{name}"


def quick(bucket: Bucket, **more: Any) -> dict[str, Any]:
    """Options for a bucket, with time limits for tests."""
    return {**bucket.storage_options(), "retry_timeout": 5.0, "stall_timeout": 1.0, "request_timeout": 3.0, **more}


def make_data(shards: str | Path, **options: Any) -> MultiExperimentDataModule:
    """Make a DataModule with one experiment held out, set up for training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    given = {"val_experiments": ["e1"], "tau_range": (0.5, 1.5), "batch_size": 4, "channel_dropout_channels": ()}
    data = MultiExperimentDataModule(str(shards), **given | options)
    data.setup("fit")
    return data


def read_batches(data: MultiExperimentDataModule, most: int | None = None) -> list[dict[str, Any]]:
    """Read the batches of training and validation, the first `most` of each."""
    loaders = data.train_dataloader(), data.val_dataloader()
    return [batch for loader in loaders for _, batch in zip(range(most or len(loader)), loader, strict=False)]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Check that batches are equal in every byte, and in who is in them."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[key].dtype
                assert torch.equal(value, other[key]), key
            elif key.endswith("norm_meta"):
                assert all(torch.equal(value[level], other[key][level]) for level in value)
            else:
                assert repr(list(value)) == repr(list(other[key]))
