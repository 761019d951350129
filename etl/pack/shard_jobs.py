"""Divides a group's contents into shards: a job holds all that one shard is made of, but its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped

from dynaclr_wds.contract import ExperimentRecord, FovRecord
from etl.pack.contents import GroupContents

COLUMNS = ("track_id", "parent_track_id", "id", "t", "hpi", "z", "y", "x", "y_clamp", "x_clamp", "z_start", "z_focus")
"""Columns of the observations that stand in a clip's JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard before it is written. Rows are patches, in stored order."""

    path: str
    """Relative to the set."""
    partition: int
    """Row of the group's partitions."""
    experiment: ExperimentRecord
    codec: str
    """How patches are stored."""
    keys: tuple[str, ...]
    """One per clip."""
    lineage_ids: tuple[str, ...]
    """One per clip."""
    clip_first: Int[np.ndarray, " clips_and_one"]
    """CSR: first patch."""
    clip_fov: Int[np.ndarray, " clips"]
    """Row of `fovs`."""
    block_first: Int[np.ndarray, " blocks_and_one"]
    """CSR: first clip."""
    fovs: tuple[FovRecord, ...]
    """Of the group."""
    fov_tables: Sequence[str] | None
    """Statistics of each FOV, as JSON; None where they stand in the index only."""
    labels: Mapping[str, tuple[str | None, ...]]
    """Label → its values, and None for none."""
    label_codes: Mapping[str, Int[np.ndarray, " patches"]]
    """Label → place of each patch's value; NO_ID leads to the last, which is None."""
    columns: Mapping[str, Shaped[np.ndarray, " patches"]]
    is_sample: Bool[np.ndarray, " patches"]
    frame: Int[np.ndarray, " patches"]
    """Row of `frame_tables`."""
    frame_tables: Sequence[str]
    """Statistics of each frame of the group, as JSON."""
    slot: Int[np.ndarray, " patches"]
    """Place in the memory that holds the patches of the group."""


def plan_shard_job(contents: GroupContents, obs_slot: Int[np.ndarray, " obs"], number: int) -> ShardJob:
    """Take one shard's slices.

    Parameters
    ----------
    obs_slot
        Place of the patch of each observation.
    number
        Number of the shard.
    """
    clips, shards = contents.clips, contents.shards
    first_clip, last_clip = shards.shard_first[number : number + 2].tolist()
    first, last = clips.clip_first[[first_clip, last_clip]].tolist()
    obs = clips.patch_obs[first:last]
    blocks = np.flatnonzero(shards.block_shard == number)
    codes = {label.name: contents.label_codes[label.name][obs] for label in contents.labels}
    return ShardJob(
        path=contents.paths[number],
        partition=int(shards.shard_partition[number]),
        experiment=contents.experiment,
        codec=contents.codec,
        keys=tuple(contents.keys[first_clip:last_clip].tolist()),
        lineage_ids=tuple(contents.lineage_ids[n] for n in clips.clip_lineage[first_clip:last_clip].tolist()),
        clip_first=clips.clip_first[first_clip : last_clip + 1] - first,
        clip_fov=contents.clip_fov[first_clip:last_clip],
        block_first=shards.block_first[np.append(blocks, blocks[-1] + 1)] - first_clip,
        fovs=contents.fovs,
        fov_tables=contents.fov_tables,
        labels={label.name: (*label.values, None) for label in contents.labels},
        label_codes=codes,
        columns={name: contents.columns[name][obs] for name in COLUMNS},
        is_sample=clips.patch_is_sample[first:last],
        frame=contents.fov_first_frame[contents.columns["fov_index"][obs]]
        + (clips.patch_t[first:last] - contents.first_frame),
        frame_tables=contents.frame_tables,
        slot=obs_slot[obs],
    )
