"""Looks at the set that is there, and says what a new build may keep of it.

The experiment is the unit of change, because the statistics of an experiment stand in each of its clips. An experiment
whose config, options and fingerprints are those of the set keeps its statistics and what was dropped for its pixels; a
shard is kept whose content and path are the same. A file that is not whole is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from dynaclr_wds.contract import Manifest, ShardRecord, SourceRecord, array_dtypes, array_path
from dynaclr_wds.errors import FormatError
from dynaclr_wds.index_checks import check_arrays, map_array
from etl.cut.intensities import ExperimentStatistics
from etl.pack.tars import PackedShard
from etl.run.commit import list_checksums, list_files
from etl.run.output import checksum_file, file_size
from etl.source.experiments import BuildConfig

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]

PIXEL_REASONS = ("blank_channel", "blank_channel_kept", "nan_pixels")
"""Reasons in `Manifest.dropped` that only the pixels can tell."""


@dataclass(frozen=True, kw_only=True)
class PreviousSet:
    """A shard set that an earlier build finished."""

    out: Path
    manifest: Manifest
    whole: frozenset[str]
    """Paths of the listed files that are there and whole."""
    arrays: Arrays | None
    """Index arrays; None when they were not opened, or one of them is not whole."""
    fetch: Callable[[], None] | None = None
    """Brings the index arrays to `out`, of a set that is in object storage; None where they are there."""

    @property
    def is_whole(self) -> bool:
        """Whether every listed file is whole."""
        return self.whole == set(list_files(self.manifest))

    @cached_property
    def sources(self) -> dict[tuple[str, str], SourceRecord]:
        """(experiment, fov_name) → fingerprint."""
        return {(s.experiment, s.fov_name): s for s in self.manifest.sources}

    def unchanged(self, config: BuildConfig, sources: Mapping[tuple[str, str], SourceRecord]) -> frozenset[str]:
        """Return the experiments whose cut results may be kept."""
        record, old = config.as_record(), dict(self.manifest.config)
        mine, theirs = record.pop("experiments"), old.pop("experiments", [])
        if self.arrays is None or record != old:
            return frozenset()
        known = {entry["name"]: entry for entry in theirs}
        return frozenset(
            entry["name"]
            for entry in mine
            if known.get(entry["name"]) == entry
            and _sources_of(entry["name"], sources) == _sources_of(entry["name"], self.sources)
        )

    def was_kept(
        self, experiment: str, fov_name: str, track_id: Int[np.ndarray, " obs"], t: Int[np.ndarray, " obs"]
    ) -> Bool[np.ndarray, " obs"]:
        """Say which observations of a FOV the set holds."""
        assert self.arrays is not None, "only asked of unchanged experiments"
        row = self._fov_rows.get((experiment, fov_name))
        if row is None:
            return np.zeros(t.size, bool)
        first, last = np.searchsorted(self.arrays["obs_fov"], [row, row + 1])
        known_id, known_t = self.arrays["obs_track_id"][first:last], self.arrays["obs_t"][first:last]
        ids = np.unique(np.concatenate([known_id, track_id]))
        step = int(max(known_t.max(initial=0), t.max(initial=0))) + 1
        known = np.searchsorted(ids, known_id) * step + known_t
        return np.isin(np.searchsorted(ids, track_id) * step + t, known)

    def statistics(self, experiment: str) -> ExperimentStatistics | None:
        """Return the statistics of an experiment; None where it has no observation."""
        assert self.arrays is not None, "only asked of unchanged experiments"
        rows = [row for (name, _), row in self._fov_rows.items() if name == experiment]
        number, record = next((n, e) for n, e in enumerate(self.manifest.experiments) if e.name == experiment)
        if not rows:
            return None
        channels, first = record.shape[0], self.arrays["fov_first_frame"]
        timepoint, fov = self.arrays["stats_timepoint"], self.arrays["stats_fov"]
        return ExperimentStatistics(
            timepoint=tuple(timepoint[first[row] : first[row + 1], :channels] for row in rows),
            fov=fov[rows, :channels],
            dataset=self.arrays["stats_dataset"][number, :channels],
        )

    def stack_places(
        self, experiment: str, fov_name: str
    ) -> tuple[Float[np.ndarray, " obs"], Float[np.ndarray, " obs"]]:
        """Return the first stored slice and the slice in focus of the observations of a FOV, in the set's order."""
        assert self.arrays is not None, "only asked of unchanged experiments"
        row = self._fov_rows[experiment, fov_name]
        first, last = np.searchsorted(self.arrays["obs_fov"], [row, row + 1])
        return self.arrays["obs_z_start"][first:last], self.arrays["obs_z_focus"][first:last]

    def pixel_reasons(self, experiment: str) -> dict[str, int]:
        """Return what was counted of an experiment's pixels."""
        counted = self.manifest.dropped.get(experiment, {})
        return {reason: counted[reason] for reason in PIXEL_REASONS if reason in counted}

    def find_shard(self, path: str, content: str, partition: int) -> PackedShard | ShardRecord | None:
        """Find a whole shard of this path and content, with its places where the index arrays tell them.

        Parameters
        ----------
        partition
            Row of the new set's partitions.
        """
        record = self._shards.get(path)
        if record is None or record.content != content or path not in self.whole:
            return None
        return record if self.arrays is None else self._locate(record, partition, self.arrays)

    def _locate(self, record: ShardRecord, partition: int, arrays: Arrays) -> PackedShard:
        """Take the places in a shard from the index arrays."""
        number = self._shard_rows[record.path]
        blocks = np.searchsorted(arrays["block_shard"], [number, number + 1])
        patches = arrays["clip_first"][arrays["block_first"][blocks]]
        block, patch = slice(*blocks.tolist()), slice(*patches.tolist())
        fields: dict[str, Any] = {name: getattr(record, name) for name in ("path", "bytes", "xxh3", "content")}
        return PackedShard(
            record=ShardRecord(partition=partition, clips=record.clips, blocks=record.blocks, **fields),
            patch_offset=arrays["patch_offset"][patch],
            block_begin=arrays["block_begin"][block],
            block_end=arrays["block_end"][block],
            block_xxh3=arrays["block_xxh3"][block],
        )

    @cached_property
    def _fov_rows(self) -> dict[tuple[str, str], int]:
        return {(fov.experiment, fov.fov_name): row for row, fov in enumerate(self.manifest.fovs)}

    @cached_property
    def _shards(self) -> dict[str, ShardRecord]:
        return {shard.path: shard for shard in self.manifest.shards}

    @cached_property
    def _shard_rows(self) -> dict[str, int]:
        return {shard.path: row for row, shard in enumerate(self.manifest.shards)}


def read_previous(out: Path, manifest: Manifest, *, checked: bool) -> PreviousSet:
    """Look which files of a set are whole.

    Parameters
    ----------
    checked
        Compare every file with its checksum, and not only sizes.
    """
    whole = {path for path, size in list_files(manifest).items() if file_size(out / path) == size}
    if checked:
        whole = {path for path in whole if checksum_file(out / path) == list_checksums(manifest)[path]}
    return PreviousSet(out=out, manifest=manifest, whole=frozenset(whole), arrays=None)


def load_arrays(previous: PreviousSet) -> PreviousSet:
    """Open the index arrays of a set, if all are what was written."""
    sums = list_checksums(previous.manifest)
    names = {array_path(name): name for name in array_dtypes(previous.manifest)}
    out, whole = previous.out, set(previous.whole)
    try:
        if previous.fetch is not None:
            previous.fetch()
        if not set(names) <= whole or any(checksum_file(out / path) != sums[path] for path in names):
            raise FormatError(f"{out}: the index is not whole.")
        arrays = {name: map_array(out / path) for path, name in names.items()}
        check_arrays(previous.manifest, arrays)
        return replace(previous, arrays=arrays)
    except (OSError, ValueError):  # nothing else tells a shard from another of its size
        return replace(previous, whole=frozenset(path for path in whole if _has_checksum(out / path, sums[path])))


def _has_checksum(path: Path, expected: str) -> bool:
    """Whether a file is on this machine, with this checksum."""
    return path.is_file() and checksum_file(path) == expected


def _sources_of(experiment: str, sources: Mapping[tuple[str, str], SourceRecord]) -> list[SourceRecord]:
    return [record for (name, _), record in sources.items() if name == experiment]
