"""Headers of tar members: ustar, without owner and time, many at a time."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

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


def make_patch_headers(keys: Sequence[str], counts: Int[np.ndarray, " clips"], size: int) -> UInt8[np.ndarray, "n 512"]:
    """Make the headers of the patches of some clips: `<key>.<number>.npy`, numbers from 0 on in each clip.

    Parameters
    ----------
    keys
        Of the clips, all of the same length.
    counts
        Patches of each clip; the numbers of a clip have as many digits as its last one, but three at least.
    size
        Bytes of each member.
    """
    widths = [name_digits(count) for count in counts.tolist()]
    if len(set(widths)) > 1:
        each = [make_patch_headers([key], counts[n : n + 1], size) for n, key in enumerate(keys)]
        return np.concatenate(each)
    width, length = widths[0], len(keys[0])
    digits, first = 10 ** np.arange(width)[::-1], length + 1
    template = np.frombuffer(make_header(f"{'0' * length}.{0:0{width}d}.npy", size), np.uint8)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    headers = np.tile(template, (number.size, 1))
    headers[:, :length] = np.repeat(np.frombuffer("".join(keys).encode(), np.uint8).reshape(-1, length), counts, axis=0)
    headers[:, first : first + width] = number[:, None] // digits % 10 + ord("0")
    end = first + width
    said = (
        int(template[_CHECKSUM].tobytes(), 8) - int(template[:end].sum()) + headers[:, :end].sum(axis=1, dtype=np.int64)
    )
    headers[:, _CHECKSUM] = (said[:, None] >> _OCTAL & 7) + ord("0")
    return headers


def name_digits(patches: int) -> int:
    """Width of the numbers in a clip's member names: sorted names are in stored order."""
    return max(3, len(str(patches - 1)))
