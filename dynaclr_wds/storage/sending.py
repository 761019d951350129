"""Sends files to object storage, large ones in parts; each is visible only when it is whole.

A server puts the parts together at the end. Whatever stops an upload before, an error, Ctrl-C or another thread, the
parts are given up again. A file carries its checksum as metadata, so that a later run can tell that it is there. The
checksum is taken of the bytes that are sent, and the last part waits for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import xxhash

from dynaclr_wds.contract import format_checksum
from dynaclr_wds.errors import ChecksumError, StorageError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.failures import TryAgain
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


class _StoppedError(StorageError):
    """An upload that its caller stopped: no reason to try again."""


def open_for_sending(root: Location, options: StorageOptions) -> Storage:
    """Return the storage that `send_file` takes: with time for large requests, and retries of single parts."""
    longest = _PATIENCE * options.stall_timeout
    slow = max(longest, options.request_timeout)
    return Storage(root, dataclasses.replace(options, stall_timeout=longest, request_timeout=slow), retries=_RETRIES)


def checksum_of(path: Path) -> str:
    """Return the checksum of a file, in hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()


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
    sending = _Sending(storage, name, path, expected, advance)
    try:
        storage.request(name, "", sending.put)
    except _StoppedError:
        raise sending.stopped[0] from None


class _Sending:
    """The upload of one file, over all its tries."""

    def __init__(self, storage: Storage, name: str, path: Path, expected: str, advance: Callable[[int], None]) -> None:
        self._storage, self._name, self._path, self._expected = storage, name, path, expected
        self._advance = advance
        self._told = self._tries = 0
        self._damaged = False
        self.stopped: list[BaseException] = []
        """What the caller raised."""

    def put(self, store: Any) -> None:
        """Try once."""
        self._tries += 1
        if self._tries > 1 and not self._damaged and read_checksum(self._storage, self._name) == self._expected:
            return  # the reply was lost
        try:
            self._count(-self._told)
            etag = self._put(store)
            self._damaged = self._storage.plain and not self._has_arrived(etag)
            if self._damaged:  # it says of itself that it has the right checksum, so that a later run would believe it
                obstore.delete(store, (self._storage.root / self._name).key)
                raise TryAgain("other bytes arrived")
        except BaseException as error:
            if self.stopped:
                raise _StoppedError from None
            if isinstance(error, FileNotFoundError):
                raise TryAgain("the server lost the upload") from None
            raise

    @property
    def _part_bytes(self) -> int:
        size = self._path.stat().st_size
        return max(_LEAST_PART, self._storage.options.request_bytes, -(-size // _MOST_PARTS))

    def _put(self, store: Any) -> str | None:
        """Send it, and return the ETag that the server gave it."""
        key, part = (self._storage.root / self._name).key, self._part_bytes
        parts = _read_parts(self._path, part, self._expected, self._count)
        attributes: Any = {CHECKSUM: self._expected}
        if self._path.stat().st_size <= part:
            done = obstore.put(store, key, b"".join(parts), attributes=attributes, use_multipart=False)
        else:
            done = obstore.put(
                store, key, parts, attributes=attributes, chunk_size=part, max_concurrency=PARTS_IN_FLIGHT
            )
        return done["e_tag"]

    def _has_arrived(self, etag: str | None) -> bool:
        """Whether the server has the bytes that were sent: by its ETag, else by reading them back.

        Not every server checks the checksum that a request was signed with.
        """
        if etag is not None and etag.strip('"') == _etag_of_s3(self._path, self._part_bytes):
            return True
        now, step, digest = self._storage.info(self._name), self._storage.options.request_bytes, xxhash.xxh3_64()
        if now.size != self._path.stat().st_size:
            return False
        for begin in range(0, now.size, step):
            digest.update(self._storage.read_range(self._name, begin, min(begin + step, now.size), now)[0])
        return format_checksum(digest.intdigest()) == self._expected

    def _count(self, done: int) -> None:
        self._told += done
        try:
            self._advance(done)
        except BaseException as error:
            self.stopped.append(error)
            raise


def _etag_of_s3(path: Path, part: int) -> str:
    """Return the ETag that S3 gives an object: the MD5 of its bytes, or that of the MD5s of its parts."""
    with path.open("rb", buffering=0) as file:
        sums = [hashlib.md5(data, usedforsecurity=False) for data in iter(lambda: file.read(part), b"")]
    if len(sums) <= 1:
        return (sums or [hashlib.md5(usedforsecurity=False)])[0].hexdigest()
    whole = hashlib.md5(b"".join(one.digest() for one in sums), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(sums)}"


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
