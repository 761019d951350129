"""Runs the stages of a build, one after the other, from the index to the manifest.

What changed is cut; cells that the pixels rule out are dropped; what is left is laid out once; shards that are not
there yet are packed; the index follows. Every new file is staged; nothing that is there is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from dynaclr_wds.contract import Manifest, SourceRecord
from dynaclr_wds.words import count_of
from etl.cut.frames import cut_fov
from etl.cut.intensities import ExperimentStatistics, plan_experiment_statistics, plan_intensities
from etl.cut.job import CutJob, FovCut
from etl.index import Index, add_stack_places, drop_observations
from etl.labels import label_codes
from etl.layout.clips import plan_shards
from etl.layout.jobs import (
    Columns,
    CutPlan,
    estimate_bytes,
    index_fovs,
    lineage_ids,
    plan_cuts,
    plan_experiments,
    plan_named_clips,
    read_columns,
)
from etl.pack.contents import SetContents, estimate_clip_bytes
from etl.pack.manifest import make_manifest, write_index
from etl.pack.previous import PreviousSet
from etl.pack.shard_jobs import estimate_shard_bytes, plan_shard_job
from etl.pack.tars import PackedShard, pack_shard
from etl.run.executors import MakeExecutor, run_units
from etl.run.output import OutFolder
from etl.run.progress import Progress
from etl.source.experiments import BuildConfig
from etl.source.plates import Plate
from etl.suspicious.cells import check_anchors
from etl.suspicious.report import make_report

Sources = Mapping[tuple[str, str], SourceRecord]
"""(experiment, fov_name) → fingerprint."""


class Build:
    """One run of the stages: what all of them look at, and the work that they leave to executors."""

    def __init__(
        self,
        config: BuildConfig,
        folder: OutFolder,
        plates: Mapping[str, Plate],
        sources: Sources,
        previous: PreviousSet | None,
        progress: Progress,
        make_executor: MakeExecutor,
    ) -> None:
        self._config, self._folder, self._plates, self._sources = config, folder, plates, sources
        self._previous, self._progress, self._make_executor = previous, progress, make_executor
        self._unchanged = previous.unchanged(config, sources) if previous is not None else frozenset()

    def run(self, index: Index) -> Manifest:
        """Cut, drop, lay out, pack; stage every new file; return the manifest, which is not written."""
        columns = read_columns(index.observations)
        check_anchors(self._config, columns, index)
        cuts = plan_cuts(self._config, index, columns, self._plates, self._sources, self._folder.work)
        changed = {key: job for key, job in cuts.jobs.items() if key[0] not in self._unchanged}
        self._folder.check_space(estimate_bytes(self._config, changed))
        found = self._cut(changed)
        index, keep = self._drop(index, columns, cuts, found)
        if not keep.all():
            columns = read_columns(index.observations)
            check_anchors(self._config, columns, index)
        index = self._place_stacks(index, columns, found)
        columns = read_columns(index.observations)
        contents = self._lay_out(index, columns, cuts, cuts.obs_slot[keep], found)
        packed = self._pack(contents, cuts, set(changed))
        files = write_index(self._folder.staged, contents, packed, index)
        report = make_report(self._config, self._plates, index, columns)
        return make_manifest(self._config, contents, packed, files, report)

    def _cut(self, jobs: Mapping[tuple[str, str], CutJob]) -> dict[tuple[str, str], FovCut]:
        if not jobs:
            return {}
        self._progress.say("cut: reading the plates, and cutting out a patch for each cell in each frame")
        frames = sum(job.fov.shape[0] for job in jobs.values())
        workers = self._config.workers
        with self._progress.stage("cut", frames, "frames") as advance, self._make_executor(workers, advance) as pool:
            return dict(zip(jobs, run_units(pool, cut_fov, jobs.values(), workers), strict=True))

    def _drop(
        self, index: Index, columns: Columns, cuts: CutPlan, found: Mapping[tuple[str, str], FovCut]
    ) -> tuple[Index, Bool[np.ndarray, " obs"]]:
        """Leave out what the pixels rule out, and count it; return what is left, and which observations that is."""
        keep = np.ones(columns["t"].size, bool)
        counts: dict[str, dict[str, int]] = {}
        for key, rows in _rows_by_fov(cuts):
            reasons = counts.setdefault(key[0], {})
            if key in found:
                keep[rows] = _judge(self._config, found[key], reasons)
            else:
                assert self._previous is not None, "only unchanged experiments are not cut"
                keep[rows] = self._previous.was_kept(*key, columns["track_id"][rows], columns["t"][rows])
        for name in self._unchanged:
            assert self._previous is not None, "only a set that is there has unchanged experiments"
            counts[name] = self._previous.pixel_reasons(name)
        tau = {experiment.name: self._config.tau_frames(experiment) for experiment in self._config.experiments}
        left = index if keep.all() else drop_observations(index, keep, "blank_channel", tau)
        names = dict.fromkeys((*index.dropped, *(name for name in counts if counts[name])))
        dropped = {name: {**index.dropped.get(name, {}), **counts.get(name, {})} for name in names}
        return replace(left, dropped=dropped), keep

    def _place_stacks(self, index: Index, columns: Columns, found: Mapping[tuple[str, str], FovCut]) -> Index:
        """Add to each observation which slices of the stack its patch holds; observations are ordered by FOV."""
        z_start, z_focus = np.empty((2, columns["t"].size), np.float32)
        edges = np.searchsorted(columns["fov_index"], np.arange(len(index.fovs) + 1)).tolist()
        for number, fov in enumerate(index.fovs):
            rows = slice(edges[number], edges[number + 1])
            if fov.experiment in self._unchanged:
                assert self._previous is not None, "only a set that is there has unchanged experiments"
                z_start[rows], z_focus[rows] = self._previous.stack_places(fov.experiment, fov.fov_name)
            else:
                cut, t = found[fov.experiment, fov.fov_name], columns["t"][rows]
                z_start[rows], z_focus[rows] = cut.z_start[t], cut.z_focus[t]
        return add_stack_places(index, z_start, z_focus)

    def _lay_out(
        self,
        index: Index,
        columns: Columns,
        cuts: CutPlan,
        obs_slot: Int[np.ndarray, " obs"],
        found: Mapping[tuple[str, str], FovCut],
    ) -> SetContents:
        """Put what is left into clips and shards, and gather all that they are made of."""
        config = self._config
        experiments = plan_experiments(config, self._plates)
        clips, keys = plan_named_clips(config, index, columns)
        clip_bytes = estimate_clip_bytes(clips, experiments, columns["experiment_index"][clips.clip_head])
        return SetContents(
            clips=clips,
            keys=keys,
            shards=plan_shards(clips.clip_partition, clip_bytes, config.shard_bytes, config.block_bytes),
            labels=index.labels,
            label_codes={label.name: label_codes(index.observations, label) for label in index.labels},
            shard_by=config.shard_by,
            partitions=index.partitions,
            fovs=index.fovs,
            experiments=experiments,
            columns=columns,
            lineage_ids=lineage_ids(index, columns),
            intensities=plan_intensities(
                index.fovs, experiments, [self._statistics(index, e.name, found) for e in experiments]
            ),
            sources=self._sources,
            spill=[cuts.jobs[fov.experiment, fov.fov_name].spill for fov in index.fovs],
            obs_slot=obs_slot,
        )

    def _statistics(
        self, index: Index, name: str, found: Mapping[tuple[str, str], FovCut]
    ) -> ExperimentStatistics | None:
        """Merge the statistics of an experiment, or take them from the set that is there."""
        if name in self._unchanged:
            assert self._previous is not None, "only a set that is there has unchanged experiments"
            return self._previous.statistics(name)
        pairs = zip(index.fovs, index_fovs(index, self._plates), strict=True)
        fovs = [fov for record, fov in pairs if record.experiment == name]
        if not fovs:
            return None
        channels = next(e.source_channel for e in self._config.experiments if e.name == name)
        cuts = [found[name, fov.name] for fov in fovs]
        return plan_experiment_statistics(fovs, cuts, channels, fill_blank=self._config.on_blank == "keep")

    def _pack(self, contents: SetContents, cuts: CutPlan, is_cut: set[tuple[str, str]]) -> tuple[PackedShard, ...]:
        """Write the shards that are not there; cut what they need and was not cut yet."""
        packed: dict[int, PackedShard] = {}
        earlier: dict[int, tuple[Path, str]] = {}
        needed: set[tuple[str, str]] = set()
        new_bytes = 0
        for number in range(len(contents.paths)) if self._previous is not None else ():
            job = plan_shard_job(contents, number, self._folder.staged)
            kept = self._previous.find_shard(job.path, job.content, job.partition) if self._previous else None
            if isinstance(kept, PackedShard):
                packed[number] = kept
            elif kept is not None:
                earlier[number] = self._folder.out / kept.path, kept.xxh3
            else:
                needed |= {(fov.fov.experiment, fov.fov.fov_name) for fov in job.fovs}
                new_bytes += estimate_shard_bytes(job)
        cut_bytes = sum(cuts.jobs[key].t.size * cuts.jobs[key].patch_bytes for key in needed | is_cut)
        self._folder.check_space(cut_bytes + new_bytes)
        self._cut({key: job for key, job in cuts.jobs.items() if key in needed - is_cut})
        todo = [number for number in range(len(contents.paths)) if number not in packed]
        if packed:
            self._progress.say(f"pack: {count_of(len(packed), 'shard')} kept, {count_of(len(todo), 'shard')} to write")
        packed |= self._write(contents, todo, earlier)
        return tuple(packed[number] for number in range(len(contents.paths)))

    def _write(
        self, contents: SetContents, todo: Sequence[int], earlier: Mapping[int, tuple[Path, str]]
    ) -> dict[int, PackedShard]:
        if not todo:
            return {}
        self._progress.say("pack: writing the patches to shards")
        workers = self._config.workers
        edges = contents.clips.clip_first[contents.shards.shard_first]
        patches = int(np.diff(edges)[list(todo)].sum())
        jobs = (plan_shard_job(contents, n, self._folder.staged, *earlier.get(n, (None, ""))) for n in todo)
        with (
            self._progress.stage("pack", patches, "patches") as advance,
            self._make_executor(workers, advance) as pool,
        ):
            return dict(zip(todo, run_units(pool, pack_shard, jobs, workers), strict=True))


def _rows_by_fov(cuts: CutPlan) -> Sequence[tuple[tuple[str, str], Int[np.ndarray, " rows"]]]:
    """Return the observations of each FOV, in the order of its spill file."""
    edges = np.cumsum([0, *(job.t.size for job in cuts.jobs.values())])
    return [(key, cuts.order[edges[n] : edges[n + 1]]) for n, key in enumerate(cuts.jobs)]


def _judge(config: BuildConfig, cut: FovCut, reasons: dict[str, int]) -> Bool[np.ndarray, " obs"]:
    """Say which observations of a FOV stay, and count the others."""
    keep = np.ones(cut.blank.size, bool)
    blank, nonfinite = int(cut.blank.sum()), int(cut.nonfinite.sum())
    if blank:
        reason = "blank_channel" if config.on_blank == "drop" else "blank_channel_kept"
        reasons[reason] = reasons.get(reason, 0) + blank
        keep &= ~cut.blank | (config.on_blank == "keep")
    if nonfinite:
        reasons["nan_pixels"] = reasons.get("nan_pixels", 0) + nonfinite
        keep &= ~cut.nonfinite | (config.on_nan == "zero")
    return keep
