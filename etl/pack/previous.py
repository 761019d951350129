"""Looks at the set that is there, and says what a new build may keep of it.

The experiment is the unit of change, because the statistics of an experiment stand in each of its clips. An experiment
whose config, options and fingerprints are those of the set keeps its statistics and what was dropped for its pixels; a
shard is kept whose content and path are the same. A file that is not whole is never used; where an index array is not,
the table that says the same takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from dynaclr_wds.contract import (
    OBSERVATIONS,
    STATS,
    Manifest,
    ShardRecord,
    SourceRecord,
    array_dtypes,
    array_path,
)
from dynaclr_wds.index_checks import check_arrays
from dynaclr_wds.npy_files import map_array
from etl.cut.intensities import ExperimentStatistics
from etl.pack.restore import restore_arrays
from etl.pack.tars import PackedShard
from etl.run.commit import list_checksums, list_files
from etl.run.set_files import SetFiles
from etl.source.experiments import BuildConfig

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]

CUT_ARRAYS = (
    "obs_fov",
    "obs_track_id",
    "obs_t",
    "obs_z_start",
    "obs_z_focus",
    "fov_first_frame",
    "stats_timepoint",
    "stats_fov",
    "stats_dataset",
)
"""Arrays that keep an experiment from being cut again."""

PLACE_ARRAYS = (
    "clip_first",
    "block_first",
    "block_shard",
    "patch_offset",
    "patch_xxh3",
    "block_begin",
    "block_end",
    "block_xxh3",
)
"""Arrays that keep a shard from being read again."""

PIXEL_REASONS = ("blank_channel", "blank_channel_kept", "nan_pixels")
"""Reasons in `Manifest.dropped` that only the pixels can tell."""


@dataclass(frozen=True, kw_only=True)
class PreviousSet:
    """A shard set that an earlier build finished."""

    where: str
    """Its folder or URL, as people know it."""
    files: SetFiles
    manifest: Manifest
    faults: Mapping[str, str]
    """Path → what is wrong with it, of the listed files that are not whole."""
    cut: Arrays | None = None
    """`CUT_ARRAYS`: what was cut; None when they were not opened, or nothing tells them any more."""
    places: Arrays | None = None
    """`PLACE_ARRAYS`: where clips lie in their shards; None as for `cut`."""

    @property
    def is_whole(self) -> bool:
        """Whether every listed file is whole."""
        return not self.faults

    @cached_property
    def sources(self) -> dict[tuple[str, str], SourceRecord]:
        """(experiment, fov_name) → fingerprint."""
        return {(s.experiment, s.fov_name): s for s in self.manifest.sources}

    def unchanged(self, config: BuildConfig, sources: Mapping[tuple[str, str], SourceRecord]) -> frozenset[str]:
        """Return the experiments whose cut results may be kept."""
        record, old = config.as_record(), dict(self.manifest.config)
        mine, theirs = record.pop("experiments"), old.pop("experiments", [])
        if self.cut is None or record != old:
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
        assert self.cut is not None, "only asked of unchanged experiments"
        row = self._fov_rows.get((experiment, fov_name))
        if row is None:
            return np.zeros(t.size, bool)
        first, last = np.searchsorted(self.cut["obs_fov"], [row, row + 1])
        known_id, known_t = self.cut["obs_track_id"][first:last], self.cut["obs_t"][first:last]
        ids = np.unique(np.concatenate([known_id, track_id]))
        step = int(max(known_t.max(initial=0), t.max(initial=0))) + 1
        known = np.searchsorted(ids, known_id) * step + known_t
        return np.isin(np.searchsorted(ids, track_id) * step + t, known)

    def statistics(self, experiment: str) -> ExperimentStatistics | None:
        """Return the statistics of an experiment; None where it has no observation."""
        assert self.cut is not None, "only asked of unchanged experiments"
        rows = [row for (name, _), row in self._fov_rows.items() if name == experiment]
        number, record = next((n, e) for n, e in enumerate(self.manifest.experiments) if e.name == experiment)
        if not rows:
            return None
        channels, first = record.shape[0], self.cut["fov_first_frame"]
        timepoint, fov = self.cut["stats_timepoint"], self.cut["stats_fov"]
        return ExperimentStatistics(
            timepoint=tuple(timepoint[first[row] : first[row + 1], :channels] for row in rows),
            fov=fov[rows, :channels],
            dataset=self.cut["stats_dataset"][number, :channels],
        )

    def stack_places(
        self, experiment: str, fov_name: str
    ) -> tuple[Float[np.ndarray, " obs"], Float[np.ndarray, " obs"]]:
        """Return the first stored slice and the slice in focus of the observations of a FOV, in the set's order."""
        assert self.cut is not None, "only asked of unchanged experiments"
        row = self._fov_rows[experiment, fov_name]
        first, last = np.searchsorted(self.cut["obs_fov"], [row, row + 1])
        return self.cut["obs_z_start"][first:last], self.cut["obs_z_focus"][first:last]

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
        if record is None or record.content != content or path in self.faults:
            return None
        if self.places is not None:
            return self._locate(record, partition, self.places)
        return record if self.is_here(path) else None

    def is_here(self, path: str) -> bool:
        """Whether a file is on this machine, and not in object storage only."""
        return (self.files.folder / path).is_file()

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
            patch_xxh3=arrays["patch_xxh3"][patch],
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


def read_previous(where: str, files: SetFiles, manifest: Manifest, *, checked: bool) -> PreviousSet:
    """Look which files of a set are whole.

    Parameters
    ----------
    where
        Its folder or URL, as people know it.
    checked
        Compare every file with its checksum, and not only sizes.
    """
    faults = _find_faults(files, manifest, {}, list_files(manifest), checked)
    return PreviousSet(where=where, files=files, manifest=manifest, faults=faults)


def load_arrays(previous: PreviousSet) -> PreviousSet:
    """Open the index arrays of a set, as far as they are what was written."""
    files, manifest = previous.files, previous.manifest
    paths = {name: array_path(name) for name in array_dtypes(manifest)}
    tables = [path for path in (OBSERVATIONS, STATS) if path in list_files(manifest)]
    looked_at = [*paths.values(), *filter(previous.is_here, tables)]
    faults = _find_faults(files, manifest, previous.faults, looked_at, checked=True)
    arrays: dict[str, Shaped[np.ndarray, "*shape"]] = {}
    try:
        arrays = {name: map_array(files.folder / path) for name, path in paths.items() if path not in faults}
        if len(arrays) == len(paths):
            check_arrays(manifest, arrays)
    except (OSError, ValueError):  # somebody wrote them anew, and their checksums
        arrays, tables = {}, []
    if len(arrays) < len(paths):  # nothing else tells a shard from another of its size
        shards = filter(previous.is_here, (shard.path for shard in manifest.shards))
        faults = _find_faults(files, manifest, faults, [*tables, *shards], checked=True)
        whole = {path for path in tables if path not in faults}
        arrays |= restore_arrays(files.folder, manifest, whole, set(paths) - set(arrays))
    return replace(
        previous,
        faults=faults,
        cut=arrays if set(CUT_ARRAYS) <= set(arrays) else None,
        places=arrays if set(PLACE_ARRAYS) <= set(arrays) else None,
    )


def _find_faults(
    files: SetFiles, manifest: Manifest, known: Mapping[str, str], paths: Iterable[str], checked: bool
) -> dict[str, str]:
    """Add to known faults those of some files."""
    sizes, sums = list_files(manifest), list_checksums(manifest)
    asked = [path for path in paths if path not in known]

    def look(path: str) -> str | None:
        return files.describe_fault(path, sizes[path], sums[path] if checked else None)

    with ThreadPoolExecutor(files.checks_at_a_time, thread_name_prefix="dynaclr-check") as pool:
        found = dict(zip(asked, pool.map(look, asked), strict=True))
    return dict(known) | {path: fault for path, fault in found.items() if fault is not None}


def _sources_of(experiment: str, sources: Mapping[tuple[str, str], SourceRecord]) -> list[SourceRecord]:
    return [record for (name, _), record in sources.items() if name == experiment]
