"""Decodes chunks of arrays on the disk straight to their place.

zarr and the other libraries decode a chunk into fresh memory of its own, and copy it from there; new pages and copies
cost as much as decoding (docs/BENCHMARKS.md). Here the bytes of a chunk are decoded by numcodecs into the box that is
read. That is done for arrays as plates have them: chunks raw or compressed by Blosc, in shards or not, in the byte
order of this machine. All others, and those in object storage, are left to zarr.
"""

from __future__ import annotations

import functools
import math
import os
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from jaxtyping import Num, UInt8
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore

from etl.kept_memory import borrow
from etl.run.executors import usable_cpus

_MISSING = 2**64 - 1
_SIZES = struct.Struct("<4xIII")
"""Of a Blosc frame: bytes, bytes of a block, bytes compressed."""
_INDEX_CODECS = (BytesCodec(endian="little"), Crc32cCodec())

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLayout:
    """How an array lies on the disk."""

    folder: Path
    array: zarr.Array[Any]
    chunks: tuple[int, ...]
    """Shape of a chunk."""
    fill: Any
    """Value of chunks that are not there."""
    is_compressed: bool
    """By Blosc."""
    per_shard: tuple[int, ...] | None
    """Chunks of a shard along each axis; None without shards."""
    index_first: bool
    """Whether the index of a shard stands at its beginning."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, decoded."""
        return math.prod(self.chunks) * self.array.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What a box wants of one chunk."""

    number: int
    """In the index of its shard; 0 without shards."""
    source: Box
    """Inside the chunk."""
    target: Box
    """Inside the box."""


def find_layout(array: zarr.Array[Any]) -> ChunkLayout | None:
    """Say how an array lies on the disk; None where its chunks have to be left to zarr."""
    if not isinstance(array.store, LocalStore) or not array.dtype.isnative or not array.ndim:
        return None
    codecs, per_shard, index_first = _list_codecs_v2(array), None, False
    if array.metadata.zarr_format == 3:
        codecs = array.metadata.codecs
        if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
            sharding = codecs[0]
            if sharding.index_codecs != _INDEX_CODECS:
                return None
            per_shard = tuple(a // b for a, b in zip(array.shards or (), array.chunks, strict=True))
            index_first, codecs = sharding.index_location.value == "start", sharding.codecs
        if not codecs or not _is_native(codecs[0], array):
            return None
        codecs = codecs[1:]
    if codecs is None or len(codecs) > 1 or not all(isinstance(c, BloscCodec | numcodecs.Blosc) for c in codecs):
        return None
    return ChunkLayout(
        folder=Path(array.store.root) / array.path,
        array=array,
        chunks=array.chunks,
        fill=array.dtype.type(0 if array.fill_value is None else array.fill_value),
        is_compressed=len(codecs) == 1,
        per_shard=per_shard,
        index_first=index_first,
    )


def _list_codecs_v2(array: zarr.Array[Any]) -> tuple[Any, ...] | None:
    """Return the compressor of an array of Zarr v2, if it has one; None where pixels are also changed otherwise."""
    metadata = array.metadata
    if metadata.zarr_format != 2 or metadata.filters or metadata.order != "C":
        return None
    return () if metadata.compressor is None else (metadata.compressor,)


def _is_native(codec: object, array: zarr.Array[Any]) -> bool:
    """Whether a codec stores pixels as this machine has them in memory."""
    if not isinstance(codec, BytesCodec):
        return False
    return array.dtype.itemsize == 1 or (codec.endian is not None and codec.endian.value == sys.byteorder)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cpus(), "etl-chunks")


def read_chunks(layout: ChunkLayout, box: Box) -> Num[np.ndarray, "*shape"]:
    """Read a box, each of its chunks once, several at a time.

    Raises
    ------
    OSError
        A file that can't be read, or is too short.
    ValueError
        A chunk or the index of a shard that is damaged.
    """
    pixels = np.empty([part.stop - part.start for part in box], layout.array.dtype)
    opened: list[ChunkFile] = []
    try:
        jobs = []
        for place, pieces in _find_pieces(layout, box).items():
            file = ChunkFile.open(layout, place)
            opened.append(file)
            jobs += [(file, piece) for piece in pieces]
        waiting = iter(jobs)

        def work(_: int) -> None:
            for file, piece in waiting:
                file.read(piece, pixels)

        if len(jobs) == 1:
            work(0)
        else:
            list(_threads().map(work, range(min(usable_cpus(), len(jobs)))))
    finally:
        for file in opened:
            file.close()
    return pixels


def _find_pieces(layout: ChunkLayout, box: Box) -> dict[tuple[int, ...], list[_Piece]]:
    """Return what a box wants of the chunks of each file, by the file's place."""
    per_file = layout.per_shard or (1,) * layout.array.ndim
    axes = [list(_meet(size, part, count)) for size, part, count in zip(layout.chunks, box, per_file, strict=True)]
    files: dict[tuple[int, ...], list[_Piece]] = {}
    for parts in product(*axes):
        file, inside, source, target = zip(*parts, strict=True)
        number = 0
        for n, count in zip(inside, per_file, strict=True):
            number = number * count + n
        files.setdefault(file, []).append(_Piece(number=number, source=source, target=target))
    return files


def _meet(size: int, part: slice, count: int) -> Iterator[tuple[int, int, slice, slice]]:
    """Yield the chunks along an axis that a box meets: file, place in it, and where in the chunk and in the box."""
    for n in range(part.start // size, -(-part.stop // size)):
        low, high = max(part.start, n * size), min(part.stop, (n + 1) * size)
        inside = slice(low - n * size, high - n * size)
        yield n // count, n % count, inside, slice(low - part.start, high - part.start)


class ChunkFile:
    """A file of one chunk, or a shard; one that is not there holds fill values.

    Parameters
    ----------
    descriptor
        Of the open file; None where there is none.
    """

    def __init__(self, layout: ChunkLayout, path: Path, descriptor: int | None) -> None:
        self._layout, self._path, self._descriptor = layout, path, descriptor
        size = 0 if descriptor is None else os.fstat(descriptor).st_size
        if descriptor is None:
            self._places = None
        elif layout.per_shard is None:
            self._places = np.array([[0, size]], np.uint64)
        else:
            self._places = self._read_index(math.prod(layout.per_shard), size)

    @classmethod
    def open(cls, layout: ChunkLayout, place: tuple[int, ...]) -> ChunkFile:
        """Open the file at a place of the grid, and read its index."""
        path = layout.folder / layout.array.metadata.encode_chunk_key(place)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return cls(layout, path, None)
        try:
            return cls(layout, path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _read_index(self, count: int, size: int) -> Num[np.ndarray, "chunks 2"]:
        length = 16 * count + 4
        data = np.empty(length, np.uint8)
        self._fill(data, 0 if self._layout.index_first else size - length)
        if google_crc32c.value(data[:-4].tobytes()) != int(data[-4:].view("<u4")[0]):
            raise ValueError(f"{self._path}: the index of the shard is damaged")
        places: Num[np.ndarray, "chunks 2"] = data[:-4].view("<u8").reshape(count, 2)
        return places

    def read(self, piece: _Piece, pixels: Num[np.ndarray, "*shape"]) -> None:
        """Put what is wanted of a chunk to its place."""
        chunks, target = self._layout.chunks, pixels[piece.target]
        offset, length = (_MISSING, 0) if self._places is None else self._places[piece.number].tolist()
        if offset == _MISSING:
            target[...] = self._layout.fill
        elif target.shape == chunks and target.flags.c_contiguous:
            self.decode(offset, length, target.reshape(-1).view(np.uint8))
        else:
            whole = borrow("chunk", self._layout.chunk_bytes, np.uint8)
            self.decode(offset, length, whole)
            target[...] = whole.view(pixels.dtype).reshape(chunks)[piece.source]

    def decode(self, offset: int, length: int, target: UInt8[np.ndarray, " bytes"]) -> None:
        """Decode the bytes of a chunk."""
        packed = borrow("packed", length, np.uint8) if self._layout.is_compressed else target
        if length != packed.size:
            raise ValueError(f"{self._path}: a chunk has {length:,} bytes, and should have {packed.size:,}")
        self._fill(packed, offset)
        if self._layout.is_compressed:
            size, _, there = _SIZES.unpack(packed[:16].tobytes()) if length >= 16 else (0, 0, 0)
            if (size, there) != (target.size, length):
                raise ValueError(f"{self._path}: a chunk is damaged")
            blosc.decompress(packed, target)

    def _fill(self, target: UInt8[np.ndarray, " bytes"], offset: int) -> None:
        """Read bytes of the file."""
        assert self._descriptor is not None, "a file that is not there is not read"
        view, at = target.data, 0
        while at < len(view):
            count = os.preadv(self._descriptor, [view[at:]], offset + at) if offset >= 0 else 0
            if count == 0:
                raise ValueError(f"{self._path}: is too short")
            at += count
