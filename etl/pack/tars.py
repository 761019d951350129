"""Packs patches into tars: clips in stored order, each one sample of plain WebDataset.

A sample is `<key>.<nnn>.npy` for every patch, or `.npy.gz` where the build has a codec, and then `<key>.json`. The JSON
of a whole shard is made first, so without a codec every offset is known before a byte is written. A block is put
together in memory, and written at once. Owner, mode and time of the members are fixed: the same input gives the same
bytes. Checksums are taken of the bytes on their way.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int, UInt8, UInt32, UInt64

from dynaclr_wds.contract import NO_CODEC, SUFFIXES, ShardRecord, channel_checksum, npy_header
from etl.cut.compiled import load_compiled
from etl.cut.patch_room import FiledPatches, Patches
from etl.kept_memory import borrow
from etl.layout.clips import MEMBER_HEADER, TAR_TAIL, member_bytes
from etl.pack.clip_json import ClipTexts
from etl.pack.compressed import StoredPlaces, compress_block, join_parts
from etl.pack.shard_jobs import ShardJob
from etl.pack.tar_headers import make_header, make_patch_headers
from etl.run.executors import report
from etl.run.output import HashingFile, writing


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """Where things are in one shard."""

    record: ShardRecord
    patch_offset: Int[np.ndarray, " patches"]
    patch_stored: UInt32[np.ndarray, "patches channels"]
    """With a codec: bytes of each channel as it is stored; else 0."""
    patch_xxh3: UInt32[np.ndarray, "patches channels"]
    """Of each stored channel."""
    block_begin: Int[np.ndarray, " blocks"]
    block_end: Int[np.ndarray, " blocks"]
    block_decoded: Int[np.ndarray, " blocks"]
    """Bytes of each block without the codec."""
    block_xxh3: UInt64[np.ndarray, " blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The members of a shard, before they are written; where they would be without a codec."""

    texts: Sequence[bytes]
    """JSON of each clip."""
    patch_offset: Int[np.ndarray, " patches"]
    clip_begin: Int[np.ndarray, " clips_and_one"]
    """CSR, in bytes."""


@dataclass(slots=True)
class _Sums:
    """Checksums of what was written, and where it ends."""

    blocks: list[int] = field(default_factory=list)
    channels: list[UInt32[np.ndarray, "patches channels"]] = field(default_factory=list)
    """Of the channels of each patch, block by block."""
    edges: list[int] = field(default_factory=lambda: [0])
    """CSR of the blocks, in bytes."""
    places: StoredPlaces = field(default_factory=StoredPlaces)
    """With a codec."""


PART_BYTES = 1 << 25
"""A block that is larger is written in parts, of whole members."""


def pack_shard(job: ShardJob, patches: Patches, staged: Path, known: str = "") -> PackedShard:
    """Write one shard.

    Parameters
    ----------
    staged
        Folder for new files of the set.
    known
        Checksum of the shard that is in place. It is not written again if it would be the same.

    Raises
    ------
    BuildError
        The disk is full, or failed.
    """
    members = plan_members(job)
    if known:
        with Path(os.devnull).open("wb") as nowhere:
            file = HashingFile(nowhere)
            sums = _write_blocks(job, members, patches, file, is_last=False)
    if not known or file.xxh3 != known:
        with writing(staged / job.path) as file:
            sums = _write_blocks(job, members, patches, file)
    return _describe(job, members, file, sums)


def sum_channels(data: bytes | memoryview, count: int) -> list[int]:
    """Return the checksum of each channel of a patch, given its data."""
    view, size = memoryview(data), len(data) // count
    return [channel_checksum(view[channel * size : (channel + 1) * size]) for channel in range(count)]


def plan_members(job: ShardJob) -> Members:
    """Make the JSON of a shard's clips and find where every member will be."""
    writer = ClipTexts(job)
    texts = [writer.make(clip) for clip in range(len(job.keys))]
    header, step = len(npy_header(job.experiment.dtype, job.experiment.shape)), _step_of(job)
    patches = np.diff(job.clip_first)
    longer = len(SUFFIXES[job.codec]) - len(SUFFIXES[NO_CODEC])  # a name that stands in the JSON once for each patch
    clip_bytes = patches * step + member_bytes(np.array([len(text) for text in texts]) - longer * patches)
    begin = np.concatenate([[0], np.cumsum(clip_bytes)])
    place = np.arange(patches.sum()) - np.repeat(job.clip_first[:-1], patches)
    offset = np.repeat(begin[:-1] + MEMBER_HEADER + header, patches) + place * step
    return Members(texts=texts, patch_offset=offset, clip_begin=begin)


def _step_of(job: ShardJob) -> int:
    """Bytes from patch to patch."""
    header = npy_header(job.experiment.dtype, job.experiment.shape)
    step: int = member_bytes(len(header) + job.experiment.patch_bytes)
    return step


def fill_tar(size: int) -> int:
    """Return the bytes of a tar whose members take so many: zeros follow them, up to a whole record."""
    return -(-(size + 2 * MEMBER_HEADER) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _write_blocks(
    job: ShardJob, members: Members, patches: Patches, file: HashingFile, *, is_last: bool = True
) -> _Sums:
    """Write all members, block by block; `is_last` says that the patches will not be asked for again."""
    sums = _Sums()
    for block in range(job.block_first.size - 1):
        clips = range(*job.block_first[block : block + 2].tolist())
        slots = job.slot[slice(*job.clip_first[[clips.start, clips.stop]].tolist())]
        if job.codec == NO_CODEC:
            parts: Iterator[bytes | memoryview] = _fill_block(job, members, clips, patches, sums)
        else:
            found = [sum_channels(patches[slot].data, job.experiment.shape[0]) for slot in slots.tolist()]
            sums.channels.append(np.array(found, np.uint32))
            parts = join_parts(compress_block(job, members.texts, clips, patches, file.bytes, sums.places), PART_BYTES)
        whole = xxhash.xxh3_64()
        for part in parts:
            whole.update(part)
            file.write(part)
        sums.blocks.append(whole.intdigest())
        sums.edges.append(file.bytes)
        if is_last and isinstance(patches, FiledPatches):
            patches.finish(slots)
        report(0)
    file.write(bytes(fill_tar(file.bytes) - file.bytes))
    assert sums.edges[-1] + 1024 <= file.bytes <= sums.edges[-1] + TAR_TAIL, "a tar ends with zeros, filled up"
    return sums


def _fill_block(
    job: ShardJob, members: Members, clips: range, patches: Patches, sums: _Sums
) -> Iterator[bytes | memoryview]:
    """Put the members of a block together, as they are; yields the block, or parts of one that is large."""
    begin, end = members.clip_begin[[clips.start, clips.stop]].tolist()
    if end - begin > PART_BYTES:
        for clip in clips:
            yield from _fill_parts(job, members, clip, patches, sums)
        return
    rows, room = range(*job.clip_first[[clips.start, clips.stop]].tolist()), borrow("block", end - begin, np.uint8)
    _fill_patches(job, clips, rows, patches, room, members.patch_offset[rows.start : rows.stop] - begin, sums)
    for clip in clips:
        at, stop = (members.clip_begin[clip : clip + 2] - begin).tolist()
        _fill_text(job, clip, members.texts[clip], room[at:stop])
    yield room.data


def _fill_parts(
    job: ShardJob, members: Members, clip: int, patches: Patches, sums: _Sums
) -> Iterator[bytes | memoryview]:
    """Put the members of a clip together, a few at a time."""
    (first, last), step = job.clip_first[clip : clip + 2].tolist(), _step_of(job)
    count, data = max(PART_BYTES // step, 1), int(members.patch_offset[first] - members.clip_begin[clip])
    for row in range(first, last, count):
        rows = range(row, min(row + count, last))
        room = borrow("block", len(rows) * step, np.uint8)
        _fill_patches(job, range(clip, clip + 1), rows, patches, room, data + np.arange(len(rows)) * step, sums)
        yield room.data
    room = borrow("block", member_bytes(len(members.texts[clip])), np.uint8)
    _fill_text(job, clip, members.texts[clip], room)
    yield room.data


def _fill_text(job: ShardJob, clip: int, text: bytes, room: UInt8[np.ndarray, " size"]) -> None:
    """Put the member of a clip that is its JSON at the end."""
    at = room.size - member_bytes(len(text))
    written = make_header(f"{job.keys[clip]}.json", len(text)) + text
    room[at : at + len(written)] = np.frombuffer(written, np.uint8)
    room[at + len(written) :] = 0


def _fill_patches(
    job: ShardJob,
    clips: range,
    rows: range,
    patches: Patches,
    room: UInt8[np.ndarray, " size"],
    data: Int[np.ndarray, " patches"],
    sums: _Sums,
) -> None:
    """Put some members that hold patches of clips to their places; `data` says where their pixels are."""
    head, size = npy_header(job.experiment.dtype, job.experiment.shape), job.experiment.patch_bytes
    counts, first = np.diff(job.clip_first[clips.start : clips.stop + 1]), int(job.clip_first[clips.start])
    headers = make_patch_headers(job.keys[clips.start : clips.stop], counts, len(head) + size)
    headers, slots = headers[rows.start - first : rows.stop - first], job.slot[rows.start : rows.stop]
    heads = np.concatenate([headers, np.broadcast_to(np.frombuffer(head, np.uint8), (len(headers), len(head)))], axis=1)
    begins, length = data - heads.shape[1], member_bytes(len(head) + size)
    compiled = load_compiled()
    if compiled is None or isinstance(patches, FiledPatches):
        for begin, slot, header in zip(begins.tolist(), slots.tolist(), heads, strict=True):
            end = begin + header.size + size
            room[begin : begin + header.size], room[begin + header.size : end] = header, patches[slot]
            room[end : begin + length] = 0
    else:
        compiled["put"](
            *(array.ctypes.data for array in (patches, slots, heads, begins)),
            *(slots.size, size, heads.shape[1], length),
            room.ctypes.data,
        )
    channels = job.experiment.shape[0]
    places = (data[:, None] + np.arange(channels) * (size // channels)).ravel().tolist()
    found = [channel_checksum(room[at : at + size // channels]) for at in places]
    sums.channels.append(np.array(found, np.uint32).reshape(-1, channels))


def _describe(job: ShardJob, members: Members, file: HashingFile, sums: _Sums) -> PackedShard:
    edges, channels = np.array(sums.edges, np.int64), np.concatenate(sums.channels)
    is_plain = job.codec == NO_CODEC
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
        patch_offset=members.patch_offset if is_plain else np.array(sums.places.offset, np.int64),
        patch_stored=np.zeros_like(channels) if is_plain else np.array(sums.places.lengths, np.uint32),
        patch_xxh3=channels,
        block_begin=edges[:-1],
        block_end=edges[1:],
        block_decoded=np.diff(members.clip_begin[job.block_first]),
        block_xxh3=np.array(sums.blocks, np.uint64),
    )
