"""Runs the stages of a build, from the index to the manifest.

FOVs are put into groups; the groups that are not there yet are built, each by a unit of its own; what all units noted
is joined to the index. Every new file is staged; nothing that is there is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from dynaclr_wds.contract import FileRecord, Manifest, SourceRecord, part_path
from dynaclr_wds.errors import BuildError
from dynaclr_wds.words import count_of
from etl.fov_rows import find_edges, take_fovs
from etl.index import Index, add_stack_places, drop_observations
from etl.layout.groups import plan_groups
from etl.layout.jobs import estimate_bytes, plan_experiments, read_columns
from etl.pack.joining import join_dropped, join_kept, join_parts, join_places
from etl.pack.manifest import make_manifest, name_index, write_index
from etl.pack.previous import PreviousSet, check_parts
from etl.run.executors import MakeExecutor, run_units
from etl.run.memory import Shares, describe_shares, find_place, share_memory
from etl.run.mending import describe_faults
from etl.run.output import OutFolder
from etl.run.parts import BuildPart
from etl.run.progress import Progress
from etl.run.unit_counts import UnitCounts
from etl.source.experiments import BuildConfig
from etl.source.plates import Fov, Plate
from etl.suspicious.cells import check_anchors
from etl.suspicious.report import make_report
from etl.unit.build import build_unit, weigh_unit
from etl.unit.job import UnitJob, digest_group
from etl.unit.memory import find_need
from etl.unit.part import Part, read_part

Sources = Mapping[tuple[str, str], SourceRecord]
"""(experiment, fov_name) → fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """FOVs that are built together."""

    experiment: int
    """Row of the config's experiments."""
    first: int
    """The first FOV of the index."""
    last: int
    """One past the last."""
    rows: slice
    """Observations of the index."""
    digest: str

    @property
    def part(self) -> str:
        """Path of the part, relative to the set."""
        return part_path(self.digest)


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
        self.previous, self._progress, self._make_executor = previous, progress, make_executor
        self._experiments = plan_experiments(config, plates)

    def run_part(self, index: Index, part: BuildPart) -> tuple[int, int]:
        """Build those groups of a part that are not there; return how many are its own, and how many there are."""
        check_anchors(self._config, read_columns(index.observations), index)
        groups = self._plan_groups(index)
        if self.previous is not None:
            self.previous = check_parts(self.previous, [group.part for group in groups])
        own = part.take(groups)
        self._build(index, own)
        return len(own), len(groups)

    def run(self, index: Index, *, finish: bool = False) -> Manifest:
        """Build the groups that are not there, join all; stage every new file; return the manifest, not written.

        Parameters
        ----------
        index
            What to build.
        finish
            All groups have to be there.

        Raises
        ------
        BuildError
            Some are not.
        """
        check_anchors(self._config, read_columns(index.observations), index)
        groups = self._plan_groups(index)
        if self.previous is not None:
            self.previous = check_parts(self.previous, [group.part for group in groups])
            for line in describe_faults(self.previous) if self.previous.faults else ():
                self._progress.say(line)
        if finish:
            self._refuse_missing(groups)
        records = self._build(index, groups)
        parts = [self._read_part(group) for group in groups]
        index = self._drop(index, groups, parts)
        columns = read_columns(index.observations)
        names = [self._config.experiments[group.experiment].name for group in groups]
        joined = join_parts(self._config, self._plates, self._experiments, index, list(zip(names, parts, strict=True)))
        files = write_index(self._folder.index, joined, index)
        named = name_index(self._folder.staged, self._folder.index, files)
        report = make_report(self._config, self._plates, index, columns)
        return make_manifest(self._config, joined, index, list(self._sources.values()), named, records, report)

    def _plan_groups(self, index: Index) -> list[Group]:
        """Put the FOVs of each experiment into groups."""
        edges = find_edges(index).tolist()
        numbers = {experiment.name: row for row, experiment in enumerate(self._config.experiments)}
        groups = []
        for name, run in groupby(range(len(index.fovs)), lambda row: index.fovs[row].experiment):
            rows, record = list(run), self._experiments[numbers[name]]
            sizes = [(edges[row + 1] - edges[row]) * record.patch_bytes for row in rows]
            names = [index.fovs[row].fov_name for row in rows]
            for fovs in plan_groups(names, sizes, self._config.group_bytes):
                first, last = rows[fovs.start], rows[fovs.stop - 1] + 1
                groups.append(self._plan_group(index, numbers[name], first, last, slice(edges[first], edges[last])))
        return groups

    def _plan_group(self, index: Index, experiment: int, first: int, last: int, rows: slice) -> Group:
        own, fovs = take_fovs(index, first, last, rows), self._take_fovs(index, first, last)
        digest = digest_group(self._config_of(experiment), self._experiments[experiment], fovs, own, self._sources)
        return Group(experiment=experiment, first=first, last=last, rows=rows, digest=digest)

    def _config_of(self, experiment: int) -> BuildConfig:
        return replace(self._config, experiments=(self._config.experiments[experiment],))

    def _take_fovs(self, index: Index, first: int, last: int) -> tuple[Fov, ...]:
        return tuple(self._plates[fov.experiment].fovs[fov.fov_name] for fov in index.fovs[first:last])

    def _build(self, index: Index, groups: Sequence[Group]) -> tuple[FileRecord, ...]:
        """Build the groups that are not there; return the records of all parts."""
        kept = {group.digest: self._find_kept(group) for group in groups}
        todo = [group for group in groups if kept[group.digest] is None]
        self._folder.check_space(sum(self._estimate(group) for group in todo))
        if todo and len(todo) < len(groups):
            self._progress.say(f"build: {count_of(len(groups) - len(todo), 'group')} of {len(groups):,} kept")
        built = iter(self._run(index, todo))
        return tuple(kept[group.digest] or next(built) for group in groups)

    def _refuse_missing(self, groups: Sequence[Group]) -> None:
        missing = [
            number
            for number, group in enumerate(groups)
            if not (self._folder.staged / group.part).is_file() and self._find_kept(group) is None
        ]
        if missing:
            raise BuildError(
                f"{self._folder.out}: {count_of(len(missing), 'group')} of {len(groups):,} are not built yet (number "
                f"{missing[0] + 1:,} is the first). Run the parts that did not end again, then --finish; or leave out "
                "--finish, and this command builds them."
            )

    def _find_kept(self, group: Group) -> FileRecord | None:
        """Return the part of a group that is whole and in place, with all of its shards."""
        previous = self.previous
        part = previous.read_part(group.part) if previous is not None else None
        if previous is None or part is None or part.digest != group.digest:
            return None
        in_place = previous.list_in_place(group.digest)
        is_whole = all(in_place.get(shard.path) == shard.xxh3 for shard in part.shards)
        return previous.parts[group.part] if is_whole else None

    def _run(self, index: Index, todo: Sequence[Group]) -> tuple[FileRecord, ...]:
        if not todo:
            return ()
        self._progress.say("build: reading the plates, cutting out a patch for each cell, and packing them into shards")
        frames = sum(fov.frames for group in todo for fov in index.fovs[group.first : group.last])
        shares, counts = self._share_memory(index, todo), UnitCounts(len(todo), weigh_unit)
        jobs = (self._plan_job(index, group, shares.bytes) for group in todo)
        with (
            self._progress.stage("build", frames, "frames", counts.describe) as counts.advance,
            self._make_executor(shares.units, counts.advance) as pool,
        ):
            return run_units(pool, build_unit, jobs, shares.units, counts)

    def _share_memory(self, index: Index, todo: Sequence[Group]) -> Shares:
        """Divide the memory that is left among the units."""
        needs = [
            find_need(
                self._config_of(group.experiment),
                self._experiments[group.experiment],
                self._take_fovs(index, group.first, group.last),
                group.rows.stop - group.rows.start,
            )
            for group in todo
        ]
        config, place = self._config, find_place(self._make_executor)
        disk_bytes = sum(self._estimate(group) for group in todo) // 20
        shares = share_memory(
            config.memory_limit, needs, config.workers, place, disk_bytes=disk_bytes, where=config.where
        )
        if (line := describe_shares(shares, config.workers)) is not None:
            self._progress.say(line)
        return shares

    def _plan_job(self, index: Index, group: Group, memory_bytes: int) -> UnitJob:
        return UnitJob(
            config=self._config_of(group.experiment),
            experiment=self._experiments[group.experiment],
            fovs=self._take_fovs(index, group.first, group.last),
            index=take_fovs(index, group.first, group.last, group.rows),
            digest=group.digest,
            staged=self._folder.staged,
            scratch=self._folder.work,
            in_place=self.previous.list_in_place(group.digest) if self.previous is not None else {},
            memory_bytes=memory_bytes,
        )

    def _estimate(self, group: Group) -> int:
        experiment = self._config.experiments[group.experiment]
        patch_bytes = self._experiments[group.experiment].patch_bytes
        return estimate_bytes(self._config, experiment, group.rows.stop - group.rows.start, patch_bytes)

    def _read_part(self, group: Group) -> Part:
        """Read the part of a group that was just built, or is in place."""
        part = read_part(self._folder.staged / group.part)
        if part is None and self.previous is not None:
            part = self.previous.read_part(group.part)
        if part is None:
            raise BuildError(
                f"{self._folder.staged / group.part}: is not there, or damaged, though it was just written. Look at "
                "the disk, then run the same command again."
            )
        return part

    def _drop(self, index: Index, groups: Sequence[Group], parts: Sequence[Part]) -> Index:
        """Leave out what the pixels rule out, count it, and say which slices the patches hold."""
        names = [self._config.experiments[group.experiment].name for group in groups]
        dropped = join_dropped(index, names, parts)
        keep = join_kept(parts)
        if not keep.all():
            tau = {experiment.name: self._config.tau_frames(experiment) for experiment in self._config.experiments}
            index = drop_observations(index, keep, "blank_channel", tau)
            check_anchors(self._config, read_columns(index.observations), index)
        index = replace(index, dropped=dropped)
        return add_stack_places(index, join_places(parts, "z_start"), join_places(parts, "z_focus"))
