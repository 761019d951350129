"""Describes the columns that the plan reads from a shard set, and what the codes in them stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NewType

import numpy as np
from jaxtyping import Bool, Integer

from dynaclr_wds.plan.channels import ChannelChoices

if TYPE_CHECKING:
    PatchRow = NewType("PatchRow", np.ndarray)
    SampleIndex = NewType("SampleIndex", np.ndarray)
else:  # jaxtyping checks shapes against a class; code that makes such an array says so with `typing.cast`
    PatchRow = SampleIndex = np.ndarray
"""Row spaces, as types of arrays: `PatchRow` counts patches of the index, `SampleIndex` places in `PlanIndex.row`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanColumns:
    """Columns of the index in stored order, as `contract.ARRAYS` describes them."""

    patch_obs: Integer[np.ndarray, " p"]
    patch_clip: Integer[np.ndarray, " p"]
    patch_t: Integer[np.ndarray, " p"]
    patch_is_sample: Bool[np.ndarray, " p"]
    patch_has_candidate: Bool[np.ndarray, " p"]
    clip_first: Integer[np.ndarray, " c1"]
    clip_lineage: Integer[np.ndarray, " c"]
    clip_block: Integer[np.ndarray, " c"]
    block_first: Integer[np.ndarray, " b1"]
    block_bytes: Integer[np.ndarray, " b"]
    block_partition: Integer[np.ndarray, " b"]
    """Row of `CodeBook.partitions`; the blocks of a partition stand together."""
    obs_track: Integer[np.ndarray, " o"]
    obs_track_id: Integer[np.ndarray, " o"]
    """As in the track table, for the parents, which are named so."""
    obs_parent_track_id: Integer[np.ndarray, " o"]
    obs_fov: Integer[np.ndarray, " o"]
    fov_experiment: Integer[np.ndarray, " f"]
    """Row of `CodeBook.experiments`."""
    labels: Mapping[str, Integer[np.ndarray, " o"]]
    """Label → its code for each observation, −1 for null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentClock:
    """When an experiment's frames were taken, and what its clips can serve."""

    name: str
    interval_minutes: float
    start_hpi: float
    tau_frames: tuple[int, int]
    """τ range that every clip serves, in frames, both ends included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeBook:
    """What the codes in `PlanColumns` stand for."""

    values: Mapping[str, Sequence[str]]
    """Label → its values; code k stands for the k-th."""
    partitions: Sequence[Mapping[str, str | None]]
    """Value of every `shard_by` label, for each partition."""
    experiments: Sequence[ExperimentClock]
    choices: ChannelChoices | None = None
    """Which channels a sample may hold; None = all of them, always."""


def keep_lineages(columns: PlanColumns, keep: Bool[np.ndarray, " l"]) -> PlanColumns:
    """Leave only the samples of some lineages; patches of the others are no samples any more.

    Parameters
    ----------
    columns
        Are not changed.
    keep
        For each lineage of the set.
    """
    of_patch = np.repeat(keep[columns.clip_lineage], np.diff(columns.clip_first))
    return replace(
        columns,
        patch_is_sample=columns.patch_is_sample & of_patch,
        patch_has_candidate=columns.patch_has_candidate & of_patch,
    )
