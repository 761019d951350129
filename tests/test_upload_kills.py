"""Whole or absent in object storage: an upload that is killed anywhere and given again ends with the same objects."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest

from dynaclr_wds.contract import MANIFEST
from dynaclr_wds.storage.options import MIB
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config
from tests.forked_builds import ForkedBuilds
from tests.plates import make_collection
from tests.servers.bucket import Bucket
from tests.servers.proxy import Link, Proxy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_fsync")]

MOMENTS = 24


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiments.yaml whose set has a shard of three parts; beside it `local`, the set."""
    root = tmp_path_factory.mktemp("killed")
    path = make_collection(
        root,
        experiments=1,
        fovs=("A/1/0",),
        shape=(8, 2, 3, 64, 64),
        lineages=14,
        yx_patch_size=[56, 56],
        dtype="float32",
    )
    build_shards(parse_build_config(path, {}), root / "local")
    return path


@pytest.fixture(scope="module")
def builds() -> Iterator[ForkedBuilds]:
    with ForkedBuilds() as server:
        yield server


class Uploads:
    """Builds of one set to prefixes of a bucket, by way of a proxy that sees every request."""

    is_built = True
    """Whether the set stands in the staging folder already, and is only sent."""

    def __init__(self, builds: ForkedBuilds, collection: Path, bucket: Bucket, proxy: Proxy, folder: Path) -> None:
        self._builds, self._collection, self._bucket, self._proxy, self._folder = (
            builds,
            collection,
            bucket,
            proxy,
            folder,
        )
        local = {
            str(path.relative_to(collection.parent / "local")): path.read_bytes()
            for path in (collection.parent / "local").rglob("*")
            if path.is_file()
        }
        self.expected = local

    def run(self, prefix: str, at: int | None = None, sent: signal.Signals = signal.SIGKILL, target: str = "") -> int:
        """Build to a prefix; send the process a signal when the proxy has seen so many requests. Return its status."""
        staging = self._folder / prefix
        if self.is_built and not staging.exists():
            shutil.copytree(self._collection.parent / "local", staging)
        before = len(self._proxy.seen)
        words = [str(self._collection), "--out", f"{self._bucket.url}/{prefix}", "--staging", str(staging)]
        words += ["--storage_options", f"endpoint={self._proxy.endpoint}", f"request_bytes={MIB}", "retry_timeout=5"]
        keys = self._bucket.options
        environment = {
            "AWS_ACCESS_KEY_ID": keys["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"],
            "AWS_REGION": keys["region"],
        }
        process = self._builds.start(words, self._folder / f"{prefix}.said", environment)
        while at is not None and sum(target in seen.head.target for seen in self._proxy.seen[before:]) < at:
            time.sleep(0.001)
        if at is not None:
            os.kill(process, sent)
        return self._builds.wait()

    def said(self, prefix: str) -> str:
        return (self._folder / f"{prefix}.said").read_text()

    def objects(self, prefix: str) -> dict[str, bytes]:
        store = self._bucket.store(retries=3)
        names = [entry["path"] for entry in obstore.list(store, prefix).collect()]
        return {name.removeprefix(f"{prefix}/"): bytes(obstore.get(store, name).bytes()) for name in names}


def test_an_upload_that_is_killed_and_given_again_ends_with_the_same_objects(
    collection: Path, builds: ForkedBuilds, bucket: Bucket, tmp_path: Path, proxy_before: Callable[..., Proxy]
):
    proxy = proxy_before(bucket.endpoint, link=Link(delay_seconds=0.002))
    uploads = Uploads(builds, collection, bucket, proxy, tmp_path)
    assert uploads.run("undisturbed") == 0, uploads.said("undisturbed")
    assert uploads.objects("undisturbed") == uploads.expected
    requests = len(proxy.seen)
    assert sum("partNumber=" in seen.head.target for seen in proxy.seen) == 3
    moments = np.random.default_rng(10).choice(np.arange(1, requests), MOMENTS, replace=False).tolist()
    stages = set()
    for moment in moments:
        prefix = f"killed{moment}"
        assert uploads.run(prefix, at=moment) == -signal.SIGKILL, uploads.said(prefix)
        own = ("build.", "versions/next.json")
        left = {name: data for name, data in uploads.objects(prefix).items() if not name.startswith(own)}
        assert left.items() <= uploads.expected.items()
        stages.add("none" if not left else "all" if MANIFEST in left else "some")
        assert uploads.run(prefix) == 0, uploads.said(prefix)
        assert uploads.objects(prefix) == uploads.expected
        obstore.delete(bucket.store(), [f"{prefix}/{name}" for name in uploads.expected])
    assert {"none", "some"} <= stages


def test_a_build_that_sends_groups_as_they_end_is_killed_and_ends_with_the_same_objects(
    collection: Path, builds: ForkedBuilds, bucket: Bucket, tmp_path: Path, proxy_before: Callable[..., Proxy]
):
    proxy = proxy_before(bucket.endpoint, link=Link(delay_seconds=0.002))
    uploads = Uploads(builds, collection, bucket, proxy, tmp_path)
    uploads.is_built = False
    assert uploads.run("undisturbed") == 0, uploads.said("undisturbed")
    assert uploads.objects("undisturbed") == uploads.expected
    seen = [request.head.target for request in proxy.seen]
    last = max(number for number, target in enumerate(seen) if ".tar" in target)
    for moment in (last - 1, last + 3, len(seen) - 8):  # while the shard is sent, after it, near the end
        prefix = f"sent{moment}"
        assert uploads.run(prefix, at=moment) == -signal.SIGKILL, uploads.said(prefix)
        assert uploads.run(prefix) == 0, uploads.said(prefix)
        assert uploads.objects(prefix) == uploads.expected
        assert not (tmp_path / prefix).exists()


def test_ctrl_c_gives_up_the_parts_and_the_lease_and_says_how_to_go_on(
    collection: Path, builds: ForkedBuilds, bucket: Bucket, tmp_path: Path, proxy_before: Callable[..., Proxy]
):
    proxy = proxy_before(bucket.endpoint, link=Link(delay_seconds=0.05))
    uploads = Uploads(builds, collection, bucket, proxy, tmp_path)
    assert uploads.run("stopped", at=1, sent=signal.SIGINT, target="?uploads") == 130, uploads.said("stopped")
    assert uploads.said("stopped").endswith("stopped. Give the same command again to go on.\n")
    given_up = [seen for seen in proxy.seen if seen.head.method == "DELETE" and "uploadId=" in seen.head.target]
    assert len(given_up) == 1
    left = uploads.objects("stopped")
    assert left.pop("versions/next.json") == uploads.expected[MANIFEST]
    assert left.items() <= uploads.expected.items()
    assert MANIFEST not in left
    assert uploads.run("stopped") == 0, uploads.said("stopped")
    assert uploads.objects("stopped") == uploads.expected
