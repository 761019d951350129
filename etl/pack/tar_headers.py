"""Headers of tar members: ustar, without owner and time, many at a time."""

from __future__ import annotations

import tarfile

import numpy as np
from jaxtyping import UInt8

from etl.layout.clips import MEMBER_HEADER

_CHECKSUM = slice(148, 154)
_OCTAL = np.array([15, 12, 9, 6, 3, 0])


def make_header(name: str, size: int) -> bytes:
    """Make the header of one member."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


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
    assert headers.shape[1] == MEMBER_HEADER, "a header is one block of a tar"
    return headers
