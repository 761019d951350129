"""Ranges of objects to files on this node: what was downloaded once is read from a disk the next time.

Each range has a file of its own, in a folder for each version of an object, so bytes of two versions never mix. A file
gets its name only when it is whole, and holds a checksum that every reading checks; a damaged one is dropped. All
processes of a node may share a folder, without a daemon: they count the bytes in one file, which they lock for moments,
and whoever finds no room deletes what was used longest ago. A reading that another process deletes under goes on. To
keep bytes is never worth a wait: where the folder is busy or full, they are not kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from dynaclr_wds.byte_sizes import SIZES, parse_size
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.cache_sweep import WRITING, Sweep, bytes_on_disk, lock_file
from dynaclr_wds.storage.versions import ObjectInfo

_MAGIC = b"dynaclr1"
_HEAD_BYTES = len(_MAGIC) + 16
_SPARE_BYTES = 256 << 20
"""Bytes that are left free on the disk, for checkpoints and others."""
_PATIENCE, _REST = 0.1, 1.0
"""Seconds to wait for another process that counts, and until the next try where that was too long."""
_COUNT = "used"


def parse_limit(given: int | str, where: str = "cache_dir_bytes") -> int:
    """Read how many bytes to keep, a number or text such as `200G`; 0 keeps nothing.

    Raises
    ------
    ConfigError
        It is no size, or below 0.
    """
    try:
        limit = parse_size(given) if isinstance(given, str) else given
    except ValueError:
        limit = -1
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ConfigError(f"{where}={given!r} must be bytes to keep, such as {SIZES}, or 0 for none. Correct it.")
    return limit


class KeptRange(NamedTuple):
    """A range of one version of an object."""

    folder: str
    """Names the version; from `name_version`."""
    begin: int
    end: int

    @property
    def path(self) -> str:
        """Its file, below the folder of the cache."""
        return f"{self.folder}/{self.begin:x}-{self.end:x}"


def name_version(scope: str, url: str, version: ObjectInfo | None) -> str | None:
    """Name the folder of an object's version; None where versions can't be told apart.

    Parameters
    ----------
    scope
        Tells apart servers that give the same URL, such as a hash of the set's manifest.
    """
    if version is None or (version.etag is None and version.changed is None):
        return None
    told = version.etag or str(version.changed)
    return hashlib.sha256("\0".join((scope, url, str(version.size), told)).encode()).hexdigest()[:32]


class ByteCache:
    """Downloaded ranges in a folder of this node; all methods may be called from several threads and processes.

    Parameters
    ----------
    folder
        Where they are; made when it is needed.
    limit_bytes
        Most bytes that the files may take on the disk.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._counting = threading.Lock()
        self._resting_until = 0.0
        self._stopped = False

    def __repr__(self) -> str:
        return f"ByteCache({str(self.folder)!r}, {self.limit_bytes:,} bytes)"

    def has(self, kept: KeptRange) -> bool:
        """Whether a range seems to be there; reading it may still find that it isn't."""
        return os.path.exists(f"{self.folder}/{kept.path}")  # noqa: PTH110 — a Path for each patch takes as long as stat

    def read(self, kept: KeptRange) -> memoryview | None:
        """Read a range, which then counts as used last; None where it isn't there. A damaged file is dropped."""
        size = _HEAD_BYTES + kept.end - kept.begin
        content = np.empty(size + 1, np.uint8)  # a longer file is damaged too
        try:
            with (self.folder / kept.path).open("rb", buffering=0) as file:
                found = 0
                while got := file.readinto(content[found:].data):
                    found += got
                with suppress(OSError):
                    os.utime(file.fileno(), ns=(time.time_ns(),) * 2)
        except OSError:
            return None
        data = content[_HEAD_BYTES:size].data
        if found == size and content[:_HEAD_BYTES].tobytes() == _make_head(kept, data):
            return data
        self.drop(kept)
        return None

    def drop(self, kept: KeptRange) -> None:
        """Delete a range whose bytes are wrong; the next sweep counts anew."""
        with suppress(OSError):
            (self.folder / kept.path).unlink()

    def keep(self, kept: KeptRange, data: memoryview) -> None:
        """Keep a range, if there is room or can be made; warns once where the disk is full, and keeps no more then."""
        if self._stopped or time.monotonic() < self._resting_until or self.has(kept):
            return
        partial = self.folder / WRITING / f"{kept.folder}.{kept.begin:x}-{kept.end:x}.{uuid.uuid4().hex[:12]}"
        try:
            descriptor = self._begin(partial, _HEAD_BYTES + len(data))
            if descriptor is None:
                return
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                _write_all(file.fileno(), _make_head(kept, data))
                _write_all(file.fileno(), data)
                (self.folder / kept.folder).mkdir(exist_ok=True)
                partial.replace(self.folder / kept.path)
        except (FileNotFoundError, FileExistsError):
            pass  # somebody tidies the folder
        except OSError as error:
            self._stop(error.strerror or str(error))
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _begin(self, partial: Path, size: int) -> int | None:
        """Count a file and make it, of its full size and locked; None where there is no room now."""
        partial.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < size + _SPARE_BYTES:
            self._stop("the disk is full")
            return None
        taken = bytes_on_disk(size)
        with self._turn() as count:
            if count is None or taken > self.limit_bytes:
                return None
            used = _read_count(count)
            if used is None:
                used = Sweep(self.folder).make_room(self.limit_bytes, taken)
            elif used + taken > self.limit_bytes:
                self._resting_until = math.inf  # other threads need not wait for that
                try:
                    used = Sweep(self.folder).make_room(self.limit_bytes, taken)
                finally:
                    self._resting_until = 0.0
            room = used + taken <= self.limit_bytes
            os.pwrite(count, b"%020d" % (used + taken * room), 0)
            return _make_partial(partial, size) if room else None

    @contextmanager
    def _turn(self) -> Iterator[int | None]:
        """Be the only one to count, of all threads and processes; None where another process takes long."""
        with self._counting:
            count = os.open(self.folder / _COUNT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if time.monotonic() < self._resting_until:
                    yield None
                elif lock_file(count, _PATIENCE):
                    yield count
                else:
                    self._resting_until = time.monotonic() + _REST
                    yield None
            finally:
                os.close(count)

    def _stop(self, why: str) -> None:
        """Keep no more, and say so once."""
        with self._counting:
            if self._stopped:
                return
            self._stopped = True
        warnings.warn(
            f"cache_dir: {self.folder} can't be written ({why}), so no more bytes are kept there; shards are read from "
            "object storage. Make room, or give another cache_dir or less cache_dir_bytes, the next time.",
            stacklevel=2,
        )


def _make_partial(path: Path, size: int) -> int:
    """Make a file of its full size, locked, which says that its writer is alive; return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make_head(kept: KeptRange, data: memoryview) -> bytes:
    """Make what stands before the bytes of a range: a checksum of them and of whose they are."""
    digest = xxhash.xxh3_128(kept.path.encode())
    digest.update(data)
    return _MAGIC + digest.digest()


def _read_count(count: int) -> int | None:
    """Read the bytes that all files take; None where nobody has counted them yet."""
    text = os.pread(count, 32, 0)
    return int(text) if text.isdigit() else None


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while len(left):
        left = left[os.write(descriptor, left) :]
