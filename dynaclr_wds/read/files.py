"""Local shards to bytes by plain reads: the store that needs no compiled copy, and what both local stores share.

Without `copy.c` nothing stands between a failing disk and SIGBUS, so nothing is mapped: every patch is read with
`preadv`, and a short read is an error. Slower than mapping; equal in every byte.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from jaxtyping import Int64, UInt8

from dynaclr_wds.contract import ShardRecord
from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.store import RowFailure

_PIECE_BYTES = 1 << 20


class OutsideError(FormatError):
    """An index that names bytes which its shards don't have."""


class FileStore:
    """Shards on a local disk, opened for each read.

    Parameters
    ----------
    root
        The folder of the manifest.
    shards
        Its shards.
    """

    def __init__(self, root: Path, shards: Sequence[ShardRecord]) -> None:
        self._root = root
        self._shards = shards
        self._bytes = np.array([s.bytes for s in shards], np.int64)

    def read(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        offset: Int64[np.ndarray, " k"],
        out: UInt8[np.ndarray, "n k bytes"],
    ) -> None:
        """Copy patches; see `BlockStore.read`."""
        first, end = begin + offset[0], begin + offset[-1] + out.shape[2]
        check_inside(first, end, self._bytes[shard])
        span = np.empty(int(offset[-1] - offset[0]) + out.shape[2], np.uint8)
        runs = np.lib.stride_tricks.sliding_window_view(span, out.shape[2])
        for number in np.unique(shard).tolist():
            rows = np.flatnonzero(shard == number).tolist()
            row = rows[0]
            try:
                with self._open(number) as file:
                    for row in rows:
                        self._read_exactly(file, number, int(first[row]), span)
                        out[row] = runs[offset - offset[0]]
            except (FormatError, StorageError) as error:
                raise RowFailure(row, error) from None

    def fetch(self, shard: int, begin: int, end: int) -> None:
        """Have the system read a block into its page cache, where it can be asked to."""
        with self._open(shard) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)

    def forget(self, shard: int, begin: int, end: int) -> None:
        """Do nothing: the page cache is the system's."""

    def checksum(self, shard: int, begin: int, end: int) -> int:
        """Return the XXH3 of a block."""
        digest = xxhash.xxh3_64()
        piece = np.empty(min(_PIECE_BYTES, end - begin), np.uint8)
        with self._open(shard) as file:
            for at in range(begin, end, _PIECE_BYTES):
                part = piece[: end - at]
                self._read_exactly(file, shard, at, part)
                digest.update(part.data)
        return digest.intdigest()

    def close(self) -> None:
        """Do nothing: no file is open."""

    @contextmanager
    def _open(self, shard: int) -> Iterator[BinaryIO]:
        with open_shard(self._root / self._shards[shard].path, int(self._bytes[shard])) as file:
            yield file

    def _read_exactly(self, file: BinaryIO, shard: int, begin: int, out: UInt8[np.ndarray, " n"]) -> None:
        """Fill an array from a position, or say which byte failed."""
        at = 0
        while at < len(out):
            try:
                got = os.preadv(file.fileno(), [out[at:].data], begin + at)
            except OSError as error:
                raise explain_failure(self._root, self._shards[shard], begin + at) from error
            if not got:
                raise explain_failure(self._root, self._shards[shard], begin + at)
            at += got


@contextmanager
def open_shard(path: Path, size: int) -> Iterator[BinaryIO]:
    """Open a shard, checking that it is there and whole.

    Raises
    ------
    FormatError
        It is gone, or has another size than the manifest says.
    StorageError
        The system can't open it.
    """
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise FormatError(f"{path}: is gone. Restore it, or build the shards again.") from None
    except OSError as error:
        raise StorageError(f"{path}: can't be opened ({error.strerror}). Mend that, then train again.") from error
    with file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise FormatError(
                f"{path}: has {found:,} bytes, the manifest says {size:,}. Copy it again, or build the shards again."
            )
        yield file


def check_inside(begin: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"], size: Int64[np.ndarray, " n"]) -> None:
    """Check that patches lie inside their shards.

    Raises
    ------
    RowFailure
        One does not.
    """
    outside = np.flatnonzero((begin < 0) | (end < begin) | (end > size))
    if len(outside):
        row = int(outside[0])
        error = OutsideError(
            f"The index says that a patch is in bytes {int(begin[row]):,} to {int(end[row]):,}, which lies outside its "
            f"shard of {int(size[row]):,} bytes. The index is damaged: build the shards again."
        )
        raise RowFailure(row, error)


def explain_failure(root: Path, shard: ShardRecord, byte: int) -> StorageError:
    """Make the error for a byte of a shard that can't be read, saying why as far as it can be seen."""
    path = root / shard.path
    found = path.stat().st_size if path.is_file() else shard.bytes
    if found != shard.bytes:
        return StorageError(
            f"{path}: byte {byte:,} can't be read: the file has {found:,} bytes now, the manifest says "
            f"{shard.bytes:,}. It was cut short or overwritten while it was in use. Restore it, and replace shards by "
            "renaming only."
        )
    return StorageError(
        f"{path}: byte {byte:,} can't be read: the disk or file server failed. Look at the system's log, and run "
        f"`dynaclr-wds verify {root}` before you train again."
    )
