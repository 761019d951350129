"""Gathers index, layout and statistics of a group: all that its shards are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Shaped

from dynaclr_wds.contract import STATISTICS, ExperimentRecord, FovRecord, LabelRecord, shard_path
from etl.layout.clips import Clips, Shards, member_bytes
from etl.pack.json_numbers import write_tables


@dataclass(frozen=True, kw_only=True)
class GroupContents:
    """What the shards of a group will hold; numbers count within the group."""

    digest: str
    """Of the unit that makes them."""
    experiment: ExperimentRecord
    codec: str
    """How patches are stored."""
    clips: Clips
    """The clips, in stored order."""
    keys: Shaped[np.ndarray, " clips"]
    shards: Shards
    labels: tuple[LabelRecord, ...]
    label_codes: Mapping[str, Int[np.ndarray, " obs"]]
    """Label → place of each observation's value in the label's record, NO_ID for null."""
    partitions: tuple[Mapping[str, str | None], ...]
    fovs: tuple[FovRecord, ...]
    columns: Mapping[str, Shaped[np.ndarray, " obs"]]
    """Columns of the observations."""
    lineage_ids: Sequence[str]
    first_frame: int
    """Of the segment."""
    fov_first_frame: Int[np.ndarray, " fovs_and_one"]
    """CSR: row of `timepoint` of that frame."""
    timepoint: Float[np.ndarray, "frames channels 8"]
    """Statistics of each frame that was read."""
    fov: Float[np.ndarray, "fovs channels 8"] | None
    """Statistics of each FOV; None where frames that come later change them."""

    @cached_property
    def clip_fov(self) -> Int[np.ndarray, " clips"]:
        """Row of `fovs` of each clip: a clip is of one lineage."""
        rows: Int[np.ndarray, " clips"] = self.columns["fov_index"][self.clips.clip_head]
        return rows

    @cached_property
    def frame_tables(self) -> list[str]:
        """Statistics of each frame, as JSON."""
        return write_tables(self.timepoint)

    @cached_property
    def fov_tables(self) -> list[str] | None:
        """Statistics of each FOV, as JSON."""
        return None if self.fov is None else write_tables(self.fov)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Path of every shard, numbered within its partition."""
        partition = self.shards.shard_partition
        number = np.arange(partition.size) - np.searchsorted(partition, partition)
        return tuple(
            shard_path(tuple(self.partitions[p].values()), self.digest, int(n))
            for p, n in zip(partition, number, strict=True)
        )


def estimate_clip_bytes(clips: Clips, experiment: ExperimentRecord) -> Int[np.ndarray, " clips"]:
    """Estimate the size of each clip in a tar, with the longest JSON that it may have."""
    patches = np.diff(clips.clip_first)
    links = np.add.reduceat(np.append(clips.patch_links, 0), clips.clip_first[:-1])
    digits = 1 + len(str(int(patches.max(initial=0))))
    text = 2048 + patches * 500 + (patches + 1) * experiment.shape[0] * len(STATISTICS) * 15 + links * digits
    result: Int[np.ndarray, " clips"] = patches * member_bytes(128 + experiment.patch_bytes) + member_bytes(text)
    return result
