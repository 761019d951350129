"""Building into object storage: the bytes of a local build, whole or not there, by one build at a time."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import xxhash
import yaml

import etl.upload.lease
from dynaclr_wds.contract import MANIFEST, PARTS_DIR, Manifest, array_path, format_checksum
from dynaclr_wds.errors import BuildError, ChecksumError, ConfigError, StorageError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage.client import DeniedError, Storage
from dynaclr_wds.storage.location import Location, parse_place
from dynaclr_wds.storage.options import MIB, parse_options
from dynaclr_wds.storage.sending import open_for_sending, read_checksum, send_file
from dynaclr_wds.storage.writing import ConflictError, create, honours_conditions, replace
from etl.build_shards import build_shards, main
from etl.run.executors import Interrupted
from etl.run.progress import LineProgress, Progress
from etl.run.versions import list_files
from etl.source.experiments import parse_build_config
from etl.upload.build import UploadOptions
from etl.upload.lease import LEASE
from etl.verify import main as verify_command
from etl.verify import verify
from tests.plates import make_collection
from tests.remote import EXACT, STREAMING, assert_same, make_data, quick, read_batches
from tests.servers.bucket import Bucket
from tests.servers.faults import Rule, Schedule, one_fault
from tests.servers.moto import Moto
from tests.servers.proxy import Link, Proxy
from tests.servers.seaweedfs import SeaweedFS
from tests.set_files import find_array

pytestmark = pytest.mark.usefixtures("without_fsync")

MakeProxy = Callable[..., Proxy]
PREFIX = "sets/first"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiments.yaml of two small experiments; beside it `local`, their set. Read only."""
    root = tmp_path_factory.mktemp("upload")
    collection = make_collection(root, lineages=2, shard_bytes=60_000, block_bytes=9_000, clip_anchors=4)
    build_shards(parse_build_config(collection, {}), root / "local")
    return collection


@pytest.fixture
def staged(small: Path, tmp_path: Path) -> Path:
    """A copy of the set of `small`, to be sent."""
    return shutil.copytree(small.parent / "local", tmp_path / "staged")


def damage(bucket: Bucket, name: str, at: int) -> None:
    """Flip a bit of an object, which goes on saying that it has its old checksum."""
    store = bucket.store()
    found = obstore.get(store, f"{PREFIX}/{name}")
    checksum, data = found.attributes["xxh3"], bytearray(found.bytes())
    data[at] ^= 1
    obstore.put(store, f"{PREFIX}/{name}", bytes(data), attributes={"xxh3": checksum})


class Said(Progress):
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def send(bucket: Bucket, collection: Path, staging: Path, said: Said | None = None, **options: Any) -> Manifest:
    """Build into a bucket by way of a folder; options of the build are those of `parse_build_config`."""
    switches = {name: options.pop(name) for name in ("replace", "prune", "overwrite", "repair") if name in options}
    kept = {name: options.pop(name) for name in ("keep_staging",) if name in options}
    upload = UploadOptions(staging=staging, storage_options=quick(bucket), **kept)
    config = parse_build_config(collection, options)
    return build_shards(config, f"{bucket.url}/{PREFIX}", upload=upload, progress=said, **switches)


def objects(bucket: Bucket) -> dict[str, bytes]:
    """Every object below the prefix: name → content."""
    store = bucket.store(retries=3)
    names = [entry["path"] for entry in obstore.list(store, PREFIX).collect()]
    return {name.removeprefix(f"{PREFIX}/"): bytes(obstore.get(store, name).bytes()) for name in names}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def storage_of(bucket: Bucket, **options: Any) -> Storage:
    where = parse_place(f"{bucket.url}/{PREFIX}")
    assert isinstance(where, Location)
    return Storage(where, parse_options(quick(bucket, **options)))


@pytest.mark.slow
def test_a_set_built_into_a_bucket_has_the_bytes_of_a_local_one_and_trains_the_same_batches(
    bucket: Bucket, collection: Path, short_clips: Path, tmp_path: Path
):
    send(bucket, collection, tmp_path / "staging", clip_anchors=4, block_bytes=1 << 16)
    assert objects(bucket) == files(short_clips)
    assert not (tmp_path / "staging").exists()
    for mode in (EXACT, STREAMING):
        remote = make_data(
            f"{bucket.url}/{PREFIX}", storage_options=quick(bucket), cache_dir=str(tmp_path / "cache"), **mode
        )
        assert_same(read_batches(remote), read_batches(make_data(short_clips, **mode)))


@pytest.mark.parametrize("server", ["moto", "azurite", "gcs"])
def test_other_servers_hold_the_same_objects_and_are_found_up_to_date(
    server: str, request: pytest.FixtureRequest, bucket_name: str, small: Path, staged: Path
):
    bucket = request.getfixturevalue(server).bucket(bucket_name)
    manifest = send(bucket, small, staged)
    assert objects(bucket) == files(small.parent / "local")
    said = Said()
    assert send(bucket, small, staged, said).to_json() == manifest.to_json()
    assert said.found_up_to_date
    assert "up to date, nothing to do" in said.lines[0]
    shard = manifest.shards[0]
    assert read_checksum(storage_of(bucket), shard.path) == shard.xxh3  # so a build that was stopped knows it again


def test_a_copy_of_the_bucket_on_a_disk_is_a_set(bucket: Bucket, small: Path, staged: Path, tmp_path: Path):
    send(bucket, small, staged)
    for name, data in objects(bucket).items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    copy = ShardSet.open(tmp_path / "copy")
    local = ShardSet.open(small.parent / "local")
    assert all((copy.arrays[name] == local.arrays[name]).all() for name in ("patch_offset", "block_xxh3", "obs_t"))


def test_a_set_that_the_user_had_is_sent_and_stays(bucket: Bucket, small: Path, staged: Path):
    before = files(staged)
    send(bucket, small, staged)
    assert files(staged) == before


def test_https_is_refused_because_it_cannot_be_written(small: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"out='https://example\.org/sets': https:// can be read, but not written to"):
        build_shards(parse_build_config(small, {}), "https://example.org/sets", upload=UploadOptions(staging=tmp_path))


def test_options_for_object_storage_need_it(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(small), "--out", str(tmp_path / "out"), "--keep_staging"]) == 2
    assert "staging, keep_staging are for object storage" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_read_only_key_is_one_error_before_any_work(
    seaweedfs: SeaweedFS, bucket: Bucket, bucket_name: str, small: Path, tmp_path: Path
):
    reader, said = seaweedfs.bucket(bucket_name, "reader"), Said()
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"the key may read there, but not write \(status 403 AccessDenied\)"):
        send(reader, small, tmp_path / "staging", said)
    assert time.monotonic() - begun < 3
    assert said.lines == []
    assert not (tmp_path / "staging").exists()
    assert objects(bucket) == {}


def test_a_wrong_key_is_one_error_soon(bucket: Bucket, small: Path, tmp_path: Path):
    begun = time.monotonic()
    with pytest.raises(
        StorageError, match=r"manifest\.json: the server refused the credentials \(status 403\)"
    ) as error:
        send(bucket.with_options(secret_access_key="wrong-secret"), small, tmp_path / "staging")
    assert time.monotonic() - begun < 10
    assert "wrong-secret" not in str(error.value)
    assert not (tmp_path / "staging").exists()


def test_an_experiment_that_is_dropped_stays_until_the_new_manifest_is_there(
    bucket: Bucket, small: Path, staged: Path, tmp_path: Path, proxy_before: MakeProxy
):
    old = send(bucket, small, staged)
    entries = yaml.safe_load(small.read_text())
    one = small.parent / "one.yaml"
    one.write_text(yaml.safe_dump(entries | {"experiments": entries["experiments"][:1]}))
    with pytest.raises(BuildError, match=r"manifest\.json: holds experiment1, which .* Give --prune to drop that"):
        send(bucket, one, tmp_path / "staging")
    proxy = proxy_before(bucket.endpoint)
    said = Said()
    new = send(proxy.before(bucket), one, tmp_path / "staging", said, prune=True)
    build_shards(parse_build_config(one, {}), tmp_path / "local")
    assert new.set_version == 2
    expected = files(tmp_path / "local") | {MANIFEST: new.to_json().encode()}
    assert objects(bucket) == expected
    assert dataclasses.replace(new, set_version=1).to_json().encode() == files(tmp_path / "local")[MANIFEST]
    requests = [(seen.head.method, seen.head.target) for seen in proxy.seen]
    put = next(n for n, (method, target) in enumerate(requests) if method == "PUT" and target.endswith(f"/{MANIFEST}"))
    removals = [n for n, (method, target) in enumerate(requests) if method == "POST" and target.endswith("?delete")]
    assert min(n for n in removals if n > put) < removals[-1]  # those of the set, and then of the lease
    assert not [target for method, target in requests if method == "PUT" and ".tar" in target]  # all are there
    gone = list_files(old).keys() - list_files(new).keys()
    assert any(line.startswith(f"{bucket.url}/{PREFIX}: removed {len(gone)} files (") for line in said.lines)


def test_readers_of_an_earlier_version_go_on_until_it_is_pruned(
    bucket: Bucket, small: Path, staged: Path, tmp_path: Path
):
    send(bucket, small, staged)
    before, said = objects(bucket), Said()
    new = send(bucket, small, tmp_path / "staging", said, replace=True, seed=1)
    after = objects(bucket)
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: data for name, data in before.items() if name != MANIFEST
    }
    assert after["versions/1.json"] == before[MANIFEST]
    size = sum(len(data) for name, data in before.items() if name != MANIFEST) / 1e3
    kept = f"{len(before) - 1} files ({size:.3g} kB) of 1 earlier version of the set stay for trainings that read them."
    assert f"{bucket.url}/{PREFIX}: {kept} --prune removes them." in said.lines
    again = Said()
    send(bucket, small, tmp_path / "staging", again, prune=True, seed=1)
    assert again.found_up_to_date
    assert objects(bucket).keys() == list_files(new).keys() | {MANIFEST}


def test_objects_of_an_upload_that_never_ended_are_removed_by_the_next_one(
    bucket: Bucket, small: Path, staged: Path, tmp_path: Path, proxy_before: MakeProxy
):
    first = send(bucket, small, staged)
    own = {f"{PREFIX}/mine-0123456789ab-000000.tar": b"of somebody else"}
    for name, data in own.items():
        obstore.put(bucket.store(), name, data)
    proxy = proxy_before(bucket.endpoint, Schedule(rules=(Rule(kinds=("403",), methods=("PUT",), target="stats_fov"),)))
    with pytest.raises(StorageError):
        send(proxy.before(bucket), small, tmp_path / "staging", replace=True, seed=1)
    assert any(name.endswith(".tar") for name in objects(bucket).keys() - list_files(first).keys())
    said = Said()
    send(bucket, small, staged, said)
    assert re.fullmatch(r"removed \d+ objects of an upload that never ended", said.lines[-2])
    assert objects(bucket).keys() == {*list_files(first), MANIFEST, "mine-0123456789ab-000000.tar"}


def test_a_flipped_byte_is_found_and_mended_and_nothing_else_is_sent(
    bucket: Bucket, small: Path, staged: Path, tmp_path: Path, proxy_before: MakeProxy
):
    manifest = send(bucket, small, staged)
    whole = objects(bucket)
    name = f"{manifest.shards[0].path}"
    damage(bucket, name, 5000)
    proxy = proxy_before(bucket.endpoint)
    said = Said()
    send(proxy.before(bucket), small, tmp_path / "staging", said, repair=True)
    assert objects(bucket) == whole
    where, path = f"{bucket.url}/{PREFIX}", re.escape(manifest.shards[0].path)
    assert f"{where}: 1 of 54 files is not what was written:" in said.lines
    assert any(re.match(rf"  {path}: the bytes are not those that were written \(checksum ", s) for s in said.lines)
    assert "Built again from the plates: 1 of 13 shards. The others stay; the index is written again." in said.lines
    assert said.lines[-1] == (
        f"{where}: mended. Built again: 1 of 13 shards and 0 of 41 index files; the others are as they were."
    )
    assert [s.head.target for s in proxy.seen if s.head.method == "PUT" and ".tar" in s.head.target] == [
        f"/{bucket.url.removeprefix('s3://')}/{PREFIX}/{name}"
    ]


@pytest.mark.parametrize("name", ["obs_y", "block_xxh3"])
def test_an_index_that_is_damaged_in_the_bucket_is_mended_and_no_shard_is_sent(
    name: str, bucket: Bucket, small: Path, staged: Path, tmp_path: Path, proxy_before: MakeProxy
):
    manifest = send(bucket, small, staged)
    whole = objects(bucket)
    damage(bucket, f"{manifest.index_file(array_path(name))}", 200)
    proxy, said = proxy_before(bucket.endpoint), Said()
    send(proxy.before(bucket), small, tmp_path / "staging", said, repair=True)
    assert objects(bucket) == whole
    targets = [s.head.target for s in proxy.seen if s.head.method == "PUT"]
    assert sum(name in target for target in targets) == 1
    assert not any(".tar" in target for target in targets)
    assert "All 13 shards are whole and stay; only the index is written again." in said.lines
    said.lines.clear()
    send(bucket, small, tmp_path / "staging", said, repair=True)
    assert f"{bucket.url}/{PREFIX}: all 54 files are what was written; nothing to mend." in said.lines


def test_an_index_file_that_a_build_reads_and_finds_damaged_is_sent_anew_though_nobody_asked(
    bucket: Bucket, small: Path, staged: Path, tmp_path: Path
):
    """Files are believed by their sizes; what is read of them is compared with its checksum, and believed no more."""
    manifest = send(bucket, small, staged)
    whole, said = objects(bucket), Said()
    part = next(file.path for file in manifest.files if file.path.startswith(PARTS_DIR))
    damage(bucket, f"{part}", 200)
    obstore.delete(bucket.store(), f"{PREFIX}/{manifest.shards[1].path}")
    send(bucket, small, tmp_path / "staging", said)
    assert objects(bucket) == whole
    assert f"{bucket.url}/{PREFIX}: 2 of 54 files are not what was written:" in said.lines


def test_a_damaged_manifest_in_a_bucket_is_repaired_and_said(bucket: Bucket, small: Path, staged: Path, tmp_path: Path):
    send(bucket, small, staged)
    whole, said = objects(bucket), Said()
    obstore.put(bucket.store(), f"{PREFIX}/{MANIFEST}", b"{}")
    with pytest.raises(BuildError, match=r"is not the manifest .* Give --replace to build it anew"):
        send(bucket, small, tmp_path / "staging")
    send(bucket, small, tmp_path / "staging", said, repair=True)
    assert said.lines[0].startswith(
        f"{bucket.url}/{PREFIX}/{MANIFEST}: is not the manifest of a dynaclr-wds shard set."
    )
    assert said.lines[0].endswith("manifest.json says what all other files must be, so the whole set is built again.")
    assert objects(bucket) == whole


def test_overwrite_sends_everything_anew(bucket: Bucket, small: Path, staged: Path, tmp_path: Path):
    manifest = send(bucket, small, staged)
    whole = objects(bucket)
    damage(bucket, f"{manifest.shards[0].path}", 5000)
    said = Said()
    send(bucket, small, tmp_path / "staging", said)
    assert said.found_up_to_date  # sizes only, as of a local set; --repair would have looked
    send(bucket, small, tmp_path / "staging", overwrite=True)
    assert objects(bucket) == whole


def test_an_object_that_is_gone_is_built_and_sent_again(bucket: Bucket, small: Path, staged: Path, tmp_path: Path):
    manifest = send(bucket, small, staged)
    whole = objects(bucket)
    obstore.delete(bucket.store(), f"{PREFIX}/{manifest.shards[1].path}")
    send(bucket, small, tmp_path / "staging")
    assert objects(bucket) == whole


def test_a_stopped_upload_goes_on_and_sends_nothing_twice(
    bucket: Bucket, small: Path, staged: Path, proxy_before: MakeProxy
):
    proxy = proxy_before(bucket.endpoint, Schedule(rules=(Rule(kinds=("403",), methods=("PUT",), target="stats_fov"),)))
    with pytest.raises(StorageError, match=r"arrays/stats_fov\.npy: the server refused the credentials"):
        send(proxy.before(bucket), small, staged)
    there = set(objects(bucket)) - {"versions/next.json"}
    assert MANIFEST not in there
    assert LEASE not in there
    assert 0 < len(there) < len(files(staged))
    proxy.use(Schedule())
    send(proxy.before(bucket), small, staged)
    sent = {s.head.target.partition(f"{PREFIX}/")[2] for s in proxy.seen if s.head.method == "PUT"}
    assert not sent & there
    assert objects(bucket) == files(small.parent / "local")


@pytest.mark.parametrize("target", [MANIFEST, LEASE])
def test_a_lost_reply_to_a_create_is_recognised_as_our_own(
    target: str, bucket: Bucket, small: Path, staged: Path, proxy_before: MakeProxy
):
    proxy = proxy_before(bucket.endpoint, one_fault("lose", methods=("PUT",), target=target))
    send(proxy.before(bucket), small, staged)
    assert proxy.faults == {"lose": 1}
    assert objects(bucket) == files(small.parent / "local")


@pytest.mark.parametrize(
    ("kind", "target"), [("500", "partNumber=1"), ("drop", "partNumber=3"), ("lose", "uploadId=[^&]*$")]
)
def test_a_large_file_goes_up_in_parts_through_faults(
    kind: str, target: str, bucket: Bucket, tmp_path: Path, proxy_before: MakeProxy
):
    path, checksum = large_file(tmp_path)
    proxy = proxy_before(bucket.endpoint, one_fault(kind, methods=("PUT", "POST"), target=target))
    counted: list[int] = []
    send_file(sending(proxy.before(bucket)), "large", path, checksum, counted.append)
    assert objects(bucket)["large"] == path.read_bytes()
    assert proxy.faults == {kind: 1}
    assert sum(counted) == path.stat().st_size


@pytest.mark.parametrize("reason", ["stopped", "damaged"])
def test_parts_are_given_up_when_an_upload_is_stopped_and_nothing_is_visible(
    reason: str, bucket: Bucket, tmp_path: Path, proxy_before: MakeProxy
):
    path, checksum = large_file(tmp_path)
    proxy = proxy_before(bucket.endpoint)
    seen: list[int] = []

    def advance(done: int) -> None:
        seen.append(done)
        if reason == "stopped" and len(seen) == 4:
            raise Interrupted

    if reason == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    error, match = (Interrupted, None) if reason == "stopped" else (ChecksumError, "was changed after it was written")
    with pytest.raises(error, match=match):
        send_file(sending(proxy.before(bucket)), "large", path, checksum, advance)
    begun = [s.head.target for s in proxy.seen if s.head.method == "POST" and s.head.target.endswith("?uploads=")]
    ended = [s.head.target for s in proxy.seen if s.head.method == "DELETE" and "uploadId=" in s.head.target]
    assert len(begun) == len(ended) == 1
    assert objects(bucket) == {}


def large_file(tmp_path: Path) -> tuple[Path, str]:
    """A file of three parts, and its checksum."""
    data = np.random.default_rng(3).bytes(11 * MIB)
    (tmp_path / "large").write_bytes(data)
    return tmp_path / "large", format_checksum(xxhash.xxh3_64_intdigest(data))


def sending(bucket: Bucket) -> Storage:
    storage = storage_of(bucket, request_bytes=MIB)
    return open_for_sending(storage.root, storage.options)


def test_of_two_builds_at_once_one_goes_on_and_the_other_says_so(
    bucket: Bucket, small: Path, staged: Path, tmp_path: Path, proxy_before: MakeProxy
):
    slow, ended = proxy_before(bucket.endpoint, link=Link(delay_seconds=0.05)), []
    first = threading.Thread(target=lambda: ended.append(send(slow.before(bucket), small, staged)))
    first.start()
    while LEASE not in {
        name.rpartition("/")[2] for name in (e["path"] for e in obstore.list(bucket.store()).collect())
    }:
        time.sleep(0.01)
    with pytest.raises(BuildError, match=r"another build is writing there \(process \d+ on .*, begun 20.*\)"):
        send(bucket, small, tmp_path / "other")
    first.join()
    assert objects(bucket) == files(small.parent / "local")
    assert not (tmp_path / "other").exists()


def test_a_lease_that_nobody_renews_is_taken_over(
    bucket: Bucket, small: Path, staged: Path, monkeypatch: pytest.MonkeyPatch
):
    create(storage_of(bucket), LEASE, b"left by a build that was killed")
    with pytest.raises(BuildError, match="another build is writing there"):
        send(bucket, small, staged)
    monkeypatch.setattr(etl.upload.lease, "VALID_SECONDS", 0.0)
    said = Said()
    send(bucket, small, staged, said)
    assert any("it is taken over" in line for line in said.lines)
    assert objects(bucket) == files(small.parent / "local")


def test_a_build_whose_lease_was_taken_stops_before_the_manifest(
    bucket: Bucket, small: Path, staged: Path, monkeypatch: pytest.MonkeyPatch, proxy_before: MakeProxy
):
    monkeypatch.setattr(etl.upload.lease, "_RENEW_SECONDS", 0.05)
    proxy = proxy_before(bucket.endpoint, link=Link(delay_seconds=0.05))

    class Taken(Said):
        def say(self, text: str) -> None:
            super().say(text)

        def stage(self, *arguments: Any) -> Any:
            obstore.put(bucket.store(), f"{PREFIX}/{LEASE}", b"another build")
            time.sleep(0.5)
            return super().stage(*arguments)

    with pytest.raises(BuildError, match="another build took over"):
        send(proxy.before(bucket), small, staged, Taken())
    found = objects(bucket)
    assert MANIFEST not in found
    assert found[LEASE] == b"another build"


def test_a_manifest_that_somebody_else_wrote_meanwhile_is_left(bucket: Bucket, small: Path, staged: Path):
    class Meddling(Said):
        def stage(self, *arguments: Any) -> Any:
            obstore.put(bucket.store(), f"{PREFIX}/{MANIFEST}", b"theirs")
            return super().stage(*arguments)

    with pytest.raises(BuildError, match=r"manifest\.json: was changed by somebody else during this build"):
        send(bucket, small, staged, Meddling())
    assert objects(bucket)[MANIFEST] == b"theirs"


@pytest.mark.parametrize("server", ["seaweedfs", "moto"])
def test_conditions_are_tried_before_they_are_trusted(
    server: str, request: pytest.FixtureRequest, bucket_name: str, proxy_before: MakeProxy
):
    bucket = request.getfixturevalue(server).bucket(bucket_name)
    assert honours_conditions(storage_of(bucket), "probe")[0]
    if server == "moto":  # SeaweedFS wants the headers that were signed
        deaf = proxy_before(bucket.endpoint, link=Link(drop_headers=("If-None-Match", "If-Match")))
        assert not honours_conditions(storage_of(deaf.before(bucket)), "probe")[0]
    rule = Rule(kinds=("501",), methods=("PUT",), headers={"If-None-Match": r"\*"})
    refusing = proxy_before(bucket.endpoint, Schedule(rules=(rule,)))
    assert not honours_conditions(storage_of(refusing.before(bucket)), "probe")[0]
    assert objects(bucket) == {}


def test_conditional_writes_conflict_with_those_of_others(bucket: Bucket):
    storage = storage_of(bucket)
    first = create(storage, "x", b"one")
    assert create(storage, "x", b"one").etag == first.etag
    with pytest.raises(ConflictError, match="was written by somebody else"):
        create(storage, "x", b"two")
    second = replace(storage, "x", b"three", first)
    with pytest.raises(ConflictError, match="was written by somebody else"):
        replace(storage, "x", b"four", first)
    assert objects(bucket) == {"x": b"three"}
    assert replace(storage, "x", b"five", second).size == 4


def test_a_server_without_conditions_is_written_with_a_warning(
    moto: Moto, bucket_name: str, small: Path, staged: Path, proxy_before: MakeProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(etl.upload.lease, "_SETTLE_SECONDS", 0.05)
    bucket = moto.bucket(bucket_name)
    deaf = proxy_before(bucket.endpoint, link=Link(drop_headers=("If-None-Match", "If-Match")))
    said = Said()
    send(deaf.before(bucket), small, staged, said)
    assert "the server ignores conditions (If-Match, If-None-Match)" in said.lines[0]
    assert objects(bucket) == files(small.parent / "local")


def check(bucket: Bucket, **options: Any) -> list[str]:
    return [str(found) for found in verify(f"{bucket.url}/{PREFIX}", storage_options=quick(bucket), **options)]


def test_a_set_in_a_bucket_is_verified_and_what_is_wrong_is_named(
    bucket: Bucket, small: Path, staged: Path, proxy_before: MakeProxy
):
    manifest = send(bucket, small, staged)
    proxy = proxy_before(bucket.endpoint)
    near = dataclasses.replace(proxy.before(bucket), options=bucket.options)
    assert verify(f"{bucket.url}/{PREFIX}", storage_options=quick(near, request_bytes=4096)) == []
    gets = [seen for seen in proxy.seen if seen.head.method == "GET" and ".tar" in seen.head.target]
    assert max(seen.bytes_sent for seen in gets) == 4096
    shard, other = manifest.shards[0], manifest.shards[1]
    arrays = {name: np.load(find_array(staged, name)) for name in ("patch_offset", "patch_clip")}
    damage(bucket, f"{shard.path}", int(arrays["patch_offset"][0]) - 500)
    damage(bucket, f"{manifest.index}/stats.parquet", 40)
    obstore.delete(bucket.store(), f"{PREFIX}/{other.path}")
    found = check(bucket)
    gone = f"{other.path}: is missing; it holds "
    assert sum(f.startswith(gone) for f in found) == 1
    assert any(f.startswith(f"{manifest.index}/stats.parquet: the bytes are not those") for f in found)
    assert any(re.match(rf"{shard.path}: block 0, .*patch 0, row 0: ", f) for f in found)
    quickly = check(bucket, quick=True)
    assert sum(f.startswith(gone) for f in quickly) == 1
    assert not any(shard.path in f for f in quickly)


def test_verify_says_what_cannot_be_read_and_what_is_no_set(
    bucket: Bucket, small: Path, staged: Path, proxy_before: MakeProxy, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(FileNotFoundError, match=r"there is no manifest\.json"):
        check(bucket)
    manifest = send(bucket, small, staged)
    path = manifest.shards[0].path
    rule = Rule(kinds=("403",), methods=("GET",), target=re.escape(path))
    near = proxy_before(bucket.endpoint, Schedule(rules=(rule,))).before(bucket)
    found = check(near)
    assert len(found) == 1
    assert found[0].startswith(f"{path}: can't be read ({bucket.url}/{PREFIX}/{path}")
    words = [f"{key}={value}" for key, value in quick(bucket).items()]
    assert verify_command([f"{bucket.url}/{PREFIX}", "--storage_options", *words]) == 0
    assert (
        f"{bucket.url}/{PREFIX}: all is well: manifest, index and 13 shards (106 cells) were" in capsys.readouterr().out
    )
    obstore.put(bucket.store(), f"{PREFIX}/{MANIFEST}", b"{}")
    assert check(bucket) == ["manifest.json: is not the manifest of a dynaclr-wds shard set."]


def test_the_command_sends_a_set_and_shows_how_much(
    bucket: Bucket,
    small: Path,
    staged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    words = [f"{key}={value}" for key, value in quick(bucket).items()]
    command = [str(small), "--out", f"{bucket.url}/{PREFIX}", "--staging", str(staged), "--storage_options", *words]
    assert main([*command, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["out"] == f"{bucket.url}/{PREFIX}"
    assert re.search(r"^upload: 0\.\d/0\.\d MB \(\d+ MB/s\)$", told.err, re.MULTILINE)
    monkeypatch.setattr("sys.argv", ["dynaclr-wds"])
    assert main([*command, "--overwrite"]) == 0
    where = f"{bucket.url}/{PREFIX}"
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"{where}: built. Next:",
        f"  dynaclr-wds init {small} --shards {where}",
        f"  dynaclr-wds verify {where}",
    ]
    assert main([*command, "--keep-staging"]) == 0
    assert "up to date, nothing to do" in capsys.readouterr().err
    assert bucket.options["secret_access_key"] not in told.out + told.err


def test_lines_of_an_upload_say_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("etl.run.progress.EVERY_SECONDS", 0.0)
    now = [0.0]
    monkeypatch.setattr("etl.run.progress.time.monotonic", lambda: now[0])
    with LineProgress().stage("upload", 400_000_000, "bytes") as advance:
        for now[0] in (5.0, 10.0, 15.0, 20.0):
            advance(100_000_000, 100_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "upload: 100.0/400.0 MB (20 MB/s)"
    assert lines[2] == "upload: 300.0/400.0 MB (20 MB/s, about 5 s left)"
    assert lines[-1] == "upload: 400.0/400.0 MB (20 MB/s)"


def test_a_refusal_can_be_passed_between_threads_and_processes(bucket: Bucket):
    with pytest.raises(DeniedError, match="status 403") as caught:
        storage_of(bucket.with_options(secret_access_key="wrong-secret")).info("x")
    for other in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert (str(other), other.cause) == (str(caught.value), "status 403")
