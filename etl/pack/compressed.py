"""Puts blocks of compressed patches together: where things are is known only afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from dynaclr_wds.codec import compress_patch
from dynaclr_wds.contract import MEMBER_HEADER, SUFFIXES, npy_header
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
    job: ShardJob,
    texts: Sequence[bytes],
    clips: range,
    patches: UInt8[np.ndarray, "slots bytes"],
    begin: int,
    places: StoredPlaces,
) -> bytes:
    """Put the members of some clips together.

    Parameters
    ----------
    texts
        JSON of each clip of the shard.
    begin
        Byte of the shard where the block begins.
    places
        What is written is added.
    """
    header, channels = npy_header(job.experiment.dtype, job.experiment.shape), job.experiment.shape[0]
    parts: list[bytes] = []
    for clip in clips:
        first, last = job.clip_first[clip : clip + 2].tolist()
        width = name_digits(last - first)
        for number, slot in enumerate(job.slot[first:last].tolist()):
            head, *data = compress_patch(header, patches[slot].data, channels)
            places.offset.append(begin + MEMBER_HEADER + len(head))
            places.lengths.append([len(part) for part in data])
            begin += _append(
                parts, f"{job.keys[clip]}.{number:0{width}d}{SUFFIXES[job.codec]}", b"".join([head, *data])
            )
        begin += _append(parts, f"{job.keys[clip]}.json", texts[clip])
    return b"".join(parts)


def _append(parts: list[bytes], name: str, data: bytes) -> int:
    """Append a member; return its bytes."""
    header, rest = make_header(name, len(data)), bytes(-len(data) % MEMBER_HEADER)
    parts.extend((header, data, rest))
    return len(header) + len(data) + len(rest)
