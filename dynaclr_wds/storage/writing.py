"""Writes small objects on a condition, removes and copies objects. Each is visible only when it is whole.

Only small objects are written on a condition, because it can't be had with the parts of a large one. A reply that was
lost is no failure: what is there is compared with what was to be written. Some servers ignore conditions, so whether
one honours them is tried before they are trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from dynaclr_wds.errors import StorageError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.failures import Kind, TryAgain, classify
from dynaclr_wds.storage.versions import ObjectInfo

_DELETIONS = 1000
"""Objects that S3 removes with one request."""
_MOST_SMALL = 1 << 20


class ConflictError(StorageError):
    """An object that another writer made or changed first."""


class UnsupportedError(StorageError):
    """A condition that the server refuses to know."""


def write(storage: Storage, name: str, data: bytes) -> None:
    """Write a small object with one request; replaces what is there.

    Raises
    ------
    StorageError
        The request failed.
    """
    _put_if(storage, name, data, "overwrite")


def create(storage: Storage, name: str, data: bytes) -> ObjectInfo:
    """Write a small object that must not be there yet.

    Raises
    ------
    ConflictError
        It is there, with other bytes.
    UnsupportedError
        The server doesn't know the condition.
    StorageError
        The request failed.
    """
    return _put_if(storage, name, data, "create")


def replace(storage: Storage, name: str, data: bytes, version: ObjectInfo) -> ObjectInfo:
    """Write a small object over a version of it.

    Raises
    ------
    ConflictError
        Another version is there, or none.
    UnsupportedError
        The server doesn't know the condition.
    StorageError
        The request failed.
    """
    return _put_if(storage, name, data, _over(version))


def _over(version: ObjectInfo) -> dict[str, str]:
    known = {"e_tag": version.etag, "version": version.version}
    return {key: value for key, value in known.items() if value is not None}


def _has_arrived(storage: Storage, name: str, data: bytes, version: ObjectInfo) -> bool:
    """Whether an object that was just written holds the bytes that were sent; over TLS it does."""
    if not storage.plain or version.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest():
        return True
    with suppress(FileNotFoundError):
        return storage.info(name).size == len(data) and storage.read(name, _MOST_SMALL + len(data)) == data
    return False


def _put_if(storage: Storage, name: str, data: bytes, mode: Any) -> ObjectInfo:
    key = (storage.root / name).key

    def put(store: Any) -> ObjectInfo:
        nonlocal mode
        try:
            done = obstore.put(store, key, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            raise ConflictError(f"{storage.root / name}: was written by somebody else.") from None
        except FileNotFoundError:  # what was to be replaced is gone, says Azure
            if mode != "create":
                raise ConflictError(f"{storage.root / name}: was removed by somebody else.") from None
            raise
        except Exception as error:
            if mode == "overwrite" or classify(error).kind is not Kind.FINAL:
                raise
            raise UnsupportedError(f"{storage.root / name}: the server takes no condition.") from None
        version = ObjectInfo(len(data), done["e_tag"], None, done["version"])
        if not _has_arrived(storage, name, data, version):
            mode = _over(version) if mode != "overwrite" else mode  # what is there is ours
            raise TryAgain("other bytes arrived")
        return version

    try:
        return storage.request(name, "", put)
    except ConflictError:
        with suppress(FileNotFoundError):
            found = storage.info(name)
            if found.size == len(data) and storage.read(name, _MOST_SMALL + len(data)) == data:
                return found  # ours: the reply was lost
        raise


def honours_conditions(storage: Storage, name: str) -> tuple[bool, ObjectInfo]:
    """Try whether the server refuses what a condition forbids; writes and removes a small object.

    Returns
    -------
    Whether it does; and what the server says of the object, among it the time by its own clock.

    Raises
    ------
    StorageError
        A request failed; as `DeniedError` where the key may not write.
    """
    write(storage, name, b"first")
    first = storage.info(name)
    write(storage, name, b"second, which is longer")
    second = storage.info(name)
    try:
        kept = _is_refused(lambda: create(storage, name, b"third")) and _is_refused(
            lambda: replace(storage, name, b"fourth", first)
        )
        if kept:
            replace(storage, name, b"fifth", second)
    except (UnsupportedError, ConflictError):
        kept = False
    remove(storage, [name])
    return kept, second


def _is_refused(write: Callable[[], object]) -> bool:
    try:
        write()
    except ConflictError:
        return True
    return False


def remove(storage: Storage, names: list[str]) -> None:
    """Remove objects; those that are gone already are no error.

    Raises
    ------
    StorageError
        A request failed.
    """
    keys = [(storage.root / name).key for name in names]
    for begin in range(0, len(keys), _DELETIONS):
        some = keys[begin : begin + _DELETIONS]
        try:
            storage.request(names[begin], "", partial(obstore.delete, paths=some))
        except FileNotFoundError:  # of some servers, when one of them is gone; the others may not be
            for key in some:
                with suppress(FileNotFoundError):
                    storage.request("", "", partial(obstore.delete, paths=key))
