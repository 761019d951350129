"""Local shards to bytes: the store that maps files into memory and copies out of them once.

A mapped shard holds no file descriptor, so a set may have any number of shards. Mapping and `madvise` go through
ctypes, which releases the GIL and, unlike the standard library's `mmap`, keeps no descriptor of its own. Every read of
mapped memory is made by `copy.c`, which turns a failing disk or a truncated file into an error.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int64, UInt8

from dynaclr_wds.contract import ShardRecord
from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.optional import load_library
from dynaclr_wds.read.files import check_inside, explain_failure, open_shard
from dynaclr_wds.store import RowFailure

_LEAST_READAHEAD_KB = 128  # what Linux has unless told otherwise
_FAULT_AROUND = 1 << 16  # bytes that Linux maps at most around one that is touched
_ASK_BYTES = 1 << 16  # a piece of so many bytes is asked for once
_SCRATCH_BYTES = 1 << 18  # bytes that are hashed at a time: they stay in the processor's cache


@functools.cache
def _load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mmap.restype = ctypes.c_void_p
    return libc


@functools.cache
def load_copy() -> ctypes.CDLL | None:
    """Load the compiled copy, which installs its SIGBUS handler; None where no compiler was at hand at installation."""
    library = load_library("dynaclr_wds.read._copy")
    if library is None:
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.dynaclr_copy.argtypes = [pointer, pointer, pointer, size, size, size, pointer]
    library.dynaclr_copy.restype = ctypes.c_int64
    if library.dynaclr_guard():
        raise StorageError("The handler of SIGBUS can't be installed, without which mapped files are not safe to read.")
    return library


def copy_runs(
    address: Int64[np.ndarray, " n"], offset: Int64[np.ndarray, " k"], out: UInt8[np.ndarray, "n k bytes"]
) -> tuple[int, int] | None:
    """Copy the same `k` runs of bytes from `n` addresses into consecutive memory, without the GIL.

    Returns
    -------
    None, or the first row whose memory can't be read and the address that failed.
    """
    library = load_copy()
    assert library is not None
    assert out.flags.c_contiguous
    address, offset = np.ascontiguousarray(address), np.ascontiguousarray(offset)
    failed = ctypes.c_void_p()
    row = library.dynaclr_copy(
        out.ctypes.data, address.ctypes.data, offset.ctypes.data, out.shape[2], *out.shape[:2], ctypes.byref(failed)
    )
    return None if row < 0 else (row, failed.value or 0)


class MappedStore:
    """Shards on a local disk, mapped into memory when they are first needed.

    Parameters
    ----------
    root
        The folder of the manifest.
    shards
        Its shards.
    ask
        Tell the system of each patch that is read for the first time, so that a disk gets the whole patch as one
        request and not page by page. Not needed where blocks are fetched before they are read.

    Notes
    -----
    A shard that is replaced by renaming, as the ETL does, stays readable as it was mapped. One that is cut short in
    place raises an error: `FormatError` when a block of it is fetched, `StorageError` when its missing pages are read.
    """

    def __init__(self, root: Path, shards: Sequence[ShardRecord], *, ask: bool = True) -> None:
        load_copy()
        self._root = root
        self._shards = shards
        self._bytes = np.array([s.bytes for s in shards], np.int64)
        self._address = np.zeros(len(shards), np.int64)
        self._inode = np.zeros(len(shards), np.uint64)
        self._step = _LEAST_READAHEAD_KB << 10
        self._lock = threading.Lock()
        self._scratch = threading.local()
        pieces = -(-self._bytes // _ASK_BYTES) + 1
        self._piece = np.concatenate([[0], np.cumsum(pieces)])
        self._asked = np.zeros(self._piece[-1], bool) if ask else None
        weakref.finalize(self, _unmap, self._address, self._bytes).atexit = False

    def read(
        self,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        offset: Int64[np.ndarray, " k"],
        out: UInt8[np.ndarray, "n k bytes"],
    ) -> None:
        """Copy patches; see `BlockStore.read`."""
        first, end = begin + offset[0], begin + offset[-1] + out.shape[2]
        for place in np.flatnonzero(self._address[shard] == 0).tolist():
            try:
                self._map(int(shard[place]))
            except (FormatError, StorageError) as error:
                raise RowFailure(place, error) from None
        check_inside(first, end, self._bytes[shard])
        if self._asked is not None:
            self._ask(self._asked, shard, first, end)
        address = self._address[shard]
        failed = copy_runs(address + begin, offset, out)
        if failed is not None:
            row, where = failed
            raise RowFailure(row, self._explain(int(shard[row]), where - int(address[row])))

    def fetch(self, shard: int, begin: int, end: int) -> None:
        """Have the system read a block into its page cache, front to back, and return at once."""
        address = self._map(shard)
        self._check_whole(shard)
        for at in range(begin, end, self._step):  # one call reads no more than the first step
            self._advise(address, at, min(at + self._step, end), mmap.MADV_WILLNEED)

    def forget(self, shard: int, begin: int, end: int) -> None:
        """Unmap the pages of a block, and those around it that came with them; a later read maps them again."""
        size = int(self._bytes[shard])
        low, high = max(begin - _FAULT_AROUND, 0), min(end + _FAULT_AROUND, size)
        self._advise(self._map(shard), low, high, mmap.MADV_DONTNEED)

    def checksum(self, shard: int, begin: int, end: int) -> int:
        """Return the XXH3 of a block; its pages are mapped and in the page cache afterwards."""
        self.fetch(shard, begin, end)
        address = self._map(shard)
        digest = xxhash.xxh3_64()
        library, scratch = load_copy(), self._take_scratch()
        assert library is not None
        view, target = scratch.data, scratch.ctypes.data
        source, offset, failed = ctypes.c_void_p(), ctypes.c_int64(0), ctypes.c_void_p()
        for at in range(begin, end, _SCRATCH_BYTES):
            source.value, size = address + at, min(_SCRATCH_BYTES, end - at)
            row = library.dynaclr_copy(
                target, ctypes.byref(source), ctypes.byref(offset), size, 1, 1, ctypes.byref(failed)
            )
            if row >= 0:
                raise self._explain(shard, (failed.value or 0) - address)
            digest.update(view[:size])
        return digest.intdigest()

    def close(self) -> None:
        """Unmap every shard. No other thread may read meanwhile; a later read maps again."""
        with self._lock:
            _unmap(self._address, self._bytes)

    def _take_scratch(self) -> UInt8[np.ndarray, " n"]:
        """Return this thread's memory for what is hashed."""
        found: UInt8[np.ndarray, " n"] | None = getattr(self._scratch, "buffer", None)
        if found is None:
            found = self._scratch.buffer = np.empty(_SCRATCH_BYTES, np.uint8)
        return found

    def _ask(
        self,
        asked: np.ndarray,
        shard: Int64[np.ndarray, " n"],
        begin: Int64[np.ndarray, " n"],
        end: Int64[np.ndarray, " n"],
    ) -> None:
        """Tell the system of all patches that were never read: on memory that is warm, asking costs a fifth of a copy.

        Pieces between a patch's first and last belong to that patch alone, so its ends tell whether it is new.
        """
        low = self._piece[shard] + begin // _ASK_BYTES
        high = self._piece[shard] + end // _ASK_BYTES
        new = np.flatnonzero(~(asked[low] & asked[high]))
        if not len(new):
            return
        asked[low[new]] = asked[high[new]] = True
        for s, a, b in zip(shard[new].tolist(), begin[new].tolist(), end[new].tolist(), strict=True):
            self._advise(int(self._address[s]), a, b, mmap.MADV_WILLNEED)

    def _map(self, shard: int) -> int:
        """Map a shard, or recall where it is mapped; return its address."""
        if found := int(self._address[shard]):
            return found
        with self._lock:
            if not self._address[shard]:  # a shard that is mapped twice would be unmapped only once
                path, size = self._root / self._shards[shard].path, int(self._bytes[shard])
                with open_shard(path, size) as file:
                    address = _load_libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
                    if address in (None, ctypes.c_void_p(-1).value):
                        number = ctypes.get_errno()
                        raise StorageError(
                            f"{path}: can't be mapped into memory ({os.strerror(number)}). With many shards, raise "
                            "the system's vm.max_map_count, or build with a larger shard_bytes."
                        )
                    self._step = _find_readahead(file.fileno())
                    self._inode[shard] = os.fstat(file.fileno()).st_ino
                self._address[shard] = address
            return int(self._address[shard])

    def _check_whole(self, shard: int) -> None:
        """Check that the mapped file has all its bytes: beyond the end, the rest of the last page reads as zeros.

        If another file has taken its name meanwhile, nothing is checked: what is mapped is still the old file.
        """
        path, size = self._root / self._shards[shard].path, int(self._bytes[shard])
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        if found.st_ino == self._inode[shard] and found.st_size != size:
            raise FormatError(
                f"{path}: has {found.st_size:,} bytes now, the manifest says {size:,}: it was cut short or overwritten "
                "while it was in use. Restore it, and replace shards by renaming only."
            )

    def _advise(self, address: int, begin: int, end: int, advice: int) -> None:
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if _load_libc().madvise(address + begin, end - begin, advice):
            number = ctypes.get_errno()
            raise StorageError(f"madvise({advice}) of shards in {self._root} failed: {os.strerror(number)}.")

    def _explain(self, shard: int, byte: int) -> StorageError:
        return explain_failure(self._root, self._shards[shard], byte)


def _find_readahead(descriptor: int) -> int:
    """Find how many bytes at most the system reads ahead on request, from the disk or server that holds a file."""
    device = os.fstat(descriptor).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        return max(int(setting.read_text()), _LEAST_READAHEAD_KB) << 10
    except (OSError, ValueError):
        return _LEAST_READAHEAD_KB << 10


def _unmap(address: Int64[np.ndarray, " s"], size: Int64[np.ndarray, " s"]) -> None:
    """Unmap what is mapped, and set its address to 0."""
    for shard in np.flatnonzero(address).tolist():
        _load_libc().munmap(int(address[shard]), int(size[shard]))
        address[shard] = 0
