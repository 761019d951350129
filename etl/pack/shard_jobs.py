"""Divides a set's contents into jobs: a job holds all that one shard needs and no more, so any machine can pack it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from dynaclr_wds.contract import NO_ID, ExperimentRecord, FovRecord, SourceRecord
from etl.pack.contents import SetContents

COLUMNS = ("track_id", "parent_track_id", "id", "t", "hpi", "z", "y", "x", "y_clamp", "x_clamp", "z_start", "z_focus")
"""Columns of the observations that stand in a clip's JSON."""

_TEXT_BYTES_PER_PATCH = 1500
"""JSON and tar headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFov:
    """One field of view, as far as a shard needs it."""

    fov: FovRecord
    experiment: ExperimentRecord
    source: SourceRecord
    spill: Path
    """File with its patches."""
    dataset: Float[np.ndarray, "channels 8"]
    """Statistics of the experiment."""
    statistics: Float[np.ndarray, "channels 8"]
    """Statistics of the FOV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard before it is written. Rows are patches, in stored order."""

    path: str
    """Relative to the set."""
    staged: Path
    """Where to write it."""
    found: Path | None
    """A file that an earlier build wrote with this content; its checksum is `found_xxh3`."""
    found_xxh3: str
    partition: int
    """Row of the manifest's partitions."""
    keys: tuple[str, ...]
    """One per clip."""
    lineage_ids: tuple[str, ...]
    """One per clip."""
    clip_first: Int[np.ndarray, " clips_and_one"]
    """CSR: first patch."""
    clip_fov: Int[np.ndarray, " clips"]
    block_first: Int[np.ndarray, " blocks_and_one"]
    """CSR: first clip."""
    fovs: tuple[ShardFov, ...]
    labels: Mapping[str, tuple[str | None, ...]]
    """Label → its values in this shard."""
    label_codes: Mapping[str, Int[np.ndarray, " patches"]]
    """Label → place of each patch's value."""
    columns: Mapping[str, Shaped[np.ndarray, " patches"]]
    is_sample: Bool[np.ndarray, " patches"]
    frame: Int[np.ndarray, " patches"]
    """Row of `frame_statistics`."""
    frame_statistics: Float[np.ndarray, "frames channels 8"]
    slot: Int[np.ndarray, " patches"]
    """Place in the FOV's spill file, in patches."""

    @property
    def content(self) -> str:
        """Digest of what is in the shard: all that its clips say, and the fingerprints of their pixels."""
        sources = [[f.source.metadata, f.source.pixels] for f in self.fovs]
        records: list[Any] = [[dataclasses.asdict(f.fov), dataclasses.asdict(f.experiment)] for f in self.fovs]
        text = [self.keys, self.lineage_ids, records, sources, dict(self.labels)]
        digest = hashlib.blake2b(json.dumps(text, sort_keys=True).encode(), digest_size=16)
        arrays = [self.clip_first, self.clip_fov, self.block_first, *self.label_codes.values(), *self.columns.values()]
        arrays += [self.is_sample, self.frame, self.frame_statistics]
        arrays += [array for fov in self.fovs for array in (fov.dataset, fov.statistics)]
        for array in arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def experiment_of(self, clip: int) -> ExperimentRecord:
        """Return the experiment of a clip."""
        return self.fovs[int(self.clip_fov[clip])].experiment


def plan_shard_job(
    contents: SetContents, number: int, staged: Path, found: Path | None = None, found_xxh3: str = ""
) -> ShardJob:
    """Take one shard's slices.

    Parameters
    ----------
    number
        Number of the shard.
    staged
        Folder for new files of the set.
    found, found_xxh3
        A file with the shard's content that is there, and its checksum.
    """
    clips, shards, levels = contents.clips, contents.shards, contents.intensities
    first_clip, last_clip = shards.shard_first[number : number + 2].tolist()
    first, last = clips.clip_first[[first_clip, last_clip]].tolist()
    obs = clips.patch_obs[first:last]
    blocks = np.flatnonzero(shards.block_shard == number)
    fov_rows, clip_fov = np.unique(contents.clip_fov[first_clip:last_clip], return_inverse=True)
    channels = max(contents.experiments[contents.fov_experiment[row]].shape[0] for row in fov_rows)
    frames = levels.fov_first_frame[contents.columns["fov_index"][obs]] + clips.patch_t[first:last]
    frame_rows, frame = np.unique(frames, return_inverse=True)
    labels, codes = _localize_labels(contents, obs)
    return ShardJob(
        path=contents.paths[number],
        staged=staged / contents.paths[number],
        found=found,
        found_xxh3=found_xxh3,
        partition=int(shards.shard_partition[number]),
        keys=tuple(contents.keys[first_clip:last_clip].tolist()),
        lineage_ids=tuple(contents.lineage_ids[n] for n in clips.clip_lineage[first_clip:last_clip].tolist()),
        clip_first=clips.clip_first[first_clip : last_clip + 1] - first,
        clip_fov=clip_fov,
        block_first=shards.block_first[np.append(blocks, blocks[-1] + 1)] - first_clip,
        fovs=tuple(_plan_fov(contents, row) for row in fov_rows.tolist()),
        labels=labels,
        label_codes=codes,
        columns={name: contents.columns[name][obs] for name in COLUMNS},
        is_sample=clips.patch_is_sample[first:last],
        frame=frame,
        frame_statistics=levels.timepoint[frame_rows, :channels],
        slot=contents.obs_slot[obs],
    )


def estimate_shard_bytes(job: ShardJob) -> int:
    """Estimate the size of a shard: its pixels, and a little for what is said of them."""
    sizes = np.array([job.experiment_of(clip).patch_bytes for clip in range(len(job.keys))], np.int64)
    return int(np.diff(job.clip_first) @ (sizes + _TEXT_BYTES_PER_PATCH))


def _plan_fov(contents: SetContents, row: int) -> ShardFov:
    fov, experiment_row = contents.fovs[row], int(contents.fov_experiment[row])
    experiment = contents.experiments[experiment_row]
    return ShardFov(
        fov=fov,
        experiment=experiment,
        source=contents.sources[fov.experiment, fov.fov_name],
        spill=contents.spill[row],
        dataset=contents.intensities.dataset[experiment_row, : experiment.shape[0]],
        statistics=contents.intensities.fov[row, : experiment.shape[0]],
    )


def _localize_labels(
    contents: SetContents, obs: Int[np.ndarray, " patches"]
) -> tuple[dict[str, tuple[str | None, ...]], dict[str, Int[np.ndarray, " patches"]]]:
    """Number the label values that a shard has: they don't depend on what other shards hold."""
    labels: dict[str, tuple[str | None, ...]] = {}
    codes: dict[str, Int[np.ndarray, " patches"]] = {}
    for label in contents.labels:
        found, codes[label.name] = np.unique(contents.label_codes[label.name][obs], return_inverse=True)
        labels[label.name] = tuple(None if code == NO_ID else label.values[code] for code in found.tolist())
    return labels, codes
