"""Plates and tables in object storage: built from as from a disk, with few requests, and never with a hole instead."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
import zarr

import etl.run.stages
from dynaclr_wds.contract import PARTS_DIR, PATCHES, Manifest
from dynaclr_wds.errors import BuildError, ConfigError, DynaCLRError, PlateError, StorageError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.options import parse_options
from etl.build_shards import build_shards
from etl.build_shards import main as command
from etl.indexing import build_index
from etl.init import main as init
from etl.inspect.__main__ import main as inspect_command
from etl.run.executors import ThreadUnits
from etl.source.experiments import parse_build_config
from etl.source.fingerprints import fingerprint_sources
from etl.source.plate_boxes import read_box
from etl.source.plates import open_plate
from etl.source.preflight import open_plates
from etl.source.scales import fill_in_from_plates
from tests.plates import KEEP_ALL, make_collection, write_plate
from tests.remote import forget_credentials, quick, serve, upload
from tests.servers.bucket import Bucket
from tests.servers.faults import Rule, Schedule
from tests.servers.nginx import Nginx
from tests.servers.proxy import Proxy
from tests.servers.seaweedfs import ROLES, SeaweedFS
from tests.set_files import digests, find_index, load_array
from tests.shared_build import make_once
from tests.test_images import write_image
from tests.test_sources import Told
from tests.test_track_sources import put

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_fsync")]


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_credentials(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of a Zarr v2 plate with CSV tables and a sharded v3 plate with Parquet tables; and its shards."""

    def make(folder: Path) -> None:
        path = make_collection(folder / "plates", shape=(4, 2, 1, 64, 64), lineages=2)
        for table in sorted((folder / "plates/experiment1/tracks").rglob("*.csv")):
            pd.read_csv(table).to_parquet(table.with_suffix(".parquet"))
            table.unlink()
        build_shards(parse_build_config(path, {"workers": 2}), folder / "shards")

    return make_once(tmp_path_factory, "remote_sources", make)


@pytest.fixture(scope="module")
def shared(local: Path, seaweedfs: SeaweedFS) -> Iterator[Bucket]:
    """A bucket that holds the collection below `data`; tests don't change it."""
    bucket = seaweedfs.bucket("remote-sources")
    upload(bucket, local / "plates", "data")
    yield bucket
    seaweedfs.drop("remote-sources")


def patient(bucket: Bucket, **more: Any) -> dict[str, Any]:
    """Options for a bucket, with time limits that a busy machine keeps."""
    limits = {"connect_timeout": 20.0, "stall_timeout": 20.0, "request_timeout": 30.0, "retry_timeout": 30.0}
    return quick(bucket, **limits | more)


def write_yaml(path: Path, local: Path, bucket: Bucket, **options: Any) -> Path:
    """Write the collection's YAML with plates and tracks in a bucket."""
    document = yaml.safe_load((local / "plates/experiments.yaml").read_text())
    for entry in document["experiments"]:
        entry |= {key: f"{bucket.url}/data/{entry[key]}" for key in ("data_path", "tracks_path")}
    document["storage_options"] = patient(bucket, **options)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def build(path: Path | str, out: Path, **flags: Any) -> tuple[Manifest, list[str]]:
    told = Told()
    config = parse_build_config(path, {"workers": 2, **flags.pop("options", {})}, flags.pop("storage_options", None))
    return build_shards(config, out, progress=told, **flags), told.lines


def read_manifest(out: Path) -> dict[str, Any]:
    """Read a manifest, without what names the sources."""
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    del manifest["sources"], manifest["config_hash"], manifest["xxh3"], manifest["index"]
    for file in manifest["files"]:
        file["path"] = drop_digest(file["path"])
    for shard in manifest["shards"]:
        shard["path"] = drop_digest(shard["path"])
    manifest["files"] = [file for file in manifest["files"] if not is_named_by_sources(file["path"])]
    for entry in manifest["config"]["experiments"]:
        del entry["data_path"], entry["tracks_path"]
    return manifest


def assert_same_set(out: Path, expected: Path) -> None:
    """Check that sets differ in nothing but what names their sources, digests of them included."""
    named = ({drop_digest(name): value for name, value in digests(folder).items()} for folder in (out, expected))
    one, other = ({name: value for name, value in of.items() if not is_named_by_sources(name)} for of in named)
    assert {name for name in {**one, **other} if one.get(name) != other.get(name)} == {"manifest.json"}
    assert read_manifest(out) == read_manifest(expected)
    tables = [pq.read_table(find_index(folder) / PATCHES).drop_columns(["shard"]) for folder in (out, expected)]
    assert tables[0].equals(tables[1])


def drop_digest(path: str) -> str:
    """Leave digests that cover the fingerprints of the sources out of the path of a shard or index file."""
    return re.sub(r"-[0-9a-f]{12}(-\d{6}\.tar)$", r"\1", re.sub("^index/[0-9a-f]{16}/", "index/", path))


def is_named_by_sources(path: str) -> bool:
    """Whether a file holds digests that cover the fingerprints of the sources."""
    return path.startswith(PARTS_DIR) or path == f"index/{PATCHES}"


def chunks_of(bucket: Bucket, fov: str) -> list[str]:
    """List the chunks, or shards, of a FOV (`experiment/plate.zarr/row/col/fov`)."""
    found = obstore.list(bucket.store(), f"data/{fov}/0").collect()
    return sorted(entry["path"] for entry in found if not entry["path"].endswith((".json", ".zarray", ".zattrs")))


def test_a_set_built_from_a_bucket_is_the_one_built_from_a_disk(
    local: Path, shared: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = write_yaml(tmp_path / "e.yaml", local, shared)
    build(path, tmp_path / "out")
    assert_same_set(tmp_path / "out", local / "shards")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert any("up to date" in line for line in build(path, tmp_path / "out")[1])
    secret = ROLES["admin"][1].encode()
    assert [file for file in tmp_path.rglob("*") if file.is_file() and secret in file.read_bytes()] == [path]


def test_the_yaml_itself_may_lie_beside_its_plates_and_be_read_with_a_read_only_key(
    local: Path, shared: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret, _ = ROLES["reader"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    argv = [f"{shared.url}/data/experiments.yaml", "--out", str(tmp_path / "out"), "--quiet"]
    assert command([*argv, "--storage_options", f"endpoint={shared.endpoint}", "stall_timeout=20"]) == 0
    assert_same_set(tmp_path / "out", local / "shards")
    stored, expected = (json.loads((out / "manifest.json").read_text()) for out in (tmp_path / "out", local / "shards"))
    assert stored["config"] == expected["config"]
    assert stored["config_hash"] == expected["config_hash"]


def test_over_https_plates_are_found_by_their_metadata_and_tables_by_a_pattern(
    local: Path, nginx: Nginx, tmp_path: Path
) -> None:
    url = serve(nginx, "remote-sources", local / "plates")
    (tmp_path / "ca.pem").write_text(nginx.certificate)
    document = yaml.safe_load((local / "plates/experiments.yaml").read_text())
    for entry in document["experiments"]:
        entry |= {key: f"{url}/{entry[key]}" for key in ("data_path", "tracks_path")}
        entry["storage_options"] = {"ca_file": str(tmp_path / "ca.pem")}
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(document))
    example = rf"{url}/experiment0/tracks/{{row}}/{{col}}/{{fov}}/tracks\.csv"
    with pytest.raises(ConfigError, match=rf"experiments\[0\]\.tracks_path=.* can't be listed.*such as {example}"):
        build(path, tmp_path / "out")
    for entry, suffix in zip(document["experiments"], ("csv", "parquet"), strict=True):
        entry["tracks_path"] += f"/{{row}}/{{col}}/{{fov}}/tracks.{suffix}"
    path.write_text(yaml.safe_dump(document))
    build(path, tmp_path / "out")
    assert_same_set(tmp_path / "out", local / "shards")
    assert any("up to date" in line for line in build(path, tmp_path / "out")[1])


def test_what_changed_in_a_bucket_is_named_and_built_again(local: Path, bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, local / "plates", "data")
    path = write_yaml(tmp_path / "e.yaml", local, bucket)
    before, _ = build(path, tmp_path / "out")
    first, last = (chunks_of(bucket, "experiment0/plate.zarr/A/1/0")[n] for n in (0, -1))
    table = "data/experiment1/tracks/B/2/0/tracks.parquet"
    store = bucket.store()
    obstore.put(store, first, bytes(obstore.get(store, last).bytes()))
    shorter = local / "plates/experiment1/tracks/B/2/0/tracks.parquet"
    pd.read_parquet(shorter).iloc[:-1].to_parquet(tmp_path / "shorter.parquet")
    obstore.put(store, table, (tmp_path / "shorter.parquet").read_bytes())
    after, lines = build(path, tmp_path / "out")
    assert "changed since the set was built: experiment0: files of pixels changed: A/1/0" in lines
    assert "changed since the set was built: experiment1: files of tracks changed: B/2/0" in lines
    assert before.sources != after.sources
    build(path, tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_plate_that_changes_while_it_is_read_is_an_error(
    local: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, local / "plates", "data")
    write_index = etl.run.stages.write_index

    def meddling(*arguments: Any) -> Any:
        obstore.delete(bucket.store(), chunks_of(bucket, "experiment1/plate.zarr/A/1/1")[0])
        return write_index(*arguments)

    monkeypatch.setattr(etl.run.stages, "write_index", meddling)
    with pytest.raises(BuildError, match=r"while they were read \(experiment1: files of pixels changed: A/1/1\)"):
        build(write_yaml(tmp_path / "e.yaml", local, bucket), tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_chunk_that_was_never_written_is_blank_as_on_a_disk(local: Path, bucket: Bucket, tmp_path: Path) -> None:
    plates = tmp_path / "plates"
    shutil.copytree(local / "plates", plates)
    shutil.rmtree(plates / "experiment0/plate.zarr/A/1/0/0/1/0")  # a channel of frame 1
    (plates / "experiment1/plate.zarr/A/1/1/0/c/1/0/0/0/0").unlink()  # a shard: frames 2 and 3
    build(plates / "experiments.yaml", tmp_path / "expected")
    upload(bucket, plates, "data")
    manifest, _ = build(write_yaml(tmp_path / "e.yaml", local, bucket), tmp_path / "out")
    assert manifest.dropped["experiment0"]["blank_channel"] > 0
    assert manifest.dropped["experiment1"]["blank_channel"] > 0
    assert_same_set(tmp_path / "out", tmp_path / "expected")


FAULTS = ("drop", "lose", "reset", "stall", "truncate", "short", "429", "500", "503", "403")


def test_faults_that_pass_change_no_byte(local: Path, shared: Bucket, proxy_before: Any, tmp_path: Path) -> None:
    proxy: Proxy = proxy_before(shared.endpoint, Schedule(0, (Rule(kinds=FAULTS, share=0.25, repeats=(0,)),)))
    build(write_yaml(tmp_path / "e.yaml", local, proxy.before(shared)), tmp_path / "out")
    assert_same_set(tmp_path / "out", local / "shards")
    assert set(proxy.faults) == set(FAULTS)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        *(("experiment0/plate.zarr/A/1/0/0/2/", kind) for kind in ("500", "403", "stall", "short")),
        *(("experiment1/plate.zarr/A/1/0/0/c/1/", kind) for kind in ("500", "403", "short")),
        ("experiment0/plate.zarr/.zattrs", "403"),
        ("experiment1/plate.zarr/B/2/0/zarr.json", "500"),
        ("experiment0/tracks/A/1/1/tracks.csv", "short"),
    ],
)
def test_what_stays_unreadable_is_never_taken_for_absent(
    local: Path, shared: Bucket, proxy_before: Any, tmp_path: Path, kind: str, target: str
) -> None:
    rule = Rule(kinds=(kind,), methods=("GET",), target=target, seconds=0.2)
    proxy: Proxy = proxy_before(shared.endpoint, Schedule(1, (rule,)))
    path = write_yaml(tmp_path / "e.yaml", local, proxy.before(shared), retry_timeout=0.3)
    with pytest.raises(StorageError, match=rf"{shared.url}/data/{target}") as raised:
        build(path, tmp_path / "out")
    cause = {"500": "status 500", "403": "status 403 AccessDenied", "short": "bytes came"}
    assert re.search(cause.get(kind, "connection lost|cut short|no answer in time"), str(raised.value))
    assert not (tmp_path / "out").exists() or not (tmp_path / "out/manifest.json").exists()


def test_images_and_tracks_of_other_forms_are_read_from_a_bucket(tmp_path: Path, bucket: Bucket) -> None:
    """A folder of images in two versions of Zarr, and tracks as GEFF, a challenge folder, XML and one table."""
    for name, version in (("one.zarr", "0.4"), ("two.zarr", "0.5")):
        write_image(tmp_path / "data/images" / name, "ctyx", version=version)
    for folder, files in {
        "geff": {"A/1/one": "ultrack-geff.tar.xz", "B/2/two": "ultrack-ctc.tar.xz"},
        "xml": {"A/1/one": "ultrack.xml", "B/2/two": "ultrack.csv"},
    }.items():
        for fov, file in files.items():
            put(file, tmp_path / "data" / folder / fov)
    rows = [(fov, 1, t, 9.0, 9.0 + t) for fov in ("A/1/one", "B/2/two") for t in range(4)]
    pd.DataFrame(rows, columns=["fov", "track_id", "t", "y", "x"]).to_parquet(tmp_path / "data/all.parquet")
    upload(bucket, tmp_path / "data", "data")

    def index(root: str, tracks: str) -> Any:
        entry = {
            "name": "a",
            "data_path": f"{root}/images",
            "tracks_path": f"{root}/{tracks}",
            "interval_minutes": 30.0,
        }
        entry |= {"wells": {"A/1": ["one.zarr"], "B/2": ["two.zarr"]}, "condition_wells": {"mock": ["A/1", "B/2"]}}
        entry |= {"channel_names": ["P", "G"], "source_channel": ["G"], "interval_minutes": 30.0}
        path = tmp_path / "experiments.yaml"
        options = {"yx_patch_size": [8, 8], "tau_range_hours": [0.5, 1.0], **KEEP_ALL}
        path.write_text(json.dumps({"experiments": [entry], "shards": options, "storage_options": patient(bucket)}))
        config = parse_build_config(path)
        plates = open_plates(config)
        config = fill_in_from_plates(config, plates)
        assert fingerprint_sources(config, plates) == fingerprint_sources(config, plates)
        return build_index(config, plates), plates

    for tracks in ("geff", "xml", "all.parquet"):
        found, plates = index(f"{bucket.url}/data", tracks)
        expected, local = index(str(tmp_path / "data"), tracks)
        assert len(expected.observations) >= 8
        assert found.observations.equals(expected.observations)
    for name in ("A/1/one", "B/2/two"):
        np.testing.assert_array_equal(
            read_box(plates["a"].fovs[name].array, ()), read_box(local["a"].fovs[name].array, ())
        )


def test_a_bucket_that_is_gone_is_no_plate_without_chunks(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    bucket = seaweedfs.bucket("to-be-gone")
    write_plate(tmp_path / "plate.zarr", version="0.4")
    upload(bucket, tmp_path / "plate.zarr", "plate.zarr")
    url, options = f"{bucket.url}/plate.zarr", parse_options(patient(bucket))
    array = open_plate(url, options=options).fovs["A/1/0"].array
    seaweedfs.drop("to-be-gone")
    with pytest.raises(StorageError, match=r"s3://to-be-gone/plate.zarr/A/1/0/0/0.*NoSuchBucket.*no such bucket"):
        _ = array[0]
    with pytest.raises(StorageError, match=r"s3://to-be-gone/plate.zarr/.*NoSuchBucket"):
        open_plate(url, options=options)


def test_each_thing_is_asked_for_once(tmp_path: Path, bucket: Bucket, proxy_before: Any) -> None:
    shape, chunks, shards = (4, 2, 1, 40, 40), (1, 1, 1, 16, 16), (2, 2, 1, 48, 48)
    long = {"A/1/0": {"GFP": {"fov_statistics": {"notes": "x" * 5000}}}}
    written = write_plate(tmp_path / "p.zarr", shape=shape, chunks=chunks, shards=shards, normalization=long)
    (pixels,) = written.values()
    upload(bucket, tmp_path / "p.zarr", "p.zarr")
    proxy: Proxy = proxy_before(bucket.endpoint)
    options = parse_options(patient(proxy.before(bucket)))

    def open_array() -> Any:
        return open_plate(f"{bucket.url}/p.zarr", options=options).fovs["A/1/0"].array

    array = open_array()
    assert _asked(proxy) == {  # no listing, and of the other version of Zarr only what tells it apart
        **dict.fromkeys(("zarr.json", ".zgroup", ".zattrs"), 1),
        **dict.fromkeys(("A/1/zarr.json", "A/1/0/zarr.json", "A/1/0/0/zarr.json"), 1),
    }
    proxy.use(Schedule())
    assert np.array_equal(read_box(array, (slice(0, 4), slice(0, 2))), pixels)
    assert _asked(proxy) == {"A/1/0/0/c/0/0/0/0/0": 1, "A/1/0/0/c/1/0/0/0/0": 1}  # whole shards
    array = open_array()
    proxy.use(Schedule())
    for t in range(4):  # one channel: 9 chunks of a shard each time, which lie near each other
        assert np.array_equal(read_box(array, (slice(t, t + 1), slice(1, 2))), pixels[t : t + 1, 1:2])
    assert _asked(proxy) == {"A/1/0/0/c/0/0/0/0/0": 1 + 2, "A/1/0/0/c/1/0/0/0/0": 1 + 2}
    assert sum((seen.head.get("Range") or "").startswith("bytes=-") for seen in proxy.seen) == 2  # the two indexes
    proxy.use(Schedule())
    large = parse_options(patient(proxy.before(bucket), request_bytes=4096))
    array = open_plate(f"{bucket.url}/p.zarr", options=large).fovs["A/1/0"].array
    assert np.array_equal(read_box(array, (slice(0, 2), slice(0, 2))), pixels[:2])
    assert _asked(proxy)["A/1/0/zarr.json"] == 2
    size = (tmp_path / "p.zarr/A/1/0/0/c/0/0/0/0/0").stat().st_size
    assert _asked(proxy)["A/1/0/0/c/0/0/0/0/0"] == -(-size // 4096) > 1


def _asked(proxy: Proxy) -> Counter[str]:
    """Count requests by path below the plate."""
    return Counter(seen.head.target.partition("/p.zarr/")[2] for seen in proxy.seen)


def test_chunks_of_a_shard_are_read_side_by_side(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, chunks, shards = (1, 2, 1, 64, 64), (1, 1, 1, 16, 16), (1, 2, 1, 64, 64)
    (pixels,) = write_plate(tmp_path / "p.zarr", shape=shape, chunks=chunks, shards=shards).values()
    upload(bucket, tmp_path / "p.zarr", "p.zarr")
    options = parse_options(patient(bucket, coalesce_bytes=0))
    array = open_plate(f"{bucket.url}/p.zarr", options=options).fovs["A/1/0"].array
    read_range, met = Storage.read_range, threading.Barrier(4)

    def read_together(self: Storage, *arguments: Any) -> Any:
        met.wait(30)  # fails unless four requests are made at a time
        return read_range(self, *arguments)

    monkeypatch.setattr(Storage, "read_range", read_together)
    asked = (slice(0, 1), slice(1, 2), slice(0, 1), slice(0, 64), slice(16, 32))  # a column of chunks
    assert np.array_equal(read_box(array, asked), pixels[asked])


def test_a_shard_that_is_replaced_between_its_parts_is_an_error(tmp_path: Path, bucket: Bucket) -> None:
    options = {"chunks": (1, 1, 1, 16, 16), "shards": (6, 2, 1, 64, 64)}
    write_plate(tmp_path / "p.zarr", **options)
    upload(bucket, tmp_path / "p.zarr", "p.zarr")
    url = f"{bucket.url}/p.zarr"
    array = open_plate(url, options=parse_options(patient(bucket))).fovs["A/1/0"].array
    read_box(array, (slice(0, 1), slice(0, 1)))
    write_plate(tmp_path / "q.zarr", **options, seed=1)
    upload(bucket, tmp_path / "q.zarr", "p.zarr")
    with pytest.raises(PlateError, match=rf"{url}/A/1/0/0/c/0/0/0/0/0: was changed or removed while it was read"):
        read_box(array, (slice(1, 2), slice(0, 1)))


def test_an_index_at_the_beginning_of_a_shard_is_read_once_too(
    tmp_path: Path, bucket: Bucket, proxy_before: Any
) -> None:
    (pixels,) = write_plate(tmp_path / "p.zarr", chunks=(1, 1, 1, 16, 16), shards=(3, 2, 1, 64, 64)).values()
    shutil.rmtree(tmp_path / "p.zarr/A/1/0/0")
    written = zarr.create_array(
        tmp_path / "p.zarr/A/1/0/0",
        shape=pixels.shape,
        dtype=pixels.dtype,
        chunks=(1, 1, 1, 16, 16),
        shards=zarr.core.array.ShardsConfigParam(shape=(3, 2, 1, 64, 64), index_location="start"),
    )
    written[:3] = pixels[:3]
    upload(bucket, tmp_path / "p.zarr", "p.zarr")
    proxy: Proxy = proxy_before(bucket.endpoint)
    array = open_plate(f"{bucket.url}/p.zarr", options=parse_options(patient(proxy.before(bucket)))).fovs["A/1/0"].array
    proxy.use(Schedule())
    for t in range(3):
        assert np.array_equal(read_box(array, (slice(t, t + 1), slice(0, 1))), pixels[t : t + 1, :1])
    assert not read_box(array, (slice(3, 4), slice(0, 1))).any()  # a shard that was never written
    assert _asked(proxy) == {"A/1/0/0/c/0/0/0/0/0": 1 + 3, "A/1/0/0/c/1/0/0/0/0": 1}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_units_in_other_processes_read_plates_or_say_why_not(
    local: Path, shared: Bucket, tmp_path: Path, method: str
) -> None:
    made: list[Executor] = []

    def make(workers: int, advance: Any) -> Executor:  # what packs reads no plate
        made.append(ThreadUnits(workers, advance) if made else ProcessPoolExecutor(1, mp_context=get_context(method)))
        return made[-1]

    path = write_yaml(tmp_path / "e.yaml", local, shared)
    if method == "spawn":
        build(path, tmp_path / "out", make_executor=make)
        assert_same_set(tmp_path / "out", local / "shards")
    else:
        with pytest.raises(StorageError, match=r"This process was forked.*get_context\(\"spawn\"\)"):
            build(path, tmp_path / "out", make_executor=make)


def test_errors_about_tables_name_their_urls(local: Path, bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, local / "plates", "data")
    store, folder = bucket.store(), "data/experiment0/tracks/A/1/1"
    url = f"{bucket.url}/{folder}"
    path = write_yaml(tmp_path / "e.yaml", local, bucket)

    def refused(says: str) -> None:
        with pytest.raises(ConfigError, match=says) as raised:
            build(path, tmp_path / "out")
        assert "-tables-" not in str(raised.value)

    for text, says in (
        (b"track_id,t,y\n1,0,3.5\n", r"column 'x' is missing"),
        (b"track_id,t,y,x\n1,0,3.5\n", r"line 2 has 3 fields"),
        (b"track_id,t,y,x\n1,0.5,3,4\n", r"t must be a whole number, but is not in line 2 \(0.5\)"),
        (b"track_id,t,y,x\n1,0,3,4", r"the last line \('1,0,3,4'\) must end with a newline"),
        (b"", r"is empty"),
    ):
        obstore.put(store, f"{folder}/tracks.csv", text)
        refused(rf"^{url}/tracks.csv: {says}")
    obstore.put(store, f"{folder}/notes.txt", b"mine")
    obstore.put(store, f"{folder}/more.csv", b"mine")
    refused(r"has 2 track files \(\['A/1/1/more.csv', 'A/1/1/tracks.csv'\]\) for FOV 'A/1/1'")
    obstore.delete(store, [f"{folder}/{name}" for name in ("more.csv", "tracks.csv", "notes.txt")])
    refused(rf"experiments\[0\]\.tracks_path=.* has no track file for FOV 'A/1/1'. Put exactly one .*there \({url}\)")


def test_annotations_may_lie_in_a_bucket(local: Path, bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, local / "plates", "data")
    document = yaml.safe_load((local / "plates/experiments.yaml").read_text())
    document["experiments"] = document["experiments"][:1]
    document["experiments"][0]["annotations"] = "cells.csv"
    obstore.put(bucket.store(), "data/cells.yaml", yaml.safe_dump(document).encode())
    place = f"{bucket.url}/data/cells.yaml"
    with pytest.raises(ConfigError, match=rf"annotations='{bucket.url}/data/cells.csv' has no file"):
        build(place, tmp_path / "out", storage_options=patient(bucket))
    obstore.put(bucket.store(), "data/cells.csv", b"fov_name,track_id,kind\nA/1/0,0,big\nZ/9/9,0,big\n")
    manifest, lines = build(place, tmp_path / "out", storage_options=patient(bucket))
    assert [label.name for label in manifest.labels][-1] == "kind"
    assert any(line.startswith(f"{bucket.url}/data/cells.csv: rows about no cell") for line in lines)


def test_init_fills_configs_for_plates_in_a_bucket(
    local: Path, shared: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "experiments.yaml", local, shared)
    assert init(["experiments.yaml"]) == 0
    assert "experiments.yaml --out shards" in capsys.readouterr().out
    assert init([f"{shared.url}/data/experiment0/plate.zarr"]) == 2
    assert "init fills in an experiments.yaml from plates on a disk only" in capsys.readouterr().err


def test_keys_stand_in_no_error(local: Path, shared: Bucket, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "e.yaml", local, shared.with_options(secret_access_key="wrong-secret"))
    text = path.read_text()
    for spoiled in (
        text,
        f"- {json.dumps(yaml.safe_load(text))}\n",
        json.dumps({"experiments": yaml.safe_load(text)}),
        json.dumps({"experiments": [[yaml.safe_load(text)]]}),
        json.dumps({"storage_options": ["wrong-secret"], "experiments": yaml.safe_load(text)["experiments"]}),
        text.replace("secret_access_key: wrong-secret", "secret_access_key: [wrong-secret]"),
        text.replace(f"{shared.url}/data/experiment0/plate.zarr", "https://me:wrong-secret@host/plate.zarr"),
        text.replace(f"{shared.url}/data/experiment0/tracks", "https://host/tracks?sig=wrong-secret"),
    ):
        path.write_text(spoiled)
        with pytest.raises(DynaCLRError) as raised:
            build(path, tmp_path / "out")
        assert "wrong-secret" not in "".join([str(raised.value), *getattr(raised.value, "__notes__", ())])


@pytest.mark.parametrize("server", ["moto", "azurite", "gcs"])
def test_other_servers_give_the_same_pixels_and_tables(
    server: str, request: pytest.FixtureRequest, bucket_name: str, tmp_path: Path
) -> None:
    there: Bucket = request.getfixturevalue(server).bucket(bucket_name)
    options = {"chunks": (1, 1, 1, 16, 16), "shards": (3, 2, 1, 64, 64)}
    (pixels,) = write_plate(tmp_path / "p.zarr", **options).values()
    (tmp_path / "p.zarr/A/1/0/0/c/1/0/0/0/0").unlink()
    upload(there, tmp_path / "p.zarr", "p.zarr")
    obstore.put(there.store(), "tracks/A/1/0/tracks.csv", b"track_id,t,y,x\n1,0,32,32\n1,1,32,32\n")
    entry = {"name": "e", "data_path": f"{there.url}/p.zarr", "tracks_path": f"{there.url}/tracks"}
    entry |= {"source_channel": ["GFP"], "condition_wells": {"c": ["A/1"]}, "interval_minutes": 30.0}
    document = {"experiments": [entry], "shards": {"yx_patch_size": 16, "workers": 1}}
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({**document, "storage_options": patient(there)}))
    build(path, tmp_path / "out")
    stored = load_array(tmp_path / "out", "obs_t")
    assert stored.tolist() == [0, 1]
    array = open_plate(entry["data_path"], options=parse_options(patient(there))).fovs["A/1/0"].array
    assert np.array_equal(read_box(array, (slice(0, 3), slice(0, 2))), pixels[:3])
    assert np.array_equal(read_box(array, (slice(1, 2), slice(1, 2))), pixels[1:2, 1:])
    assert not read_box(array, (slice(3, 6), slice(1, 2))).any()


def test_inspect_says_of_a_url_what_it_says_of_a_disk(
    local: Path, shared: Bucket, nginx: Nginx, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def inspect(what: Path | str, *words: str) -> dict[str, Any]:
        options = ["--storage_options", *words] if words else []
        assert inspect_command([str(what), "--json", "--quiet", *options]) == 0
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        for name in ("what", "seconds"):
            del said[name]
        for experiment in said["experiments"]:
            del experiment["pixels"]["read_mb_per_second"]
        return said

    assert inspect(write_yaml(tmp_path / "far.yaml", local, shared)) == inspect(local / "plates/experiments.yaml")
    upload(shared, local / "shards", "shards")
    words = [f"{name}={value}" for name, value in patient(shared).items()]
    near = inspect(local / "shards")
    assert inspect(f"{shared.url}/shards", *words) == near
    (tmp_path / "ca.pem").write_text(nginx.certificate)
    assert inspect(serve(nginx, "inspected", local / "shards"), f"ca_file={tmp_path}/ca.pem") == near
    assert inspect_command([f"{shared.url}/none", "--quiet", "--storage_options", *words]) == 2
    assert f"error: shards='{shared.url}/none': there is no manifest.json." in capsys.readouterr().err
