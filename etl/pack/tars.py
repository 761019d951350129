"""Spill to tars: clips in stored order, each one sample of plain WebDataset.

A sample is `<key>.<nnn>.npy` for every patch and then `<key>.json`, uncompressed. The JSON of a
whole shard is made first, so every offset is known before a byte is written, and checked while
writing. Owner, mode and time of the members are fixed: the same input gives the same bytes, and a
shard that an earlier run finished is kept when its checksum is right and its content is what is
asked for. Shards are written in parallel by threads, each shard by one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from dynaclr_wds.contract import STATISTICS, ShardRecord, npy_header
from etl.layout.clips import TAR_TAIL, Clips
from etl.pack.clip_json import PackJob, Table, make_clip_json, name_digits
from etl.run.output import HashingFile, Interrupted, OutFolder, run_threads

_MEMBER_HEADER = 512
_OPEN_SPILLS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """Where things are in one shard."""

    record: ShardRecord
    patch_offset: Int[np.ndarray, " patches"]
    block_begin: Int[np.ndarray, " blocks"]
    block_end: Int[np.ndarray, " blocks"]
    block_xxh3: UInt64[np.ndarray, " blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard before it is written."""

    number: int
    texts: Sequence[bytes]
    """JSON of each clip."""
    patch_offset: Int[np.ndarray, " patches"]
    clip_begin: Int[np.ndarray, " clips_and_one"]
    """CSR, in bytes."""

    @property
    def content(self) -> str:
        """Digest of what is in the shard; the JSON names every pixel."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text)
        return digest.hexdigest()


def member_bytes(data_bytes: int | Int[np.ndarray, " n"]) -> Any:
    """Size of a tar member: its header and its data, filled up to whole 512 bytes."""
    return _MEMBER_HEADER + (data_bytes + 511) // 512 * 512


def estimate_clip_bytes(
    clips: Clips, array_bytes: Int[np.ndarray, " clips"], channels: Int[np.ndarray, " clips"]
) -> Int[np.ndarray, " clips"]:
    """Size of each clip in a tar, its JSON taken as long as it may get.

    Parameters
    ----------
    array_bytes
        Size of one patch's data, in each clip.
    channels
        Stored channels of each clip.
    """
    patches = np.diff(clips.clip_first)
    links = np.add.reduceat(clips.patch_links, clips.clip_first[:-1])
    digits = 1 + len(str(int(patches.max(initial=0))))
    text = 2048 + patches * 500 + (patches + 2) * channels * len(STATISTICS) * 15 + links * digits
    result: Int[np.ndarray, " clips"] = patches * member_bytes(128 + array_bytes) + member_bytes(text)
    return result


def pack_shards(
    job: PackJob, folder: OutFolder, workers: int, advance: Callable[[int, int], None]
) -> tuple[PackedShard, ...]:
    """Write every shard that is not there yet.

    Parameters
    ----------
    advance
        Called with (patches, bytes) after each clip or shard, from any thread.
    """
    finished = folder.read_journal()
    stop = threading.Event()

    def pack(number: int) -> PackedShard:
        plan = plan_shard(job, number)
        entry = finished.get(job.paths[number])
        if entry is not None and entry.content == plan.content and folder.is_whole(entry):
            advance(plan.patch_offset.size, 0)
            return _packed(job, plan, entry.bytes, entry.xxh3, entry.pieces)
        with folder.writing(job.paths[number], plan.content) as file:
            _write_shard(job, plan, file, stop, advance)
        return _packed(job, plan, file.bytes, file.xxh3, file.pieces)

    return run_threads(pack, range(len(job.paths)), workers, stop)


def plan_shard(job: PackJob, number: int) -> ShardPlan:
    """Make the JSON of a shard's clips and find where every member will be."""
    first, stop = job.shards.shard_first[number : number + 2].tolist()
    statistics: dict[tuple[str, int], Table] = {}
    texts = [make_clip_json(job, clip, statistics) for clip in range(first, stop)]
    experiments = [job.clip_experiment(clip) for clip in range(first, stop)]
    header = np.array([len(npy_header(e.dtype, e.shape)) for e in experiments])
    step = member_bytes(header + np.array([e.patch_bytes for e in experiments]))  # of each clip
    patches = np.diff(job.clips.clip_first[first : stop + 1])
    clip_bytes = patches * step + member_bytes(np.array([len(text) for text in texts]))
    begin = np.concatenate([[0], np.cumsum(clip_bytes)])
    place = np.arange(patches.sum()) - np.repeat(np.cumsum(patches) - patches, patches)
    offset = np.repeat(begin[:-1] + _MEMBER_HEADER + header, patches) + place * np.repeat(step, patches)
    return ShardPlan(number=number, texts=texts, patch_offset=offset, clip_begin=begin)


class _Spill:
    """Reads patches of one writer, with few files open."""

    def __init__(self, job: PackJob) -> None:
        self._job = job
        self._open: dict[int, int] = {}

    def read(self, obs: int, size: int) -> bytes:
        number, slot = int(self._job.obs_spill[obs]), int(self._job.obs_slot[obs])
        if number not in self._open:
            if len(self._open) >= _OPEN_SPILLS:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[number] = os.open(self._job.spill[number], os.O_RDONLY)
        data = os.pread(self._open[number], size, slot * size)
        assert len(data) == size, "a finished spill file is whole"
        return data

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _write_shard(
    job: PackJob, plan: ShardPlan, file: HashingFile, stop: threading.Event, advance: Callable[[int, int], None]
) -> None:
    from webdataset.writer import TarWriter  # here, because webdataset imports torch where it is installed

    first_clip = int(job.shards.shard_first[plan.number])
    block_ends = set(job.shards.block_first.tolist())
    spill = _Spill(job)
    try:
        with TarWriter(file, user="", group="", mode=0o444, mtime=0, encoder=False) as tar:
            for place, text in enumerate(plan.texts):
                if stop.is_set():
                    raise Interrupted
                first, last = job.clips.clip_first[first_clip + place : first_clip + place + 2].tolist()
                width = name_digits(last - first)
                experiment = job.clip_experiment(first_clip + place)
                header, size = npy_header(experiment.dtype, experiment.shape), experiment.patch_bytes
                sample: dict[str, Any] = {"__key__": str(job.keys[first_clip + place]), "json": text}
                for number, obs in enumerate(job.clips.patch_obs[first:last].tolist()):
                    sample[f"{number:0{width}d}.npy"] = header + spill.read(obs, size)
                tar.write(sample)
                assert tar.tarstream.offset == plan.clip_begin[place + 1], "offsets are known before writing"
                if first_clip + place + 1 in block_ends:
                    file.end_piece(int(plan.clip_begin[place + 1]))
                advance(last - first, int(plan.clip_begin[place + 1] - plan.clip_begin[place]))
    finally:
        spill.close()
    end = int(plan.clip_begin[-1])
    assert end + 1024 <= file.bytes <= end + TAR_TAIL, "a tar ends with two blocks of zeros, filled up"


def _packed(job: PackJob, plan: ShardPlan, size: int, xxh3: str, pieces: Sequence[int]) -> PackedShard:
    first_clip, last_clip = job.shards.shard_first[plan.number : plan.number + 2].tolist()
    blocks = np.flatnonzero(job.shards.block_shard == plan.number)
    edges = plan.clip_begin[job.shards.block_first[np.append(blocks, blocks[-1] + 1)] - first_clip]
    record = ShardRecord(
        path=job.paths[plan.number],
        partition=int(job.shards.shard_partition[plan.number]),
        bytes=size,
        xxh3=xxh3,
        content=plan.content,
        clips=last_clip - first_clip,
        blocks=blocks.size,
    )
    return PackedShard(
        record=record,
        patch_offset=plan.patch_offset,
        block_begin=edges[:-1],
        block_end=edges[1:],
        block_xxh3=np.array(pieces, np.uint64),
    )
