"""Parts of a set meet in a bucket: in any order, twice, at once and killed, they end with the objects of one build."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import obstore
import pytest

import etl.upload.lease
import etl.upload.outlet
from dynaclr_wds.contract import MANIFEST, FileRecord, group_of
from dynaclr_wds.errors import BuildError, ConfigError, StorageError
from etl.build_shards import build_part, build_shards, main
from etl.run.parts import describe_missing
from etl.scratch import machine_name
from etl.source.experiments import parse_build_config
from etl.upload.build import UploadOptions
from etl.upload.lease import LEASE
from etl.upload.outlet import BucketOutlet
from etl.verify import verify
from tests.plates import make_collection
from tests.remote import quick
from tests.servers.bucket import Bucket
from tests.test_upload import PREFIX, Said, files, objects

pytestmark = pytest.mark.usefixtures("without_fsync")

NOTES = "versions/sending/"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiments.yaml of six groups; beside it `local`, their set. Read only."""
    root = tmp_path_factory.mktemp("parts")
    collection = make_collection(
        root, experiments=1, fovs=tuple(f"A/1/{n}" for n in range(6)), shape=(5, 2, 1, 32, 32), lineages=2,
        shard_bytes=60_000, block_bytes=9_000, clip_anchors=4, group_bytes=1,
    )  # fmt: skip
    build_shards(parse_build_config(collection, {}), root / "local")
    return collection


@pytest.fixture
def parts(bucket: Bucket, small: Path, tmp_path: Path) -> Parts:
    return Parts(bucket, small, tmp_path / "staging")


class Parts:
    """Builds a collection into a bucket in parts, each as if alone on its machine."""

    def __init__(self, bucket: Bucket, collection: Path, staging: Path) -> None:
        self._bucket, self.collection, self.staging = bucket, collection, staging
        self.where = f"{bucket.url}/{PREFIX}"

    @property
    def upload(self) -> UploadOptions:
        return UploadOptions(staging=self.staging, storage_options=quick(self._bucket))

    def build(self, part: str, said: Said | None = None, **options: Any) -> None:
        config = parse_build_config(self.collection, {"workers": 1, **options})
        build_part(config, self.where, part, upload=self.upload, progress=said)

    def finish(self, said: Said | None = None, **options: Any) -> None:
        config = parse_build_config(self.collection, {"workers": 1, **options})
        build_shards(config, self.where, upload=self.upload, finish=True, progress=said)

    def put(self, name: str, data: bytes) -> None:
        obstore.put(self._bucket.store(), f"{PREFIX}/{name}", data)

    def remove(self, name: str) -> None:
        obstore.delete(self._bucket.store(), f"{PREFIX}/{name}")

    def objects(self) -> dict[str, bytes]:
        return objects(self._bucket)

    def shards(self) -> set[str]:
        return {name for name in self.objects() if name.endswith(".tar")}


class Stopped(BaseException):
    """A part is killed here: nothing of it is tidied up in the bucket."""


def test_parts_in_any_order_and_twice_end_with_the_objects_of_a_local_build(
    parts: Parts, small: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    staged: list[set[str]] = []
    take = BucketOutlet.take

    def watched(outlet: BucketOutlet, part: FileRecord) -> None:
        staged.append({group_of(path.name) for path in parts.staging.rglob("*.tar")})
        take(outlet, part)

    monkeypatch.setattr(BucketOutlet, "take", watched)
    said = Said()
    for part in ("3/3", "1/3", "3/3"):
        parts.build(part, said)
    assert said.lines[-1] == "part 3/3: its 2 groups of 6 are built. When all parts are, --finish."
    assert MANIFEST not in parts.objects()
    arrived = parts.shards()
    assert [len(groups) for groups in staged] == [1, 1, 1, 1, 0, 0], "one on the disk, and none that has arrived"
    with pytest.raises(BuildError) as error:
        parts.finish()
    assert parts.shards() == arrived
    assert str(error.value) == (
        f"{parts.where}: 2 groups of 6 are not built yet (number 2 is the first). Run --part 2/3, then --finish; or "
        "leave out --finish, and this command builds them."
    )
    parts.build("2/3")
    (parts.staging / ".parts" / f"dynaclr-wds-{machine_name()}-part-killed" / "staged").mkdir(parents=True)
    parts.finish()
    assert parts.objects() == files(small.parent / "local")
    for name, key in (("ACCESS_KEY_ID", "access_key_id"), ("SECRET_ACCESS_KEY", "secret_access_key")):
        monkeypatch.setenv(f"AWS_{name}", bucket.options[key])
    words = [str(small), "--out", parts.where, "--workers", "1", "--part", "2/3", "--staging", str(parts.staging)]
    assert main([*words, "--storage_options", f"endpoint={bucket.endpoint}", "region=us-east-1"]) == 0  # for nothing
    assert "up to date, nothing to do" in capsys.readouterr().err
    assert parts.objects() == files(small.parent / "local")
    assert not parts.staging.exists()


@pytest.mark.parametrize("killed", [False, True])
def test_a_part_that_is_requeued_while_its_first_copy_still_sends_harms_nothing(
    parts: Parts, small: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
):
    send_file, sending = etl.upload.outlet.send_file, iter(range(99))

    def send_as_the_first_copy(*arguments: Any) -> None:
        if next(sending) == 1:  # one object of its first group has arrived: the other copy runs from begin to end
            with monkeypatch.context() as patch:
                patch.setattr(etl.upload.outlet, "send_file", send_file)
                parts.build("1/2")
            if killed:
                raise Stopped
        send_file(*arguments)

    monkeypatch.setattr(etl.upload.outlet, "send_file", send_as_the_first_copy)
    if killed:
        with pytest.raises(Stopped):
            parts.build("1/2")
    else:
        parts.build("1/2")
    assert next(sending) > 1
    monkeypatch.setattr(etl.upload.outlet, "send_file", send_file)
    parts.build("2/2")
    parts.finish()
    assert parts.objects() == files(small.parent / "local")


def test_an_upload_that_fails_because_another_copy_made_the_object_is_no_failure(
    parts: Parts, small: Path, monkeypatch: pytest.MonkeyPatch
):
    send_file = etl.upload.outlet.send_file

    def send_after_another(*arguments: Any) -> None:
        send_file(*arguments)
        raise StorageError("the list of blocks is not valid")  # as Azure says when another one put it together

    monkeypatch.setattr(etl.upload.outlet, "send_file", send_after_another)
    parts.build("1/1")
    monkeypatch.setattr(etl.upload.outlet, "send_file", lambda *_: (_ for _ in ()).throw(StorageError("no disk")))
    with pytest.raises(StorageError, match="no disk"):
        parts.build("1/1", seed=1)
    monkeypatch.setattr(etl.upload.outlet, "send_file", send_file)
    parts.finish()
    assert parts.objects() == files(small.parent / "local")


def test_what_parts_of_another_set_sent_is_removed_also_of_one_that_still_runs(
    parts: Parts, small: Path, monkeypatch: pytest.MonkeyPatch
):
    parts.put("build.probe-part-1-of-2", b"")  # of a copy that was killed when it tried to write
    parts.build("1/2")
    parts.put("theirs.tar", b"of somebody else")
    parts.put(f"{NOTES}damaged.json", b'{"groups": ["", 3]}')
    expected = {"theirs.tar": b"of somebody else", **files(small.parent / "local")}
    take, taken = BucketOutlet.take, iter(range(99))

    def take_as_the_slow_part(outlet: BucketOutlet, part: FileRecord) -> None:
        take(outlet, part)
        if next(taken) == 0:  # it has sent a group, and goes on when the other set has ended
            with monkeypatch.context() as patch:
                patch.setattr(BucketOutlet, "take", take)
                parts.build("2/2")
                parts.finish()
            assert parts.objects() == expected

    monkeypatch.setattr(BucketOutlet, "take", take_as_the_slow_part)
    parts.build("1/2", seed=1)
    monkeypatch.setattr(BucketOutlet, "take", take)
    left = set(parts.objects()) - set(expected)
    assert any(name.endswith(".tar") for name in left)
    assert sum(name.startswith(NOTES) for name in left) == 1
    parts.finish()  # up to date, and tidies up
    assert parts.objects() == expected


def test_finish_waits_for_another_build_to_end(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    parts.put(LEASE, b"of another build")
    said, waited = Said(), []

    def end_other(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            parts.remove(LEASE)

    monkeypatch.setattr(etl.upload.lease, "time", SimpleNamespace(sleep=end_other, monotonic=time.monotonic))
    with pytest.raises(BuildError, match=r"6 groups of 6 are not built yet .* Run the parts that did not end, then"):
        parts.finish(said)
    assert waited == [5.0, 5.0]
    line = f"{parts.where}: another build is writing there (a process that is not known); waiting for it to end."
    assert [text for text in said.lines if "another build" in text] == [line]


def spoil(collection: Path) -> None:
    """Overwrite a chunk of the second FOV."""
    frame = collection.parent / "experiment0/plate.zarr/A/1/1/0/2"
    chunk = sorted(path for path in frame.rglob("*") if path.is_file())[0]
    chunk.write_bytes(b"x" * chunk.stat().st_size)


def test_a_fov_that_a_part_skips_is_left_out_of_all_segments_when_parts_are_joined_and_nothing_of_it_is_left(
    bucket: Bucket, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    collection = Path(shutil.copytree(small.parent, tmp_path / "data")) / small.name
    parts, options = Parts(bucket, collection, tmp_path / "staging"), {"on_bad_fov": "skip", "group_bytes": 1 << 30}
    options["segment_frames"] = 3  # the first has the chunk that can't be read
    spoil(collection)
    send_file = etl.upload.outlet.send_file

    def send_shards_only(storage: Any, name: str, *arguments: Any) -> None:
        if name.endswith(".npz"):
            raise Stopped
        send_file(storage, name, *arguments)

    monkeypatch.setattr(etl.upload.outlet, "send_file", send_shards_only)
    with pytest.raises(Stopped):
        parts.build("2/2", seed=1, **options)
    left = parts.shards()
    assert left
    monkeypatch.setattr(etl.upload.outlet, "send_file", send_file)
    said = Said()
    for part in ("2/2", "1/2"):
        parts.build(part, said, **options)
    assert any(line.startswith("skipped: experiment0, A/1/1: ") for line in said.lines)
    assert parts.shards() > left
    assert sum(name.endswith("-bad.npz") for name in parts.objects()) == 1
    parts.finish(**options)
    local = build_shards(parse_build_config(collection, options), tmp_path / "skipped")
    assert [record.fov_name for record in local.skipped] == ["A/1/1"]
    assert parts.objects() == files(tmp_path / "skipped")
    assert verify(parts.where, storage_options=quick(bucket)) == []


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("https://host/set", {}, "out='https://host/set': https:// can be read, but not written to"),
        ("s3://bucket/set", {"keep_staging": True}, "part=1/2 keeps no set on this machine, so keep_staging"),
        ("folder", {"staging": Path("here")}, "out='folder' is a folder: staging, keep_staging are for object storage"),
    ],
)
def test_options_of_parts_that_do_not_fit_are_named(
    parts: Parts, place: str, options: dict[str, Any], message: str, bucket: Bucket
):
    where = parts.where if place.startswith("s3") else place
    upload = UploadOptions(storage_options=quick(bucket) if place.startswith("s3") else None, **options)
    with pytest.raises(ConfigError) as error:
        build_part(parse_build_config(parts.collection, {}), where, "1/2", upload=upload)
    assert message in str(error.value)


def test_a_build_that_puts_parts_together_keeps_no_local_copy(parts: Parts):
    upload = UploadOptions(keep_staging=True, storage_options=parts.upload.storage_options)
    with pytest.raises(ConfigError, match="finish brings no shards to this machine, which keep_staging asks for"):
        build_shards(parse_build_config(parts.collection, {}), parts.where, upload=upload, finish=True)


@pytest.mark.parametrize(
    ("missing", "counts", "text"),
    [
        ([1], set(), "1 group of 40 is not built yet (number 2 is the first). Run the parts that did not end, then"),
        ([1, 5], {4}, "2 groups of 40 are not built yet (number 2 is the first). Run --part 2/4, then --finish"),
        ([0, 4, 2], {4}, "Run --part 1/4 and --part 3/4, then --finish"),
        ([3, 11], {4, 5}, "Run --part 4/4, then --finish"),
        (list(range(12)), {12}, "--part 7/12, --part 8/12 and 4 more, then --finish"),
    ],
)
def test_the_parts_to_run_again_are_named(missing: list[int], counts: set[int], text: str):
    assert text in describe_missing(missing, 40, counts)
