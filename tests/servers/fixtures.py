"""Starts each server once per test process, when a test first asks for it, and gives tests their own buckets.

Servers are imported where they are started, so that the other tests need neither their libraries nor their programs.
"""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers.programs import MissingProgram, find_program

if TYPE_CHECKING:
    from tests.servers.azurite import Azurite
    from tests.servers.bucket import Bucket
    from tests.servers.chromium import Chromium
    from tests.servers.gcs import Gcs
    from tests.servers.moto import Moto
    from tests.servers.nginx import Nginx
    from tests.servers.proxy import Proxy
    from tests.servers.seaweedfs import SeaweedFS


def _skip_without(program: str) -> None:
    """Say that a test did not run, where a program that pip can't install can't be had."""
    try:
        find_program(program)
    except MissingProgram as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """SeaweedFS: s3:// with signatures and rights, on disk."""
    from tests.servers.seaweedfs import SeaweedFS

    with SeaweedFS() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    """moto: another s3://, in memory."""
    from tests.servers.moto import Moto

    with Moto() as server:
        yield server


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Azurite: az://, on disk."""
    from tests.servers.azurite import Azurite

    _skip_without("azurite-blob")
    with Azurite() as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[Gcs]:
    """Our Google Cloud Storage: gs://, in memory."""
    from tests.servers.gcs import Gcs

    with Gcs() as server:
        yield server


@pytest.fixture(scope="session")
def nginx() -> Iterator[Nginx]:
    """nginx: https:// and http://, files of a folder, read only."""
    from tests.servers.nginx import Nginx

    _skip_without("nginx")
    with Nginx() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """Chromium, without a window: no server, but as large and as little of Python."""
    from tests.servers.chromium import Chromium

    _skip_without("chromium")
    with Chromium() as browser:
        yield browser


@pytest.fixture
def bucket_name(request: pytest.FixtureRequest) -> str:
    """A name of this test's own, the same in every run, so that a seed of faults gives the same ones."""
    return f"t{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"


@pytest.fixture
def bucket(seaweedfs: SeaweedFS, bucket_name: str) -> Iterator[Bucket]:
    """An empty bucket of SeaweedFS with the admin's keys; removed after the test."""
    yield seaweedfs.bucket(bucket_name)
    seaweedfs.drop(bucket_name)


@pytest.fixture
def proxy_before() -> Iterator[Callable[..., Proxy]]:
    """Make a proxy before an endpoint: `proxy_before(endpoint, schedule, link)`; closed after the test."""
    from tests.servers.proxy import Proxy

    proxies: list[Proxy] = []

    def make(upstream: str, *arguments: object, **options: object) -> Proxy:
        proxies.append(Proxy(upstream, *arguments, **options))  # type: ignore[arg-type]
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A host that sends everyone on to another one, and the headers that the other one was sent."""
    seen: list[dict[str, str]] = []

    class Second(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", "3")
            self.send_header("Last-Modified", "Sat, 28 Nov 2026 08:00:00 GMT")
            self.send_header("ETag", '"e"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"abc")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class First(Second):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{other.server_port}{self.path}")
            self.end_headers()

        do_HEAD = do_GET

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Second)
    first = http.server.ThreadingHTTPServer(("127.0.0.1", 0), First)
    for server in (other, first):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{first.server_port}", seen
    for server in (other, first):
        server.shutdown()
        server.server_close()
