"""Locations hold no secret and don't leave their folder; options are checked, never shown; failures are told apart."""

from __future__ import annotations

import http.server
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from dynaclr_wds.contract import FileRecord, checksum, format_checksum
from dynaclr_wds.errors import ConfigError, FormatError, StorageError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.failures import Kind, TryAgain, classify
from dynaclr_wds.storage.index_cache import IndexCache
from dynaclr_wds.storage.location import Location, is_url, name_place, parse_place
from dynaclr_wds.storage.objects import copy_object, read_begin
from dynaclr_wds.storage.options import kept_options, parse_options, parse_words
from dynaclr_wds.storage.versions import to_info
from dynaclr_wds.storage.writing import write
from tests.servers.faults import Rule, Schedule


def test_text_becomes_a_path_or_a_location():
    assert parse_place("shards/set") == Path("shards/set")
    assert parse_place("/a/b:c/d") == Path("/a/b:c/d")
    assert parse_place("s3://bucket/a/b/") == Location("s3", "bucket", "a/b")
    assert parse_place("gs://bucket") == Location("gs", "bucket")
    assert parse_place("https://host:8443/a%20b/~c") == Location("https", "host:8443", "a b/~c")
    assert str(parse_place("https://host/a%20b/")) == "https://host/a%20b"
    assert str(parse_place("s3://bucket/a") / "b/c.tar") == "s3://bucket/a/b/c.tar"
    assert (parse_place("az://box") / "c.tar").name == "c.tar"
    assert name_place(parse_place("s3://bucket/a")) == "s3://bucket/a"
    assert name_place(Path("a")) == str(Path.cwd() / "a")
    assert [is_url(text) for text in ("s3://a/b", "s3:/a/b", "a/b", "a:b")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://a/../b", "must not have empty parts, '.', '..'"),
        ("s3://a/b//c", "must not have empty parts"),
        ("https://h/%2e%2e/b", "must not have empty parts, '.', '..'"),
        ("https://h/a%00b", "control characters"),
        ("s3://a\\b/c", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("s3:/bucket/a", "has lost a '/'"),
        ("ftp://a/b", "URLs of scheme 'ftp' can't be read; use s3://, gs://, az://, https://, http:// or a path"),
        ("https://user:hunter2@host/a", "holds a user, a password"),
        ("https://host/a?sig=hunter2", "holds a user, a password, a query"),
        ("https://host/a#hunter2", "holds a user"),
    ],
)
def test_what_is_no_plain_location_is_refused_without_showing_secrets(text, message):
    with pytest.raises(ConfigError, match=f"shards.*{message}") as caught:
        parse_place(text)
    assert "hunter2" not in str(caught.value)


def test_options_that_may_be_kept_are_those_without_secrets():
    given = {
        "endpoint": "https://x", "region": "r", "access_key_id": "A", "secret_access_key": "B", "sas_key": "C",
        "headers": {"Authorization": "D"}, "account_name": "n", "retry_timeout": 3, "token": "E", "anonymous": None,
    }  # fmt: skip
    kept = {"endpoint": "https://x", "region": "r", "account_name": "n", "retry_timeout": 3}
    assert kept_options(given) == kept
    assert kept_options(parse_options(given)).items() >= kept.items()
    assert kept_options(None) is None
    assert repr(parse_options(given)) == "StorageOptions(…)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retry_timeout": -1}, "storage_options.retry_timeout must be seconds above 0"),
        ({"requests_in_flight": 0}, "requests_in_flight must be a whole number >= 1"),
        ({"anonymous": "yes"}, "anonymous must be true or false"),
        ({"access_key_id": 12345}, "access_key_id must be text"),
        ({"endpoint": "https://u:hunter2@x"}, "endpoint must be a URL without user"),
        ({"headers": "hunter2"}, "headers must be a mapping"),
        ({"credential_provider": "os.system"}, "credential_provider must be a function, given from Python"),
        (["hunter2"], "storage_options must be a mapping"),
    ],
)
def test_options_of_the_wrong_kind_are_named_and_not_shown(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_options(given)
    assert not any(secret in str(caught.value) for secret in ("hunter2", "12345"))


def test_an_option_that_the_storage_does_not_know_is_an_error(tmp_path):
    options = parse_options({"access_key_id": "a", "secret_access_key": "hunter2", "nonsense": "x"})
    with pytest.raises(
        ConfigError, match=r"s3://bucket/a: storage_options, or the environment, hold something"
    ) as caught:
        Storage(Location("s3", "bucket", "a"), options)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"ca_file='.*absent.pem', or AWS_CA_BUNDLE: can't be read"):
        Storage(Location("https", "host"), parse_options({"ca_file": str(tmp_path / "absent.pem")}))


def test_words_of_a_command_line_are_options():
    words = ["endpoint=http://x=y", "anonymous=true", "retry_timeout=2.5", "requests_in_flight=4"]
    expected = {"endpoint": "http://x=y", "anonymous": True, "retry_timeout": 2.5, "requests_in_flight": 4}
    assert parse_words(words) == expected
    with pytest.raises(ConfigError, match="every word must be KEY=VALUE"):
        parse_words(["endpoint"])
    with pytest.raises(ConfigError, match="retry_timeout must be a number"):
        parse_words(["retry_timeout=soon"])


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        (GenericError("… status code: 503 Slow Down: <Code>SlowDown</Code>"), Kind.TRANSIENT, "status 503 SlowDown"),
        (
            GenericError("status code: 400 Bad Request: <Code>ExpiredToken</Code>"),
            Kind.DENIED,
            "status 400 ExpiredToken",
        ),
        (GenericError("status code: 400 Bad Request: <Code>Invalid</Code>"), Kind.FINAL, "status 400 Invalid"),
        (PermissionDeniedError("status code: 403 Forbidden: sig=hunter2"), Kind.DENIED, "status 403"),
        (FileNotFoundError("hunter2"), Kind.ABSENT, "FileNotFoundError"),
        (
            GenericError("HTTP error: hunter2, tcp connect error, Connection refused"),
            Kind.TRANSIENT,
            "connection refused",
        ),
        (GenericError("PUT http://169.254.169.254/latest/api/token"), Kind.DENIED, "this machine's own role gave no"),
        (RuntimeError("hunter2"), Kind.TRANSIENT, "RuntimeError"),
    ],
)
def test_failures_are_told_apart_and_repeat_no_text(error, kind, cause):
    found = classify(error)
    assert found.kind is kind
    assert found.cause.startswith(cause)
    assert "hunter2" not in found.cause


def test_the_cause_of_a_failure_of_obstore_is_found():
    options = parse_options({"retry_timeout": 0.1})
    with pytest.raises(StorageError, match=r"http://127.0.0.1:9/a/x: the request failed \(connection refused; \d tr"):
        Storage(Location("http", "127.0.0.1:9", "a"), options).info("x")
    with pytest.raises(StorageError, match=r"plain http is not allowed here"):
        Storage(Location("http", "example.invalid", "a"), parse_options({"headers": {"X": "y"}})).info("x")


def test_a_redirect_to_another_host_carries_no_credentials(two_hosts):
    host, seen = two_hosts
    options = parse_options({"headers": {"Authorization": "Bearer hunter2"}, "retry_timeout": 1})
    assert Storage(Location("http", host, "a"), options).info("x").size == 3
    assert seen
    assert not any("hunter2" in value for headers in seen for value in headers.values())


def test_a_server_that_serves_no_ranges_is_an_error_that_says_so(two_hosts):
    host, _ = two_hosts
    with pytest.raises(
        StorageError, match=rf"http://{host}/a/x, bytes 1 to 2: .*the server can't serve ranges of bytes"
    ):
        Storage(Location("http", host, "a"), parse_options({"retry_timeout": 1})).read_range("x", 1, 2)


def record(path: str, content: bytes, size: int | None = None) -> FileRecord:
    return FileRecord(path=path, bytes=len(content) if size is None else size, xxh3=format_checksum(checksum(content)))


def test_index_files_of_any_size_take_no_room_before_it_is_checked(bucket, tmp_path):
    obstore.put(bucket.store(), "x.npy", b"content")
    storage = Storage(parse_place(bucket.url), parse_options(bucket.storage_options()))
    cache = IndexCache(storage, b"manifest", tmp_path)
    with pytest.raises(StorageError, match=r"takes 1,152,921,504,606,846,976 bytes, and .* bytes free"):
        cache.fetch([record("x.npy", b"content", 1 << 60)])
    with pytest.raises(FormatError, match=r"x.npy: has 7 bytes, the manifest says 100"):
        cache.fetch([record("x.npy", b"content", 100)])
    with pytest.raises(FormatError, match=r"x.npy: is not the file that the manifest lists: its checksum is another"):
        cache.fetch([record("x.npy", b"CONTENT")])
    with pytest.raises(FormatError, match=r"y.npy: is missing, though the manifest lists it"):
        cache.fetch([record("y.npy", b"content")])
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []
    cache.fetch([record("x.npy", b"content")])
    assert (cache.folder / "x.npy").read_bytes() == b"content"
    other = IndexCache(storage, b"another manifest", tmp_path)
    assert other.folder != cache.folder


def test_a_cache_that_can_not_be_written_says_so(bucket, tmp_path):
    (tmp_path / "file").write_text("")
    storage = Storage(parse_place(bucket.url), parse_options(bucket.storage_options()))
    with pytest.raises(StorageError, match=r"cache_dir: .*file.* can't be written \(Not a directory\)"):
        IndexCache(storage, b"manifest", tmp_path / "file").fetch([])


def test_ctrl_c_does_not_wait_for_a_server_that_may_come_back(bucket, tmp_path, proxy_before):
    content = b"content" * 1000
    obstore.put(bucket.store(), "x.npy", content)
    proxy = proxy_before(bucket.endpoint, Schedule(0, (Rule(kinds=("503",), methods=("GET",)),)))
    options = proxy.before(bucket).storage_options() | {"retry_timeout": 60.0}
    cache = IndexCache(Storage(parse_place(bucket.url), parse_options(options)), b"manifest", tmp_path)

    def press(*_: object) -> None:
        while proxy.faults["503"] < 2:  # it is waiting to try again
            time.sleep(0.01)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            cache.fetch([record("x.npy", content)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < 30, "it waited until there were no more tries"
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def test_small_objects_are_written_and_read_back(bucket):
    storage = Storage(parse_place(f"{bucket.url}/a"), parse_options(bucket.storage_options()))
    write(storage, "b/c ~%2E.json", b"{}")
    assert storage.read("b/c ~%2E.json", 10) == b"{}"
    assert list(storage.list()) == ["b/c ~%2E.json"]
    with pytest.raises(FormatError, match="has 2 bytes; more than 1 are not read"):
        storage.read("b/c ~%2E.json", 1)
    with pytest.raises(FileNotFoundError, match="/a/none: is not there"):
        storage.read("none", 1)


@pytest.fixture
def odd_etags() -> Iterator[tuple[str, list[str]]]:
    """A server of S3 whose ETags look like MD5 and are none, as of encrypted objects; and what it was asked for."""
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            self.send_response(206)
            headers = {"Content-Length": "3", "Content-Range": "bytes 0-2/3", "ETag": f'"{"0" * 32}"'}
            for name, value in (headers | {"Last-Modified": "Sat, 28 Nov 2026 08:00:00 GMT"}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"abc")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_an_object_that_comes_twice_as_the_same_is_believed_whatever_its_etag_says(odd_etags):
    endpoint, asked = odd_etags
    storage = Storage(Location("s3", "bucket"), parse_options({"endpoint": endpoint, "anonymous": True}))
    assert bytes(read_begin(storage, "x")[0]) == b"abc"
    assert len(asked) == 2


@pytest.mark.parametrize("times", [1, None])
def test_a_bit_that_flips_on_its_way_is_noticed_by_the_etag_of_an_object_in_several_ranges(
    bucket, proxy_before, tmp_path, times
):
    content = bytes(range(256)) * 64
    obstore.put(bucket.store(), "x.csv", content)
    rule = Rule(kinds=("flip",), headers={"Range": "bytes=8192-"})
    proxy = proxy_before(bucket.endpoint, Schedule(0, (rule,), fault_limit=times))
    options = parse_options({**proxy.before(bucket).storage_options(), "request_bytes": 4096})
    storage = Storage(parse_place(bucket.url), options)
    if times is None:
        with pytest.raises(
            StorageError, match=rf"{bucket.url}/x.csv: was read 3 times, came with other bytes each time"
        ):
            copy_object(storage, "x.csv", tmp_path / "x.csv")
    else:
        copy_object(storage, "x.csv", tmp_path / "x.csv")
        assert (tmp_path / "x.csv").read_bytes() == content
        assert proxy.faults["flip"] == 1


def test_an_etag_that_could_not_be_sent_back_is_asked_for_again():
    with pytest.raises(TryAgain, match="an ETag came that is none"):
        to_info({"size": 1, "e_tag": '"a\x1fb"', "last_modified": None, "version": None})
    assert classify(Panic()).kind is Kind.FINAL


class Panic(BaseException):
    """Stands for a panic of obstore."""


Panic.__name__ = "PanicException"
