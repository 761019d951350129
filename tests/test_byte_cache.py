"""Bytes of shards on a disk of this node: right or absent, within their limit, whoever else uses the folder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import obstore
import pytest

from dynaclr_wds.contract import ShardRecord
from dynaclr_wds.errors import ChecksumError, ConfigError
from dynaclr_wds.read.disk_pool import DiskPool
from dynaclr_wds.read.object_store import ObjectStore
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage import byte_cache
from dynaclr_wds.storage.byte_cache import ByteCache, KeptRange, name_version, parse_limit
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import parse_place
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.versions import ObjectInfo
from tests.cache_pieces import PAGE, piece, taken
from tests.remote import EXACT, STREAMING, assert_same, make_data, quick, read_batches, upload
from tests.servers.faults import Rule, Schedule

MODES = pytest.mark.parametrize("mode", [EXACT, STREAMING], ids=["exact", "streaming"])


@pytest.fixture
def cache(tmp_path: Path) -> ByteCache:
    """Room for ten pages."""
    return ByteCache(tmp_path / "bytes", 10 * PAGE)


def test_what_was_kept_is_read_back_and_nothing_else_is(cache):
    one, data = piece(1)
    assert cache.read(one) is None
    cache.keep(one, data)
    assert cache.read(one) == data
    assert cache.has(one)
    assert cache.read(one._replace(end=one.end - 1)) is None
    assert cache.read(one._replace(folder="another")) is None
    assert ByteCache(cache.folder, 10 * PAGE).read(one) == data  # of an earlier process


@pytest.mark.parametrize("damage", ["first", "head", "last", "cut", "longer", "empty", "another's"])
def test_a_damaged_file_is_never_served_and_is_dropped(cache, damage):
    one, data = piece(1)
    cache.keep(one, data)
    path = cache.folder / one.path
    content = bytearray(path.read_bytes())
    if damage in ("first", "head", "last"):
        content[{"first": 24, "head": 9, "last": -1}[damage]] ^= 1
    elif damage == "another's":
        cache.keep(*piece(2))
        content = bytearray((cache.folder / piece(2)[0].path).read_bytes())
    else:
        content = {"cut": content[:-7], "longer": content + b"x", "empty": bytearray()}[damage]
    path.write_bytes(content)
    assert cache.read(one) is None
    assert not path.exists()
    cache.keep(one, data)
    assert cache.read(one) == data


def test_the_limit_holds_and_what_was_used_longest_ago_goes_first(cache):
    for number in range(10):
        cache.keep(*piece(number))
        assert taken(cache.folder) == (number + 1) * PAGE
    assert cache.read(piece(0)[0]) is not None
    cache.keep(*piece(10))  # nine pages are left by a sweep, this one included
    assert [number for number in range(11) if cache.has(piece(number)[0])] == [0, 3, 4, 5, 6, 7, 8, 9, 10]
    cache.keep(*piece(11))
    assert taken(cache.folder) == 10 * PAGE
    cache.keep(*piece(12))
    assert [number for number in range(13) if cache.has(piece(number)[0])] == [0, 5, 6, 7, 8, 9, 10, 11, 12]


def test_what_is_larger_than_the_limit_is_not_kept_and_costs_the_others_nothing(cache):
    cache.keep(*piece(0))
    large = KeptRange("0123456789abcdef", 0, 11 * PAGE)
    cache.keep(large, memoryview(bytes(11 * PAGE)))
    assert not cache.has(large)
    assert cache.has(piece(0)[0])


def test_a_smaller_limit_makes_the_folder_smaller(cache):
    for number in range(10):
        cache.keep(*piece(number))
    ByteCache(cache.folder, 4 * PAGE).keep(*piece(10))
    assert taken(cache.folder) <= 4 * PAGE
    assert cache.read(piece(10)[0]) == piece(10)[1]


def test_what_others_deleted_makes_room_again(cache):
    for number in range(10):
        cache.keep(*piece(number))
    for file in cache.folder.glob("0123456789abcdef/*"):
        file.unlink()
    for number in range(20, 30):  # the first finds no room by the count, and counts anew
        cache.keep(*piece(number))
    assert all(cache.has(piece(number)[0]) for number in range(20, 30))


def fail_to_write(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_full_disk_turns_keeping_off_with_one_warning(cache, monkeypatch):
    cache.keep(*piece(0))
    monkeypatch.setattr(byte_cache, "_write_all", fail_to_write)
    with pytest.warns(
        UserWarning, match=r"cache_dir: .*bytes can't be written \(No space left on device\), so no more"
    ):
        cache.keep(*piece(1))
    monkeypatch.undo()
    cache.keep(*piece(2))  # silently: warnings are errors here
    assert [number for number in range(3) if cache.has(piece(number)[0])] == [0]
    assert cache.read(piece(0)[0]) == piece(0)[1]
    assert taken(cache.folder) == PAGE  # nothing half written is left


def test_some_room_is_left_on_the_disk_for_checkpoints(cache, monkeypatch):
    monkeypatch.setattr(byte_cache, "_SPARE_BYTES", 1 << 60)
    with pytest.warns(UserWarning, match=r"can't be written \(the disk is full\)"):
        cache.keep(*piece(0))
    assert taken(cache.folder) == 0


def test_a_folder_that_can_not_be_made_is_one_warning(tmp_path):
    (tmp_path / "file").touch()
    cache = ByteCache(tmp_path / "file" / "bytes", PAGE)
    with pytest.warns(UserWarning, match=r"can't be written \(Not a directory\)"):
        cache.keep(*piece(0))
    assert cache.read(piece(0)[0]) is None


def test_nobody_waits_for_one_who_keeps_the_lock(cache):
    cache.keep(*piece(0))
    with (cache.folder / "used").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for number in range(1, 50):
            cache.keep(*piece(number))
        assert not any(cache.has(piece(number)[0]) for number in range(1, 50))
        assert cache.read(piece(0)[0]) == piece(0)[1]


KILLED = """
import os, signal, sys
from pathlib import Path
from dynaclr_wds.storage import byte_cache
from tests.cache_pieces import piece
write, left = byte_cache._write_all, [int(sys.argv[2])]
def write_some(descriptor, data):
    if len(data) > left[0]:
        write(descriptor, memoryview(data)[: left[0]])
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= len(data)
    write(descriptor, data)
byte_cache._write_all = write_some
cache = byte_cache.ByteCache(Path(sys.argv[1]), 10 * 4096)
cache.keep(*piece(0))
"""


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("written", [0, 24, 4000])
def test_a_writer_that_is_killed_leaves_nothing_that_is_served_or_stays(cache, written):
    process = run(KILLED, str(cache.folder), str(written))
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert len(list((cache.folder / "writing").iterdir())) == 1
    assert cache.read(piece(0)[0]) is None
    for number in range(1, 11):  # the tenth finds no room by the count, and looks
        cache.keep(*piece(number))
    assert list((cache.folder / "writing").iterdir()) == []
    assert [number for number in range(11) if cache.has(piece(number)[0])] == list(range(1, 11))
    cache.keep(*piece(0))
    assert cache.read(piece(0)[0]) == piece(0)[1]


SHARED = """
import sys
from pathlib import Path
import numpy as np
from dynaclr_wds.storage.byte_cache import ByteCache
from tests.cache_pieces import piece
cache, rng, hits, most = ByteCache(Path(sys.argv[1]), 30 * 4096), np.random.default_rng(int(sys.argv[2])), 0, 0
for number in rng.integers(0, 60, 600).tolist():
    of, data = piece(number)
    found = cache.read(of)
    assert found is None or found == data, "other bytes"
    hits += found is not None
    cache.keep(of, data)
print(hits)
"""


@pytest.mark.slow
def test_processes_that_share_a_folder_read_right_bytes_and_keep_the_limit(tmp_path):
    both = [run(SHARED, str(tmp_path / "bytes"), str(seed)) for seed in range(2)]
    seen = []
    while any(process.poll() is None for process in both):
        names = {file.name for file in (tmp_path / "bytes").glob("0123456789abcdef/*")}
        seen.append(len(names))
    hits = [int(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert min(hits) > 100  # of 600, where half fits; one alone would find 240 or more
    assert taken(tmp_path / "bytes") <= 30 * PAGE
    assert list((tmp_path / "bytes" / "writing").iterdir()) == []


def test_a_version_has_a_name_of_its_own():
    tagged = ObjectInfo(10, '"a"', None)
    names = {
        name_version(scope, url, version)
        for scope in ("set", "other set")
        for url in ("s3://b/x.tar", "s3://b/y.tar")
        for version in (tagged, ObjectInfo(11, '"a"', None), ObjectInfo(10, '"b"', None))
    }
    assert len(names) == 12
    assert name_version("set", "s3://b/x.tar", tagged) == name_version(
        "set", "s3://b/x.tar", ObjectInfo(10, '"a"', None)
    )
    assert name_version("set", "s3://b/x.tar", None) is None
    assert name_version("set", "s3://b/x.tar", ObjectInfo(10, None, None)) is None


def test_a_limit_is_a_number_of_bytes_or_a_size():
    assert [parse_limit(given) for given in (0, 5, "2K", "1.5GiB")] == [0, 5, 2048, 3 << 29]
    for wrong in (-1, "ten", True):
        with pytest.raises(ConfigError, match=r"cache_dir_bytes=.* must be bytes to keep"):
            parse_limit(wrong)


# --- with a server


@pytest.fixture
def url(bucket, short_clips) -> str:
    """`short_clips` in a bucket."""
    return upload(bucket, short_clips)


def shard_requests(proxy) -> int:
    """Requests for shards since the last look."""
    found = sum(".tar" in seen.head.target for seen in proxy.seen)
    proxy.use(Schedule())
    return found


@MODES
def test_a_second_training_reads_from_this_node(url, bucket, proxy_before, short_clips, tmp_path, mode):
    proxy = proxy_before(bucket.endpoint)
    options = {"storage_options": quick(proxy.before(bucket)), "cache_dir": str(tmp_path), **mode}
    first = read_batches(make_data(url, cache_dir_bytes="1G", **options))
    assert_same(first, read_batches(make_data(short_clips, **mode)))
    assert shard_requests(proxy) > 0
    data = make_data(url, cache_dir_bytes="1G", num_workers=3, **options)
    assert_same(read_batches(data), first)
    assert shard_requests(proxy) == 0
    for file in (tmp_path / "bytes").glob("*/*-*"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert_same(read_batches(make_data(url, cache_dir_bytes="1G", **options)), first)
    assert shard_requests(proxy) > 0


def test_nothing_is_kept_unless_it_is_asked_for(url, bucket, tmp_path):
    read_batches(make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), **STREAMING), 2)
    assert [folder.name for folder in tmp_path.iterdir()] == ["index"]


@MODES
def test_a_cache_that_is_too_small_changes_no_batch_and_keeps_its_limit(url, bucket, short_clips, tmp_path, mode):
    data = make_data(url, storage_options=quick(bucket), cache_dir=str(tmp_path), cache_dir_bytes="64K", **mode)
    assert_same(read_batches(data), read_batches(make_data(short_clips, **mode)))
    assert taken(tmp_path / "bytes") <= 64 << 10


@MODES
def test_what_came_damaged_is_not_kept(url, bucket, proxy_before, short_clips, tmp_path, mode):
    rule = Rule(kinds=("flip",), share=0.5, methods=("GET",), target=r"\.tar", repeats=(0,))
    proxy = proxy_before(bucket.endpoint, Schedule(5, (rule,)))
    options = {"storage_options": quick(proxy.before(bucket)), "cache_dir": str(tmp_path), **mode}
    local = read_batches(make_data(short_clips, **mode))
    assert_same(read_batches(make_data(url, cache_dir_bytes=1 << 30, **options)), local)
    assert proxy.faults["flip"] > 0
    shard_requests(proxy)
    assert_same(read_batches(make_data(url, cache_dir_bytes=1 << 30, **options)), local)
    assert shard_requests(proxy) == 0


def test_bytes_of_a_shard_that_was_replaced_are_not_served(url, bucket, short_clips, tmp_path):
    options = {"storage_options": quick(bucket), "cache_dir": str(tmp_path), "cache_dir_bytes": "1G", **STREAMING}
    read_batches(make_data(url, **options))
    path = ShardSet.open(short_clips).manifest.shards[0].path
    content = (short_clips / path).read_bytes()
    obstore.put(bucket.store(), f"sets/first/{path}", bytes(len(content)))
    with pytest.raises(ChecksumError, match=rf"{path}: block \d+, bytes .* is not what was written"):
        read_batches(make_data(url, **options))


class Answers(Storage):
    """Storage whose n-th answer holds the number n in every byte."""

    def __init__(self) -> None:
        self.root, self.options, self.count = parse_place("s3://bucket/set"), StorageOptions(), 0

    def read_range(self, name, begin, end, pinned=None, sleep=None):
        del name, sleep
        self.count += 1
        return memoryview(bytes([self.count]) * (end - begin)), pinned


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_a_kept_patch_is_not_taken_from_unchecked_bytes_between_two_others(tmp_path, kept):
    record = ShardRecord(path="a.tar", partition=0, bytes=3000, xxh3="0" * 16, clips=1, blocks=1)
    disk = DiskPool(ByteCache(tmp_path / "bytes", 1 << 20), "set", ["s3://bucket/set/a.tar"], 1 << 20)
    versions = [ObjectInfo(3000, '"a"', None)]
    pools = {"pool_bytes": 1 << 20} if kept == "in memory" else {"disk": disk}
    store = ObjectStore(Answers(), [record], versions, in_flight=1, **pools)
    checked: list[int] = []

    def note(number: int, data: np.ndarray) -> None:
        del number
        checked.append(int(data[0]))

    def read(*begins: int) -> list[int]:
        begin, shard, out = np.array(begins), np.zeros(len(begins), np.int64), np.zeros((len(begins), 1, 10), np.uint8)
        with store.gather(shard, begin, begin + 10, note):
            store.read(shard, begin, np.array([0]), out)
        return out[:, 0, 0].tolist()

    assert read(1000) == [1]
    assert read(990, 1000, 1010) == [2, 1, 2]  # one request, which brings all thirty bytes
    assert checked.count(2) == 2
    store.close()
