"""Parts of a plate in object storage to requests: as few as may be, many at a time, each thing asked for once.

Metadata documents and the indexes of shards are kept. An object larger than `request_bytes` is read by several ranges,
all of the version that the first one came from. Absent is only an object of which the server says that it is not there;
whatever else fails is an error that names the object.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.errors import FormatError, PlateError, StorageError
from dynaclr_wds.read.coalesce import join_ranges
from dynaclr_wds.storage.client import DeniedError, Storage
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.objects import Found, find_wrong_md5, read_begin, read_end, read_whole
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.versions import ObjectInfo

_IN_FLIGHT = 32
"""Requests at a time, of each plate."""

_NEVER_WRITTEN = np.uint64(2**64 - 1)
"""What the index of a shard says of a chunk that is not there, twice."""
_LARGEST_DOCUMENT = 1 << 28
"""Bytes."""
_MOST_INDEXES = 1024
"""Shards whose index is kept."""

Kept = Future[Found | None]


class PlateRequests:
    """Reads what lies below a location; several threads may use it.

    Parameters
    ----------
    root
        The plate.
    options
        How requests are made.

    Raises
    ------
    ConfigError
        There are no credentials, or an option that the kind of storage doesn't know.
    """

    def __init__(self, root: Location, options: StorageOptions) -> None:
        self._root = root
        self._storage = Storage(root, options)
        self._step = options.request_bytes
        self._pool = ThreadPoolExecutor(options.requests_in_flight or _IN_FLIGHT, "dynaclr-plate")
        self._lock = threading.Lock()
        self._documents: dict[tuple[str, int], Kept] = {}
        self._indexes: dict[tuple[str, int], Kept] = {}
        self._versions: dict[str, ObjectInfo] = {}

    def document(self, key: str) -> Kept:
        """Read a small object whole, once."""
        return self._once(self._documents, (key, 0), lambda: read_whole(self._storage, key, _LARGEST_DOCUMENT))

    def index(self, key: str, size: int, *, first: bool) -> Kept:
        """Read the index of a shard, its first or its last bytes, once."""

        def read() -> Found:
            found = read_begin(self._storage, key, size) if first else read_end(self._storage, key, size)
            self._versions[key] = found[1]
            return found

        return self._once(self._indexes, (key, size if first else -size), read)

    def is_index(self, key: str, size: int) -> bool:
        """Whether the first bytes of a shard are its index: zarr asks for that first, wherever it is."""
        return (key, size) in self._indexes or key not in self._versions

    def begin(self, key: str) -> Kept:
        """Read an object from its first byte on: all of it, or `request_bytes`."""
        return self._pool.submit(self._absent_is_none, lambda: read_begin(self._storage, key))

    def rest(self, key: str, found: Found) -> list[Future[memoryview]]:
        """Read what of an object its begin left out."""
        begin, info = found
        edges = range(len(begin), info.size, self._step)
        return [self._pool.submit(self._range, key, at, min(at + self._step, info.size), info) for at in edges]

    def join(self, key: str, found: Found, rest: Iterable[memoryview]) -> memoryview:
        """Put the parts of an object together; where they came without TLS they are compared with the ETag.

        Raises
        ------
        StorageError
            A byte was changed on the way.
        """
        data = memoryview(b"".join([found[0], *rest])) if len(found[0]) < found[1].size else found[0]
        if data is not found[0] and find_wrong_md5(self._storage, data, found[1]):
            raise StorageError(
                f"{self._root / key}: came with other bytes than its ETag says. Something on the way changed them: run "
                "the same command again, and use https."
            )
        return data

    def part(self, key: str, begin: int, end: int) -> Future[memoryview]:
        """Read a range of a shard, of the version that its index is of."""
        return self._pool.submit(self._range, key, begin, end, self._versions.get(key))

    def find_below(self, folder: str) -> dict[str, ObjectInfo] | None:
        """List everything below a folder: name below it → version; None where there is no listing."""
        return self._storage.list(folder)

    def chunks(
        self, key: str, count: int, wanted: Int64[np.ndarray, " n"], *, first: bool
    ) -> list[tuple[int, Future[memoryview]]]:
        """Read chunks of a shard: where each of the joined ranges begins, and its bytes.

        Parameters
        ----------
        count
            Chunks that the shard's index speaks of.
        wanted
            Numbers of chunks; those that were never written are left out.
        first
            Whether the index lies at the beginning.
        """
        found = self.index(key, 16 * count + 4, first=first).result()
        if found is None:
            return []
        table = np.frombuffer(found[0], "<u8", 2 * count).reshape(count, 2)[wanted]
        table = table[(table != _NEVER_WRITTEN).any(axis=1)]
        if (table > found[1].size).any():
            return []  # it is damaged, which zarr finds by its checksum
        begin, end = np.sort(table[:, 0]).astype(np.int64), table.sum(axis=1, dtype=np.int64)[np.argsort(table[:, 0])]
        options = self._storage.options
        joined, _ = join_ranges(begin, end, np.zeros(1, np.int64), options.coalesce_bytes, options.request_bytes)
        return [(a, self.part(key, a, b)) for a, b in joined.tolist()]

    def find(self, names: Collection[str]) -> dict[str, ObjectInfo]:
        """Ask of objects whether they are there, and for size and ETag."""
        found = zip(names, self._pool.map(self._info, names), strict=True)
        return {name: info for name, info in found if info is not None}

    def info(self, key: str) -> Future[ObjectInfo | None]:
        """Ask of an object whether it is there."""
        return self._pool.submit(self._info, key)

    def _info(self, key: str) -> ObjectInfo | None:
        return self._absent_is_none(lambda: self._storage.info(key))

    def _once(self, kept: dict[tuple[str, int], Kept], name: tuple[str, int], read: Callable[[], Found]) -> Kept:
        """Read, unless it was read before or is being read; what failed is not kept."""
        with self._lock:
            if name in kept:
                return kept[name]
            future = kept[name] = self._pool.submit(self._absent_is_none, read)
            if kept is self._indexes and len(kept) > _MOST_INDEXES:
                del kept[next(iter(kept))]
        future.add_done_callback(lambda done: kept.pop(name, None) if done.exception() else None)
        return future

    def _range(self, key: str, begin: int, end: int, pinned: ObjectInfo | None) -> memoryview:
        try:
            return self._storage.read_range(key, begin, end, pinned)[0]
        except FormatError as error:
            raise PlateError(
                f"{self._root / key}: was changed or removed while it was read. Run the same command again when the "
                "plate is at rest."
            ) from error

    def _absent_is_none(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except FileNotFoundError:
            return None
        except FormatError as error:
            raise PlateError(str(error)) from error
        except DeniedError as error:
            if self._root.scheme != "s3":
                raise
            raise StorageError(
                f"{error} A key that may not list the bucket gets this answer for objects that are not there, too: "
                "then give it the right to list."
            ) from error
