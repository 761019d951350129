"""Experiments after a build: a set of shards, by its index and the patches that are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from dynaclr_wds.contract import label_array
from dynaclr_wds.plan.relatives import find_parents
from dynaclr_wds.read.crop import Crop
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.patches import PatchReader
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.suspicions import SuspicionRecord
from etl.inspect.collection import Labels, Run, Sizes, split_runs
from etl.inspect.frame_cuts import FrameCut
from etl.inspect.pixels import FrameLook, look_at_statistics


class ShardCollection:
    """A set of shards.

    Parameters
    ----------
    shards
        The set.
    what
        How the user named it.
    """

    is_built = True
    workers = 1

    def __init__(self, shards: ShardSet, what: str) -> None:
        manifest = shards.manifest
        self._shards, self.what = shards, what
        self.experiments, self.fovs, self.labels = manifest.experiments, manifest.fovs, manifest.labels
        self.strata: tuple[Labels, ...] = tuple(
            {name: partition.labels[name] for name in manifest.shard_by} for partition in manifest.partitions
        )
        self.tau_range_hours, self.dropped = manifest.tau_range_hours, manifest.dropped
        self.skipped = manifest.skipped
        self._first = np.searchsorted(shards.arrays["obs_fov"], np.arange(len(self.fovs) + 1)).astype(np.int64)
        self._parents = find_parents(shards.columns)
        self._reader = PatchReader(shards, Crop(z=slice(None)), open_store(shards))
        self._partition = np.array([shard.partition for shard in manifest.shards], np.int64)

    def runs(self) -> Iterator[Run]:
        """Yield all cells."""
        for first, stop in split_runs(self._shards.fov_experiment, self._first):
            yield self._make_run(first, stop)

    def take(self, fov: int) -> Run:
        """Return the cells of one field of view."""
        return self._make_run(fov, fov + 1)

    def _make_run(self, first: int, stop: int) -> Run:
        a, rows = self._shards.arrays, slice(*self._first[[first, stop]].tolist())
        experiment = int(self._shards.fov_experiment[first])
        record = self.experiments[experiment]
        track = a["obs_track"][rows].astype(np.int64)
        base, count = (int(track[0]), int(track[-1] - track[0]) + 1) if len(track) else (0, 0)
        lineage = a["obs_lineage"][rows].astype(np.int64)
        patch = a["obs_patch"][rows]
        ids = np.zeros(count, np.int64)
        ids[track - base] = a["obs_track_id"][rows]
        parent = self._parents[base : base + count]
        t = a["obs_t"][rows]
        return Run(
            experiment=experiment,
            fov=a["obs_fov"][rows].astype(np.int64),
            track=track - base,
            lineage=lineage - int(lineage.min(initial=0 if not len(lineage) else lineage[0])),
            t=t,
            y=a["obs_y"][rows],
            x=a["obs_x"][rows],
            hpi=(record.start_hpi + t * record.interval_minutes / 60).astype(np.float32),
            has_positive=a["patch_has_candidate"][patch],
            stratum=self._partition[a["block_shard"][a["clip_block"][a["patch_clip"][patch]]]],
            labels={label.name: a[label_array(label.name)][rows] for label in self.labels},
            parent=np.where(parent >= base, parent - base, -1),
            track_id=ids,
        )

    def find_sizes(self, seen: Sequence[Sequence[FrameCut]]) -> Sizes:  # noqa: ARG002 - knows all
        """Return the bytes of the shards of each experiment, and of the index."""
        manifest, sizes = self._shards.manifest, np.zeros(len(self.experiments), np.int64)
        a = self._shards.arrays
        clip = a["block_first"][:-1]
        shard_experiment = np.zeros(len(self._partition), np.int64)
        shard_experiment[a["block_shard"]] = self._shards.clip_experiment[clip]
        np.add.at(sizes, shard_experiment, [shard.bytes for shard in manifest.shards])
        index = sum(file.bytes for file in manifest.files)
        return Sizes(bytes=sizes.tolist(), index_bytes=index, is_estimate=False, codec=manifest.codec)

    def count_frames(self, experiment: int) -> int:
        """Count the frames that the build has read."""
        name = self.experiments[experiment].name
        return sum(fov.frames for fov in self.fovs if fov.experiment == name)

    def find_suspicious(self) -> tuple[SuspicionRecord, ...]:
        """Return what the build found suspicious."""
        return self._shards.manifest.suspicious

    def find_statistics(self, experiment: int) -> Float32[np.ndarray, "c k"]:
        """Return the statistics of the channels of an experiment, over all frames."""
        channels = self.experiments[experiment].shape[0]
        return np.asarray(self._shards.arrays["stats_dataset"][experiment, :channels])

    def look_at_frames(self, experiment: int, wanted: Sequence[tuple[int, int]]) -> Iterator[FrameLook]:  # noqa: ARG002 - knows all
        """Look at the statistics of all frames."""
        first, statistics = self._shards.arrays["fov_first_frame"], self._shards.arrays["stats_timepoint"]
        channels = self.experiments[experiment].shape[0]
        for fov in np.flatnonzero(self._shards.fov_experiment == experiment).tolist():
            for t, row in enumerate(range(int(first[fov]), int(first[fov + 1]))):
                looks = tuple(look_at_statistics(np.asarray(statistics[row, c])) for c in range(channels))
                yield FrameLook(fov=fov, t=t, channels=looks)

    def read_patches(self, fov: int, rows: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k c y x"]:
        """Read patches from the shards."""
        patches = self._shards.arrays["obs_patch"][self._first[fov] + rows].astype(np.int64)
        pixels = np.empty((len(patches), *self._reader.layout(patches)[0]), np.float32)
        self._reader.read(patches, pixels)
        return pixels[:, :, pixels.shape[2] // 2].copy()
