"""Ranges of shards that were read before, on a disk of this node: says which ones `storage/byte_cache.py` has.

Blocks are kept in the parts in which they are requested, and in exact mode each patch by itself: so nothing is
downloaded that nobody asked for, and a patch is found again whatever its neighbours were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from dynaclr_wds.read.arrivals import Arrival
from dynaclr_wds.read.coalesce import cut_range
from dynaclr_wds.storage.byte_cache import ByteCache, KeptRange, name_version
from dynaclr_wds.storage.versions import ObjectInfo


class DiskPool:
    """What is kept of the shards of a set.

    Parameters
    ----------
    cache
        Where bytes are kept.
    scope
        See `name_version`.
    urls
        Of the shards.
    most_bytes
        Of a request; larger ranges are kept in several parts.
    """

    def __init__(self, cache: ByteCache, scope: str, urls: Sequence[str], most_bytes: int) -> None:
        self.cache = cache
        self._scope = scope
        self._urls = urls
        self._most = most_bytes
        self._folders: list[str | None] = [None] * len(urls)

    def know(self, versions: Sequence[ObjectInfo | None]) -> None:
        """Learn the version of each shard, as far as it is known; of a shard without one nothing is kept."""
        self._folders = [name_version(self._scope, *of) for of in zip(self._urls, versions, strict=True)]

    def know_one(self, shard: int, version: ObjectInfo) -> None:
        """Learn the version of a shard."""
        self._folders[shard] = name_version(self._scope, self._urls[shard], version)

    def find(self, spans: Int64[np.ndarray, "n 2"], base: Int64[np.ndarray, " s"]) -> Bool[np.ndarray, " n"]:
        """Say which ranges are there; they are counted through all shards, which begin at `base`."""
        shard = np.searchsorted(base, spans[:, 0], "right") - 1
        within = zip(shard.tolist(), (spans - base[shard, None]).tolist(), strict=True)
        return np.array([self._has(number, *span) for number, span in within], bool)

    def read(self, shard: int, begin: int, end: int) -> memoryview | None:
        """Read a range; None where it isn't there, or is damaged."""
        folder = self._folders[shard]
        return None if folder is None else self.cache.read(KeptRange(folder, begin, end))

    def keep(self, shard: int, begin: int, end: int, data: memoryview) -> None:
        """Keep a range."""
        folder = self._folders[shard]
        if folder is not None:
            self.cache.keep(KeptRange(folder, begin, end), data)

    def keep_spans(self, piece: Arrival, shard: int, base: int, spans: Int64[np.ndarray, "n 2"]) -> None:
        """Keep ranges of a piece of a shard that begins at `base`, each by itself."""
        data, at = piece.bytes.data, piece.begin - base
        for begin, end in (spans - base).tolist():
            for first, last in cut_range(begin, end, self._most):
                self.keep(shard, first, last, data[first - at : last - at])

    def drop_spans(self, shard: int, spans: Int64[np.ndarray, "n 2"]) -> None:
        """Forget ranges of a shard whose bytes are wrong."""
        folder = self._folders[shard]
        for begin, end in spans.tolist() if folder is not None else ():
            for part in cut_range(begin, end, self._most):
                self.cache.drop(KeptRange(str(folder), *part))

    def _has(self, shard: int, begin: int, end: int) -> bool:
        folder = self._folders[shard]
        if folder is None:
            return False
        return all(self.cache.has(KeptRange(folder, *part)) for part in cut_range(begin, end, self._most))
