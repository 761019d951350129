"""Index files of a set in object storage to files on this node: downloaded once, checked whenever they are opened.

Each set has a folder of its own, named by a hash of its manifest's bytes, so two versions of a set never mix. Processes
of a node take turns behind a lock: the first one downloads, the others find the files. A file gets its name only when
it is whole and has the checksum of the manifest; a file that is damaged later is downloaded again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dynaclr_wds.contract import FileRecord
from dynaclr_wds.errors import ChecksumError, FormatError, StorageError
from dynaclr_wds.file_checks import check_content
from dynaclr_wds.files import partial_name
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.versions import ObjectInfo

_DOWNLOADS = 16
"""Requests at a time."""
_SPARE_BYTES = 64 << 20
"""Bytes that a download leaves free on the disk."""


def default_folder() -> Path:
    """Return the folder for caches of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "dynaclr-wds"


class IndexCache:
    """The index files of one set.

    Parameters
    ----------
    storage
        Where they are.
    manifest
        The bytes of the manifest, as they were read.
    folder
        Where they are kept; None = `default_folder()`.
    """

    def __init__(self, storage: Storage, manifest: bytes, folder: str | Path | None = None) -> None:
        self._storage = storage
        self._over = threading.Event()
        name = hashlib.sha256(manifest).hexdigest()[:32]
        self.base = default_folder() if folder is None else Path(folder).expanduser()
        """Folder of all caches."""
        self.folder = self.base / "index" / name
        """Holds the files under the names that they have in the set."""

    def fetch(
        self, files: Sequence[FileRecord], listed: Mapping[str, ObjectInfo] | None = None, *, verify: bool = True
    ) -> None:
        """Have files on this node.

        Parameters
        ----------
        files
            As the manifest lists them.
        listed
            What is known of the objects of the set; None = ask for each.
        verify
            Check the checksum of files that are there already.

        Raises
        ------
        ChecksumError
            What was downloaded is not what the manifest says.
        FormatError
            A file is not in the set any more, or has another size.
        StorageError
            The folder can't be written, the disk is full, or a request failed.
        """
        try:
            with self._locked():
                missing = [file for file in files if not self._has(file, verify=verify)]
                if missing:
                    self._check_room(missing)
                    self._download(missing, listed)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"cache_dir: {self.folder} can't be written ({error.strerror}), and the index of {self._storage.root} "
                "has to be on this node. Give a cache_dir on a disk with room."
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _has(self, file: FileRecord, *, verify: bool) -> bool:
        path = self.folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            return False
        try:
            if verify:
                check_content(path, file.xxh3)
        except (ChecksumError, StorageError):
            return False
        return True

    def _check_room(self, files: Sequence[FileRecord]) -> None:
        """Check sizes before anything is written: a manifest may say any."""
        needed, free = sum(file.bytes for file in files), shutil.disk_usage(self.folder).free
        if needed + _SPARE_BYTES > free:
            raise StorageError(
                f"cache_dir: the index of {self._storage.root} takes {needed:,} bytes, and {self.folder} has "
                f"{free:,} bytes free. Make room, or give a cache_dir on another disk."
            )

    def _download(self, files: Sequence[FileRecord], listed: Mapping[str, ObjectInfo] | None) -> None:
        """Download files, many ranges at a time; those that came damaged once more."""
        with ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="dynaclr-index") as pool, self._called_off(pool):
            found = dict(zip([f.path for f in files], pool.map(lambda f: self._find(f, listed), files), strict=True))
            damaged = self._copy_ranges(files, found, pool)
            damaged = self._copy_ranges(damaged, found, pool) if damaged else []
        if damaged:
            raise ChecksumError(
                f"{self._storage.root / damaged[0].path}: is not the file that the manifest lists: its checksum is "
                "another. The set was replaced while it was opened, or a copy of it was left half done. Copy it again, "
                "or open it again."
            )

    @contextmanager
    def _called_off(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """After an error, or Ctrl-C, drop what has not begun, and don't wait for a server that may come back."""
        self._over.clear()
        try:
            yield
        except BaseException:
            self._over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    def _sleep(self, seconds: float) -> bool:
        return not self._over.wait(seconds)

    def _copy_ranges(
        self, files: Sequence[FileRecord], found: Mapping[str, ObjectInfo], pool: ThreadPoolExecutor
    ) -> list[FileRecord]:
        """Download files to partial names, and give those that are right their name; return the others."""
        step = self._storage.options.request_bytes
        partials = {file.path: partial_name(self.folder / file.path) for file in files}
        try:
            for file in files:
                partials[file.path].parent.mkdir(parents=True, exist_ok=True)
                partials[file.path].touch()

            def copy(job: tuple[FileRecord, int]) -> None:
                file, begin = job
                end = min(begin + step, file.bytes)
                data = self._storage.read_range(file.path, begin, end, found[file.path], self._sleep)[0]
                with partials[file.path].open("r+b", buffering=0) as target:
                    while begin < end:
                        begin += os.pwrite(target.fileno(), data[begin - end :], begin)

            for _ in pool.map(copy, [(file, begin) for file in files for begin in range(0, file.bytes, step)]):
                pass
            good = [file for file, right in zip(files, pool.map(self._is_right, files), strict=True) if right]
            for file in good:  # not forced to the disk, which takes seconds: it is a copy, and checked at each use
                partials[file.path].replace(self.folder / file.path)
            return [file for file in files if file not in good]
        finally:
            for partial in partials.values():
                partial.unlink(missing_ok=True)

    def _is_right(self, file: FileRecord) -> bool:
        try:
            check_content(partial_name(self.folder / file.path), file.xxh3)
        except ChecksumError:
            return False
        return True

    def _find(self, file: FileRecord, listed: Mapping[str, ObjectInfo] | None) -> ObjectInfo:
        """Return what is known of a file's object, which must have the size that the manifest says."""
        where = self._storage.root / file.path
        try:
            found = self._storage.info(file.path, self._sleep) if listed is None else listed[file.path]
        except (FileNotFoundError, KeyError):
            raise FormatError(
                f"{where}: is missing, though the manifest lists it. Restore it, or build the shards again."
            ) from None
        if found.size != file.bytes:
            raise FormatError(
                f"{where}: has {found.size:,} bytes, the manifest says {file.bytes:,}. Copy it again, or build the "
                "shards again."
            )
        return found
