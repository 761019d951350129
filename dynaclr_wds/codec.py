"""Patches to gzip and back: how shards are compressed, for the half that writes and the half that reads.

A patch is stored as a run of gzip members: one for the npy header, then one for each channel, so that a channel can be
read and decoded alone. Readers of `.npy.gz` take the run for one file. Intel's ISA-L does the work: it is several
times as fast as zlib and releases the GIL.
"""

from __future__ import annotations

from typing import Any

from isal import igzip_lib, isal_zlib

from dynaclr_wds.contract import most_stored

_LEVEL = 3
"""Of ISA-L: as small as its other levels, and the fastest to decode."""
_ISAL_ERROR: type[Exception] = igzip_lib.error  # type: ignore[assignment]  # its stub takes it for an instance
_GZIP = 31
"""Window bits that stand for a gzip member."""


class CodecError(ValueError):
    """Bytes that are not one whole gzip member of the expected size; never leaves this package."""


def compress(data: Any) -> bytes:
    """Compress bytes to one gzip member, the same bytes each time on one kind of processor."""
    return bytes(isal_zlib.compress(data, _LEVEL, _GZIP))


def compress_patch(header: bytes, data: bytes | memoryview, channels: int) -> list[bytes]:
    """Compress the npy header of a patch, and each channel of its data."""
    view, size = memoryview(data), len(data) // channels
    return [compress(header), *(compress(view[k * size : (k + 1) * size]) for k in range(channels))]


def decompress(data: Any, size: int) -> bytes:
    """Decompress one gzip member, taking no more memory than is expected.

    Parameters
    ----------
    data
        The member and nothing else.
    size
        Bytes that it must give.

    Raises
    ------
    CodecError
        It is damaged, cut off, gives another number of bytes, or something follows it.
    """
    engine = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
    try:
        found = engine.decompress(data, size + 1)  # one more shows that there would be more
    except _ISAL_ERROR as error:
        raise CodecError(f"gzip says: {error}") from None
    if len(found) > size:
        raise CodecError(f"it gives more than {size:,} bytes")
    if not engine.eof:
        raise CodecError(f"it ends after {len(found):,} of {size:,} bytes")
    if len(found) < size:
        raise CodecError(f"it gives {len(found):,} bytes, not {size:,}")
    if engine.unused_data:
        raise CodecError(f"{len(engine.unused_data):,} bytes follow its end")
    return bytes(found)


def split_members(data: Any, sizes: list[int]) -> list[tuple[int, bytes]]:
    """Split a run of gzip members that give so many bytes: the stored length of each, and what it gives.

    Raises
    ------
    CodecError
        It is not such a run.
    """
    found, rest = [], memoryview(data)
    for size in sizes:
        engine = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
        try:
            out = engine.decompress(rest[: most_stored(size)], size + 1)
        except _ISAL_ERROR as error:
            raise CodecError(f"gzip says: {error}") from None
        length = min(len(rest), most_stored(size)) - len(engine.unused_data)
        if not engine.eof or len(out) != size:
            raise CodecError(f"a member does not give {size:,} bytes")
        found.append((length, bytes(out)))
        rest = rest[length:]
    if len(rest):
        raise CodecError(f"{len(rest):,} bytes follow its end")
    return found
