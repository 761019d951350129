"""Packs patches into tars: clips in stored order, each one sample of plain WebDataset.

A sample is `<key>.<nnn>.npy` for every patch and then `<key>.json`, uncompressed. The JSON of a whole shard is made
first, so every offset is known before a byte is written, and checked while writing. Owner, mode and time of the members
are fixed: the same input gives the same bytes. A record lies beside every finished shard, so a later run can keep
the shard if its content is still what is asked for and its checksum is right.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from dynaclr_wds.contract import ARRAYS, ExperimentRecord, ShardRecord, channel_checksum, checksum, npy_header
from dynaclr_wds.errors import BuildError
from dynaclr_wds.files import write_whole
from etl.layout.clips import MEMBER_HEADER, TAR_TAIL, member_bytes
from etl.pack.clip_json import Table, make_clip_json, name_digits
from etl.pack.shard_jobs import ShardJob
from etl.run.executors import report
from etl.run.output import HashingFile, checksum_file, file_size, naming_file, writing

_OPEN_SPILLS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """Where things are in one shard."""

    record: ShardRecord
    patch_offset: Int[np.ndarray, " patches"]
    patch_xxh3: UInt32[np.ndarray, "patches channels"]
    """Of each stored channel; 0 where an experiment has fewer."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What is known of a finished shard file."""

    bytes: int
    xxh3: str
    pieces: Sequence[int]
    """Checksums of its blocks."""
    channels: Sequence[Sequence[int]]
    """Checksums of the channels of its patches."""


def pack_shard(job: ShardJob) -> PackedShard:
    """Write one shard, or find that it is there.

    Raises
    ------
    BuildError
        The disk is full, or failed.
    """
    content, members = job.content, _plan_members(job)
    written = _find_staged(job, content) or _find_earlier(job, members)
    if written is not None:
        report(job.slot.size)
        return _describe(job, content, members, written)
    with writing(job.staged, members.clip_begin[job.block_first[1:]].tolist()) as file:
        channels = _write_members(job, members, file)
    written = _Written(bytes=file.bytes, xxh3=file.xxh3, pieces=file.pieces, channels=channels)
    with naming_file(_record_path(job)), write_whole(_record_path(job)) as raw:
        raw.write(json.dumps([content, written.bytes, written.xxh3, written.pieces, written.channels]).encode())
    return _describe(job, content, members, written)


def _record_path(job: ShardJob) -> Path:
    return job.staged.with_name(job.staged.name + ".record")


def _find_staged(job: ShardJob, content: str) -> _Written | None:
    """Return the shard that a stopped build finished, if it is whole and holds what is asked for."""
    try:
        found, size, xxh3, pieces, channels = json.loads(_record_path(job).read_bytes())
        if found != content or file_size(job.staged) != size or len(pieces) != job.block_first.size - 1:
            return None
        if list(map(len, channels)) != [e.shape[0] for e in _patch_experiments(job)]:
            return None
        if checksum_file(job.staged) != xxh3:
            return None
    except (OSError, ValueError, TypeError):  # none, or cut off by a kill, or not ours: the shard is written anew
        return None
    return _Written(bytes=size, xxh3=xxh3, pieces=[int(piece) for piece in pieces], channels=channels)


def _find_earlier(job: ShardJob, members: _Members) -> _Written | None:
    """Take the checksums of the blocks and channels of a shard that an earlier build wrote."""
    if job.found is None:
        return None
    pieces, channels, experiments = [], [], _patch_experiments(job)
    with naming_file(job.found), job.found.open("rb") as file:
        for block in range(job.block_first.size - 1):
            first, last = job.block_first[block : block + 2].tolist()
            begin, end = members.clip_begin[[first, last]].tolist()
            data = memoryview(file.read(end - begin))
            pieces.append(checksum(data))
            for row in range(*job.clip_first[[first, last]].tolist()):
                at = int(members.patch_offset[row]) - begin
                channels.append(sum_channels(data[at : at + experiments[row].patch_bytes], experiments[row].shape[0]))
            report(0, end - begin)
    if checksum_file(job.found) != job.found_xxh3:
        raise BuildError(f"{job.found}: changed while it was looked at. Let nothing else write there, and run again.")
    return _Written(bytes=file_size(job.found), xxh3=job.found_xxh3, pieces=pieces, channels=channels)


def _patch_experiments(job: ShardJob) -> list[ExperimentRecord]:
    """Return the experiment of each patch."""
    counts = np.diff(job.clip_first).tolist()
    return [experiment for clip, count in enumerate(counts) for experiment in [job.experiment_of(clip)] * count]


def sum_channels(data: bytes | memoryview, count: int) -> list[int]:
    """Return the checksum of each channel of a patch, given its data."""
    view, size = memoryview(data), len(data) // count
    return [channel_checksum(view[channel * size : (channel + 1) * size]) for channel in range(count)]


def _plan_members(job: ShardJob) -> _Members:
    """Make the JSON of a shard's clips and find where every member will be."""
    statistics: dict[tuple[str, int], Table] = {}
    clips = range(len(job.keys))
    texts = [make_clip_json(job, clip, statistics) for clip in clips]
    experiments = [job.experiment_of(clip) for clip in clips]
    header = np.array([len(npy_header(e.dtype, e.shape)) for e in experiments])
    step = member_bytes(
        header + np.array([e.patch_bytes for e in experiments])
    )  # bytes from patch to patch, in each clip
    patches = np.diff(job.clip_first)
    clip_bytes = patches * step + member_bytes(np.array([len(text) for text in texts]))
    begin = np.concatenate([[0], np.cumsum(clip_bytes)])
    place = np.arange(patches.sum()) - np.repeat(job.clip_first[:-1], patches)
    offset = np.repeat(begin[:-1] + MEMBER_HEADER + header, patches) + place * np.repeat(step, patches)
    return _Members(texts=texts, patch_offset=offset, clip_begin=begin)


class _Spills:
    """Reads patches, with few files open."""

    def __init__(self, job: ShardJob) -> None:
        self._job = job
        self._open: dict[int, int] = {}

    def read(self, fov: int, slot: int, size: int) -> bytes:
        path = self._job.fovs[fov].spill
        with naming_file(path):
            if fov not in self._open:
                if len(self._open) >= _OPEN_SPILLS:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[fov] = os.open(path, os.O_RDONLY)
            data = os.pread(self._open[fov], size, slot * size)
        if len(data) != size:
            raise BuildError(f"{path}: was cut short while the build ran. Run the same command again.")
        return data

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _write_members(job: ShardJob, members: _Members, file: HashingFile) -> list[list[int]]:
    """Write all members; return the checksums of the channels of each patch."""
    spills, channels = _Spills(job), []
    try:
        for clip, text in enumerate(members.texts):
            first, last = job.clip_first[clip : clip + 2].tolist()
            width, fov, experiment = name_digits(last - first), int(job.clip_fov[clip]), job.experiment_of(clip)
            header, size = npy_header(experiment.dtype, experiment.shape), experiment.patch_bytes
            for number, slot in enumerate(job.slot[first:last].tolist()):
                data = spills.read(fov, slot, size)
                channels.append(sum_channels(data, experiment.shape[0]))
                _write_member(file, f"{job.keys[clip]}.{number:0{width}d}.npy", header, data)
            _write_member(file, f"{job.keys[clip]}.json", text)
            assert file.bytes == members.clip_begin[clip + 1], "offsets are known before writing"
            report(last - first, int(members.clip_begin[clip + 1] - members.clip_begin[clip]))
    finally:
        spills.close()
    file.write(bytes(2 * MEMBER_HEADER))
    file.write(bytes(-file.bytes % tarfile.RECORDSIZE))
    end = int(members.clip_begin[-1])
    assert end + 1024 <= file.bytes <= end + TAR_TAIL, "a tar ends with two blocks of zeros, filled up"
    return channels


def _write_member(file: HashingFile, name: str, *parts: bytes) -> None:
    """Append one member: a ustar header without owner and time, the data, zeros up to whole 512 bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = sum(map(len, parts)), 0o444
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    for part in parts:
        file.write(part)
    file.write(bytes(-info.size % MEMBER_HEADER))


def _describe(job: ShardJob, content: str, members: _Members, written: _Written) -> PackedShard:
    edges = members.clip_begin[job.block_first]
    record = ShardRecord(
        path=job.path,
        partition=job.partition,
        bytes=written.bytes,
        xxh3=written.xxh3,
        content=content,
        clips=len(job.keys),
        blocks=job.block_first.size - 1,
    )
    counts = np.array([len(row) for row in written.channels], np.int64)
    patch_xxh3 = np.zeros((len(counts), int(counts.max())), ARRAYS["patch_xxh3"])
    patch_xxh3[np.arange(counts.max()) < counts[:, None]] = [value for row in written.channels for value in row]
    return PackedShard(
        record=record,
        patch_offset=members.patch_offset,
        patch_xxh3=patch_xxh3,
        block_begin=edges[:-1],
        block_end=edges[1:],
        block_xxh3=np.array(written.pieces, np.uint64),
    )
