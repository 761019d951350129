"""Objects of unknown size to their bytes: with few requests, and never cut short.

A plain GET believes the server's Content-Length. A ranged one says besides how large the whole object is, so whatever
came short is noticed. The first range is asked for without knowing the size; small objects need no other request.
Plates and tables have no checksums: where they come without TLS, they are compared with the MD5 that S3 gives as ETag.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import obstore

from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.files import write_whole
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.failures import TryAgain, classify
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.versions import ObjectInfo, to_info

_READS = 3
"""How often an object is read that comes with other bytes than its ETag says."""

_T = TypeVar("_T")

Found = tuple[memoryview, ObjectInfo]
"""Bytes, and the version of the object that they are of."""


def open_object(where: Location, options: StorageOptions) -> tuple[Storage, str]:
    """Open the folder of an object; return it with the object's name in it."""
    folder, _, name = where.key.rpartition("/")
    return Storage(Location(where.scheme, where.bucket, folder), options), name


def read_begin(storage: Storage, name: str, most: int | None = None) -> Found:
    """Read an object from its first byte on, at most so many bytes of it; None = `request_bytes`.

    Raises
    ------
    FileNotFoundError
        It is not there.
    StorageError
        The request failed.
    """
    key, last = (storage.root / name).key, most or storage.options.request_bytes

    def get(store: Any) -> Found:
        try:
            answer = obstore.get(store, key, options={"range": (0, last)})
        except Exception as error:
            if not classify(error).cause.startswith("status 416"):
                raise
            answer = obstore.get(store, key)  # an empty object has no range of bytes
        return _take(answer, 0, lambda size: min(size, last))

    def find_fault(found: Found) -> str | None:
        return find_wrong_md5(storage, *found) if len(found[0]) == found[1].size else None

    return _read_confirmed(storage, name, lambda: storage.request(name, f"bytes 0 to {last:,}", get), find_fault)


def find_wrong_md5(storage: Storage, data: memoryview, info: ObjectInfo) -> str | None:
    """Return the MD5 of an object's bytes if its ETag is another one, and nothing else has protected them."""
    if not storage.plain or info.md5 is None:
        return None
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return None if found == info.md5 else found


def _read_confirmed(storage: Storage, name: str, read: Callable[[], _T], find_fault: Callable[[_T], str | None]) -> _T:
    """Read until the bytes are those of the ETag, or come the same twice: then the ETag is no MD5."""
    seen: set[str] = set()
    for _ in range(_READS):
        found = read()
        wrong = find_fault(found)
        if wrong is None or wrong in seen:
            return found
        seen.add(wrong)
    raise StorageError(
        f"{storage.root / name}: was read {_READS} times, came with other bytes each time, and never with those of its "
        "ETag. Something on the way changes them: use https, or look at network and server."
    )


def read_end(storage: Storage, name: str, size: int) -> Found:
    """Read the last `size` bytes of an object.

    Raises
    ------
    FileNotFoundError
        It is not there.
    FormatError
        It is smaller.
    StorageError
        The request failed.
    """
    where = storage.root / name
    if storage.root.scheme == "az":  # Azure has no ranges that are counted from the end
        info = storage.info(name)
        _check_size(where, info, size)
        return storage.read_range(name, info.size - size, info.size, info)

    def get(store: Any) -> Found:
        answer = obstore.get(store, where.key, options={"range": {"suffix": size}})
        _check_size(where, to_info(answer.meta), size)
        return _take(answer, answer.meta["size"] - size, lambda whole: whole)

    return storage.request(name, f"the last {size:,} bytes", get)


def read_whole(storage: Storage, name: str, most_bytes: int) -> Found:
    """Read an object whose size nobody has said, into memory.

    Raises
    ------
    FileNotFoundError
        It is not there.
    FormatError
        It has more than `most_bytes`, or was replaced while it was read.
    StorageError
        A request failed.
    """
    begin, info = read_begin(storage, name)
    if info.size > most_bytes:
        raise FormatError(f"{storage.root / name}: has {info.size:,} bytes; more than {most_bytes:,} are not read.")
    return memoryview(b"".join([begin, *_read_rest(storage, name, len(begin), info)])), info


def copy_object(storage: Storage, name: str, path: Path, pinned: ObjectInfo | None = None) -> None:
    """Copy an object to a file, which is whole or absent.

    Parameters
    ----------
    pinned
        The version to copy; None = whichever is there.

    Raises
    ------
    FileNotFoundError
        It is not there.
    FormatError
        It was replaced, before or while it was read.
    StorageError
        A request failed.
    """

    def copy() -> str | None:
        """Copy it, and return the MD5 if it is a wrong one."""
        begin, info = read_begin(storage, name)
        if pinned is not None and not pinned.is_same(info):
            raise FormatError(f"{storage.root / name}: was replaced while it was read. Run the same command again.")
        with write_whole(path) as file:
            file.write(begin)
            for part in _read_rest(storage, name, len(begin), info):
                file.write(part)
        if len(begin) == info.size:
            return None  # checked already
        with path.open("rb") as whole, mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return find_wrong_md5(storage, memoryview(content), info)

    try:
        _read_confirmed(storage, name, copy, lambda wrong: wrong)
    except StorageError:
        path.unlink(missing_ok=True)  # a copy that is damaged
        raise


def _read_rest(storage: Storage, name: str, begin: int, info: ObjectInfo) -> Iterator[memoryview]:
    step = storage.options.request_bytes
    for at in range(begin, info.size, step):
        yield storage.read_range(name, at, min(at + step, info.size), info)[0]


def _take(answer: Any, begin: int, end: Callable[[int], int]) -> Found:
    """Take the bytes of an answer; `end` is where they must end, by the size of the object."""
    info = to_info(answer.meta)
    expected = (begin, end(info.size))
    if tuple(answer.range) != expected:
        raise TryAgain(f"bytes {answer.range[0]:,} to {answer.range[1]:,} of {info.size:,} came")
    data = memoryview(answer.bytes())
    if len(data) != expected[1] - begin:
        raise TryAgain(f"{len(data):,} of {expected[1] - begin:,} bytes came")
    return data, info


def _check_size(where: Location, info: ObjectInfo, least: int) -> None:
    if info.size < least:
        raise FormatError(f"{where}: has {info.size:,} bytes, but {least:,} are needed. Copy it again.")
