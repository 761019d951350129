"""The unit of a build: cuts a group of FOVs into memory, lays out what is left, packs it, and notes what it did.

It reads the plates and writes shards and a part of its own; it looks at nothing that another unit writes. The part
comes last: a unit that was stopped is run again, one whose part and shards are whole is not. Two copies of a unit that
run at the same time write the same bytes under names of their own, so neither harms the other.

Where pixels of a FOV can't be read, and such FOVs are skipped, a unit makes no shards: it notes which FOVs these are,
and the build makes groups without them (`etl.run.update`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from jaxtyping import Bool, Int

from dynaclr_wds.contract import (
    NO_CODEC,
    FileRecord,
    PartitionRecord,
    SkippedRecord,
    bad_part_path,
)
from dynaclr_wds.errors import FovError
from etl.cut.frames import cut_fov
from etl.cut.job import CutJob, FovCut, ReadingRoom
from etl.cut.patch_room import FiledPatches, Patches, hold_patches, take_rows
from etl.layout.jobs import plan_cuts, read_columns
from etl.pack.contents import GroupContents
from etl.pack.shard_jobs import plan_shard_job
from etl.pack.tars import PackedShard, pack_shard
from etl.run.executors import report, share_out
from etl.run.in_use import using
from etl.run.output import checksum_file, file_size
from etl.source.bad_fovs import make_skipped
from etl.unit.job import UnitJob
from etl.unit.laying_out import lay_out
from etl.unit.left import Left
from etl.unit.memory import divide_memory
from etl.unit.part import Part, read_part, write_part


def build_unit(job: UnitJob) -> FileRecord:
    """Build one group, or find that it is there; return its part, or what it noted of FOVs that can't be read.

    Raises
    ------
    PlateError, ConfigError
        Pixels that can't be read (unless such FOVs are skipped), or may not be stored.
    BuildError
        The disk is full, or failed; or the build that the unit is of has ended without it.
    """
    with using(job.staged):
        found = find_staged(job)
        if found is None:
            return _build(job)
        report(count_frames(job))
        return found


def _build(job: UnitJob) -> FileRecord:
    columns = read_columns(job.index.observations)
    memory = divide_memory(job)
    room = ReadingRoom(memory_bytes=memory.frames, folder=job.scratch)
    cuts, order = plan_cuts(job.config, job.fovs, columns, room, job.segment)
    patches = hold_patches(order.size, job.experiment.patch_bytes, memory.patches, job.scratch)
    done, skipped = _cut(job, cuts, patches)
    if skipped:
        return write_part(job.staged, bad_part_path(job.digest), Part.of_bad(job.digest, skipped))
    kept, dropped = _judge(job, done, order)
    slot = np.empty(order.size, np.int64)
    slot[order] = np.arange(order.size)
    left = Left.of(job, done, kept)
    contents = lay_out(job, left.index, left.statistics)
    if isinstance(patches, FiledPatches):
        patches.expect(slot[kept][contents.clips.patch_obs])

    def pack(number: int) -> PackedShard:
        known = job.in_place.get(contents.paths[number], "")
        return pack_shard(plan_shard_job(contents, slot[kept], number), patches, job.staged, known)

    shards = share_out(pack, range(len(contents.paths)))
    return write_part(job.staged, job.part, _note(job, left, contents, shards, dropped, kept))


def count_frames(job: UnitJob) -> int:
    """Return the frames that a unit reads."""
    return sum(len(job.segment.read(fov.frames)) for fov in job.index.fovs)


def weigh_unit(job: UnitJob) -> tuple[int, int]:
    """Return the frames of a unit, and their bytes on the plate; 0 bytes where a stopped build may have finished it."""
    if (job.staged / job.part).is_file():
        return count_frames(job), 0
    (entry,) = job.config.experiments
    channels, read = len(entry.source_channel), job.segment.read
    return count_frames(job), sum(
        len(read(fov.array.shape[0])) * channels * prod(fov.array.shape[2:]) * fov.array.dtype.itemsize
        for fov in job.fovs
    )


def find_staged(job: UnitJob) -> FileRecord | None:
    """Return the part of a unit that a stopped build finished, if it and its shards are whole."""
    names = [job.part] if job.retry else [job.part, bad_part_path(job.digest)]
    return next((record for name in names if (record := _find_whole(job, name)) is not None), None)


def _find_whole(job: UnitJob, name: str) -> FileRecord | None:
    path = job.staged / name
    part = read_part(path)
    if part is None or part.digest != job.digest:
        return None
    for shard in part.shards:
        staged = job.staged / shard.path
        is_staged = file_size(staged) == shard.bytes and checksum_file(staged) == shard.xxh3
        if not is_staged and job.in_place.get(shard.path) != shard.xxh3:
            return None
        report(0)
    return FileRecord(path=name, bytes=file_size(path), xxh3=checksum_file(path))


def _cut(job: UnitJob, cuts: Sequence[CutJob], patches: Patches) -> tuple[list[FovCut], tuple[SkippedRecord, ...]]:
    """Cut every FOV into its run of the patches; return apart those that can't be read, if they are skipped."""
    first = np.cumsum([0, *(cut.t.size for cut in cuts)]).tolist()
    (entry,) = job.config.experiments

    def cut_one(number: int) -> FovCut | SkippedRecord:
        cut = cuts[number]
        try:
            return cut_fov(cut, take_rows(patches, first[number], cut.t.size, cut.patch))
        except FovError as error:
            if job.config.on_bad_fov == "error":
                raise
            return make_skipped(entry, cut.fov.name, error)

    done = share_out(cut_one, range(len(cuts)))
    skipped = tuple(one for one in done if isinstance(one, SkippedRecord))
    return [one for one in done if isinstance(one, FovCut)], skipped


def _judge(
    job: UnitJob, done: Sequence[FovCut], order: Int[np.ndarray, " obs"]
) -> tuple[Bool[np.ndarray, " obs"], dict[str, int]]:
    """Say which observations stay when the pixels are known, and count the others."""
    config, own = job.config, job.index.observations["t"].to_numpy() < job.segment.last
    blank, nonfinite = np.empty((2, order.size), bool)
    blank[order] = np.concatenate([cut.blank for cut in done])
    nonfinite[order] = np.concatenate([cut.nonfinite for cut in done])
    reason = "blank_channel" if config.on_blank == "drop" else "blank_channel_kept"
    found = {reason: blank, "nan_pixels": nonfinite}
    counts = {reason: int((rows & own).sum()) for reason, rows in found.items()}
    kept = (~blank | (config.on_blank == "keep")) & (~nonfinite | (config.on_nan == "zero"))
    return kept, {reason: count for reason, count in counts.items() if count}


def _note(
    job: UnitJob,
    left: Left,
    contents: GroupContents,
    shards: Sequence[PackedShard],
    dropped: Mapping[str, int],
    kept: Bool[np.ndarray, " obs"],
) -> Part:
    """Gather what the index needs."""
    clips, columns, channels = contents.clips, contents.columns, job.experiment.shape[0]
    candidates, has_codec = int(clips.obs_dropped.sum()), contents.codec != NO_CODEC
    packed = {
        name: np.concatenate([np.empty((0, *more), dtype), *(getattr(shard, name) for shard in shards)])
        for name, dtype, more in (
            ("patch_offset", np.int64, ()),
            ("patch_xxh3", np.uint32, (channels,)),
            ("block_begin", np.int64, ()),
            ("block_end", np.int64, ()),
            ("block_xxh3", np.uint64, ()),
            *((("patch_stored", np.uint32, (channels,)), ("block_decoded", np.int64, ())) if has_codec else ()),
        )
    }
    arrays = {
        "kept": kept,
        "fov_kept": left.fov_kept,
        "z_start": columns["z_start"].astype(np.float32),
        "z_focus": columns["z_focus"].astype(np.float32),
        **left.noted,
        "patch_obs": clips.patch_obs.astype(np.int32),
        "patch_t": clips.patch_t.astype(np.int32),
        "patch_is_sample": clips.patch_is_sample,
        "patch_has_candidate": clips.patch_has_candidate,
        "clip_first": clips.clip_first,
        "clip_lineage": clips.clip_lineage.astype(np.int32),
        "clip_key": np.array([int(key, 16) for key in contents.keys.tolist()], np.uint64),
        "block_first": contents.shards.block_first,
        "block_shard": contents.shards.block_shard,
        **packed,
    }
    return Part(
        digest=job.digest,
        partitions=_count_partitions(contents, shards, columns["t"] < job.segment.last),
        shards=tuple(shard.record for shard in shards),
        dropped={**dropped, **({"candidates_dropped": candidates} if candidates else {})},
        lineages=len(contents.lineage_ids),
        skipped=(),
        arrays=arrays,
        summaries=left.statistics.summaries,
    )


def _count_partitions(
    contents: GroupContents, shards: Sequence[PackedShard], own: Bool[np.ndarray, " obs"]
) -> tuple[PartitionRecord, ...]:
    """Count what is stored of each partition; `own` observations are samples here."""
    count, columns, clips = len(contents.partitions), contents.columns, contents.clips
    partition = columns["partition_index"]
    lineage_partition = np.zeros(len(contents.lineage_ids), np.int64)
    lineage_partition[columns["lineage_index"]] = partition
    size = np.array([shard.record.bytes for shard in shards], np.int64)
    table = {
        "observations": np.bincount(partition[own], minlength=count),
        "with_candidate": np.bincount(partition[own & columns["has_candidate"]], minlength=count),
        "lineages": np.bincount(lineage_partition, minlength=count),
        "clips": np.bincount(clips.clip_partition, minlength=count),
        "patches": np.bincount(partition[clips.patch_obs], minlength=count),
        "shards": np.bincount(contents.shards.shard_partition, minlength=count),
        "bytes": np.bincount(contents.shards.shard_partition, weights=size, minlength=count),
    }
    return tuple(
        PartitionRecord(labels=labels, **{name: int(values[row]) for name, values in table.items()})
        for row, labels in enumerate(contents.partitions)
    )
