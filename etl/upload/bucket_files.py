"""The files of a set in object storage, read back in bounded requests; the index is brought to this node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import xxhash

from dynaclr_wds.contract import Manifest, format_checksum
from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.files import write_whole
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.versions import ObjectInfo
from etl.run.output import checksum_file, describe_damage

_PIECE = 1 << 23


class ObjectReader:
    """An object, read from front to back; each request asks for one range of one version."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name, self._at = storage, name, 0
        self._version = storage.info(name)

    def __enter__(self) -> ObjectReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open between requests."""

    def read(self, size: int) -> bytes:
        """Read the next bytes, fewer at the end."""
        pieces: list[memoryview] = []
        end = min(self._at + size, self._version.size)
        while self._at < end:
            last = min(self._at + self._storage.options.request_bytes, end)
            try:
                pieces.append(self._storage.read_range(self._name, self._at, last, self._version)[0])
            except FormatError as error:
                raise StorageError(str(error)) from None
            self._at = last
        return b"".join(pieces)


class BucketFiles:
    """The files of a set below one location.

    Parameters
    ----------
    storage
        Names in it are the paths of the manifest.
    manifest
        Lists them.
    folder
        Where index files are put.
    listed
        What is there; None = ask for each.
    """

    checks_at_a_time = 8

    def __init__(
        self, storage: Storage, manifest: Manifest, folder: Path, listed: Mapping[str, ObjectInfo] | None
    ) -> None:
        self.folder, self._storage, self._listed = folder, storage, listed
        self._index = frozenset(file.path for file in manifest.files)

    def describe_fault(self, path: str, size: int, xxh3: str | None = None) -> str | None:
        """Say why a file is not the one that was written; a file of the index that is read is put into `folder`."""
        there = self._size(path)
        if there != size or xxh3 is None:
            return describe_damage(there, size)
        found = self._bring(path, xxh3) if path in self._index else self._checksum(path)
        return describe_damage(there, size, found, xxh3)

    def _size(self, path: str) -> int:
        """Size of a file; -1 where there is none."""
        try:
            found = self._storage.info(path) if self._listed is None else self._listed.get(path)
        except FileNotFoundError:
            found = None
        return -1 if found is None else found.size

    def open(self, path: str) -> ObjectReader:
        """Open a file for reading."""
        try:
            return ObjectReader(self._storage, path)
        except FileNotFoundError as error:
            raise StorageError(str(error)) from None

    def _bring(self, path: str, xxh3: str) -> str:
        """Bring a file to `folder`, unless it is there already; return its checksum."""
        target = self.folder / path
        if target.is_file() and checksum_file(target) == xxh3:
            return xxh3
        with self.open(path) as source, write_whole(target) as copy:
            while data := source.read(_PIECE):
                copy.write(data)
        return checksum_file(target)

    def _checksum(self, path: str) -> str:
        """Read a file whole; return its checksum, in hex."""
        digest = xxhash.xxh3_64()
        with self.open(path) as file:
            while data := file.read(_PIECE):
                digest.update(data)
        return format_checksum(digest.intdigest())
