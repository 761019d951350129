"""What a build would write: lays groups of FOVs out as a build does, and counts the bytes of their tars and index.

Clips, members and the text of each clip are made by the code of a build, so that headers, padding, and patches that
several clips need are counted. Pixels have a part in it twice: by the digits of the statistics that stand in each
clip, which are those of the frames that were looked at, and with a codec by the size of patches, which is that of some
that were compressed. Of a large collection some groups are laid out, evenly spread, and stand for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dynaclr_wds.contract import ARRAYS, CODEC_ARRAYS, LABEL_DTYPE, NO_CODEC, STATISTICS, ExperimentRecord
from etl.cut.intensities import GroupStatistics, merge_summaries
from etl.cut.statistics import SAMPLE, Counts, empty_summary
from etl.index import Index, add_stack_places, keep_observations, take_segment
from etl.inspect.collection import Sizes
from etl.inspect.frame_cuts import FrameCut
from etl.layout.clips import member_bytes
from etl.layout.groups import PlannedGroup
from etl.layout.jobs import plan_collection
from etl.pack.array_files import CHANNEL_ARRAYS
from etl.pack.shard_jobs import plan_shard_job
from etl.pack.tars import fill_tar, plan_members
from etl.source.config import BuildConfig
from etl.source.plates import Plate
from etl.stored_index import StoredIndex
from etl.unit.job import UnitJob
from etl.unit.laying_out import lay_out

_MOST_CELLS = 60_000
"""Cells that are laid out, or one group of each experiment where that is more."""
_PARQUET = {"obs": 22, "patch": 9, "table": 30}
"""Bytes of a row of the Parquet files, which are compressed: about that on real and simulated sets."""
_ENDS = {"parquet": 20_000, "part": 7_000, "record": 300}
"""Bytes beside the rows: of the Parquet files, of a part, and of a shard or partition in it."""
_HEADER = 128
"""Bytes of an array before its data."""
_TYPICAL = np.array([1234.5677, 123.45678, 1234, 123, 1012, 2034, 987, 3456], np.float64)
"""Statistics of a channel that was not looked at."""
_TWO_ERRORS = 2.0
"""Standard errors of a range: 95 of 100 samples would give a mean within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a build would be given."""

    config: BuildConfig
    plates: Mapping[str, Plate]
    index: StoredIndex
    experiments: tuple[ExperimentRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """What a group takes."""

    shards: int
    """Bytes."""
    part: int
    """Bytes."""
    rows: Counter[str]
    """Rows of the arrays, by how their names begin: `obs`, `patch`, `clip`, `block`."""


def estimate_sizes(planned: Planned, seen: Sequence[Sequence[FrameCut]]) -> Sizes:
    """Estimate what a build would write.

    Parameters
    ----------
    seen
        Frames of each experiment that were looked at.
    """
    index, records = planned.index, planned.experiments
    groups = plan_collection(planned.config, records, index)
    shards, parts, spread = [0] * len(records), 0.0, 0.0
    rows: Counter[str] = Counter()
    for number, frames in enumerate(seen):
        own = [group for group in groups if group.experiment == number and _count(index, [group])]
        if not own:
            continue
        step = min(-(-_count(index, own) * len(records) // _MOST_CELLS), len(own))
        chosen = own[step // 2 :: step]
        sizes = [_size_group(planned, group, frames) for group in chosen]
        scale = _count(index, own) / _count(index, chosen)
        shards[number] = round(scale * sum(size.shards for size in sizes))
        parts += scale * sum(size.part for size in sizes)
        counted = sum((size.rows for size in sizes), Counter[str]())
        rows += Counter({name: round(scale * count) for name, count in counted.items()})
        spread += scale * counted["patch"] * _find_error(frames)
    return Sizes(
        bytes=shards,
        index_bytes=round(parts) + _size_index(planned, rows),
        is_estimate=True,
        spread=round(_TWO_ERRORS * spread),
        compressed=sum(len(frame.stored) for frames in seen for frame in frames),
        codec=planned.config.codec,
    )


def _count(index: StoredIndex, groups: Sequence[PlannedGroup]) -> int:
    """Count the cells that are samples of some groups."""
    count = 0
    for group in groups:
        begins = sorted({0, group.segment.first, *([] if group.segment.is_whole else [group.segment.last])})
        cells = index.count_observations(group.fovs.start, group.fovs.stop, begins)
        count += int(cells[:, begins.index(group.segment.first)].sum())
    return count


def _size_group(planned: Planned, group: PlannedGroup, seen: Sequence[FrameCut]) -> _Group:
    """Lay out a group, and count what its shards and its part take."""
    config, record = planned.config, planned.experiments[group.experiment]
    index = take_segment(planned.index.take(group.fovs.start, group.fovs.stop), group.segment, record.tau_frames)
    job = UnitJob(
        config=replace(config, experiments=(config.experiments[group.experiment],)),
        experiment=record,
        fovs=tuple(planned.plates[record.name].fovs[fov.fov_name] for fov in index.fovs),
        segment=group.segment,
        index=index,
        digest="0" * 32,
        staged=Path(),
        scratch=Path(),
        in_place={},
        memory_bytes=0,
    )
    statistics = _stand_in(job, seen)
    placed = _place_stacks(index, seen)
    if not group.segment.is_whole:  # FOVs without cells here have no clips
        every = np.ones(len(index.observations), bool)
        placed = keep_observations(placed, every, {record.name: record.tau_frames})
    contents = lay_out(job, placed, statistics)
    shards = 0
    for shard in range(len(contents.paths)):
        own = plan_shard_job(contents, np.zeros(len(index.observations), np.int64), shard)
        members = plan_members(own)
        texts = sum(member_bytes(len(text)) for text in members.texts)
        shards += fill_tar(texts + own.slot.size * _size_member(record, seen))
    samples = int((index.observations["t"].to_numpy() < group.segment.last).sum())
    count = {"obs": samples, "patch": contents.clips.patch_obs.size, "clip": len(contents.keys)}
    rows = Counter(count | {"block": contents.shards.block_shard.size})
    records = len(contents.paths) + len(contents.partitions)
    return _Group(
        shards=shards, part=_size_part(statistics, rows, records, has_codec=config.codec != NO_CODEC), rows=rows
    )


def _size_member(record: ExperimentRecord, seen: Sequence[FrameCut]) -> int:
    """Return the bytes of a patch in a tar: with a codec, the mean of those that were compressed."""
    stored = [size for frame in seen for size in frame.stored]
    return round(float(np.mean(stored))) if stored else record.member_bytes


def _find_error(seen: Sequence[FrameCut]) -> float:
    """Return the standard error of the mean bytes of a patch: patches of a frame are alike, so frames are counted."""
    means = [np.mean(frame.stored) for frame in seen if frame.stored]
    return float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0


def _stand_in(job: UnitJob, seen: Sequence[FrameCut]) -> GroupStatistics:
    """Give every frame the statistics of one that was looked at, and every FOV those of all of them together."""
    shape, fovs = (job.experiment.shape[0], len(STATISTICS)), job.index.fovs
    known = np.stack([frame.timepoint for frame in seen] or [np.broadcast_to(_TYPICAL, shape)])
    merged = (empty_summary(job.fovs[0].array.dtype),) * shape[0]
    for frame in seen:
        merged = merge_summaries(merged, frame.summaries)
    of_fov = np.array([summary.statistics() for summary in merged]) if seen else known[0]
    return GroupStatistics(
        timepoint=known[np.arange(sum(len(job.segment.read(fov.frames)) for fov in fovs)) % len(known)],
        fov=np.broadcast_to(of_fov, (len(fovs), *shape)) if job.segment.is_whole else None,
        summaries=(merged,) * (1 if job.segment.is_whole else len(fovs)),
    )


def _place_stacks(index: Index, seen: Sequence[FrameCut]) -> Index:
    """Say where the stacks of patches lie: as in the first frame that was looked at."""
    start, focus = (seen[0].start, seen[0].focus) if seen else (0.0, np.nan)
    rows = len(index.observations)
    return add_stack_places(index, np.full(rows, start, np.float32), np.full(rows, focus, np.float32))


def _size_part(statistics: GroupStatistics, rows: Mapping[str, int], records: int, *, has_codec: bool) -> int:
    """Count the bytes of what a unit notes: see `etl.unit.part`.

    Parameters
    ----------
    records
        Shards and partitions.
    """
    (frames, channels, _), checksum = statistics.timepoint.shape, 4
    row = {"obs": 9, "patch": 18 + checksum * channels, "clip": 20, "block": 36}
    if has_codec:
        row = row | {"patch": row["patch"] + 4 * channels, "block": row["block"] + 8}
    tables = frames + (0 if statistics.fov is None else len(statistics.fov))
    size = sum(row[name] * count for name, count in rows.items()) + tables * channels * 32
    for summary in (summary for summaries in statistics.summaries for summary in summaries):
        if isinstance(summary, Counts):
            size += 12 * int(np.count_nonzero(summary.counts))
        else:
            size += 8 * SAMPLE * frames // len(statistics.summaries)
    return size + _ENDS["part"] + _ENDS["record"] * records


def _size_index(planned: Planned, rows: Mapping[str, int]) -> int:
    """Count the bytes of the arrays and tables of an index."""
    index, records = planned.index, planned.experiments
    channels, fovs = max(record.shape[0] for record in records), len(index.fovs)
    tables = {
        "stats_timepoint": sum(fov.frames for fov in index.fovs),
        "stats_fov": fovs,
        "stats_dataset": len(records),
    }
    names = ARRAYS if planned.config.codec == NO_CODEC else ARRAYS | CODEC_ARRAYS
    size = sum(np.dtype(LABEL_DTYPE).itemsize * rows["obs"] + _HEADER for _ in index.labels)
    for name, dtype in names.items():
        count = tables.get(name, fovs + 1 if name == "fov_first_frame" else rows[name.partition("_")[0]])
        width = channels * len(STATISTICS) if name in tables else channels if name in CHANNEL_ARRAYS else 1
        size += _HEADER + count * width * np.dtype(dtype).itemsize
    named = {**rows, "table": sum(tables.values()) * channels}
    return size + _ENDS["parquet"] + sum(each * named[name] for name, each in _PARQUET.items())
