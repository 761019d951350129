"""The servers that tests of object storage use keep objects, refuse what they must, and fail as they are told to."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError, PreconditionError
from obstore.store import ObjectStore

from tests.servers.bucket import Bucket
from tests.servers.daemon import Daemon, ServerDidNotStart
from tests.servers.far_link import FarLink
from tests.servers.faults import KINDS, Rule, Schedule, one_fault
from tests.servers.gcs import Gcs
from tests.servers.http1 import Head
from tests.servers.moto import Moto
from tests.servers.nginx import Nginx
from tests.servers.ports import free_ports, is_open
from tests.servers.programs import MissingProgram, find_program
from tests.servers.proxy import Link, Proxy
from tests.servers.seaweedfs import SeaweedFS

BODY = bytes(range(256)) * 800  # 204,800 bytes
KEYS_RENEWED = {"access_key_id": "RENEWEDACCESSKEY", "secret_access_key": "renewed-secret"}
MakeProxy = Callable[..., Proxy]


@pytest.fixture(params=["seaweedfs", "moto", "azurite", "gcs"])
def any_bucket(request: pytest.FixtureRequest, bucket_name: str) -> Bucket:
    """An empty bucket of each server that can be written to."""
    return request.getfixturevalue(request.param).bucket(bucket_name)


@pytest.fixture
def full_bucket(bucket: Bucket) -> Bucket:
    """A bucket of SeaweedFS with one object, `x`."""
    obstore.put(bucket.store(), "x", BODY)
    return bucket


def read(store: ObjectStore, name: str = "x", start: int = 0, end: int = len(BODY)) -> bytes:
    return bytes(obstore.get_range(store, name, start=start, end=end))


def names(store: ObjectStore, prefix: str = "") -> list[str]:
    return [entry["path"] for page in obstore.list(store, prefix) for entry in page]


def test_objects_come_back_as_they_were_written(any_bucket: Bucket) -> None:
    store = any_bucket.store()
    obstore.put(store, "a/x y+z.bin", BODY)
    obstore.put(store, "b", b"")
    assert bytes(obstore.get(store, "a/x y+z.bin").bytes()) == BODY
    assert read(store, "a/x y+z.bin", 3, 9) == b"\x03\x04\x05\x06\x07\x08"
    ranges = obstore.get_ranges(store, "a/x y+z.bin", starts=[0, 204_798], lengths=[2, 2], coalesce=0)
    assert [bytes(part) for part in ranges] == [b"\x00\x01", b"\xfe\xff"]
    assert obstore.head(store, "a/x y+z.bin")["size"] == 204_800
    assert names(store) == ["a/x y+z.bin", "b"]
    assert names(store, "a") == ["a/x y+z.bin"]
    assert obstore.list_with_delimiter(store)["common_prefixes"] == ["a"]
    obstore.delete(store, "b")
    assert names(store) == ["a/x y+z.bin"]
    with pytest.raises(FileNotFoundError, match="b"):
        obstore.get(store, "b")


def test_multipart_upload_is_visible_only_when_complete(any_bucket: Bucket) -> None:
    store = any_bucket.store()
    body = BODY * 55  # 11.3 MB, three parts
    with obstore.open_writer(store, "big", buffer_size=5 << 20) as writer:
        writer.write(body[: 8 << 20])
        assert names(store) == []
        writer.write(body[8 << 20 :])
    assert bytes(obstore.get(store, "big").bytes()) == body
    obstore.put(store, "big", BODY * 56)
    assert obstore.head(store, "big")["size"] == 56 * 204_800


def test_conditions_are_honoured(any_bucket: Bucket) -> None:
    store = any_bucket.store()
    first = obstore.put(store, "lock", b"one", mode="create")
    with pytest.raises(AlreadyExistsError, match="lock"):
        obstore.put(store, "lock", b"two", mode="create")
    version = {key: value for key, value in first.items() if value is not None}
    obstore.put(store, "lock", b"three", mode=version)
    with pytest.raises(PreconditionError, match="lock"):
        obstore.put(store, "lock", b"four", mode=version)
    with pytest.raises(PreconditionError, match="lock"):
        obstore.get(store, "lock", options={"if_match": first["e_tag"], "range": (0, 2)})
    e_tag = obstore.head(store, "lock")["e_tag"]
    assert bytes(obstore.get(store, "lock", options={"if_match": e_tag, "range": (0, 3)}).bytes()) == b"thr"


def test_list_longer_than_a_page_is_whole(gcs: Gcs, bucket_name: str) -> None:
    store = gcs.bucket(bucket_name).store()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: obstore.put(store, f"{number:04}", b""), range(1003)))
    assert names(store) == [f"{number:04}" for number in range(1003)]


@pytest.mark.parametrize("server", ["seaweedfs", "gcs"])
def test_reader_can_read_and_list_but_not_write(server: str, bucket_name: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(server)
    obstore.put(running.bucket(bucket_name).store(), "x", BODY)
    store = running.bucket(bucket_name, role="reader").store()
    assert read(store) == BODY
    assert names(store) == ["x"]
    for write in (lambda: obstore.put(store, "y", b"1"), lambda: obstore.delete(store, "x")):
        with pytest.raises(BaseError, match="AccessDenied"):
            write()
    assert names(store) == ["x"]


def test_only_known_keys_are_accepted(full_bucket: Bucket) -> None:
    wrong = full_bucket.with_options(secret_access_key="wrong").store()
    unknown = full_bucket.with_options(access_key_id="UNKNOWNACCESSKEY").store()
    anonymous = full_bucket.with_options(skip_signature="true").store()
    renewed = full_bucket.with_options(**KEYS_RENEWED).store()
    obstore.put(renewed, "y", b"")
    assert read(renewed) == BODY
    for store, code in ((wrong, "SignatureDoesNotMatch"), (unknown, "InvalidAccessKeyId"), (anonymous, "AccessDenied")):
        with pytest.raises(PermissionDeniedError, match=code):
            read(store)


def test_https_files_are_read_by_who_trusts_the_certificate(nginx: Nginx, bucket_name: str) -> None:
    bucket = nginx.bucket(bucket_name)
    (nginx.files(bucket_name) / "x").write_bytes(BODY)
    assert bucket.url.startswith("https://127.0.0.1:")
    assert read(bucket.store(), end=100) == BODY[:100]
    assert read(bucket.at(nginx.plain_endpoint).store()) == BODY
    e_tag = obstore.head(bucket.store(), "x")["e_tag"]
    (nginx.files(bucket_name) / "x").write_bytes(BODY[:-1])
    with pytest.raises(PreconditionError, match="412"):
        obstore.get(bucket.store(), "x", options={"if_match": e_tag, "range": (0, 9)})
    with pytest.raises(GenericError, match="UnknownIssuer"):
        read(dataclasses.replace(bucket, client_options={}).store())


@pytest.mark.slow
def test_restart_keeps_objects_and_kill_ends_the_server(bucket_name: str) -> None:
    with SeaweedFS() as server:
        store = server.bucket(bucket_name).store()
        obstore.put(store, "x", BODY)
        server.kill()
        with pytest.raises(GenericError, match="error sending request"):
            read(store)
        server.start()
        assert read(store) == BODY
        obstore.put(store, "y", b"after")
        assert names(store) == ["x", "y"]
        folder, ports = server.folder, server.ports
        assert all(is_open(port) for port in ports)
    assert not folder.exists()
    assert not any(is_open(port) for port in ports)
    assert not [path for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.endswith(tuple(map(str, ports)))]


def test_server_that_ends_at_once_is_an_error_with_its_log() -> None:
    class Broken(Daemon):
        name = "broken"

        def command(self) -> list[str]:
            return ["sh", "-c", "echo no such disk; exit 3"]

    server = Broken()
    with pytest.raises(ServerDidNotStart, match=r"(?s)broken ended with status 3 on ports .*\nno such disk"):
        server.start()
    assert not server.folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_server_dies_with_the_test_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # nobody is left to remove the server's folder
    call = "from tests.servers.gcs import Gcs; print(Gcs().start().ports[0], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", call], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert is_open(port)
        process.kill()
    deadline = time.monotonic() + 5
    while is_open(port) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_open(port)


def test_missing_program_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.servers.programs._PLACES", {"nginx": tmp_path / "nginx"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingProgram, match=r"nginx is not installed: neither .* run `python -m tests.servers.programs`"
    ):
        find_program("nginx")


def test_the_browser_may_have_several_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingProgram, match=r"chromium is not installed: PATH does not have it\. To get it, on Debian"
    ):
        find_program("chromium")
    for name in ("google-chrome", "chromium"):
        (tmp_path / name).touch(mode=0o755)
        assert find_program("chromium") == str(tmp_path / name)


def test_ports_are_different_and_free() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert not any(is_open(port) for port in ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        assert is_open(ports[0])


# Of the proxy. What a client without retries gets from each fault, and what the server saw.

BROKEN = {
    "drop": "error sending request",
    "lose": "error sending request",
    "reset": "request or response body error",
    "stall": "request or response body error",
    "truncate": "request or response body error",
    "429": "429 Too Many Requests",
    "500": "500 Internal Server Error",
    "503": "503 Service Unavailable",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_fault_breaks_one_request_and_not_the_next(kind: str, full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(full_bucket.endpoint, one_fault(kind, methods=("GET",), seconds=0.05))
    store = proxy.before(full_bucket).store()
    with pytest.raises(GenericError, match=BROKEN[kind]):
        read(store)
    assert read(store) == BODY
    assert proxy.faults == {kind: 1}
    assert proxy.requests == {"GET": 2}
    assert proxy.faults_left == 0


def test_refused_request_is_a_lack_of_permission(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(full_bucket.endpoint, one_fault("403"))
    store = proxy.before(full_bucket).store()
    with pytest.raises(PermissionDeniedError, match=r"403 Forbidden.*drawn by a schedule"):
        read(store)
    assert read(store) == BODY


def test_too_small_length_gives_a_shorter_body_without_an_error(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(full_bucket.endpoint, one_fault("short"))
    store = proxy.before(full_bucket).store()
    got = read(store)
    assert len(got) < len(BODY)
    assert got == BODY[: len(got)]
    assert proxy.bytes_sent == len(got)
    assert read(store) == BODY


def test_flip_changes_one_bit(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(full_bucket.endpoint, one_fault("flip"))
    got = read(proxy.before(full_bucket).store())
    different = [(a, b) for a, b in zip(got, BODY, strict=True) if a != b]
    assert [a ^ b for a, b in different] == [1]


def test_stall_lasts_until_the_client_gives_up(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(full_bucket.endpoint, one_fault("stall", seconds=60))
    store = proxy.before(full_bucket).store(read_timeout=timedelta(seconds=0.2))
    start = time.monotonic()
    with pytest.raises(GenericError, match="TimedOut"):
        read(store)
    assert 0.2 <= time.monotonic() - start < 5


def test_delay_and_slow_take_their_time(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(full_bucket.endpoint)
    store = proxy.before(full_bucket).store()
    read(store)
    for schedule, least in (
        (one_fault("delay", seconds=0.2), 0.2),
        (one_fault("slow", bytes_per_second=1_024_000), 0.19),  # 204,800 bytes in 0.2 s, 10 ms of it at once
    ):
        proxy.use(schedule)
        start = time.monotonic()
        assert read(store) == BODY
        assert least <= time.monotonic() - start < least + 5


def test_link_is_far_and_narrow_for_every_request(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    far = proxy_before(full_bucket.endpoint, link=Link(delay_seconds=0.03))
    narrow = proxy_before(full_bucket.endpoint, link=Link(bytes_per_second=2_048_000))
    for proxy, least in ((far, 0.09), (narrow, 0.3)):
        store = proxy.before(full_bucket).store()
        start = time.monotonic()
        for _ in range(3):
            assert read(store) == BODY
        assert 0.9 * least <= time.monotonic() - start < least + 5
        assert proxy.bytes_sent == 3 * 204_800
        assert not proxy.faults


def test_link_of_its_own_process_is_as_far(full_bucket: Bucket) -> None:
    with FarLink(full_bucket.endpoint, Link(delay_seconds=0.05, bytes_per_second=4_096_000)) as link:
        store = link.before(full_bucket).store()
        start = time.monotonic()
        assert read(store) == BODY
        assert 0.07 <= time.monotonic() - start < 5


def test_redirection_leads_elsewhere(nginx: Nginx, bucket_name: str, proxy_before: MakeProxy) -> None:
    bucket = nginx.bucket(bucket_name)
    (nginx.files(bucket_name) / "x").write_bytes(BODY)
    elsewhere = proxy_before(nginx.plain_endpoint)
    proxy = proxy_before(
        nginx.plain_endpoint, one_fault("307", location=f"{elsewhere.endpoint}/{bucket_name}/x?moved=1")
    )
    assert read(proxy.before(bucket).store()) == BODY
    assert proxy.faults == {"307": 1}
    assert [seen.head.target for seen in elsewhere.seen] == [f"/{bucket_name}/x?moved=1"]


def test_lost_reply_leaves_the_object_written(bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(bucket.endpoint, one_fault("lose", methods=("PUT",)))
    with pytest.raises(GenericError, match="error sending request"):
        obstore.put(proxy.before(bucket).store(), "x", BODY)
    assert read(bucket.store()) == BODY


def test_dropped_request_never_reaches_the_server(bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(bucket.endpoint, one_fault("drop", methods=("PUT",)))
    with pytest.raises(GenericError, match="error sending request"):
        obstore.put(proxy.before(bucket).store(), "x", BODY)
    assert names(bucket.store()) == []


def test_signed_uploads_and_lists_pass_unchanged(bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(bucket.endpoint)
    store = proxy.before(bucket).store()
    obstore.put(store, "a/big +%20", BODY * 55)
    assert names(store) == ["a/big +%20"]
    assert bytes(obstore.get(bucket.store(), "a/big +%20").bytes()) == BODY * 55
    assert proxy.requests == {"POST": 2, "PUT": 3, "GET": 1}
    with pytest.raises(PermissionDeniedError, match="SignatureDoesNotMatch"):
        read(proxy.before(bucket).with_options(secret_access_key="wrong").store())


def test_proxy_stands_before_every_server(any_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(any_bucket.endpoint, Schedule(rules=(Rule(kinds=("503",), repeats=(0,)),)))
    store = proxy.before(any_bucket).store(retries=1)
    obstore.put(store, "x", BODY)
    assert read(store) == BODY
    assert names(store) == ["x"]
    assert proxy.faults == {"503": 3}


def test_proxy_speaks_tls_with_the_servers_certificate(nginx: Nginx, bucket_name: str, proxy_before: MakeProxy) -> None:
    bucket = nginx.bucket(bucket_name)
    (nginx.files(bucket_name) / "x").write_bytes(BODY)
    proxy = proxy_before(nginx.plain_endpoint, one_fault("truncate"), tls=nginx.tls())
    assert proxy.endpoint.startswith("https://")
    store = proxy.before(bucket).store()
    with pytest.raises(GenericError, match="body error"):
        read(store)
    assert read(store) == BODY


def test_headers_dropped_make_a_server_that_ignores_conditions(
    moto: Moto, bucket_name: str, proxy_before: MakeProxy
) -> None:
    bucket = moto.bucket(bucket_name)
    proxy = proxy_before(bucket.endpoint, link=Link(drop_headers=("If-None-Match", "If-Match")))
    store = proxy.before(bucket).store()
    obstore.put(store, "lock", b"one", mode="create")
    obstore.put(store, "lock", b"two", mode="create")
    assert bytes(obstore.get(store, "lock").bytes()) == b"two"


def test_rule_chooses_by_method_target_header_and_repetition(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    rules = (
        Rule(kinds=("501",), methods=("PUT",), headers={"If-None-Match": r"\*"}),
        Rule(kinds=("403",), headers={"Authorization": "READERACCESSKEY"}),
        Rule(kinds=("500",), target="/x$", repeats=(1,)),
    )
    proxy = proxy_before(full_bucket.endpoint, Schedule(rules=rules))
    store = proxy.before(full_bucket).store()
    with pytest.raises(GenericError, match="501"):
        obstore.put(store, "y", b"", mode="create")
    obstore.put(store, "y", b"")
    reader = proxy.before(full_bucket).with_options(access_key_id="READERACCESSKEY", secret_access_key="reader-secret")
    with pytest.raises(PermissionDeniedError, match="403"):
        read(reader.store(), end=7)
    assert read(store) == BODY
    with pytest.raises(GenericError, match="500"):
        read(store)
    assert read(store) == BODY


def faults_of_a_run(bucket: Bucket, seed: int, threads: int) -> list[tuple[str, str]]:
    """Range and fault of 100 requests, by range; those that failed were made again once."""
    kinds = tuple(kind for kind in KINDS if kind not in ("stall", "delay", "slow"))
    schedule = Schedule(seed, (Rule(kinds=kinds, share=0.5),))
    with Proxy(bucket.endpoint, schedule) as proxy, ThreadPoolExecutor(threads) as pool:
        store = proxy.before(bucket).store()

        def ask(number: int) -> None:
            for _ in range(2):
                try:
                    read(store, start=number, end=number + 1000)
                except (GenericError, PermissionDeniedError):
                    continue
                return

        list(pool.map(ask, range(100)))
        return sorted((seen.head.get("Range") or "", seen.fault) for seen in proxy.seen)


def test_same_seed_gives_the_same_faults_whatever_the_order(full_bucket: Bucket) -> None:
    first = faults_of_a_run(full_bucket, seed=7, threads=1)
    assert faults_of_a_run(full_bucket, seed=7, threads=8) == first
    assert faults_of_a_run(full_bucket, seed=8, threads=8) != first
    given = [fault for _, fault in first if fault]
    assert 0.35 < len(given) / len(first) < 0.65
    assert set(given) == {"drop", "lose", "reset", "truncate", "short", "flip", "403", "429", "500", "503"}


def test_schedule_is_the_same_in_every_process() -> None:
    schedule = Schedule(3, (Rule(kinds=KINDS, share=0.25),))
    head = Head("GET /bucket/x?x-id=1 HTTP/1.1", (("Host", "127.0.0.1:1"), ("Range", "bytes=0-9")))
    drawn = [schedule.draw(head, repeat) for repeat in range(12)]
    assert [fault.kind if fault else "" for fault in drawn] == [
        *("", "", "", "drop", "truncate", "", "truncate", "", "", "", "", ""),
    ]
    other = Head("GET /bucket/x?x-id=2 HTTP/1.1", (("Host", "127.0.0.1:2"), ("Range", "bytes=0-9")))
    assert [schedule.draw(other, repeat) for repeat in range(12)] == drawn


def test_fault_limit_holds_for_requests_at_once(full_bucket: Bucket, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(full_bucket.endpoint, Schedule(rules=(Rule(kinds=("503",)),), fault_limit=5))
    store = proxy.before(full_bucket).store(retries=9)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: read(store), range(16))) == 16 * [BODY]
    assert proxy.faults == {"503": 5}
    assert proxy.requests == {"GET": 21}


def test_proxy_goes_on_when_the_server_restarts_and_drops_while_it_is_gone(
    bucket_name: str, proxy_before: MakeProxy
) -> None:
    with Nginx() as server:
        proxy = proxy_before(server.plain_endpoint)
        store = proxy.before(server.bucket(bucket_name)).store()
        (server.files(bucket_name) / "x").write_bytes(BODY)
        assert read(store) == BODY
        server.kill()
        with pytest.raises(GenericError, match="error sending request"):
            read(store)
        server.start()
        assert read(store) == BODY
        server.restart()
        assert read(store) == BODY


def test_plain_client_gets_the_same_through_the_proxy(nginx: Nginx, bucket_name: str, proxy_before: MakeProxy) -> None:
    nginx.bucket(bucket_name)
    (nginx.files(bucket_name) / "x").write_bytes(BODY)
    proxy = proxy_before(nginx.plain_endpoint)
    with urllib.request.urlopen(f"{proxy.endpoint}/{bucket_name}/x") as reply:
        assert reply.read() == BODY
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{proxy.endpoint}/{bucket_name}/none")
    host = proxy.endpoint.removeprefix("http://")
    assert [seen.head.get("Host") for seen in proxy.seen] == [host, host]
