"""Shard streams to clips: reads tars front to back, member by member, and refuses what is not whole.

The readers of `tarfile` and of WebDataset take a damaged header for the end of the archive, so a cut or damaged shard
looks like a short one. Here each header must have the right checksum, each member its full size, and the shard the
two blocks of zeros that end a tar; else the error names the shard and the byte. Only what `docs/FORMAT.md` allows is
read: regular files named `<key>.json`, and `<key>.<number>.npy` or `.npy.gz`; the latter are decoded when they are
drawn. A flipped byte inside a patch that is not compressed is not noticed: its checksum is in the index, which this
pipeline does without.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dynaclr_wds.errors import FormatError
from dynaclr_wds.storage.location import parse_place
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.storage.stream import open_stream

_BLOCK = 512
_CHUNK = 1 << 24
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_NAME = re.compile(r"([0-9A-Za-z_-]+)\.(json|[0-9]+\.npy(?:\.gz)?)")

MOST_MEMBER_BYTES = 1 << 32
"""A larger member is refused before it is read."""
MOST_JSON_BYTES = 1 << 26
"""The same for the JSON of a clip, which takes many times its size in memory."""
MOST_CLIP_BYTES = 1 << 33
"""A clip with more bytes of patches is refused, so that no shard is gathered in memory as one clip."""


@runtime_checkable
class ByteStream(Protocol):
    """What a shard is read from: a file, or an object."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none only at the end."""
        ...


class Member(NamedTuple):
    """One file of a tar."""

    offset: int
    """Byte in the shard where its header begins."""
    key: str
    """Key of its clip."""
    file: str
    """`json`, `<number>.npy` or `<number>.npy.gz`."""
    data: bytes


def read_clips(shards: Iterable[dict[str, Any]], options: StorageOptions) -> Iterator[dict[str, Any]]:
    """Open shards one after the other and yield their clips; a stage of a `wds.DataPipeline`.

    Parameters
    ----------
    shards
        Dicts with the `url` of a shard.
    options
        How shards in object storage are reached.

    Yields
    ------
    One dict per clip, as `wds.WebDataset` yields it: `__key__`, `__url__`, and file (`json`, `000.npy`, …) → bytes.

    Raises
    ------
    FormatError
        A shard that is not a whole tar as `docs/FORMAT.md` says.
    """
    for shard in shards:
        with open_stream(parse_place(shard["url"], "urls"), options) as stream:
            yield from _group_members(read_members(stream, shard["url"]), shard["url"])


def read_members(stream: ByteStream, url: str) -> Iterator[Member]:
    """Yield the members of a tar up to its end, which must be there.

    Parameters
    ----------
    stream
        Read front to back, never sought.
    url
        For errors.

    Raises
    ------
    FormatError
        A header whose checksum is wrong, a member that is cut off, too large, of another type or name, an archive
        without its end, or bytes behind it.
    """
    tape = _Tape(stream, url)
    while True:
        begin = tape.offset
        header = tape.read(_BLOCK)
        if header == bytes(_BLOCK):
            _check_end(tape, begin)
            return
        info = _parse_header(header, begin, url)
        match = _NAME.fullmatch(info.name)
        most = MOST_JSON_BYTES if info.name.endswith(".json") else MOST_MEMBER_BYTES
        if match is None or info.type not in _REGULAR or not 0 <= info.size <= most:
            raise FormatError(
                f"{url}: byte {begin}: holds {info.name!r:.200} of type {info.type.decode('latin-1')!r} and "
                f"{info.size} bytes. A shard holds only regular files <key>.json and <key>.<number>.npy or .npy.gz of "
                f"at most {most} bytes. Take the shards as the build wrote them."
            )
        data = tape.read(info.size)
        padding = -info.size % _BLOCK
        if len(data) < info.size or len(tape.read(padding)) < padding:
            raise FormatError(
                f"{url}: byte {begin}: {info.name!r} should have {info.size} bytes, but the shard ends at byte "
                f"{tape.offset}. It is cut off; copy it again."
            )
        yield Member(begin, match[1], match[2], data)


class _Tape:
    """A stream that knows where it is."""

    def __init__(self, stream: ByteStream, url: str) -> None:
        self._stream = stream
        self.url = url
        self.offset = 0

    def read(self, size: int) -> bytes:
        """Read `size` bytes, fewer only at the end.

        Takes no more memory than there are bytes, whatever a header says.
        """
        parts: list[bytes] = []
        while size > 0:
            try:
                part = self._stream.read(min(size, _CHUNK))
            except OSError as error:
                error.add_note(f"while reading {self.url} at byte {self.offset}")
                raise
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self.offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _parse_header(header: bytes, begin: int, url: str) -> tarfile.TarInfo:
    if not header:
        what = "is empty" if begin == 0 else "ends without the two blocks of zeros that end a tar"
        raise FormatError(f"{url}: byte {begin}: {what}. It is cut off; copy it again.")
    if len(header) < _BLOCK:
        raise FormatError(
            f"{url}: byte {begin}: ends after {len(header)} of the {_BLOCK} bytes of a header. "
            "It is cut off; copy it again."
        )
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise FormatError(
            f"{url}: byte {begin}: a member should begin here, but this is no header of a tar ({error}). "
            "The shard is damaged, or no tar; copy it again."
        ) from error


def _check_end(tape: _Tape, begin: int) -> None:
    """Check what follows the first block of zeros: at least one more, and nothing but zeros."""
    if begin == 0:
        raise FormatError(f"{tape.url}: byte 0: holds zeros and no clip. It is not all there; copy it again.")
    while rest := tape.read(_CHUNK):
        if found := rest.lstrip(b"\0"):
            raise FormatError(
                f"{tape.url}: byte {tape.offset - len(found)}: there is something behind the end of the tar, which is "
                f"at byte {begin}. The shard is damaged, or several in one; copy it again."
            )
    if tape.offset < begin + 2 * _BLOCK:
        raise FormatError(
            f"{tape.url}: byte {begin}: ends without the second of the two blocks of zeros that end a tar. "
            "It is cut off; copy it again."
        )


def _group_members(members: Iterable[Member], url: str) -> Iterator[dict[str, Any]]:
    """Put the adjacent members of a key into one dict."""
    clip: dict[str, Any] = {}
    size = 0
    for member in members:
        if clip and clip["__key__"] != member.key:
            yield clip
            clip, size = {}, 0
        size += len(member.data)
        if size > MOST_CLIP_BYTES:
            raise FormatError(
                f"{url}: byte {member.offset}: clip {member.key} has more than {MOST_CLIP_BYTES:,} bytes, which "
                "are not held in memory. Build with a smaller clip_anchors."
            )
        if not clip:
            clip = {"__key__": member.key, "__url__": url}
        if member.file in clip:
            raise FormatError(
                f"{url}: byte {member.offset}: {member.key}.{member.file} is there twice. Build the shard again."
            )
        clip[member.file] = member.data
    if clip:
        yield clip
