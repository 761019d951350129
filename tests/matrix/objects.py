"""Names what is read and written in a trial, and what must come of it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch

from dynaclr_wds import contract
from dynaclr_wds.errors import DynaCLRError
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.read.crop import plan_crop
from dynaclr_wds.read.dataset import MultiExperimentTripletDataset
from dynaclr_wds.read.loader import ThreadDataLoader
from dynaclr_wds.shard_files import read_manifest
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage import sending
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.options import StorageOptions, parse_options
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from etl.source.plate_boxes import read_box
from etl.source.plates import open_plate
from etl.source.table_places import RemoteTracks
from etl.upload.build import UploadOptions
from tests.remote import EXACT, STREAMING, make_data, upload
from tests.servers.bucket import Bucket

BUILD_OPTIONS = {"clip_anchors": 4, "block_bytes": 1 << 14}
"""Of the set; also given to each upload, so that nothing is built anew."""
_BATCHES = 3
FOVS = ("A/1/0", "A/1/1", "B/2/0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A set on a disk, the same set in a bucket, and its index on this node."""

    local: Path
    bucket: Bucket
    url: str
    cache: Path
    sources: Path
    """experiments.yaml, plates and tracks on the disk; copied to `source_url`."""

    @property
    def source_url(self) -> str:
        """Where the plates and tracks are."""
        return f"{self.bucket.url}/sources"

    @classmethod
    def make(cls, local: Path, bucket: Bucket, cache: Path) -> Scene:
        """Copy a set into a bucket, and bring its index here."""
        url, sources = upload(bucket, local), local.parent
        for name in ("e0", "e1"):
            upload(bucket, sources / name, f"sources/{name}")
        ShardSet.open(url, storage_options=bucket.storage_options(), cache_dir=cache)
        return cls(local=local, bucket=bucket, url=url, cache=cache, sources=sources)

    def open(self, options: Mapping[str, Any]) -> ShardSet:
        """Open the set by requests that nothing disturbs; later ones are made with `options`."""
        shards = ShardSet.open(self.url, storage_options=self.bucket.storage_options(), cache_dir=self.cache)
        assert shards.remote is not None
        storage = Storage(shards.remote.storage.root, parse_options(options))
        return dataclasses.replace(shards, remote=dataclasses.replace(shards.remote, storage=storage))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """A kind of object: which requests are for it, how it is read, and what it holds."""

    target: str
    """Regular expression of the path, or query, of its requests."""
    read: Callable[[Scene, Mapping[str, Any], Path], Any]
    """Reads it with options of `storage_options`; the folder is empty, and its name is that of the trial."""
    expected: Callable[[Scene], Any]
    """What is read where nothing fails."""
    named: str = ""
    """Regular expression of how errors name it; empty: as in its requests."""
    methods: tuple[str, ...] = ("GET", "HEAD")
    by_place: tuple[str, ...] = ()
    """Faults of which it depends on the byte that they hit whether an error comes of them."""
    least_share: float = 0.0
    """1 where so few requests are made that none might be disturbed."""

    prepare: Callable[[], AbstractContextManager[None]] = nullcontext
    """What holds during all trials."""

    @property
    def name(self) -> str:
        """What an error has to hold."""
        return self.named or self.target


def _read_manifest(scene: Scene, options: Mapping[str, Any], _: Path) -> bytes:
    return read_manifest(scene.open(options).remote.storage)[0]  # type: ignore[union-attr]


def _read_listed(scene: Scene, options: Mapping[str, Any], _: Path) -> list[Any]:
    return _first_batches(scene, ShardSet.open(scene.url, storage_options=options, cache_dir=scene.cache), EXACT)


def _read_index(scene: Scene, options: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    return _index_of(ShardSet.open(scene.url, storage_options=options, cache_dir=folder))


def _index_of(shards: ShardSet) -> dict[str, bytes]:
    found = {name: array.tobytes() for name, array in shards.arrays.items()}
    return found | {"observations": shards.find_table(contract.OBSERVATIONS).read_bytes()}


def _read_batches(mode: Mapping[str, Any]) -> Callable[[Scene, Mapping[str, Any], Path], list[Any]]:
    def read(scene: Scene, options: Mapping[str, Any], _: Path) -> list[Any]:
        return _first_batches(scene, scene.open(options), mode)

    return read


def _batches_of(mode: Mapping[str, Any]) -> Callable[[Scene], list[Any]]:
    return lambda scene: _first_batches(scene, ShardSet.open(scene.local), mode)


@functools.cache
def _plan(local: Path, **mode: Any) -> FlexibleBatchSampler:
    """Plan the training on the local set: once for all trials, as no fault changes it."""
    return make_data(local, val_experiments=[], **mode).train_sampler


def _first_batches(scene: Scene, shards: ShardSet, mode: Mapping[str, Any]) -> list[Any]:
    """Read the first batches of the training on the local set from another copy of it."""
    plan = _plan(scene.local, **mode)
    dataset = MultiExperimentTripletDataset(shards, plan_crop(shards, None, None), streaming="window_bytes" in mode)
    loader = ThreadDataLoader(dataset, batch_sampler=copy.deepcopy(plan), num_workers=2)
    batches = iter(loader)
    try:
        return [_freeze(next(batches)) for _ in range(_BATCHES)]
    finally:
        batches.close()  # type: ignore[attr-defined]
        dataset._reader._store.close()


def _read_pixels(root: str, options: StorageOptions | None) -> list[bytes]:
    """Read four frames of a plate without shards, and of one with."""
    arrays = [open_plate(f"{root}/{name}/plate.zarr", {"A/1"}, options).fovs["A/1/0"].array for name in ("e0", "e1")]
    return [read_box(array, (slice(0, 4),)).tobytes() for array in arrays]


def _read_tracks(scene: Scene, options: Mapping[str, Any], folder: Path) -> list[bytes]:
    config = parse_build_config(scene.sources / "experiments.yaml").experiments[0]
    there = dataclasses.replace(config, tracks_path=f"{scene.source_url}/e0/tracks", storage=parse_options(options))
    tables = RemoteTracks(there, "experiments[0]")
    return [tracks.place.path.read_bytes() for tracks in tables.copy(FOVS, folder)]


@contextmanager
def _impatient() -> Iterator[None]:
    """Have uploads fail as soon as other requests do, and not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sending, "_RETRIES", 2)
        patch.setattr(sending, "_PATIENCE", 1)
        yield


def _build(scene: Scene, prefix: str, staging: Path, options: Mapping[str, Any]) -> dict[str, bytes]:
    """Send the local set, which is of the same config; return the objects that are then there."""
    shutil.copytree(scene.local, staging)
    config = parse_build_config(scene.sources / "experiments.yaml", BUILD_OPTIONS)
    build_shards(config, f"{scene.bucket.url}/{prefix}", upload=UploadOptions(staging=staging, storage_options=options))
    return _objects(scene, prefix)


def _objects(scene: Scene, prefix: str) -> dict[str, bytes]:
    store = scene.bucket.store(retries=3)
    names = [entry["path"] for entry in obstore.list(store, prefix).collect()]
    return {name.removeprefix(f"{prefix}/"): bytes(obstore.get(store, name).bytes()) for name in names}


def _send_set(scene: Scene, options: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """Build into a prefix of the trial's own; after an error no set is there, and another run ends it."""
    prefix = f"sent/{folder.name}"
    try:
        return _build(scene, prefix, folder / "staging", options)
    except DynaCLRError:
        assert contract.MANIFEST not in _objects(scene, prefix), "the set is there after an error"
        again = _build(scene, prefix, folder / "again", scene.bucket.storage_options())
        assert again == _expect_objects(scene), "the run after the error gave other objects"
        raise


def _expect_objects(scene: Scene) -> dict[str, bytes]:
    """List what a bucket has to hold of the set."""
    files = (path for path in scene.local.rglob("*") if path.is_file())
    return {path.relative_to(scene.local).as_posix(): path.read_bytes() for path in files}


def _freeze(batch: Any) -> Any:
    """Make of a batch what can be compared: all its bytes, and who is in it."""
    if isinstance(batch, torch.Tensor):
        return str(batch.dtype), tuple(batch.shape), batch.numpy().tobytes()
    if isinstance(batch, dict):
        return {key: _freeze(value) for key, value in batch.items()}
    return repr(list(batch))


OBJECTS = {
    "manifest": Object(
        target=r"/manifest\.json",
        read=_read_manifest,
        expected=lambda scene: (scene.local / contract.MANIFEST).read_bytes(),
        least_share=1.0,
    ),
    "listing": Object(
        target=r"list-type=2",
        named=r"the listing|/(index|e\d)/",
        read=_read_listed,
        expected=_batches_of(EXACT),
        by_place=("flip",),
        least_share=1.0,
    ),
    "index": Object(target=r"/index/", read=_read_index, expected=lambda scene: _index_of(ShardSet.open(scene.local))),
    "streaming block": Object(target=r"\.tar", read=_read_batches(STREAMING), expected=_batches_of(STREAMING)),
    "exact patch": Object(target=r"\.tar", read=_read_batches(EXACT), expected=_batches_of(EXACT)),
    "plate chunk": Object(
        target=r"plate\.zarr/A/1/0/0/(c/)?\d",
        read=lambda scene, options, _: _read_pixels(scene.source_url, parse_options(options)),
        expected=lambda scene: _read_pixels(str(scene.sources), None),
    ),
    "track file": Object(
        target=r"/tracks\.csv",
        read=_read_tracks,
        expected=lambda scene: [(scene.sources / "e0/tracks" / fov / "tracks.csv").read_bytes() for fov in FOVS],
        least_share=1.0,
    ),
    "upload": Object(
        target=r"/((e\d|index)/|manifest\.json)",
        read=_send_set,
        expected=_expect_objects,
        methods=("PUT",),
        prepare=_impatient,
    ),
}
"""Name, as docs/RELIABILITY.md has it → the kind of object."""
