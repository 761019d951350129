"""Objects of unknown size to their bytes, and folders to the objects in them: with few requests, and never cut short.

A plain GET believes the server's Content-Length. A ranged one says besides how large the whole object is, so whatever
came short is noticed. The first range is asked for without knowing the size; small objects need no other request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore

from dynaclr_wds.errors import FormatError
from dynaclr_wds.files import write_whole
from dynaclr_wds.storage.client import DeniedError, ObjectInfo, Storage, to_info
from dynaclr_wds.storage.failures import TryAgain, classify
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions

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

    return storage.request(name, f"bytes 0 to {last:,}", get)


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
    begin, info = read_begin(storage, name)
    if pinned is not None and not pinned.is_same(info):
        raise FormatError(f"{storage.root / name}: was replaced while it was read. Run the same command again.")
    with write_whole(path) as file:
        file.write(begin)
        for part in _read_rest(storage, name, len(begin), info):
            file.write(part)


def _read_rest(storage: Storage, name: str, begin: int, info: ObjectInfo) -> Iterator[memoryview]:
    step = storage.options.request_bytes
    for at in range(begin, info.size, step):
        yield storage.read_range(name, at, min(at + step, info.size), info)[0]


def list_folder(storage: Storage, name: str) -> dict[str, ObjectInfo] | None:
    """List the objects of one folder, without those of folders in it; None where there is no listing, or not for us.

    Raises
    ------
    StorageError
        The request failed.
    """
    if storage.root.scheme in ("http", "https"):
        return None
    prefix = (storage.root / name).key if name else storage.root.key
    try:
        found = storage.request(name, "the listing", lambda store: obstore.list_with_delimiter(store, prefix or None))
    except DeniedError:
        return None
    return {entry["path"].rpartition("/")[2]: to_info(entry) for entry in found["objects"]}


def list_below(storage: Storage, folder: str) -> dict[str, ObjectInfo] | None:
    """List everything below a folder: name below it → version; None where there is no listing, or not for us.

    Raises
    ------
    StorageError
        The request failed.
    """
    if storage.root.scheme in ("http", "https"):
        return None
    prefix = (storage.root / folder).key
    try:
        found = storage.request(folder, "the listing", lambda store: list(obstore.list(store, prefix).collect()))
    except DeniedError:
        return None
    return {entry["path"][len(prefix) + 1 :]: to_info(entry) for entry in found}


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
