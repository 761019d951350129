"""Files to addresses, and addresses to a batch: local shards in memory, and copies out of them.

What is said to the system about pages is said through ctypes, which lets go of the interpreter lock; the standard
library's `mmap` doesn't.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dynaclr_wds.errors import FormatError

_LEAST_READAHEAD_KB = 128  # what Linux has unless told otherwise
_FAULT_AROUND = 1 << 16  # bytes that it maps at most around one that is touched


def _load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _load_copy() -> ctypes.CDLL | None:
    """Find the compiled copy; None where no compiler was at hand when this was installed."""
    spec = importlib.util.find_spec("dynaclr_wds.read._copy")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    library.dynaclr_copy_rows.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.dynaclr_copy_rows.restype = None
    return library


def _find_readahead(path: Path) -> int:
    """Find how many bytes the system reads ahead at most, when asked to, of the disk or server that holds a file."""
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        return max(int(setting.read_text()), _LEAST_READAHEAD_KB) << 10
    except (OSError, ValueError):
        return _LEAST_READAHEAD_KB << 10


_LIBC = _load_libc()
_COPY = _load_copy()


def copy_rows(addresses: Int64[np.ndarray, " n"], out: Shaped[np.ndarray, "n ..."]) -> None:
    """Copy what lies at each address into a row of a batch, without the interpreter lock.

    Parameters
    ----------
    addresses
        Where each row begins; the caller has seen to it that a whole row is there.
    out
        Where to: C-contiguous, as large as the rows together.
    """
    row_bytes = out.nbytes // max(len(out), 1)
    addresses = np.ascontiguousarray(addresses)
    if _COPY is not None:
        _COPY.dynaclr_copy_rows(out.ctypes.data, addresses.ctypes.data, row_bytes, len(addresses))
        return
    for place, address in enumerate(addresses.tolist()):
        ctypes.memmove(out.ctypes.data + place * row_bytes, address, row_bytes)


class MappedFile:
    """A file in memory.

    Parameters
    ----------
    path
        The file.
    size
        Its bytes, as the manifest says.

    Raises
    ------
    FormatError
        The file is gone or has another size.
    """

    def __init__(self, path: Path, size: int) -> None:
        if not path.is_file():
            raise FormatError(f"{path}: is gone. Restore it, or build the shards again.")
        self.path = path
        self.size = size
        with path.open("rb") as file:
            self._check_size(os.fstat(file.fileno()).st_size)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data: UInt8[np.ndarray, " n"] = np.frombuffer(self._map, np.uint8)
        self.address = int(self.data.ctypes.data)
        self._step = _find_readahead(path)

    def check(self) -> None:
        """See to it that the file still has all its bytes: to touch those that are gone would end the process.

        It is the file that was mapped that counts; one that has replaced it under its name is another.
        """
        self._check_size(self._map.size())

    def _check_size(self, found: int) -> None:
        if found != self.size:
            raise FormatError(
                f"{self.path}: has {found:,} bytes, the manifest says {self.size:,}. Build the shards again."
            )

    def advise(self, begin: int, end: int) -> None:
        """Have the system read these bytes, front to back, and go on."""
        for at in range(begin, end, self._step):  # it would leave out what is beyond the first step
            self._tell(at, min(at + self._step, end), mmap.MADV_WILLNEED)

    def forget(self, begin: int, end: int) -> None:
        """Let go of these bytes, and of the pages around that came with them; whoever touches them gets them again."""
        self._tell(max(begin - _FAULT_AROUND, 0), min(end + _FAULT_AROUND, self.size), mmap.MADV_DONTNEED)

    def _tell(self, begin: int, end: int, advice: int) -> None:
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if _LIBC.madvise(self.address + begin, end - begin, advice):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
