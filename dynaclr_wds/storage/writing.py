"""Writes below one location: small objects on a condition, files in parts; each is visible only when it is whole.

A large file goes up in parts, which a server puts together at the end. Whatever stops it before, an error, Ctrl-C or
another thread, the parts are given up again. A file carries its checksum as metadata, so that a later run can tell
that it is there; the checksum is taken of the bytes that are sent. Only small objects are written on a condition,
because a condition can't be had with parts. A reply that was lost is no failure: what is there is compared with what
was to be written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import obstore
import xxhash
from obstore.exceptions import AlreadyExistsError, PreconditionError

from dynaclr_wds.contract import format_checksum
from dynaclr_wds.errors import ChecksumError, StorageError
from dynaclr_wds.storage.client import ObjectInfo, Storage
from dynaclr_wds.storage.failures import Kind, TryAgain, classify
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import MIB, StorageOptions

CHECKSUM = "xxh3"
"""Metadata of a file: its checksum."""

PARTS_IN_FLIGHT = 4
"""Parts of one file at a time."""

_LEAST_PART = 5 * MIB
"""S3 takes no smaller parts but the last."""
_MOST_PARTS = 10_000
"""S3 takes no more."""
_RETRIES = 8
_PATIENCE = 15
"""A part may take so many times `stall_timeout`: while it is sent no byte comes back."""
_DELETIONS = 1000
"""Objects that S3 removes with one request."""
_MOST_SMALL = 1 << 20


class ConflictError(StorageError):
    """An object that another writer made or changed first."""


class UnsupportedError(StorageError):
    """A condition that the server refuses to know."""


class _StoppedError(StorageError):
    """An upload that its caller stopped: no reason to try again."""


def open_for_sending(root: Location, options: StorageOptions) -> Storage:
    """Return the storage that `send_file` takes: with time for large requests, and retries of single parts."""
    longest = _PATIENCE * options.stall_timeout
    slow = max(longest, options.request_timeout)
    return Storage(root, dataclasses.replace(options, stall_timeout=longest, request_timeout=slow), retries=_RETRIES)


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
    known = {"e_tag": version.etag, "version": version.version}
    return _put_if(storage, name, data, {key: value for key, value in known.items() if value is not None})


def _put_if(storage: Storage, name: str, data: bytes, mode: Any) -> ObjectInfo:
    key = (storage.root / name).key

    def put(store: Any) -> ObjectInfo:
        try:
            done = obstore.put(store, key, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            raise ConflictError(f"{storage.root / name}: was written by somebody else.") from None
        except FileNotFoundError:  # what was to be replaced is gone, says Azure
            if mode != "create":
                raise ConflictError(f"{storage.root / name}: was removed by somebody else.") from None
            raise
        except Exception as error:
            if classify(error).kind is not Kind.FINAL:
                raise
            raise UnsupportedError(f"{storage.root / name}: the server takes no condition.") from None
        return ObjectInfo(len(data), done["e_tag"], None, done["version"])

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
    storage.write(name, b"first")
    first = storage.info(name)
    storage.write(name, b"second, which is longer")
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


def send_file(storage: Storage, name: str, path: Path, expected: str, advance: Callable[[int], None]) -> None:
    """Write a file, in parts where it is large; it is visible when it is whole.

    Parameters
    ----------
    storage
        Of `open_for_sending`.
    path
        The file.
    expected
        Its checksum; becomes the object's metadata.
    advance
        Called with bytes that are on their way, fewer than 0 when they have to be sent again, from any thread. What it
        raises stops the upload.

    Raises
    ------
    ChecksumError
        The file isn't what it was when it was written.
    StorageError
        Requests failed, or the file can't be read.
    """
    key, told, tries = (storage.root / name).key, 0, 0
    stopped: list[BaseException] = []
    size = path.stat().st_size
    part = max(_LEAST_PART, storage.options.request_bytes, -(-size // _MOST_PARTS))
    attributes: Any = {CHECKSUM: expected}

    def count(done: int) -> None:
        nonlocal told
        told += done
        try:
            advance(done)
        except BaseException as error:
            stopped.append(error)
            raise

    def put(store: Any) -> None:
        nonlocal tries
        tries += 1
        if tries > 1 and read_checksum(storage, name) == expected:
            return  # the reply was lost
        parts = _read_parts(path, part, expected, count)
        try:
            count(-told)
            if size <= part:
                obstore.put(store, key, b"".join(parts), attributes=attributes, use_multipart=False)
            else:
                obstore.put(store, key, parts, attributes=attributes, chunk_size=part, max_concurrency=PARTS_IN_FLIGHT)
        except BaseException as error:
            if stopped:
                raise _StoppedError from None
            if isinstance(error, FileNotFoundError):
                raise TryAgain("the server lost the upload") from None
            raise

    try:
        storage.request(name, "", put)
    except _StoppedError:
        raise stopped[0] from None


def _read_parts(path: Path, part: int, expected: str, advance: Callable[[int], None]) -> Iterator[bytes]:
    """Read a file piece by piece; the last is only given when all have the checksum that is expected."""
    digest, held = xxhash.xxh3_64(), b""
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(part):
                digest.update(data)
                if held:
                    yield held
                advance(len(data))
                held = data
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path}: can't be read ({error.strerror}). Look at the disk.") from error
    if format_checksum(digest.intdigest()) != expected:
        raise ChecksumError(
            f"{path}: was changed after it was written, or is damaged, and was not sent. Remove the folder "
            "and build again."
        )
    yield held


def read_checksum(storage: Storage, name: str) -> str | None:
    """Return the checksum that a file was sent with; None where it isn't there, or was written by something else.

    Raises
    ------
    StorageError
        The request failed.
    """
    key, asked = (storage.root / name).key, {"head": True}

    def get(store: Any) -> str | None:
        attributes: dict[str, str] = obstore.get(store, key, options=asked).attributes  # type: ignore[arg-type]
        return attributes.get(CHECKSUM)

    try:
        return storage.request(name, "", get)
    except FileNotFoundError:
        return None


def copy_object(storage: Storage, name: str, to: str) -> None:
    """Have the server copy an object, with its metadata; the copy is visible when it is whole.

    Raises
    ------
    FileNotFoundError
        It is not there.
    StorageError
        The request failed.
    """
    source, target = (storage.root / name).key, (storage.root / to).key
    storage.request(to, "", lambda store: obstore.copy(store, source, target))


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
            storage.request(names[begin], "", lambda store, some=some: obstore.delete(store, some))
        except FileNotFoundError:  # of some servers, when one of them is gone; the others may not be
            for key in some:
                with suppress(FileNotFoundError):
                    storage.request("", "", lambda store, key=key: obstore.delete(store, key))
