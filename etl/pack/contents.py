"""Gathers index, layout and statistics: all that the shards and the index files of a set are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import STATISTICS, ExperimentRecord, FovRecord, LabelRecord, SourceRecord, shard_path
from etl.cut.intensities import Intensities
from etl.layout.clips import Clips, Shards, member_bytes


@dataclass(frozen=True, kw_only=True)
class SetContents:
    """What a set will hold; read by the index files, and cut into one job per shard."""

    clips: Clips
    """The clips, in stored order."""
    keys: Shaped[np.ndarray, " clips"]
    shards: Shards
    labels: tuple[LabelRecord, ...]
    label_codes: Mapping[str, Int[np.ndarray, " obs"]]
    """Label → place of each observation's value in the label's record, NO_ID for null."""
    shard_by: tuple[str, ...]
    partitions: tuple[Mapping[str, str | None], ...]
    fovs: tuple[FovRecord, ...]
    experiments: tuple[ExperimentRecord, ...]
    columns: Mapping[str, Shaped[np.ndarray, " obs"]]
    """Columns of the observations."""
    lineage_ids: Sequence[str]
    intensities: Intensities
    sources: Mapping[tuple[str, str], SourceRecord]
    """(experiment, fov_name) → fingerprint, of every FOV that was asked for."""
    spill: Sequence[Path]
    """File with the patches of each FOV, in the order of `fovs`."""
    obs_slot: Int[np.ndarray, " obs"]
    """Place of an observation's patch in its FOV's file, in patches."""

    @cached_property
    def experiment_index(self) -> dict[str, int]:
        """Experiment name → row of `experiments`."""
        return {experiment.name: row for row, experiment in enumerate(self.experiments)}

    @cached_property
    def fov_experiment(self) -> Int[np.ndarray, " fovs"]:
        """Row of `experiments` of each FOV."""
        return np.array([self.experiment_index[fov.experiment] for fov in self.fovs], np.int64)

    @cached_property
    def clip_fov(self) -> Int[np.ndarray, " clips"]:
        """Row of `fovs` of each clip: a clip is of one lineage."""
        rows: Int[np.ndarray, " clips"] = self.columns["fov_index"][self.clips.clip_head]
        return rows

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Path of every shard, numbered within its partition."""
        partition = self.shards.shard_partition
        number = np.arange(partition.size) - np.searchsorted(partition, partition)
        return tuple(
            shard_path(tuple(self.partitions[p].values()), int(n)) for p, n in zip(partition, number, strict=True)
        )


def estimate_clip_bytes(
    clips: Clips, experiments: Sequence[ExperimentRecord], clip_experiment: Int[np.ndarray, " clips"]
) -> Int[np.ndarray, " clips"]:
    """Estimate the size of each clip in a tar, with the longest JSON that it may have.

    Parameters
    ----------
    clip_experiment
        Row of `experiments` of each clip.
    """
    array_bytes = np.array([e.patch_bytes for e in experiments], np.int64)[clip_experiment]
    channels = np.array([e.shape[0] for e in experiments], np.int64)[clip_experiment]
    patches = np.diff(clips.clip_first)
    links = np.add.reduceat(clips.patch_links, clips.clip_first[:-1])
    digits = 1 + len(str(int(patches.max(initial=0))))
    text = 2048 + patches * 500 + (patches + 2) * channels * len(STATISTICS) * 15 + links * digits
    result: Int[np.ndarray, " clips"] = patches * member_bytes(128 + array_bytes) + member_bytes(text)
    return result
