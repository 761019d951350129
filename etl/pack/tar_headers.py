"""Headers of tar members: ustar, without owner and time, many at a time."""

from __future__ import annotations

import tarfile

import numpy as np
from jaxtyping import UInt8

from etl.layout.clips import MEMBER_HEADER

_SIZE, _CHECKSUM = slice(124, 136), slice(148, 154)
_OCTAL = np.array([15, 12, 9, 6, 3, 0])


def _make_empty() -> bytes:
    """Make the header of a file of mode 0444 with no name and no byte; blanks stand where its checksum does."""
    info = tarfile.TarInfo()
    info.mode = 0o444
    made = info.tobuf(tarfile.USTAR_FORMAT)
    return made[: _CHECKSUM.start] + b" " * 8 + made[_CHECKSUM.start + 8 :]


_EMPTY = _make_empty()


def make_header(name: str, size: int) -> bytes:
    """Make the header of one member; its name has at most 100 letters, digits and dots."""
    header = bytearray(_EMPTY)
    header[: len(name)] = name.encode("ascii")
    header[_SIZE] = b"%011o\0" % size
    header[_CHECKSUM.start : _CHECKSUM.stop + 1] = b"%06o\0" % sum(header)
    assert len(header) == MEMBER_HEADER, "a header is one block of a tar"
    return bytes(header)


def make_patch_headers(key: str, count: int, width: int, size: int) -> UInt8[np.ndarray, "count 512"]:
    """Make the headers of `<key>.<number>.npy` for the numbers from 0 on.

    Parameters
    ----------
    width
        Digits of a number.
    size
        Bytes of each member.
    """
    template = np.frombuffer(make_header(f"{key}.{0:0{width}d}.npy", size), np.uint8)
    headers = np.tile(template, (count, 1))
    digits = np.arange(count)[:, None] // 10 ** np.arange(width)[::-1] % 10
    first = len(key) + 1
    headers[:, first : first + width] += digits.astype(np.uint8)
    said = int(template[_CHECKSUM].tobytes(), 8) + digits.sum(axis=1)
    headers[:, _CHECKSUM] = (said[:, None] >> _OCTAL & 7) + ord("0")
    return headers
