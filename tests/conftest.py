"""Makes what tests of the online half share: small collections, written by tensorstore, each built to shards once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from hypothesis import settings

from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests import first_calls
from tests.plates import KEEP_ALL, random_tracks, write_experiments, write_plate, write_tracks
from tests.servers.fixtures import azurite as azurite
from tests.servers.fixtures import bucket as bucket
from tests.servers.fixtures import bucket_name as bucket_name
from tests.servers.fixtures import chromium as chromium
from tests.servers.fixtures import gcs as gcs
from tests.servers.fixtures import moto as moto
from tests.servers.fixtures import nginx as nginx
from tests.servers.fixtures import proxy_before as proxy_before
from tests.servers.fixtures import seaweedfs as seaweedfs
from tests.servers.fixtures import two_hosts as two_hosts
from tests.shared_build import make_once

if TYPE_CHECKING:
    from tests.forked_commands import ForkedCommands

FOVS = ("A/1/0", "A/1/1", "B/2/0")
SHAPE = (10, 2, 3, 48, 48)

settings.register_profile("untimed", deadline=None)  # on a busy machine any example may take long
settings.load_profile("untimed")


CHANNELS = ("Phase", "GFP", "RFP")


def write_collection(
    root: Path,
    dtypes: Sequence[str],
    channels: Sequence[int] | int = 2,
    seed: int = 0,
    names_of_channels: Sequence[str] = CHANNELS,
) -> Path:
    """Write one experiment per dtype, with so many channels (each); return the path of experiments.yaml.

    Experiments are `e0`, `e1`, …, alternately OME-Zarr 0.4 with channels (Phase, GFP) and 0.5, sharded, with the
    channels the other way round; wells A/1 `control`, B/2 `infected`; 3 slices; 30 minutes a frame; patches 16 x 16.
    """
    entries = []
    for number, dtype in enumerate(dtypes):
        name, odd = f"e{number}", number % 2 == 1
        count = channels if isinstance(channels, int) else channels[number]
        shape = (SHAPE[0], count, *SHAPE[2:])
        names = list(names_of_channels[:count][:: -1 if odd else 1])
        rng = np.random.default_rng([23, seed, number])
        write_plate(
            root / name / "plate.zarr",
            version="0.5" if odd else "0.4",
            fovs=FOVS,
            shape=shape,
            dtype=dtype,
            channel_names=names,
            shards=(2, *shape[1:]) if odd else None,
            seed=100 * seed + number,
        )
        for fov in FOVS:
            rows = random_tracks(rng, frames=shape[0], height=shape[3], width=shape[4], lineages=6)
            write_tracks(root / name / "tracks", fov, rows)
        entries.append(
            {
                "name": name,
                "data_path": f"{name}/plate.zarr",
                "tracks_path": f"{name}/tracks",
                "channel_names": names,
                "source_channel": list(names_of_channels[:count]),
                "condition_wells": {"control": ["A/1"], "infected": ["B/2"]},
                "interval_minutes": 30.0,
                "start_hpi": float(number),
            }
        )
    options = {"yx_patch_size": [16, 16], "tau_range_hours": [0.5, 1.5], "shard_bytes": "1M", "block_bytes": "128K"}
    return write_experiments(root / "experiments.yaml", entries, **options, **KEEP_ALL)


def build(collection: Path, out: Path, **options: object) -> Path:
    """Build shards; return their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # most of a tiny build's time, and only for power cuts
        build_shards(parse_build_config(collection, options), out)
    return out


def make_matrix_set(root: Path) -> Path:
    """Build the set of the fault matrix, in a folder `shards`: two experiments, small blocks."""
    return build(write_collection(root, ("uint16", "float32")), root / "shards", clip_anchors=4, block_bytes=1 << 14)


@pytest.fixture(scope="module")
def without_fsync():
    """Syncing takes most of a tiny build's time, and only a power cut could tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _same_log_level_for_every_test():
    """Tests, and fixtures of modules, that silence Lightning would otherwise silence those that come after them."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)


@pytest.fixture(autouse=True)
def _check_first_calls() -> None:
    """Check shapes anew in every test."""
    first_calls.start()


@pytest.fixture(scope="session")
def commands() -> Iterator[ForkedCommands]:
    """Commands in processes of their own, which are forked from one that has imported torch and Lightning."""
    from tests.forked_commands import ForkedCommands  # imports them here too

    with ForkedCommands() as running:
        yield running


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiments.yaml of four experiments; pixels of three are uint16, of `e1` float32."""
    dtypes = ("uint16", "float32", "uint16", "uint16")
    return make_once(tmp_path_factory, "online", lambda root: write_collection(root, dtypes)) / "experiments.yaml"


@pytest.fixture(scope="session")
def shards(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of `collection`. Read only."""
    return make_once(tmp_path_factory, "online_shards", lambda root: build(collection, root / "shards")) / "shards"


@pytest.fixture(scope="session")
def short_clips(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of `collection` with short clips and small blocks, for windows much smaller than the set. Read only."""
    out = tmp_path_factory.mktemp("short_clips") / "shards"
    return build(collection, out, clip_anchors=4, block_bytes=1 << 16)


@pytest.fixture(scope="session")
def single_channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two experiments with one channel, uint16. Read only."""

    def make(root: Path) -> None:
        build(write_collection(root, ("uint16", "uint16"), channels=1), root / "shards")

    return make_once(tmp_path_factory, "single", make) / "shards"


@pytest.fixture(scope="session")
def mixed_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three experiments with 2, 1 and 3 channels, uint16. Read only."""
    root = tmp_path_factory.mktemp("mixed")
    return build(write_collection(root, ("uint16",) * 3, channels=(2, 1, 3)), root / "shards")


@pytest.fixture
def shard_set(shards: Path) -> ShardSet:
    """`shards`, opened."""
    return ShardSet.open(shards)


@pytest.fixture
def experiments(collection: Path) -> dict[str, dict[str, object]]:
    """Entries of experiments.yaml by name."""
    return {entry["name"]: entry for entry in yaml.safe_load(collection.read_text())["experiments"]}
