"""Runs the stages of a build, from the index to the manifest.

FOVs are put into groups; the groups that are not there yet are built, each by a unit of its own; what all units noted
is joined to the index. Every new file is staged; nothing that is there is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from dynaclr_wds.contract import FileRecord, Manifest, SkippedRecord, SourceRecord, bad_part_path
from dynaclr_wds.errors import BuildError
from dynaclr_wds.words import count_of
from etl.index import Index, take_segment
from etl.layout.groups import Group, PlannedGroup
from etl.layout.jobs import estimate_bytes, plan_collection, plan_experiments
from etl.layout.segments import Segment
from etl.pack.fov_runs import GroupParts
from etl.pack.joining import GroupRows, join_parts, read_rows
from etl.pack.manifest import make_manifest, name_index, write_index
from etl.pack.previous import PreviousSet, check_parts
from etl.run.executors import AHEAD, MakeExecutor, ThreadUnits, run_units
from etl.run.memory import Shares, describe_shares, find_place, share_memory
from etl.run.mending import describe_faults
from etl.run.outlet import Outlet, run_in, then_take
from etl.run.output import OutFolder
from etl.run.parts import BuildPart, describe_missing, note_part, read_counts
from etl.run.progress import Progress
from etl.run.unit_counts import UnitCounts
from etl.source.experiments import BuildConfig
from etl.source.plates import Fov, Plate
from etl.stored_index import StoredIndex
from etl.suspicious.cells import CellSums, Census, check_anchors
from etl.suspicious.report import make_report
from etl.unit.build import build_unit, weigh_unit
from etl.unit.job import UnitJob, digest_group
from etl.unit.memory import find_need
from etl.unit.part import Part, read_part

Sources = Mapping[tuple[str, str], SourceRecord]
"""(experiment, fov_name) → fingerprint."""
_BUILDING = "reading the plates, cutting out a patch for each cell, and packing them into shards"
_FINISHING = "looking at what parts have built"


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
        outlet: Outlet | None = None,
    ) -> None:
        self._config, self._folder, self._plates, self._sources = config, folder, plates, sources
        self.previous, self._progress, self._make_executor = previous, progress, make_executor
        self._records: dict[str, FileRecord] = {}
        self._outlet = outlet
        self._experiments = plan_experiments(config, plates)
        self._skips = config.on_bad_fov == "skip"

    def run_part(self, index: StoredIndex, part: BuildPart) -> tuple[int, int]:
        """Build those groups of a part that are not there; return how many are its own, and how many there are."""
        self._check_anchors(index)
        groups = self._plan_groups(index)
        own = part.take(groups)
        if self.previous is not None:
            self.previous = check_parts(self.previous, [group.part for group in own])
        self._build(index, own, part=part)
        for record in self._list_bad(own):
            self._progress.say(f"skipped: {record.experiment}, {record.fov_name}: {record.reason}")
        return len(own), len(groups)

    def run(self, index: StoredIndex, *, finish: bool = False) -> Manifest | tuple[SkippedRecord, ...]:
        """Build the groups that are not there, join all; stage every new file; return the manifest, not written.

        Parameters
        ----------
        index
            What to build.
        finish
            All groups have to be there.

        Returns
        -------
        Manifest
            Or, if there are any, the FOVs whose pixels can't be read. The groups that hold none of them are built. Run
            the stages again with an index without them.

        Raises
        ------
        BuildError
            Some are not.
        """
        self._check_anchors(index)
        groups = self._plan_groups(index)
        if self.previous is not None:
            self.previous = check_parts(self.previous, [group.part for group in groups])
            for line in describe_faults(self.previous) if self.previous.faults else ():
                self._progress.say(line)
        records = self._build(index, groups, finish=finish)
        return self._list_bad(groups) or self._join(index, groups, records)

    def _list_bad(self, groups: Sequence[Group]) -> tuple[SkippedRecord, ...]:
        """Return the FOVs that units could not read, each once, with what the first of its segments says."""
        found: dict[tuple[str, str], SkippedRecord] = {}
        for group in groups:
            if self._records[group.digest].path != group.part:
                for record in self._read_part(group, rows=False).skipped:
                    found.setdefault((record.experiment, record.fov_name), record)
        return tuple(found.values())

    def _check_anchors(self, index: StoredIndex) -> None:
        numbers = index.experiment_index.tolist()
        fovs = ((number, index.take(fov, fov + 1)) for fov, number in enumerate(numbers))
        check_anchors(self._config, index.has_candidates(), lambda: self._count(index, fovs))

    def _count(self, index: StoredIndex, groups: Iterable[tuple[int, Index]]) -> list[CellSums]:
        """Add up the cells of each experiment, of which groups follow each other."""
        census = Census(self._config, index.tables)
        for experiment, own in groups:
            census.add(experiment, own)
        return census.finish()

    def _join(self, index: StoredIndex, groups: Sequence[Group], records: tuple[FileRecord, ...]) -> Manifest:
        """Join what the units noted to the files of the index."""
        parts = GroupParts(
            config=self._config,
            plates=self._plates,
            experiments=self._experiments,
            index=index,
            groups=groups,
            read=self._read_part,
        )
        joined = join_parts(parts)
        if not joined.is_whole:
            left = ((rows.experiment, rows.index) for rows in read_rows(parts, joined))
            has_candidate = any(partition.with_candidate for partition in joined.partitions)
            check_anchors(self._config, has_candidate, lambda: self._count(index, left))
        census = Census(self._config, index.tables)
        files = write_index(self._folder.index, parts, joined, _watch(read_rows(parts, joined), census))
        named = name_index(self._folder.staged, self._folder.index, files)
        report = make_report(self._config, self._plates, census.finish(), joined.dropped)
        return make_manifest(self._config, joined, list(self._sources.values()), named, records, report)

    def _plan_groups(self, index: StoredIndex) -> list[Group]:
        planned = plan_collection(self._config, self._experiments, index)
        with ThreadPoolExecutor(self._config.workers, thread_name_prefix="digest") as pool:
            return list(pool.map(lambda group: self._plan_group(index, group), planned))

    def _plan_group(self, index: StoredIndex, group: PlannedGroup) -> Group:
        own, number = group.fovs, group.experiment
        taken, fovs = self._take(index, number, own, group.segment), self._take_fovs(index, own.start, own.stop)
        record = self._experiments[number]
        return Group(
            experiment=number,
            first=own.start,
            last=own.stop,
            run=group.run,
            segment=group.segment,
            observations=len(taken.observations),
            digest=digest_group(self._config_of(number), record, fovs, taken, self._sources, group.segment),
        )

    def _take(self, index: StoredIndex, experiment: int, fovs: range, segment: Segment) -> Index:
        tau_frames = self._experiments[experiment].tau_frames
        return take_segment(index.take(fovs.start, fovs.stop), segment, tau_frames)

    def _config_of(self, experiment: int) -> BuildConfig:
        return replace(self._config, experiments=(self._config.experiments[experiment],))

    def _take_fovs(self, index: StoredIndex, first: int, last: int) -> tuple[Fov, ...]:
        return tuple(self._plates[fov.experiment].fovs[fov.fov_name] for fov in index.fovs[first:last])

    def _build(
        self, index: StoredIndex, groups: Sequence[Group], *, part: BuildPart | None = None, finish: bool = False
    ) -> tuple[FileRecord, ...]:
        """Build the groups that are not there; return the records of all parts."""
        kept = {group.digest: self._find_kept(group) for group in groups}
        todo = [group for group in groups if kept[group.digest] is None]
        if self._outlet is not None:
            self._outlet.look([group.digest for group in todo])
        if finish:
            self._refuse_missing(groups, todo)
        else:
            self._check_space(todo)
            self._begin(todo, part)
        if todo and len(todo) < len(groups):
            self._progress.say(f"build: {count_of(len(groups) - len(todo), 'group')} of {len(groups):,} kept")
        built = iter(self._run(index, todo, finish=finish))
        self._records = {group.digest: kept[group.digest] or next(built) for group in groups}
        return tuple(self._records.values())

    def _check_space(self, todo: Sequence[Group]) -> None:
        """Fail early where the disk is too small for all groups or, with an outlet, for those that are here at once."""
        sizes = sorted((self._estimate(group) for group in todo), reverse=True)
        self._folder.check_space(sum(sizes if self._outlet is None else sizes[: AHEAD * self._config.workers]))

    def _begin(self, todo: Sequence[Group], part: BuildPart | None) -> None:
        """Note what is going to be built."""
        if self._outlet is not None:
            self._outlet.begin([group.digest for group in todo])
        elif part is not None:
            note_part(self._folder.work, part)

    def _refuse_missing(self, groups: Sequence[Group], todo: Sequence[Group]) -> None:
        left = {group.digest for group in todo if not self._is_built(group)}
        missing = [number for number, group in enumerate(groups) if group.digest in left]
        if not missing:
            return
        if self._outlet is None:
            where, counts = str(self._folder.out), read_counts(self._folder.work)
        else:
            where, counts = self._outlet.where, self._outlet.read_counts([group.digest for group in groups])
        raise BuildError(f"{where}: {describe_missing(missing, len(groups), counts)}")

    def _is_built(self, group: Group) -> bool:
        """Whether a unit has noted what it did, be it that FOVs can't be read."""
        if self._outlet is not None:
            return self._outlet.is_taken(group.digest)
        names = [group.part, *([bad_part_path(group.digest)] if self._skips else [])]
        return any((self._folder.staged / name).is_file() for name in names)

    def _find_kept(self, group: Group) -> FileRecord | None:
        """Return the part of a group that is whole and in place, with all of its shards."""
        previous = self.previous
        part = previous.read_part(group.part, rows=False) if previous is not None else None
        if previous is None or part is None or part.digest != group.digest:
            return None
        in_place = previous.list_in_place(group.digest)
        is_whole = all(in_place.get(shard.path) == shard.xxh3 for shard in part.shards)
        return previous.parts[group.part] if is_whole else None

    def _run(self, index: StoredIndex, todo: Sequence[Group], *, finish: bool) -> tuple[FileRecord, ...]:
        if not todo:
            return ()
        self._progress.say(f"build: {_FINISHING if finish else _BUILDING}")
        frames = sum(
            len(group.segment.read(fov.frames)) for group in todo for fov in index.fovs[group.first : group.last]
        )
        # a unit that is found needs none
        shares = Shares(units=self._config.workers, bytes=0) if finish else self._share_memory(index, todo)
        counts = UnitCounts(len(todo), weigh_unit)
        retry = not (finish and self._skips)
        jobs = (replace(self._plan_job(index, group, shares.bytes), retry=retry) for group in todo)
        with (
            self._progress.stage("build", frames, "frames", counts.describe) as counts.advance,
            self._make_executor(shares.units, counts.advance) as pool,
        ):
            if self._outlet is None:
                return run_units(pool, build_unit, jobs, shares.units, counts)
            if isinstance(pool, ThreadUnits):
                return run_units(pool, then_take(build_unit, self._outlet), jobs, shares.units, counts)
            unit = then_take(run_in(pool, build_unit, weigh_unit), self._outlet)
            with ThreadUnits(AHEAD * shares.units, counts.advance) as waiting:
                return run_units(waiting, unit, jobs, shares.units, counts)

    def _share_memory(self, index: StoredIndex, todo: Sequence[Group]) -> Shares:
        """Divide the memory that is left among the units."""
        needs = [
            find_need(
                self._config_of(group.experiment),
                self._experiments[group.experiment],
                self._take_fovs(index, group.first, group.last),
                group.observations,
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

    def _plan_job(self, index: StoredIndex, group: Group, memory_bytes: int) -> UnitJob:
        return UnitJob(
            config=self._config_of(group.experiment),
            experiment=self._experiments[group.experiment],
            fovs=self._take_fovs(index, group.first, group.last),
            segment=group.segment,
            index=self._take(index, group.experiment, range(group.first, group.last), group.segment),
            digest=group.digest,
            staged=self._folder.staged,
            scratch=self._folder.work,
            in_place=self._list_in_place(group),
            memory_bytes=memory_bytes,
        )

    def _list_in_place(self, group: Group) -> Mapping[str, str]:
        """Return path → checksum of the shards of a group that are whole, though not staged."""
        in_place = self.previous.list_in_place(group.digest) if self.previous is not None else {}
        return in_place if self._outlet is None else {**in_place, **self._outlet.list_taken(group.digest)}

    def _estimate(self, group: Group) -> int:
        experiment = self._config.experiments[group.experiment]
        patch_bytes = self._experiments[group.experiment].patch_bytes
        return estimate_bytes(self._config, experiment, group.observations, patch_bytes)

    def _read_part(self, group: Group, *, rows: bool) -> Part:
        """Read the part of a group that was just built, or is in place."""
        path = self._records[group.digest].path
        part = read_part(self._folder.staged / path, rows=rows)
        if part is None and self.previous is not None:
            part = self.previous.read_part(path, rows=rows)
        if part is None:
            raise BuildError(
                f"{self._folder.staged / path}: is not there, or damaged, though it was just written. Look at "
                "the disk, then run the same command again."
            )
        return part


def _watch(groups: Iterable[GroupRows], census: Census) -> Iterator[GroupRows]:
    """Count the cells of groups as they pass."""
    for rows in groups:
        census.add(rows.experiment, rows.index, rows.columns)
        yield rows
