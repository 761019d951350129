"""Brings a shard set up to date: finds what is there and what changed, runs the stages, puts the result in place.

One build at a time owns the output folder. A build that was stopped anywhere goes on when the same command is given
again, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.errors import BuildError, ConfigError, FormatError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.words import count_of, list_some
from etl.pack.previous import PreviousSet, read_previous
from etl.run.commit import commit, finish_commits
from etl.run.differences import compare_fovs, compare_with
from etl.run.executors import MakeExecutor, ThreadUnits
from etl.run.mending import describe_damaged_manifest, describe_faults, describe_mended
from etl.run.opening import (
    Opened,
    leave_out_unread,
    list_skipped,
    open_sources,
    read_index,
    refuse_moving_sources,
)
from etl.run.outlet import Outlet
from etl.run.output import OutFolder, discard_work
from etl.run.parts import BuildPart
from etl.run.progress import Progress, describe_up_to_date
from etl.run.set_files import LocalFiles
from etl.run.stages import Build, Sources
from etl.run.versions import (
    describe_pruned,
    describe_superseded,
    list_superseded,
    list_versions,
    prune,
    read_versions,
)
from etl.source.experiments import BuildConfig
from etl.source.fingerprints import describe_changes
from etl.source.preflight import check_plates, describe_left_wells, open_plates, plan_fovs
from etl.source.scales import describe_intervals, fill_in_from_plates
from etl.source.table_places import open_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMode:
    """What to do about a set that is there."""

    replace: bool = False
    """Replace what the set holds by what another config makes of it."""
    prune: bool = False
    """Drop what the config does not ask for any more, and the files that only earlier versions of the set need."""
    overwrite: bool = False
    """Build everything anew, even a set that is up to date."""
    repair: bool = False
    """Compare every file with its checksum, and build again what is bad."""
    trust_sources: bool = False
    """Believe that plates and tracks are as they were."""
    finish: bool = False
    """Put together what parts have built; an error where a group is missing."""

    def __post_init__(self) -> None:
        """Check that the modes fit each other.

        Raises
        ------
        ConfigError
            Two that exclude each other.
        """
        if self.finish and (self.overwrite or self.repair):
            raise ConfigError("finish builds nothing, which overwrite and repair ask for. Leave one of them out.")


def build_part(
    config: BuildConfig, out: Path, part: BuildPart, mode: BuildMode, progress: Progress, make_executor: MakeExecutor
) -> None:
    """Build every n-th group of a set, beside others that do the same; see `etl.build_shards.build_part`."""
    folder = OutFolder(out, config.token)
    find = partial(_find_previous, folder, config, mode, progress)
    waiting = partial(progress.say, f"{out}: another build is running there; waiting for it to end.")
    with folder.locked(waiting, shared=True):
        FolderBuild(folder, config, mode, progress, find, make_executor).run_part(part, str(out))


def build_set(
    config: BuildConfig, out: Path, mode: BuildMode, progress: Progress, make_executor: MakeExecutor = ThreadUnits
) -> Manifest:
    """Build a shard set, bring it up to date, or find that it is; see `etl.build_shards.build_shards`."""
    folder = OutFolder(out, config.token)
    with folder.locked(lambda: progress.say(f"{out}: another build is running there; waiting for it to end.")):
        find = partial(_find_previous, folder, config, mode, progress)
        built = FolderBuild(folder, config, mode, progress, find, make_executor).run()
        if not built.anew:
            say_up_to_date(str(out), built.manifest, progress)
        elif built.kept is not None and built.kept.faults:
            progress.say(describe_mended(built.kept, built.manifest))
        _tidy(out, built.manifest, mode, progress)
        return built.manifest


def _tidy(out: Path, manifest: Manifest, mode: BuildMode, progress: Progress) -> None:
    """Remove what only earlier versions need, or say that it is kept."""
    versions = len(list_versions(out))
    if versions and mode.prune:
        progress.say(describe_pruned(str(out), prune(out, manifest), versions))
    elif versions:
        progress.say(describe_superseded(str(out), list_superseded(read_versions(out), manifest), versions))


def say_up_to_date(where: str, manifest: Manifest, progress: Progress) -> None:
    """Say that nothing is to be done, and what there is."""
    for line in describe_up_to_date(where, manifest):
        progress.say(f"{where}: {line}")
    progress.found_up_to_date = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What came of a build in a local folder."""

    manifest: Manifest
    anew: bool
    """Whether anything had to be done."""
    kept: PreviousSet | None = None
    """The set that it started from, with what was found to be damaged."""


@dataclass(frozen=True, slots=True)
class FolderBuild:
    """A build in a folder that nobody else builds in, or only other parts of the same set."""

    folder: OutFolder
    config: BuildConfig
    mode: BuildMode
    progress: Progress
    find: Callable[[], PreviousSet | None]
    """Returns the set to start from, if there is one."""
    make_executor: MakeExecutor
    outlet: Outlet | None = None
    """Takes the shards of units as they end; the other new files stay staged, and nothing is put in place here."""

    def run(self) -> Built:
        """Bring the set of the folder up to date."""
        finish_commits(self.folder)
        previous = self.find()
        opened = self._open(previous)
        if opened is None:
            assert previous is not None, "it is up to date"
            discard_work(self.folder.work)
            return Built(manifest=previous.manifest, anew=False, kept=previous)
        if self.mode.overwrite:
            discard_work(self.folder.work)
        self.folder.discard_scratch()
        if previous is not None and self.mode.repair and previous.is_whole:
            self.progress.say(describe_faults(previous)[0])
        manifest, opened, kept = self._build(opened, None if self.mode.overwrite else previous)
        refuse_moving_sources(opened, self._trust(previous))
        for record in manifest.skipped:
            self.progress.say(f"skipped: {record.experiment}, {record.fov_name}: {record.reason}")
        if manifest.skipped:
            self.progress.say(_describe_skipped(manifest, previous))
        if self.outlet is None:
            manifest = commit(self.folder, manifest)
        return Built(manifest=manifest, anew=True, kept=kept)

    def _build(self, opened: Opened, start: PreviousSet | None) -> tuple[Manifest, Opened, PreviousSet | None]:
        """Run the stages, again without the FOVs that can't be read; return also what is left, and what was there."""
        doubtful, finish = self._list_doubtful(start), self.mode.finish
        while True:
            with self.folder.scratch() as scratch:
                index, opened = read_index(opened, doubtful, self.progress, scratch)
                self.folder.discard_others()
                build = self._plan(opened, start)
                found = build.run(index, finish=finish)
            if isinstance(found, Manifest):
                return replace(found, skipped=list_skipped(opened)), opened, build.previous
            names = list_some([f"{record.experiment}, {record.fov_name}" for record in found])
            self.progress.say(f"skipped: {names}: can't be read. What shared a group with that is built without it.")
            opened, start, doubtful, finish = leave_out_unread(opened, found), build.previous, set(), False

    def run_part(self, part: BuildPart, where: str) -> None:
        """Build the groups of a part that are not there; `where` is the set, as people know it."""
        previous = self.find()
        opened = self._open(previous)
        if opened is None:
            assert previous is not None, "it is up to date"
            say_up_to_date(where, previous.manifest, self.progress)
            return
        with self.folder.scratch() as scratch:
            index, opened = read_index(opened, self._list_doubtful(previous), self.progress, scratch)
            own, every = self._plan(opened, previous).run_part(index, part)
        refuse_moving_sources(opened, self._trust(previous))
        self.progress.say(
            f"part {part}: its {count_of(own, 'group')} of {every:,} are built. When all parts are, --finish."
        )

    def _open(self, previous: PreviousSet | None) -> Opened | None:
        """Open what the set is made of; None where the set that is there is up to date."""
        trusted = self._trust(previous)
        if previous is not None and trusted and self._is_up_to_date(previous, self.config, previous.sources):
            return None
        opened = open_sources(self.config, trusted, self.progress)
        for line in (*describe_intervals(opened.config), *describe_left_wells(opened.config, opened.plates)):
            self.progress.say(line)
        if previous is not None:
            _compare_sources(previous, opened, self.mode, self.progress)
            if self._is_up_to_date(previous, opened.config, opened.sources):
                if self.mode.repair:
                    self.progress.say(describe_faults(previous)[0])
                return None
        return opened

    def _list_doubtful(self, previous: PreviousSet | None) -> set[tuple[str, str]]:
        """Return (experiment, fov_name) of what the set that is there had to leave out, and a new one may."""
        if previous is None or self.config.on_bad_fov == "error":
            return set()
        return {(record.experiment, record.fov_name) for record in previous.manifest.skipped}

    def _trust(self, previous: PreviousSet | None) -> Sources:
        is_trusted = previous is not None and self.mode.trust_sources and _cuts_alike(previous, self.config)
        return previous.sources if previous is not None and is_trusted else {}

    def _is_up_to_date(self, previous: PreviousSet, config: BuildConfig, sources: Sources) -> bool:
        same = previous.manifest.config_hash == config.token and list(previous.sources.items()) == list(sources.items())
        return same and previous.is_whole and not previous.manifest.skipped and not self.mode.overwrite

    def _plan(self, opened: Opened, start: PreviousSet | None) -> Build:
        plates, sources = opened.plates, opened.sources
        return Build(opened.config, self.folder, plates, sources, start, self.progress, self.make_executor, self.outlet)


def _describe_skipped(manifest: Manifest, previous: PreviousSet | None) -> str:
    """Say what becomes of the fields of view that are left out, and whether the set held some of them before."""
    said = "skipped: the next build tries again what was skipped; exclude_fovs ends that."
    if previous is None:
        return said
    held = {(fov.experiment, fov.fov_name) for fov in previous.manifest.fovs}
    lost = held & {(one.experiment, one.fov_name) for one in manifest.skipped}
    if not lost:
        return said
    number = previous.manifest.set_version
    return f"{said} Of these, version {number} of the set holds {len(lost)}, until a build with --prune removes it."


def _cuts_alike(previous: PreviousSet, config: BuildConfig) -> bool:
    """Whether movies have the same segments, of whose chunks there are fingerprints."""
    then, now = previous.manifest.config, config.as_record()
    return all(then.get(key) == now[key] for key in ("segment_frames", "tau_range_hours"))


def _compare_sources(previous: PreviousSet, opened: Opened, mode: BuildMode, progress: Progress) -> None:
    """Say what changed since a set was built; refuse to lose what plates do not have any more."""
    for line in describe_changes(previous.sources, opened.sources):
        progress.say(f"changed since the set was built: {line}")
    there = {*opened.sources, *((record.experiment, record.fov_name) for record in opened.skipped)}
    gone = compare_fovs(previous.manifest, there)
    gone.refuse(previous.where, "the plate does not have", replace=mode.replace, prune=mode.prune)


def _find_previous(folder: OutFolder, config: BuildConfig, mode: BuildMode, progress: Progress) -> PreviousSet | None:
    """Return the set that is there; None without one, or when it is damaged and may be replaced."""
    path = folder.out / MANIFEST
    if not path.exists():
        _refuse_foreign_folder(folder, mode)
        return None
    try:
        manifest = read_manifest_file(path)
    except FormatError as error:
        if mode.replace or mode.overwrite or mode.repair:
            progress.say(describe_damaged_manifest(str(error)))
            return None
        raise BuildError(f"{error} Give --replace to build it anew, or another --out.") from error
    refuse_other_config(manifest, config, mode, str(path))
    return read_previous(str(folder.out), LocalFiles(folder.out), manifest, checked=mode.repair)


def refuse_other_config(manifest: Manifest, config: BuildConfig, mode: BuildMode, where: str) -> None:
    """Refuse to lose or change cells of a set, unless the mode says so; what is added is no reason to refuse.

    Raises
    ------
    BuildError
        Says in what the configs differ, and which flag would do.
    ConfigError, PlateError, StorageError
        The config is not only another one, but wrong: something that it names is not there.
    """
    if manifest.config_hash == config.token:
        return
    difference = compare_with(manifest, config.as_record())
    try:
        difference.refuse(where, f"{config.where} does not ask for", replace=mode.replace, prune=mode.prune)
    except BuildError:
        _check_sources(config)
        raise


def _check_sources(config: BuildConfig) -> None:
    """Look whether plates have the wells and channels, and FOVs the tables, that a config says."""
    plates = open_plates(config)
    config = fill_in_from_plates(config, plates)
    check_plates(config, plates)
    with open_tables(config) as tables:
        for number, experiment in enumerate(config.experiments):
            tables.find_tracks(number, plan_fovs(config, experiment, plates[experiment.name].fovs))
            if experiment.annotations is not None:
                tables.find_annotations(number)


def _refuse_foreign_folder(folder: OutFolder, mode: BuildMode) -> None:
    """Refuse to mix shards with files that are not ours; hidden files, our unfinished work among them, do no harm."""
    others = sorted(path.name for path in folder.out.iterdir() if not path.name.startswith("."))
    if others and not (mode.replace or mode.overwrite or mode.repair):
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise BuildError(
            f"{folder.out}: holds other files ({shown}), but no {MANIFEST}. Name an empty folder or a new one "
            "with --out, or give --overwrite to build beside them."
        )
