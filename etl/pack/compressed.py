"""Puts blocks of compressed patches together: where things are is known only afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dynaclr_wds.codec import compress_patch
from dynaclr_wds.contract import MEMBER_HEADER, SUFFIXES, npy_header
from etl.cut.patch_room import Patches
from etl.pack.shard_jobs import ShardJob
from etl.pack.tar_headers import make_header, name_digits


@dataclass(slots=True)
class StoredPlaces:
    """Where the patches of a shard are, as far as it is written."""

    offset: list[int] = field(default_factory=list)
    """First byte of each patch's first channel."""
    lengths: list[list[int]] = field(default_factory=list)
    """Bytes of each channel."""


def compress_block(
    job: ShardJob, texts: Sequence[bytes], clips: range, patches: Patches, begin: int, places: StoredPlaces
) -> Iterator[bytes]:
    """Yield the members of some clips, from front to back.

    Parameters
    ----------
    texts
        JSON of each clip of the shard.
    begin
        Byte of the shard where the block begins.
    places
        What is yielded is added.
    """
    header, channels = npy_header(job.experiment.dtype, job.experiment.shape), job.experiment.shape[0]
    for clip in clips:
        first, last = job.clip_first[clip : clip + 2].tolist()
        width = name_digits(last - first)
        for number, slot in enumerate(job.slot[first:last].tolist()):
            head, *data = compress_patch(header, patches[slot].data, channels)
            places.offset.append(begin + MEMBER_HEADER + len(head))
            places.lengths.append([len(part) for part in data])
            name = f"{job.keys[clip]}.{number:0{width}d}{SUFFIXES[job.codec]}"
            member = _make_member(name, b"".join([head, *data]))
            begin += len(member)
            yield member
        member = _make_member(f"{job.keys[clip]}.json", texts[clip])
        begin += len(member)
        yield member


def join_parts(parts: Iterable[bytes], size: int) -> Iterator[bytes | memoryview]:
    """Join parts to larger ones, of at least `size` bytes but the last."""
    held: list[bytes] = []
    total = 0
    for part in parts:
        held.append(part)
        total += len(part)
        if total >= size:
            yield b"".join(held)
            held.clear()
            total = 0
    yield b"".join(held)


def _make_member(name: str, data: bytes) -> bytes:
    return b"".join((make_header(name, len(data)), data, bytes(-len(data) % MEMBER_HEADER)))
