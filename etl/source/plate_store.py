"""A plate in object storage, as zarr reads it: a store that takes what zarr asks for from `PlateRequests`.

zarr takes whatever a store calls absent for a chunk that was never written; here that is an object of which the server
says that it is not there, and nothing else. A store may be sent to another process: it is made anew there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import zarr
from jaxtyping import Int64
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.objects import Found
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.versions import ObjectInfo
from etl.source.plate_requests import PlateRequests

METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup")
"""Names of the documents that say what a plate holds."""

_GROUP = {2: (".zgroup", ".zattrs"), 3: ("zarr.json",)}
_ARRAY = {2: (".zarray", ".zattrs"), 3: ("zarr.json",)}
"""Version of Zarr → documents of a node."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """Parts of an object that are in memory."""

    spans: Sequence[tuple[int, memoryview]]
    """Where each begins, and its bytes."""
    size: int | None = None
    """Bytes of the object, where it is here whole."""
    is_absent: bool = False
    """Whether there is no such object."""

    def find(self, part: ByteRequest | None) -> memoryview | None:
        """Return a part of the object; None where it is not in memory."""
        begin, end = 0, self.size
        if isinstance(part, RangeByteRequest):
            begin, end = part.start, part.end
        elif isinstance(part, SuffixByteRequest) and end is not None:
            begin = end - part.suffix
        if end is None:
            return None
        found = [(at, data) for at, data in self.spans if at <= begin and end <= at + len(data)]
        return found[0][1][begin - found[0][0] : end - found[0][0]] if found else None


class PlateStore(Store):
    """The objects below a location, read only; several threads may use it.

    Parameters
    ----------
    root
        The plate.
    options
        How requests are made.
    zarr_format
        2 or 3; None = as its documents say.
    """

    def __init__(self, root: Location, options: StorageOptions, zarr_format: Literal[2, 3] | None = None) -> None:
        super().__init__(read_only=True)
        self.root, self.options = root, options
        self._format = zarr_format
        self._lock = threading.Lock()
        self._requests: PlateRequests | None = None
        self._held: dict[str, list[Held]] = {}

    def __reduce__(self) -> Any:
        return PlateStore, (self.root, self.options, self._format)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlateStore) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self.root)

    def __repr__(self) -> str:
        return f"PlateStore({str(self.root)!r})"

    @property
    def requests(self) -> PlateRequests:
        """What makes the requests; made when it is first used, in the process that uses it."""
        with self._lock:
            if self._requests is None:
                self._requests = PlateRequests(self.root, self.options)
            return self._requests

    @property
    def zarr_format(self) -> Literal[2, 3]:
        """Version of Zarr, so that nobody asks for the documents of the other one."""
        if self._format is None:
            self._fetch((*_GROUP[2], *_GROUP[3]))
            self._format = 2 if self.requests.document("zarr.json").result() is None else 3
        return self._format

    def read_documents(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return those metadata documents that are there, except those that the other version of Zarr would have."""
        asked = [key for key in keys if (key.rpartition("/")[2] == "zarr.json") == (self.zarr_format == 3)]
        found = {key: self.requests.document(key) for key in asked}
        read = {key: future.result() for key, future in found.items()}
        return {key: bytes(document[0]) for key, document in read.items() if document is not None}

    def fetch_metadata(self, groups: Iterable[str], arrays: Iterable[str] = ()) -> None:
        """Have the documents of nodes at hand when zarr asks for them; they are read many at a time."""
        keys = [f"{name}/{document}" for name in groups for document in _GROUP[self.zarr_format]]
        self._fetch([*keys, *(f"{name}/{document}" for name in arrays for document in _ARRAY[self.zarr_format])])

    def _fetch(self, keys: Iterable[str]) -> None:
        for future in [self.requests.document(key) for key in keys]:
            future.result()

    def holding_whole(self, key: str) -> AbstractContextManager[None]:
        """Read an object whole, and give zarr all parts of it from memory meanwhile."""
        found = self.requests.begin(key).result()
        if found is None:
            return self._holding(key, Held(spans=(), is_absent=True))
        whole = self.requests.join(key, found, [part.result() for part in self.requests.rest(key, found)])
        return self._holding(key, Held(spans=[(0, whole)], size=len(whole)))

    def holding_chunks(
        self, key: str, count: int, wanted: Int64[np.ndarray, " n"], *, first: bool
    ) -> AbstractContextManager[None]:
        """Read some of the `count` chunks of a shard, and give zarr these from memory meanwhile."""
        parts = self.requests.chunks(key, count, wanted, first=first)
        return self._holding(key, Held(spans=[(begin, part.result()) for begin, part in parts]))

    @contextmanager
    def _holding(self, key: str, held: Held) -> Iterator[None]:
        with self._lock:
            self._held.setdefault(key, []).append(held)
        try:
            yield
        finally:
            with self._lock:
                self._held[key].remove(held)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object or a part of it; None where there is no such object.

        Raises
        ------
        PlateError
            The object was changed while it was read, or is too small for what it should be.
        StorageError
            The request failed.
        """
        data = await self._get(key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def _get(self, key: str, part: ByteRequest | None) -> memoryview | None:
        requests = self.requests
        if key.rpartition("/")[2] in METADATA:
            return _bytes_of(await _result(requests.document(key)))
        for held in tuple(self._held.get(key, ())):
            if held.is_absent:
                return None
            data = held.find(part)
            if data is not None:
                return data
        if part is None:
            found = await _result(requests.begin(key))
            if found is not None:
                return requests.join(key, found, [await _result(rest) for rest in requests.rest(key, found)])
        elif isinstance(part, SuffixByteRequest):
            found = await _result(requests.index(key, part.suffix, first=False))
        elif isinstance(part, RangeByteRequest) and part.start == 0 and requests.is_index(key, part.end):
            found = await _result(requests.index(key, part.end, first=True))
        elif isinstance(part, RangeByteRequest):
            return await _result(requests.part(key, part.start, part.end))
        else:
            raise NotImplementedError(f"{self.root / key}, {part}: zarr asks for parts of shards only")
        return _bytes_of(found)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several parts."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await _result(self.requests.info(key)) is not None

    supports_writes = supports_deletes = supports_listing = False

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refuse: it is read only."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refuse: it is read only."""
        self._check_writable()

    def list(self) -> AsyncIterator[str]:
        """Refuse: https has no listing."""
        self._refuse_listing()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # noqa: ARG002
        """Refuse: https has no listing."""
        self._refuse_listing()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:  # noqa: ARG002
        """Refuse: https has no listing."""
        self._refuse_listing()

    def _refuse_listing(self) -> NoReturn:
        raise NotImplementedError(f"{self.root}: plates are read by what their metadata name, without a listing")


def find_chunks(store: PlateStore, array: zarr.Array[Any]) -> dict[str, ObjectInfo]:
    """Find the chunks (shards, where there are any) that an array has: name below the array → version.

    They are listed or, where there is no listing, asked for one by one.
    """
    listed = store.requests.find_below(array.path)
    if listed is not None:
        return {name: info for name, info in listed.items() if name.rpartition("/")[2] not in METADATA}
    grid = [-(-size // step) for size, step in zip(array.shape, array.shards or array.chunks, strict=True)]
    names = [array.metadata.encode_chunk_key(place) for place in np.ndindex(*grid)]
    found = store.requests.find([f"{array.path}/{name}" for name in names])
    return {name.removeprefix(f"{array.path}/"): info for name, info in found.items()}


async def _result(future: Future[Any]) -> Any:
    """Wait for a future that others may wait for, too: who is told to stop does not stop it."""
    return await asyncio.shield(asyncio.wrap_future(future))


def _bytes_of(found: Found | None) -> memoryview | None:
    return None if found is None else found[0]
