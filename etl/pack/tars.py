"""Packs patches into tars: clips in stored order, each one sample of plain WebDataset.

A sample is `<key>.<nnn>.npy` for every patch and then `<key>.json`, uncompressed. The JSON of a whole shard is made
first, so every offset is known before a byte is written, and checked while writing. Owner, mode and time of the members
are fixed: the same input gives the same bytes. Checksums are taken of the bytes on their way.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8, UInt32, UInt64

from dynaclr_wds.contract import ShardRecord, channel_checksum, npy_header
from etl.layout.clips import MEMBER_HEADER, TAR_TAIL, member_bytes
from etl.pack.clip_json import Table, make_clip_json, name_digits
from etl.pack.shard_jobs import ShardJob
from etl.run.executors import report
from etl.run.output import HashingFile, writing


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """Where things are in one shard."""

    record: ShardRecord
    patch_offset: Int[np.ndarray, " patches"]
    patch_xxh3: UInt32[np.ndarray, "patches channels"]
    """Of each stored channel."""
    block_begin: Int[np.ndarray, " blocks"]
    block_end: Int[np.ndarray, " blocks"]
    block_xxh3: UInt64[np.ndarray, " blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """The members of a shard, before they are written."""

    texts: Sequence[bytes]
    """JSON of each clip."""
    patch_offset: Int[np.ndarray, " patches"]
    clip_begin: Int[np.ndarray, " clips_and_one"]
    """CSR, in bytes."""


def pack_shard(job: ShardJob, patches: UInt8[np.ndarray, "slots bytes"], staged: Path, known: str = "") -> PackedShard:
    """Write one shard.

    Parameters
    ----------
    patches
        The patches of the group.
    staged
        Folder for new files of the set.
    known
        Checksum of the shard that is in place. It is not written again if it would be the same.

    Raises
    ------
    BuildError
        The disk is full, or failed.
    """
    members = _plan_members(job)
    edges = members.clip_begin[job.block_first[1:]].tolist()
    if known:
        with Path(os.devnull).open("wb") as nowhere:
            file = HashingFile(nowhere, edges)
            channels = _write_members(job, members, patches, file)
    if not known or file.xxh3 != known:
        with writing(staged / job.path, edges) as file:
            channels = _write_members(job, members, patches, file)
    return _describe(job, members, file, channels)


def sum_channels(data: bytes | memoryview, count: int) -> list[int]:
    """Return the checksum of each channel of a patch, given its data."""
    view, size = memoryview(data), len(data) // count
    return [channel_checksum(view[channel * size : (channel + 1) * size]) for channel in range(count)]


def _plan_members(job: ShardJob) -> _Members:
    """Make the JSON of a shard's clips and find where every member will be."""
    statistics: dict[tuple[str, int], Table] = {}
    texts = [make_clip_json(job, clip, statistics) for clip in range(len(job.keys))]
    header = len(npy_header(job.experiment.dtype, job.experiment.shape))
    step = member_bytes(header + job.experiment.patch_bytes)  # bytes from patch to patch
    patches = np.diff(job.clip_first)
    clip_bytes = patches * step + member_bytes(np.array([len(text) for text in texts]))
    begin = np.concatenate([[0], np.cumsum(clip_bytes)])
    place = np.arange(patches.sum()) - np.repeat(job.clip_first[:-1], patches)
    offset = np.repeat(begin[:-1] + MEMBER_HEADER + header, patches) + place * step
    return _Members(texts=texts, patch_offset=offset, clip_begin=begin)


def _write_members(
    job: ShardJob, members: _Members, patches: UInt8[np.ndarray, "slots bytes"], file: HashingFile
) -> list[list[int]]:
    """Write all members; return the checksums of the channels of each patch."""
    channels, header = [], npy_header(job.experiment.dtype, job.experiment.shape)
    for clip, text in enumerate(members.texts):
        first, last = job.clip_first[clip : clip + 2].tolist()
        width = name_digits(last - first)
        for number, slot in enumerate(job.slot[first:last].tolist()):
            data = patches[slot].data
            channels.append(sum_channels(data, job.experiment.shape[0]))
            _write_member(file, f"{job.keys[clip]}.{number:0{width}d}.npy", header, data)
        _write_member(file, f"{job.keys[clip]}.json", text)
        assert file.bytes == members.clip_begin[clip + 1], "offsets are known before writing"
        report(0)
    file.write(bytes(2 * MEMBER_HEADER))
    file.write(bytes(-file.bytes % tarfile.RECORDSIZE))
    end = int(members.clip_begin[-1])
    assert end + 1024 <= file.bytes <= end + TAR_TAIL, "a tar ends with two blocks of zeros, filled up"
    return channels


def _write_member(file: HashingFile, name: str, *parts: bytes | memoryview) -> None:
    """Append one member: a ustar header without owner and time, the data, zeros up to whole 512 bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = sum(map(len, parts)), 0o444
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    for part in parts:
        file.write(part)
    file.write(bytes(-info.size % MEMBER_HEADER))


def _describe(job: ShardJob, members: _Members, file: HashingFile, channels: list[list[int]]) -> PackedShard:
    edges = members.clip_begin[job.block_first]
    record = ShardRecord(
        path=job.path,
        partition=job.partition,
        bytes=file.bytes,
        xxh3=file.xxh3,
        clips=len(job.keys),
        blocks=job.block_first.size - 1,
    )
    return PackedShard(
        record=record,
        patch_offset=members.patch_offset,
        patch_xxh3=np.array(channels, np.uint32),
        block_begin=edges[:-1],
        block_end=edges[1:],
        block_xxh3=np.array(file.pieces, np.uint64),
    )
