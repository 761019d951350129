"""Boxes of pixels from an array: as zarr reads them, but in object storage with the chunks of a shard side by side.

zarr reads the chunks of a shard one after the other, which costs a round trip each. Here a box is taken apart: a shard
of which all chunks are wanted is read whole, and of other shards each chunk is read by a thread of its own. The
index of a shard is read once, by whoever comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise, product
from typing import Any

import numpy as np
import zarr
from jaxtyping import Num

from etl.source.plate_store import PlateStore

_AT_ONCE = 16
"""Shards, or chunks of one, that are read at a time."""

Box = tuple[slice, ...]
"""A range [start, stop) along each axis, inside the array."""


def read_box(array: zarr.Array[Any], asked: Sequence[slice]) -> Num[np.ndarray, "*shape"]:
    """Read pixels; `asked` are ranges along the first axes, the others are read whole."""
    store = array.store
    if not isinstance(store, PlateStore) or array.shards is None:
        return np.asarray(array[tuple(asked)])
    box = (*asked, *(slice(0, size) for size in array.shape[len(asked) :]))
    pixels = np.empty([part.stop - part.start for part in box], array.dtype)

    def read(piece: tuple[Box, str | None]) -> None:
        part, shard = piece
        place = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
        with nullcontext() if shard is None else store.holding(shard):
            pixels[place] = array[part]

    with ThreadPoolExecutor(_AT_ONCE, "dynaclr-box") as pool:
        for _ in pool.map(read, plan_pieces(array, box)):
            pass
    return pixels


def plan_pieces(array: zarr.Array[Any], box: Box) -> Iterator[tuple[Box, str | None]]:
    """Take a box apart: whole shards with the name of their object, and single chunks of the others."""
    assert array.shards is not None, "an array without shards is read by its chunks anyway"
    for shard in _cells(box, array.shards):
        origin = tuple(part.start // size for part, size in zip(shard, array.shards, strict=True))
        inside = tuple(
            slice(n * size, min((n + 1) * size, length))
            for n, size, length in zip(origin, array.shards, array.shape, strict=True)
        )
        if all(_covers(a, b, size) for a, b, size in zip(shard, inside, array.chunks, strict=True)):
            yield shard, f"{array.path}/{array.metadata.encode_chunk_key(origin)}"
        else:
            yield from ((chunk, None) for chunk in _cells(shard, array.chunks))


def _covers(part: slice, whole: slice, chunk: int) -> bool:
    """Whether a range reaches every chunk of another one, which begins where a chunk does."""
    return part.start // chunk == whole.start // chunk and -(-part.stop // chunk) == -(-whole.stop // chunk)


def _cells(box: Box, sizes: Sequence[int]) -> Iterator[Box]:
    """Cut a box where cells of a grid end."""
    edges = [
        [part.start, *range((part.start // size + 1) * size, part.stop, size), part.stop]
        for part, size in zip(box, sizes, strict=True)
    ]
    yield from product(*([slice(a, b) for a, b in pairwise(axis)] for axis in edges))
