"""Boxes of pixels from an array: as zarr reads them, but from object storage with few requests, side by side.

zarr reads the chunks of a shard one after the other, each with a request. Here a box is taken apart where shards end,
and what is wanted of a shard is read before zarr asks for it: all of it, if that is wanted, else the ranges that its
index names, joined where they lie near each other. The index of a shard is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int64, Num
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from etl.source.image_axes import AxesView, Image
from etl.source.plate_store import PlateStore
from etl.source.stored_chunks import find_layout, read_chunks

_AT_ONCE = 16
"""Shards that are read at a time."""

Box = tuple[slice, ...]
"""A range [start, stop) along each axis, inside the array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPart:
    """What a box wants of one shard."""

    box: Box
    place: tuple[int, ...]
    """Of the shard in the grid of shards."""
    is_all: bool
    """Whether every chunk inside the image is wanted."""
    chunks: Int64[np.ndarray, " n"]
    """Numbers of the wanted chunks in the index of the shard."""


def read_box(array: Image, asked: Sequence[slice]) -> Num[np.ndarray, "*shape"]:
    """Read pixels; `asked` are ranges along the first axes, the others are read whole."""
    if isinstance(array, AxesView):
        return array.arrange(read_box(array.source, array.find_box(asked)), asked)
    store = array.store
    box = (*asked, *(slice(0, size) for size in array.shape[len(asked) :]))
    if not isinstance(store, PlateStore) or array.shards is None:
        layout = find_layout(array)
        return np.asarray(array[box]) if layout is None else read_chunks(layout, box)
    pixels = np.empty([part.stop - part.start for part in box], array.dtype)

    def read(part: ShardPart) -> None:
        place = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part.box, box, strict=True))
        with _hold(store, array, part):
            pixels[place] = array[part.box]

    with ThreadPoolExecutor(_AT_ONCE, "dynaclr-box") as pool:
        for _ in pool.map(read, plan_parts(array.shape, array.shards, array.chunks, box)):
            pass
    return pixels


def _hold(store: PlateStore, array: zarr.Array[Any], part: ShardPart) -> AbstractContextManager[None]:
    """Read what is wanted of a shard, for zarr to find it in memory."""
    key = f"{array.path}/{array.metadata.encode_chunk_key(part.place)}"
    if part.is_all:
        return store.holding_whole(key)
    codec = array.metadata.codecs[0]  # type: ignore[union-attr]  # shards are of Zarr v3
    assert isinstance(codec, ShardingCodec), "an array with shards has no other codec around them"
    plain = codec.index_codecs == (BytesCodec(endian="little"), Crc32cCodec())
    if not plain:
        return nullcontext()
    count = int(np.prod([a // b for a, b in zip(array.shards or (), array.chunks, strict=True)]))
    return store.holding_chunks(key, count, part.chunks, first=codec.index_location.value == "start")


def plan_parts(shape: Sequence[int], shards: Sequence[int], chunks: Sequence[int], box: Box) -> Iterator[ShardPart]:
    """Take a box apart where shards end; say which chunks of each shard it needs."""
    grid = [a // b for a, b in zip(shards, chunks, strict=True)]
    for part in cut_box(box, shards):
        place = tuple(p.start // size for p, size in zip(part, shards, strict=True))
        begin = [n * size for n, size in zip(place, shards, strict=True)]
        wanted = [range((p.start - b) // c, -(-(p.stop - b) // c)) for p, b, c in zip(part, begin, chunks, strict=True)]
        inside = [
            range(-(-min(size, length - b) // c))
            for size, length, b, c in zip(shards, shape, begin, chunks, strict=True)
        ]
        numbers = np.ravel_multi_index(np.ix_(*wanted), grid).ravel()
        yield ShardPart(box=part, place=place, is_all=wanted == inside, chunks=numbers)


def cut_box(box: Box, sizes: Sequence[int]) -> Iterator[Box]:
    """Cut a box where cells of a grid end."""
    edges = [
        [part.start, *range((part.start // size + 1) * size, part.stop, size), part.stop]
        for part, size in zip(box, sizes, strict=True)
    ]
    yield from product(*([slice(a, b) for a, b in pairwise(axis)] for axis in edges))
