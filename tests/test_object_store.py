"""Training from object storage: the batches of a local run, whatever the server does, or one error that says why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaclr_wds import contract
from dynaclr_wds.contract import channel_checksum as sum_of
from dynaclr_wds.errors import ChecksumError, ConfigError, FormatError, StorageError
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.read import arrivals, channel_ranges
from dynaclr_wds.read.coalesce import cut_range, join_ranges
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import RowFailure
from tests.remote import (
    EXACT,
    STREAMING,
    assert_same,
    forget_credentials,
    make_data,
    quick,
    read_batches,
    serve,
    upload,
)
from tests.servers.bucket import Bucket
from tests.servers.faults import Rule, Schedule
from tests.servers.nginx import Nginx
from tests.servers.proxy import Link, Proxy
from tests.servers.seaweedfs import ROLES, SeaweedFS

MODES = pytest.mark.parametrize("mode", [EXACT, STREAMING], ids=["exact", "streaming"])
MakeProxy = Callable[..., Proxy]


@pytest.fixture(scope="module")
def local_batches(short_clips: Path) -> Callable[..., list[dict[str, Any]]]:
    """Batches of the local set, by options; read once each."""
    known: dict[str, list[dict[str, Any]]] = {}

    def read(**options: Any) -> list[dict[str, Any]]:
        key = repr(sorted(options.items()))
        if key not in known:
            known[key] = read_batches(make_data(short_clips, **options))
        return known[key]

    return read


@pytest.fixture
def url(bucket: Bucket, short_clips: Path) -> str:
    """`short_clips` in a bucket of SeaweedFS."""
    return upload(bucket, short_clips)


@MODES
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.slow
def test_batches_from_a_bucket_are_those_of_the_disk(url, bucket, local_batches, tmp_path, mode, workers):
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), num_workers=workers, **mode)
    assert_same(read_batches(data), local_batches(**mode))
    assert data.train_dataset._reader._store._held.table.members == []


@MODES
@pytest.mark.slow
def test_a_bag_of_channels_comes_from_a_bucket_as_from_the_disk(url, bucket, local_batches, tmp_path, mode):
    bag = {"channels_per_sample": 1, "return_negative": True, "yx_patch_size": (10, 12), **mode}
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), **bag)
    assert_same(read_batches(data), local_batches(**bag))


@MODES
@pytest.mark.parametrize("server", ["moto", "azurite", "gcs"])
@pytest.mark.slow
def test_other_clouds_train_the_same_batches(request, bucket_name, short_clips, local_batches, tmp_path, server, mode):
    there = request.getfixturevalue(server).bucket(bucket_name)
    data = make_data(upload(there, short_clips), storage_options=quick(there), cache_dir=str(tmp_path), **mode)
    assert_same(read_batches(data), local_batches(**mode))


@MODES
@pytest.mark.slow
def test_https_and_plain_http_train_the_same_batches(
    nginx: Nginx, short_clips, local_batches, tmp_path, bucket_name, mode
):
    url = serve(nginx, f"{bucket_name}x", short_clips)
    (tmp_path / "ca.pem").write_text(nginx.certificate)
    options = {"ca_file": str(tmp_path / "ca.pem")}
    assert_same(
        read_batches(make_data(url, storage_options=options, cache_dir=str(tmp_path), **mode)), local_batches(**mode)
    )
    plain = url.replace(nginx.endpoint, nginx.plain_endpoint)
    assert_same(
        read_batches(make_data(plain, cache_dir=str(tmp_path), **mode), 3),
        read_batches(make_data(short_clips, **mode), 3),
    )
    with pytest.raises(StorageError, match="the server's certificate is not trusted"):
        make_data(url, cache_dir=str(tmp_path))


# --- what changes, fails or is refused


def replace_shard(bucket: Bucket, shards: Path, number: int = 0) -> str:
    """Put other bytes of the same size under the name of a shard; return its path."""
    path = ShardSet.open(shards).manifest.shards[number].path
    content = (shards / path).read_bytes()
    obstore.put(bucket.store(), f"sets/first/{path}", content[:-1024] + bytes(range(256)) * 4)
    return path


@MODES
def test_a_shard_that_is_replaced_in_training_is_an_error_that_says_so(url, bucket, short_clips, tmp_path, mode):
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), **mode)
    path = replace_shard(bucket, short_clips)
    with pytest.raises(FormatError, match=rf"{re.escape(url)}/{path}, bytes .*: was replaced since the set was opened"):
        read_batches(data)


@MODES
def test_a_shard_that_is_gone_is_an_error_that_names_it(url, bucket, tmp_path, mode):
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), **mode)
    path = data.shard_set.manifest.shards[0].path
    obstore.delete(bucket.store(), f"sets/first/{path}")
    with pytest.raises(FormatError, match=rf"{re.escape(url)}/{path}, bytes .*: is not there"):
        read_batches(data)


def test_a_set_that_lacks_a_shard_is_refused_when_it_is_opened(url, bucket, short_clips, tmp_path):
    path = ShardSet.open(short_clips).manifest.shards[-1].path
    obstore.put(bucket.store(), f"sets/first/{path}", b"short")
    with pytest.raises(FormatError, match=rf"{path}: has 5 bytes, the manifest says"):
        ShardSet.open(url, storage_options=quick(bucket), cache_dir=tmp_path)
    obstore.delete(bucket.store(), f"sets/first/{path}")
    with pytest.raises(FormatError, match=rf"{path}: is missing, though the manifest lists it"):
        ShardSet.open(url, storage_options=quick(bucket), cache_dir=tmp_path)


def test_without_a_manifest_there_is_no_set(bucket, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shards='s3://.*/nothing': there is no manifest.json"):
        ShardSet.open(f"{bucket.url}/nothing", storage_options=quick(bucket), cache_dir=tmp_path)


PASSING = ("drop", "lose", "reset", "stall", "truncate", "short", "delay", "slow", "429", "500", "503", "403")


@MODES
@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_changes_no_batch(
    url, bucket, proxy_before: MakeProxy, local_batches, tmp_path, mode, kind
):
    rule = Rule(kinds=(kind,), share=0.3, methods=("GET",), repeats=(0,), seconds=2.0)
    proxy = proxy_before(bucket.endpoint, Schedule(3, (rule,), fault_limit=12))
    options = quick(proxy.before(bucket), retry_timeout=20.0)
    data = make_data(url, storage_options=options, cache_dir=str(tmp_path), num_workers=2, **mode)
    assert_same(read_batches(data, 6), first_of(local_batches(**mode), data, 6))
    assert proxy.faults[kind] > 0


def first_of(batches: list[dict[str, Any]], data: Any, most: int) -> list[dict[str, Any]]:
    """The first batches of training and of validation, of all of both."""
    training = len(data.train_dataloader())
    return batches[:most] + batches[training : training + most]


BAG = {"channels_per_sample": 1, "yx_patch_size": (10, 12)}
"""A channel of each patch, cropped."""


@pytest.mark.parametrize(
    ("mode", "pool"), [(STREAMING, 0), (EXACT, 0), (BAG, 1 << 30)], ids=["streaming", "exact", "bag of channels, kept"]
)
def test_a_flipped_byte_is_read_again(url, bucket, proxy_before, local_batches, tmp_path, mode, pool):
    rules = [Rule(kinds=("flip",), share=0.5, methods=("GET",), target=t, repeats=(0,)) for t in (r"/index/", r"\.tar")]
    manifest = Rule(kinds=("flip",), methods=("GET",), target="manifest", repeats=(0,))
    proxy = proxy_before(bucket.endpoint, Schedule(5, (*rules, manifest)))
    options = quick(proxy.before(bucket))
    data = make_data(url, storage_options=options, cache_dir=str(tmp_path), cache_pool_bytes=pool, **mode)
    assert proxy.faults["flip"] > 3
    loader = data.train_dataloader()
    assert_same([batch for _, batch in zip(range(8), loader, strict=False)], local_batches(**mode)[:8])
    assert len([seen for seen in proxy.seen if seen.fault and ".tar" in seen.head.target]) > 3


@MODES
def test_a_server_that_is_gone_for_good_is_one_error_in_time(url, bucket, proxy_before, tmp_path, mode):
    proxy = proxy_before(bucket.endpoint)
    options = quick(proxy.before(bucket), retry_timeout=2.0)
    data = make_data(url, storage_options=options, cache_dir=str(tmp_path), num_workers=2, **mode)
    proxy.close()
    begun = time.monotonic()
    with pytest.raises(
        StorageError, match=rf"{re.escape(url)}/.*tar, bytes .*: the request failed \(connection refused; "
    ):
        read_batches(data)
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("500", "status 500"),
        ("503", "status 503"),
        ("429", "status 429"),
        ("403", "refused the credentials .status 403"),
        ("stall", "no answer in time|the answer was cut short"),
        ("short", "bytes came"),
        ("404", "is not there"),
    ],
)
def test_a_fault_that_stays_is_one_error_that_names_object_range_and_cause(
    url, bucket, proxy_before, tmp_path, kind, cause
):
    proxy = proxy_before(bucket.endpoint)
    options = quick(proxy.before(bucket), retry_timeout=1.5)
    data = make_data(url, storage_options=options, cache_dir=str(tmp_path), **STREAMING)
    proxy.use(Schedule(0, (Rule(kinds=(kind,), seconds=30.0),)))
    begun = time.monotonic()
    with pytest.raises(
        (StorageError, FormatError), match=rf"{re.escape(url)}/.*tar, bytes [\d,]+ to [\d,]+: .*({cause})"
    ):
        read_batches(data)
    assert time.monotonic() - begun < 10


def test_a_damaged_block_is_an_error_that_names_it(url, bucket, proxy_before, tmp_path):
    proxy = proxy_before(bucket.endpoint)
    data = make_data(url, storage_options=quick(proxy.before(bucket)), cache_dir=str(tmp_path), **STREAMING)
    proxy.use(Schedule(0, (Rule(kinds=("flip",)),)))
    with pytest.raises(ChecksumError, match=rf"{re.escape(url)}/.*tar: block \d+, bytes .* is not what was written"):
        read_batches(data)


CHANNEL = (
    r"clip \d+, patch \d{3}, byte \d+, channel \d, of the cell e\d/[AB]/\d/\d/\d+ at t=\d+: is not what was written"
)


@pytest.mark.parametrize("mode", [EXACT, BAG, {"verify_reads": False}], ids=["exact", "bag of channels", "not asked"])
def test_a_patch_that_comes_damaged_twice_is_an_error_that_names_it(url, bucket, proxy_before, tmp_path, mode):
    proxy = proxy_before(bucket.endpoint)
    data = make_data(url, storage_options=quick(proxy.before(bucket)), cache_dir=str(tmp_path), **mode)
    proxy.use(Schedule(0, (Rule(kinds=("flip",)),)))
    with pytest.raises(ChecksumError, match=rf"{re.escape(url)}/.*tar, {CHANNEL}, though it was asked for twice"):
        read_batches(data)


def test_of_patches_that_come_together_the_damaged_one_is_named(url, bucket, short_clips, tmp_path):
    shards = ShardSet.open(short_clips)
    a, number = shards.arrays, len(shards.manifest.shards) // 2
    first, last = np.searchsorted(a["block_shard"], [number, number + 1])
    rows = np.arange(*a["clip_first"][a["block_first"][[first, last]]])
    row = int(rows[a["patch_is_sample"][rows]][1])  # samples are read by prediction, here many in each request
    record, fov = shards.manifest.shards[number], shards.manifest.fovs[int(a["obs_fov"][a["patch_obs"][row]])]
    experiment = next(e for e in shards.manifest.experiments if e.name == fov.experiment)
    content = bytearray((short_clips / record.path).read_bytes())
    content[int(a["patch_offset"][row]) + experiment.patch_bytes - 1] ^= 4  # in the last channel
    obstore.put(bucket.store(), f"sets/first/{record.path}", bytes(content))
    options = quick(bucket, coalesce_bytes=1 << 20)
    data = make_data(url, storage_options=options, cache_dir=str(tmp_path), batch_size=64)
    data.setup("predict")
    cell = f"{fov.experiment}/{fov.fov_name}/{a['obs_track_id'][a['patch_obs'][row]]} at t={a['patch_t'][row]}"
    what = f"byte {a['patch_offset'][row]}, channel 1, of the cell {cell}: is not what was written"
    with pytest.raises(ChecksumError, match=rf"{record.path}, clip .*{what}") as caught:
        list(data.predict_dataloader())
    assert not any("clip" in note for note in caught.value.__notes__)  # none names a patch that came with it


def test_patches_are_checked_when_they_come_and_not_when_the_pool_has_them(url, bucket, tmp_path, monkeypatch):
    checked: list[int] = []
    monkeypatch.setattr(channel_ranges, "channel_checksum", lambda data: checked.append(len(data)) or sum_of(data))
    data = make_data(
        url, storage_options=quick(bucket), cache_dir=str(tmp_path), cache_pool_bytes=1 << 30, num_workers=0
    )
    first = [list(data.val_dataloader()) for _ in range(2)]
    assert_same(first[1], first[0])
    plan = data.val_dataset.table
    patches = len(np.unique(np.concatenate([plan.anchor, plan.positive])))
    assert checked == [3 * 16 * 16 * 4] * (2 * patches)  # of e1: float32, two channels


def test_nothing_is_read_that_was_not_asked_for(url, bucket, tmp_path):
    shards = ShardSet.open(url, storage_options=quick(bucket), cache_dir=tmp_path)
    with pytest.raises(RowFailure) as caught:
        open_store(shards).read(np.array([0]), np.array([512]), np.array([0]), np.empty((1, 1, 128), np.uint8))
    assert "nobody had asked for" in str(caught.value.error)


# --- keys


def test_a_key_that_may_only_read_trains(url, bucket, local_batches, tmp_path):
    reader = bucket.with_options(access_key_id=ROLES["reader"][0], secret_access_key=ROLES["reader"][1])
    data = make_data(url, storage_options=quick(reader), cache_dir=str(tmp_path), **STREAMING)
    assert_same(read_batches(data, 3), first_of(local_batches(**STREAMING), data, 3))


@pytest.mark.parametrize("wrong", [{"access_key_id": "NOSUCHKEY"}, {"secret_access_key": "no-such-secret"}])
def test_a_wrong_key_is_one_clear_error_at_once(url, bucket, tmp_path, wrong):
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"manifest.json: the server refused the credentials \(status 403") as caught:
        ShardSet.open(url, storage_options={**bucket.storage_options(), **wrong}, cache_dir=tmp_path)
    assert time.monotonic() - begun < 10
    assert not any(secret in f"{caught.value!r}" for secret in ("admin-secret", "ADMINACCESSKEY", *wrong.values()))
    assert caught.value.__cause__ is None


def test_without_credentials_nobody_is_asked_for_them(url, bucket, tmp_path, monkeypatch, proxy_before):
    proxy = proxy_before(bucket.endpoint)
    forget_credentials(monkeypatch, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where gcloud keeps its own
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"there are no credentials for s3://. Set AWS_ACCESS_KEY_ID and"):
        ShardSet.open(url, storage_options={"endpoint": proxy.endpoint}, cache_dir=tmp_path)
    assert time.monotonic() - begun < 1
    assert proxy.seen == []
    for place, words in (("gs://some/set", "GOOGLE_APPLICATION"), ("az://some/set", "AZURE_STORAGE_ACCOUNT_NAME")):
        with pytest.raises(ConfigError, match=f"there are no credentials for .*{words}"):
            ShardSet.open(place)


def test_keys_come_from_the_environment_and_from_the_credentials_file(url, bucket, tmp_path, monkeypatch):
    key, secret, _ = ROLES["reader"]
    for name, value in {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": bucket.endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    assert ShardSet.open(url, cache_dir=tmp_path).remote is not None
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    sections = {"default": ("no", "no"), "lab": (key, secret)}
    lines = [f"[{name}]\naws_access_key_id = {k}\naws_secret_access_key = {s}\n" for name, (k, s) in sections.items()]
    file.write_text("".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert ShardSet.open(url, cache_dir=tmp_path, storage_options={"profile": "lab"}).remote is not None
    with pytest.raises(StorageError, match="refused the credentials"):
        ShardSet.open(url, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"storage_options.profile='other': .*credentials has no such section"):
        ShardSet.open(url, cache_dir=tmp_path, storage_options={"profile": "other"})


def test_no_secret_is_shown_or_kept(url, bucket, tmp_path):
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), **EXACT)
    kept = {"endpoint": bucket.endpoint, "region": "us-east-1", "retry_timeout": 5.0, "stall_timeout": 1.0}
    assert data.hparams["storage_options"] == kept | {"request_timeout": 3.0}
    shown = [
        repr(data),
        str(data.hparams),
        repr(data.storage_options),
        repr(data.shard_set),
        repr(data.shard_set.remote.storage),
    ]
    shown.append(repr(data.train_dataset))
    torch.save({"data": dict(data.hparams), "initial": dict(data.hparams_initial)}, tmp_path / "x.ckpt")
    for secret in ("admin-secret", "ADMINACCESSKEY"):
        assert not any(secret in text for text in shown)
        assert secret.encode() not in (tmp_path / "x.ckpt").read_bytes()


# --- memory, cache, processes


@pytest.mark.slow
def test_resident_bytes_never_exceed_the_window(url, bucket, tmp_path, monkeypatch):
    now = {"bytes": 0, "peak": 0}
    make, free = arrivals.Arrival.__init__, arrivals.Arrival._free

    def count(self: arrivals.Arrival, begin: int, end: int, *rest: Any, **more: Any) -> None:
        now["bytes"] += end - begin
        now["peak"] = max(now["peak"], now["bytes"])
        make(self, begin, end, *rest, **more)

    def discount(self: arrivals.Arrival) -> None:
        assert len(self.bytes) == self.end - self.begin, "freed once"
        pages = weakref.ref(self.bytes)
        free(self)
        assert pages() is None, "nothing else keeps the pages"
        now["bytes"] -= self.end - self.begin

    monkeypatch.setattr(arrivals.Arrival, "__init__", count)
    monkeypatch.setattr(arrivals.Arrival, "_free", discount)
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), num_workers=2, **STREAMING)
    for _ in data.train_dataloader():
        pass
    window = data.train_sampler.window_bytes
    assert 0 < data.train_dataset.held_peak_bytes <= window
    assert 0 < now["peak"] <= window
    assert now["bytes"] == 0


def test_memory_is_free_when_the_last_holder_lets_go_and_not_before():
    arrival = arrivals.Arrival(100, 104, parts=2)
    arrival.put(100, memoryview(b"ab"))
    assert arrival.hold()
    arrival.give_up()
    pages = weakref.ref(arrival.bytes)
    arrival.put(102, memoryview(b"cd"))  # somebody holds it, so it may still be filled
    assert arrival.bytes.tobytes() == b"abcd"
    arrival.let_go()
    assert pages() is None
    assert not arrival.hold()
    arrival.put(102, memoryview(b"ef"))  # an answer that came too late changes nothing
    assert arrival.bytes.size == 0


def test_the_index_is_downloaded_once_and_again_where_it_is_damaged(url, bucket, proxy_before, tmp_path):
    proxy = proxy_before(bucket.endpoint)
    options = quick(proxy.before(bucket))

    def index_requests() -> list[str]:
        found = [seen.head.target for seen in proxy.seen if "/index/" in seen.head.target]
        proxy.use(Schedule())
        return found

    first = ShardSet.open(url, storage_options=options, cache_dir=tmp_path)
    assert len(index_requests()) == len(contract.array_dtypes(first.manifest))
    again = ShardSet.open(url, storage_options=options, cache_dir=tmp_path)
    assert index_requests() == []
    assert all((first.arrays[name] == again.arrays[name]).all() for name in ("obs_t", "patch_offset"))
    path = first.remote.index.folder / first.manifest.index_file(contract.array_path("obs_t"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.unlink()
    path.write_bytes(content)
    ShardSet.open(url, storage_options=options, cache_dir=tmp_path)
    assert len(index_requests()) == 1
    assert first.lineage_ids == again.lineage_ids
    assert len(index_requests()) == 1  # the table, when it was first asked for


OPEN = """
import sys
from dynaclr_wds.shardset import ShardSet
options = {"endpoint": sys.argv[2], "access_key_id": "ADMINACCESSKEY", "secret_access_key": "admin-secret"}
print(len(ShardSet.open(sys.argv[1], storage_options=options, cache_dir=sys.argv[3]).arrays["obs_t"]))
"""


@pytest.mark.slow
def test_two_processes_of_a_node_download_the_index_once(url, bucket, proxy_before, tmp_path):
    proxy = proxy_before(bucket.endpoint, Schedule(), Link(delay_seconds=0.05))
    command = [sys.executable, "-c", OPEN, url, proxy.endpoint, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert said[0] == said[1] != ""
    assert [process.returncode for process in both] == [0, 0]
    asked = [seen.head.target for seen in proxy.seen if "/index/" in seen.head.target]
    assert len(asked) == len(set(asked)) > 30


FORK = """
import os, sys
from dynaclr_wds.shardset import ShardSet
options = {"endpoint": sys.argv[2], "access_key_id": "ADMINACCESSKEY", "secret_access_key": "admin-secret"}
shards = ShardSet.open(sys.argv[1], storage_options=options, cache_dir=sys.argv[3])
child = os.fork()
if child == 0:
    try:
        shards.remote.storage.info("manifest.json")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(shards.remote.storage.info("manifest.json").size > 0)
"""


@pytest.mark.slow
def test_a_process_that_was_forked_after_the_first_request_says_so(url, bucket, tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", FORK, url, bucket.endpoint, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert re.search("StorageError This process was forked after .* multiprocessing_context=.spawn.", done.stdout)
    assert done.stdout.endswith("True\n")


def test_requests_of_a_patch_are_joined_with_its_neighbours_and_kept(url, bucket, proxy_before, tmp_path):
    proxy = proxy_before(bucket.endpoint)
    options = quick(proxy.before(bucket), coalesce_bytes=1 << 20)
    data = make_data(url, storage_options=options, cache_dir=str(tmp_path), cache_pool_bytes=1 << 30, num_workers=0)
    proxy.use(Schedule())
    first = next(iter(data.val_dataloader()))
    shards = len(data.shard_set.manifest.shards)
    assert 0 < proxy.requests["GET"] <= shards  # eight patches, at most one request a shard
    proxy.use(Schedule())
    assert_same([next(iter(data.val_dataloader()))], [first])
    assert [seen.head.target for seen in proxy.seen if ".tar" in seen.head.target] == []


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_in_mid_epoch_changes_no_batch(
    short_clips, local_batches, tmp_path, bucket_name
):
    with SeaweedFS() as server:
        bucket = server.bucket(bucket_name)
        options = quick(bucket, retry_timeout=60.0)
        data = make_data(upload(bucket, short_clips), storage_options=options, cache_dir=str(tmp_path), **STREAMING)
        loader = data.train_dataloader()
        batches = iter(loader)
        found = [next(batches) for _ in range(3)]
        server.kill()
        with ThreadPoolExecutor(1) as reading:  # the server dies with the thread that starts it, so that is this one
            rest = reading.submit(lambda: list(batches))
            time.sleep(1)
            server.start()
            found += rest.result()
        assert_same(found, local_batches(**STREAMING)[: len(loader)])


AWAY = Schedule(0, (Rule(kinds=("503",)),))


@pytest.fixture
def begin_behind(url, bucket, proxy_before, tmp_path):
    """Makes a training whose server is behind a proxy, which is tried for ten minutes."""
    proxy = proxy_before(bucket.endpoint)
    options = quick(proxy.before(bucket), retry_timeout=600.0)
    return lambda mode: (
        proxy,
        make_data(url, storage_options=options, cache_dir=str(tmp_path), num_workers=1, **mode),
    )


def test_what_nobody_waits_for_any_more_is_not_asked_for_again(begin_behind):
    proxy, data = begin_behind(STREAMING)
    loader = iter(data.train_dataloader())
    next(loader)
    proxy.use(AWAY)
    begun = time.monotonic()
    loader.close()
    data.train_dataset._reader._store._requests.shutdown(wait=True)
    assert time.monotonic() - begun < 5
    assert data.train_dataset._reader._store._held.table.members == []


@MODES
def test_a_loader_that_is_closed_waits_for_no_server_that_is_away(begin_behind, monkeypatch, mode):
    proxy, data = begin_behind(mode)
    dataset, planned, closing, failed = data.train_dataset, threading.Event(), threading.Event(), []
    plan_batches, read, let_go = FlexibleBatchSampler.__iter__, dataset.__getitems__, dataset.let_go

    def plan_and_tell(sampler: FlexibleBatchSampler) -> Iterator[Any]:
        for number, plan in enumerate(plan_batches(sampler)):
            if number == 3:  # those before it can be read
                planned.set()
            yield plan

    def read_late(plan: Any) -> Any:
        if plan.number < 2:
            return read(plan)
        closing.wait(60)
        try:
            return read(plan)
        except StorageError as error:
            failed.append(str(error))
            raise

    monkeypatch.setattr(FlexibleBatchSampler, "__iter__", plan_and_tell)
    monkeypatch.setattr(dataset, "__getitems__", read_late)
    monkeypatch.setattr(dataset, "let_go", lambda threads: (let_go(threads), closing.set()))
    loader = iter(data.train_dataloader())
    next(loader)
    assert planned.wait(60)
    next(loader)  # has batch 2 read ahead
    proxy.use(AWAY)
    begun = time.monotonic()
    loader.close()
    assert time.monotonic() - begun < 5
    assert failed == ["These bytes were let go while they were on their way."]
    proxy.use(Schedule())
    assert len(list(data.train_dataloader())) > 0


# --- pure


@settings(deadline=None)
@given(st.data())
def test_joined_ranges_hold_every_range_and_stay_in_their_shard(data):
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=4))
    edges = np.concatenate([[0], np.cumsum(sizes)])
    ranges = []
    for _ in range(data.draw(st.integers(0, 20))):
        shard = data.draw(st.integers(0, len(sizes) - 1))
        begin = data.draw(st.integers(int(edges[shard]), int(edges[shard + 1]) - 1))
        ranges.append((begin, data.draw(st.integers(begin + 1, int(edges[shard + 1])))))
    ranges = sorted(set(ranges))
    begin, end = np.array(ranges, np.int64).reshape(-1, 2).T
    gap, most = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 200))
    joined, owner = join_ranges(begin, end, edges, gap, most)
    assert (joined[owner, 0] <= begin).all()
    assert (joined[owner, 1] >= end).all()
    assert sum(e - b for b, e in joined.tolist()) <= sum(e - b for b, e in ranges) + gap * len(ranges)
    for low, high in joined.tolist():
        assert high - low <= most or any((low, high) == one for one in ranges)
        assert np.searchsorted(edges, low, "right") == np.searchsorted(edges, high - 1, "right")


def test_a_range_is_cut_into_parts_of_about_one_size():
    assert cut_range(10, 30, 8) == [(10, 16), (16, 23), (23, 30)]
    assert cut_range(0, 8, 8) == [(0, 8)]
