"""Shards go to a bucket group by group: few are on the disk at a time, and what has arrived is not built again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import etl.unit.build
import etl.upload.outlet
import etl.upload.transfer
from dynaclr_wds.contract import MANIFEST, FileRecord, group_of
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from etl.upload.build import UploadOptions
from etl.upload.lease import LEASE
from etl.upload.outlet import BucketOutlet
from tests.growing_plates import GrowingPlate
from tests.plates import make_collection
from tests.remote import quick
from tests.servers.bucket import Bucket
from tests.test_upload import PREFIX, damage, files, objects, send

pytestmark = pytest.mark.usefixtures("without_fsync")

NOTES = "versions/sending/"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiments.yaml of six groups; beside it `local`, their set. Read only."""
    root = tmp_path_factory.mktemp("outlet")
    collection = make_collection(root, lineages=2, shard_bytes=60_000, block_bytes=9_000, clip_anchors=4, group_bytes=1)
    build_shards(parse_build_config(collection, {}), root / "local")
    return collection


class Watch:
    """Watches units that are built, and what they leave on the disk when they end; fails after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, staging: Path, most: int = 99) -> None:
        self.cut: list[str] = []
        self.staged: list[set[str]] = []
        cut_fov, take = etl.unit.build.cut_fov, BucketOutlet.take

        def watched_cut(job: Any, stored: Any) -> Any:
            self.cut.append(f"{job.fov.plate_path}/{job.fov.name}")
            return cut_fov(job, stored)

        def watched_take(outlet: BucketOutlet, part: FileRecord) -> None:
            self.staged.append({group_of(path.name) for path in staging.rglob("*.tar")})
            if len(self.staged) > most:
                raise RuntimeError("stopped")
            take(outlet, part)

        monkeypatch.setattr(etl.unit.build, "cut_fov", watched_cut)
        monkeypatch.setattr(BucketOutlet, "take", watched_take)


def stop_after_two_groups(
    bucket: Bucket, small: Path, staging: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    with monkeypatch.context() as patch:
        Watch(patch, staging, most=2)
        with pytest.raises(RuntimeError, match="stopped"):
            send(bucket, small, staging, workers=1, **options)


def test_the_disk_holds_the_shards_of_one_group_for_each_worker(
    bucket: Bucket, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watch = Watch(monkeypatch, tmp_path / "staging")
    manifest = send(bucket, small, tmp_path / "staging", workers=1)
    assert len(watch.staged) == len(watch.cut) == len({group_of(shard.path) for shard in manifest.shards}) == 6
    assert all(len(staged) == 1 for staged in watch.staged)
    assert objects(bucket) == files(small.parent / "local")
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("folder", ["staging", "another"])
def test_what_has_arrived_is_not_built_again_also_from_another_machine(
    folder: str, bucket: Bucket, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stop_after_two_groups(bucket, small, tmp_path / "staging", monkeypatch)
    left = objects(bucket)
    assert {MANIFEST, LEASE}.isdisjoint(left)
    whole = files(small.parent / "local")
    assert {name: data for name, data in left.items() if not name.startswith(NOTES)}.items() <= whole.items()
    assert 2 < len(left) < len(whole)
    watch = Watch(monkeypatch, tmp_path / folder)
    send(bucket, small, tmp_path / folder, workers=1)
    assert len(watch.cut) == {"staging": 3, "another": 4}[folder]  # the third group was built, and not sent
    assert objects(bucket) == whole


def test_what_arrived_of_a_build_that_never_ended_is_removed_by_the_next_one_that_ends(
    bucket: Bucket, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stop_after_two_groups(bucket, small, tmp_path / "staging", monkeypatch, seed=1)
    assert any(name.startswith(NOTES) for name in objects(bucket))
    send(bucket, small, tmp_path / "other", workers=1)
    assert objects(bucket) == files(small.parent / "local")


def test_shards_of_units_that_run_elsewhere_are_sent_from_here(bucket: Bucket, small: Path, tmp_path: Path):
    upload = UploadOptions(staging=tmp_path / "staging", storage_options=quick(bucket))
    config = parse_build_config(small, {"workers": 2})
    where = f"{bucket.url}/{PREFIX}"
    build_shards(config, where, upload=upload, make_executor=lambda workers, _: ThreadPoolExecutor(workers))
    assert objects(bucket) == files(small.parent / "local")


def test_a_shard_that_is_damaged_is_built_and_sent_alone(
    bucket: Bucket, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest = send(bucket, small, tmp_path / "staging")
    damage(bucket, manifest.shards[0].path, 5000)
    watch = Watch(monkeypatch, tmp_path / "staging")
    send(bucket, small, tmp_path / "staging", repair=True)
    assert len(watch.cut) == 1
    assert objects(bucket) == files(small.parent / "local")


def test_a_set_that_grows_in_a_bucket_is_that_of_a_disk_and_complete_segments_are_not_sent_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"block_bytes": 6000, "clip_anchors": 2, "segment_frames": 4, "workers": 1}
    plate, sent = GrowingPlate(tmp_path, frames=7, most=11, **options), list[str]()
    send_file = etl.upload.outlet.send_file

    def watched(storage: Any, name: str, *arguments: Any) -> None:
        sent.append(name)
        send_file(storage, name, *arguments)

    for module in (etl.upload.outlet, etl.upload.transfer):
        monkeypatch.setattr(module, "send_file", watched)
    plate.write()
    for frames in (7, 11):
        plate.grow(frames)
        sent.clear()
        send(bucket, plate.yaml, tmp_path / "staging", workers=1)
        build_shards(parse_build_config(plate.yaml, {}), tmp_path / "local")
        assert sum(name.endswith(".tar") for name in sent) == 4  # of two segments and two conditions
    assert objects(bucket) == files(tmp_path / "local")
