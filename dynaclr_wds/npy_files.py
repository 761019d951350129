"""Reads `.npy` files of strangers: the header is matched against a pattern, and never parsed as Python.

numpy parses a header with the compiler of Python, which may warn, recurse or fail in many ways, and takes files of
other kinds too. Here only what `docs/FORMAT.md` says is read: version 1.0, a plain number, C order or Fortran order,
and a size that is exactly that of the file, checked before any memory is taken. No pickled object is ever loaded.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.errors import FormatError

_MAGIC = b"\x93NUMPY\x01\x00"
_MOST_HEADER = 4096
"""Bytes of a header that are looked at; numpy writes 128 for up to five axes."""
_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|][biufc][0-9]{1,2})',\s*'fortran_order':\s*(False|True),"
    rb"\s*'shape':\s*\(((?:[0-9]{1,18},\s*){0,8}(?:[0-9]{1,18})?)\),?\s*\}\s*"
)

NUMBERS = frozenset(np.dtype(code).newbyteorder("<").str for code in "bBhHiIqQefd")
"""Dtypes that patches may have, as manifests and clips write them."""


class NpyHeader(NamedTuple):
    """What the header of an npy file says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    begin: int
    """Byte where the data begin."""

    @property
    def data_bytes(self) -> int:
        """Bytes that the data should have; of any size, as nothing was checked."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_npy_header(head: bytes) -> NpyHeader:
    """Read the header of an npy file.

    Parameters
    ----------
    head
        The first bytes of the file, at least all of the header; at most 4 KiB are looked at.

    Raises
    ------
    ValueError
        It is none, of another version, cut off, or of anything but plain numbers.
    """
    if not head.startswith(_MAGIC):
        raise ValueError("it does not begin as an npy file of version 1.0 does")
    begin = len(_MAGIC) + 2 + int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 2], "little")
    if begin > min(len(head), _MOST_HEADER):
        raise ValueError(f"its header says that it has {begin:,} bytes, but {min(len(head), _MOST_HEADER):,} can be")
    found = _HEADER.fullmatch(head[len(_MAGIC) + 2 : begin])
    if found is None:
        raise ValueError(
            f"its header is not that of an array of plain numbers: {head[len(_MAGIC) + 2 : begin].strip()!r:.200}"
        )
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError:
        raise ValueError(f"its header names the dtype {found[1].decode()!r}, which there is not") from None
    shape = tuple(int(length) for length in found[3].replace(b",", b" ").split())
    return NpyHeader(shape, dtype, found[2] == b"True", begin)


def map_array(path: Path) -> Shaped[np.ndarray, "*shape"]:
    """Map a `.npy` file.

    Raises
    ------
    FormatError
        It is no such file, or its header says another size than it has.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = parse_npy_header(file.read(_MOST_HEADER))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: can't be mapped ({error}). Build the shards again.") from error
    if size != header.begin + header.data_bytes:
        raise FormatError(f"{path}: its header says {header.data_bytes:,} bytes of data. Build the shards again.")
    order = "F" if header.fortran_order else "C"
    try:
        mapped = np.memmap(path, header.dtype, "r", header.begin, header.shape, order)  # type: ignore[call-overload]
    except (OSError, ValueError, OverflowError) as error:
        raise FormatError(f"{path}: can't be mapped ({error}). Copy the file again.") from error
    return mapped.view(np.ndarray)
