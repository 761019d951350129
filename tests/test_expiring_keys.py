"""Keys that expire while a training runs: renewed in time or when refused, once for all threads; else one error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

import dynaclr_wds.datamodule
from dynaclr_wds.errors import StorageError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import Location, parse_place
from dynaclr_wds.storage.options import parse_options
from dynaclr_wds.world import World
from tests.conftest import make_matrix_set
from tests.remote import EXACT, assert_same, make_data, upload
from tests.servers.bucket import Bucket
from tests.servers.faults import Rule, Schedule
from tests.servers.proxy import Proxy
from tests.servers.seaweedfs import ROLES
from tests.shared_build import make_once

OLD, NEW = ROLES["reader"], ROLES["renewed"]
MODES = pytest.mark.parametrize(
    "mode", [EXACT, {"window_bytes": "70%", "num_streams": 2, "relax_lineages": True}], ids=["exact", "streaming"]
)
RANKS = (0, 1)
PAUSE_AT = 3
"""Batches that each rank reads before the old keys expire."""
MakeProxy = Callable[..., Proxy]


class Provider:
    """Gives keys, counts how often it was asked, and takes a while."""

    def __init__(self, role: tuple[str, str, Any] = OLD, expires_in: float | None = None) -> None:
        self.role, self.expires_in = role, expires_in
        self.asked: list[str] = []

    def __call__(self) -> dict[str, Any]:
        key, secret, _ = self.role
        self.asked.append(key)
        time.sleep(0.05)
        expires = None if self.expires_in is None else datetime.now(UTC) + timedelta(seconds=self.expires_in)
        return {"access_key_id": key, "secret_access_key": secret, "token": None, "expires_at": expires}


def refuse(*roles: tuple[str, str, Any]) -> Schedule:
    """Refuse every request that is signed with keys of these roles."""
    keys = "|".join(key for key, _, _ in roles)
    return Schedule(0, (Rule(kinds=("403",), headers={"Authorization": keys}),))


def signed_with(proxy: Proxy, role: tuple[str, str, Any]) -> int:
    """Count the requests that were signed with keys of a role."""
    return sum(role[0] in (seen.head.get("Authorization") or "") for seen in list(proxy.seen))


def options_of(proxy: Proxy, provider: Provider) -> dict[str, Any]:
    limits = {"retry_timeout": 60.0, "request_timeout": 30.0}
    return {"endpoint": proxy.endpoint, "region": "us-east-1", "credential_provider": provider, **limits}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_once(tmp_path_factory, "matrix", make_matrix_set) / "shards"


@pytest.fixture
def url(bucket: Bucket, shards: Path) -> str:
    return upload(bucket, shards)


@pytest.fixture
def open_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make the data of one of two ranks."""

    def make(rank: int, shards: str | Path, **options: Any) -> Any:
        monkeypatch.setattr(dynaclr_wds.datamodule, "detect_world", lambda _: World(rank, len(RANKS)))
        data = make_data(shards, val_experiments=[], num_workers=3, **options)
        return data, data.train_dataloader()

    return make


@MODES
@pytest.mark.slow
def test_two_ranks_whose_keys_expire_in_mid_epoch_ask_once_each_and_go_on(
    url: str,
    bucket: Bucket,
    proxy_before: MakeProxy,
    shards: Path,
    open_rank: Any,
    tmp_path: Path,
    mode: dict[str, Any],
):
    proxy = proxy_before(bucket.endpoint)
    providers = [Provider() for _ in RANKS]
    loaders = []
    for rank, provider in zip(RANKS, providers, strict=True):
        options = options_of(proxy, provider)
        loaders.append(open_rank(rank, url, storage_options=options, cache_dir=str(tmp_path), **mode)[1])
    expired, reached = threading.Event(), threading.Barrier(len(RANKS) + 1)

    def train(rank: int) -> list[dict[str, Any]]:
        found = []
        for number, batch in enumerate(loaders[rank], start=1):
            found.append(batch)
            if number == PAUSE_AT:
                reached.wait(300)
                expired.wait(300)
        return found

    with ThreadPoolExecutor(len(RANKS)) as pool:
        seen = [pool.submit(train, rank) for rank in RANKS]
        reached.wait(300)
        for provider in providers:
            provider.role = NEW
        proxy.use(refuse(OLD))
        expired.set()
        found = [one.result() for one in seen]
    assert [provider.asked for provider in providers] == [[OLD[0], NEW[0]]] * 2
    assert proxy.faults["403"] >= 2
    for rank in RANKS:
        assert_same(found[rank], list(open_rank(rank, shards, **mode)[1]))


@MODES
def test_keys_that_stay_refused_are_one_clear_error_at_once(
    url: str, bucket: Bucket, proxy_before: MakeProxy, open_rank: Any, tmp_path: Path, mode: dict[str, Any]
):
    proxy, provider = proxy_before(bucket.endpoint), Provider()
    _, loader = open_rank(0, url, storage_options=options_of(proxy, provider), cache_dir=str(tmp_path), **mode)
    batches = iter(loader)
    next(batches)
    proxy.use(refuse(OLD))
    begun = time.monotonic()
    with pytest.raises(
        StorageError, match=r"\.tar, bytes .*: the server refused the credentials .*, new ones too"
    ) as raised:
        list(batches)
    assert time.monotonic() - begun < 10
    assert provider.asked == [OLD[0]] * 2
    assert not any(secret in f"{raised.value!r}" for secret in OLD[:2])


def test_threads_that_are_refused_together_ask_once(bucket: Bucket, proxy_before: MakeProxy):
    obstore.put(bucket.store(), "x", bytes(range(200)))
    proxy, provider = proxy_before(bucket.endpoint), Provider()
    storage = open_storage(bucket, proxy, provider)
    assert storage.info("x").size == 200
    provider.role = NEW
    proxy.use(refuse(OLD))
    together = threading.Barrier(16)

    def read(begin: int) -> bytes:
        together.wait(300)
        return bytes(storage.read_range("x", begin, begin + 10)[0])

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(read, range(16)))
    assert found == [bytes(range(begin, begin + 10)) for begin in range(16)]
    assert provider.asked == [OLD[0], NEW[0]]


def test_keys_are_renewed_before_they_expire(bucket: Bucket, proxy_before: MakeProxy):
    obstore.put(bucket.store(), "x", b"content")
    # obstore asks for new keys five minutes before the old ones expire
    proxy, provider = proxy_before(bucket.endpoint), Provider(expires_in=300.5)
    storage = open_storage(bucket, proxy, provider)
    assert storage.info("x").size == 7
    provider.role, provider.expires_in = NEW, None
    time.sleep(0.6)
    proxy.use(refuse(OLD))
    assert bytes(storage.read_range("x", 0, 7)[0]) == b"content"
    assert proxy.faults["403"] == 0
    assert signed_with(proxy, NEW) == len(proxy.seen) == 1


def test_keys_that_were_never_right_are_asked_for_twice_however_often_they_are_tried(
    bucket: Bucket, proxy_before: MakeProxy
):
    proxy, provider = proxy_before(bucket.endpoint, refuse(OLD)), Provider()
    storage = open_storage(bucket, proxy, provider)
    for _ in range(5):
        with pytest.raises(StorageError, match=r"x: the server refused the credentials \(status 403\), new ones too"):
            storage.info("x")
    assert len(provider.asked) == 2


def test_a_provider_that_fails_is_an_error_that_says_so_without_what_it_said(bucket: Bucket, proxy_before: MakeProxy):
    def fail() -> dict[str, Any]:
        raise RuntimeError("hunter2")

    proxy = proxy_before(bucket.endpoint)
    options = {"endpoint": proxy.endpoint, "region": "us-east-1", "credential_provider": fail}
    with pytest.raises(StorageError, match=r"x: .*the credential_provider failed") as raised:
        Storage(Location("s3", bucket.url.removeprefix("s3://")), parse_options(options)).info("x")
    assert "hunter2" not in str(raised.value)
    assert proxy.seen == []


def open_storage(bucket: Bucket, proxy: Proxy, provider: Provider) -> Storage:
    where = parse_place(bucket.url)
    assert isinstance(where, Location)
    return Storage(where, parse_options(options_of(proxy, provider)))
