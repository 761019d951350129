"""Says how much memory a unit needs, and divides what it has: patches, frames, and what makes shards of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from dynaclr_wds.contract import ExperimentRecord
from etl.cut.filed_frames import SLAB_PIXELS
from etl.cut.read_plan import Wanted, good_bytes, least_bytes, whole_bytes
from etl.pack.tars import PART_BYTES
from etl.run.memory import UnitNeed, memory_here
from etl.source.config import BuildConfig
from etl.source.plates import Fov
from etl.source.stored import plan_stack
from etl.unit.job import UnitJob

_FIXED_BYTES = 64 << 20
_OBSERVATION_BYTES = 1000
"""Rows of an index and its layout, of one observation."""
_TEXT_BYTES = 2500
"""Of one patch of a shard while its JSON is made."""
_ROOM_BYTES = 1 << 28
"""A thread keeps as much memory for patches from one group to the next, if there is as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitMemory:
    """What a unit has."""

    patches: int
    """For patches; 0 where they go to a file."""
    frames: int
    """For reading frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What a unit needs, in bytes."""

    least: int
    """To read one chunk."""
    whole: int
    """To read frames into memory."""
    good: int
    """To read ahead."""
    frames: int
    """File of a run of frames that does not fit into memory."""
    patches: int
    rest: int
    """For all but patches and reading."""


def divide_memory(job: UnitJob) -> UnitMemory:
    """Divide the memory of a unit: frames that don't fit go to a file, and so do patches."""
    need = _find_need(job.config, job.experiment, job.fovs, job.index.observations.num_rows)
    left = min(job.memory_bytes, memory_here()) - need.rest
    if need.patches + need.whole <= left:
        patches = max(need.patches, min(left - need.good, _ROOM_BYTES))
    elif need.whole > left and need.patches + need.least <= left:
        patches = need.patches
    else:
        patches = 0
    return UnitMemory(patches=patches, frames=max(left - patches, 0))


def find_need(config: BuildConfig, experiment: ExperimentRecord, fovs: Sequence[Fov], observations: int) -> UnitNeed:
    """Say what a unit needs.

    Parameters
    ----------
    config
        With the group's experiment only.
    """
    need = _find_need(config, experiment, fovs, observations)
    return UnitNeed(
        least=need.rest + need.least,
        good=need.rest + need.good + min(need.patches, config.group_bytes),
        whole=need.rest + need.whole,
        frames=need.frames,
        where=f"experiment {experiment.name}",
    )


def _find_need(config: BuildConfig, experiment: ExperimentRecord, fovs: Sequence[Fov], observations: int) -> _Need:
    kinds = {}  # FOVs that are alike need the same
    for fov in fovs:
        array = fov.array
        kinds[array.shape, array.chunks, array.shards, array.dtype.str] = fov
    wanted = [_find_wanted(config, fov) for fov in kinds.values()]
    in_shard = min(config.shard_bytes // experiment.patch_bytes + 1, 2 * observations)
    rest = _FIXED_BYTES + PART_BYTES + observations * _OBSERVATION_BYTES + in_shard * _TEXT_BYTES
    return _Need(
        least=max(least_bytes(one) for one in wanted),
        whole=max(whole_bytes(one) for one in wanted),
        good=max(good_bytes(one) for one in wanted),
        frames=max(one.array.chunks[0] * one.frame_bytes for one in wanted),
        patches=observations * experiment.patch_bytes,
        rest=rest + 3 * experiment.patch_bytes + max(_work_bytes(one, experiment) for one in wanted),
    )


def _find_wanted(config: BuildConfig, fov: Fov) -> Wanted:
    (experiment,) = config.experiments
    stack = plan_stack(config, experiment, fov)
    return Wanted(
        array=fov.array,
        channels=stack.list_read(experiment.channel_indices),
        z=stack.all_slices(fov.shape[2]),
    )


def _work_bytes(wanted: Wanted, experiment: ExperimentRecord) -> int:
    """Bytes of what is made of frames on the way: slabs for statistics, crops before they are resampled."""
    (height, width), itemsize = wanted.array.shape[3:], wanted.array.dtype.itemsize
    slab = max(SLAB_PIXELS, height * width) * (3 * itemsize + 1)
    grown = prod(experiment.scale[1:]) * prod(experiment.shape[2:])
    crop = len(wanted.channels) * (wanted.z.stop - wanted.z.start) * min(int(2 * grown), height * width)
    return slab + 2 * crop * max(itemsize, 4)
