"""Builds a set into object storage: lease, local build, transfer, manifest.

Shards have a digest, and an index has its hash, in their names, so nothing that a reader of an older manifest uses is
written over. The manifest comes last. A build that was stopped anywhere goes on when the same command is given again,
and ends with the same objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.errors import BuildError, ConfigError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions, parse_options
from dynaclr_wds.storage.sending import open_for_sending
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.storage.writing import ConflictError, create, remove, replace, write
from dynaclr_wds.words import count_of
from etl.run.executors import MakeExecutor, ThreadUnits
from etl.run.mending import describe_mended
from etl.run.output import OutFolder, discard_work
from etl.run.parts import BuildPart
from etl.run.progress import Progress
from etl.run.update import BuildMode, FolderBuild, refuse_other_config, say_up_to_date
from etl.run.versions import describe_pruned, describe_superseded, list_files, list_superseded, number_version
from etl.source.experiments import BuildConfig
from etl.upload.held import Held, find_previous, note_faults, read_held
from etl.upload.lease import Lease, hold_lease, try_writing
from etl.upload.notes import remove_left_over
from etl.upload.outlet import BucketOutlet
from etl.upload.staging import INDEX, default_staging, part_folder, use_staging
from etl.upload.transfer import carry_out, plan_transfer
from etl.upload.versions import BucketVersions

_LEASE_RETRIES = 30.0
"""Longest `retry_timeout` for the lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How a set gets into object storage."""

    staging: Path | None = None
    """Local folder to build in first; None = one of the user's cache folder, the same for the same destination."""
    keep_staging: bool = False
    """Leave the local copy where it is."""
    storage_options: Mapping[str, Any] | StorageOptions | None = field(default=None, repr=False)
    """How requests are made; see `dynaclr_wds.storage.options`."""


def build_to_storage(
    config: BuildConfig,
    where: Location,
    upload: UploadOptions,
    mode: BuildMode,
    progress: Progress,
    make_executor: MakeExecutor = ThreadUnits,
) -> Manifest:
    """Build a set, bring it up to date, or find that it is; see `etl.build_shards.build_shards`."""
    storage, quick = open_place(where, upload)
    if mode.finish and upload.keep_staging:
        raise ConfigError(
            "finish brings no shards to this machine, which keep_staging asks for. Leave one of them out."
        )
    folder = OutFolder(upload.staging or default_staging(where), config.token)
    with folder.locked(lambda: progress.say(f"{where}: another build is running here; waiting for it to end.")):
        staging = use_staging(folder.out)
        try:
            with hold_lease(quick, staging.owner, progress.say, patient=mode.finish) as lease:
                passes = mode.finish or not (upload.keep_staging or staging.borrowed)
                build = _StorageBuild(config, folder, storage, passes, mode, progress, make_executor, lease)
                manifest = build.run()
        except BaseException:
            staging.remove_if_unused()
            raise
        if upload.keep_staging:
            progress.say(f"{folder.out}: the local copy is kept")
        else:
            if not staging.borrowed:
                discard_work(folder.work)
            staging.remove()
    return manifest


def build_part_to_storage(
    config: BuildConfig,
    where: Location,
    part: BuildPart,
    upload: UploadOptions,
    mode: BuildMode,
    progress: Progress,
    make_executor: MakeExecutor,
) -> None:
    """Build every n-th group of a set, and send it, beside others that do the same; see `etl.build_shards.build_part`.

    Parts need no lease: none of them changes or removes anything that is there, and two copies of one write the same.
    """
    storage, quick = open_place(where, upload)
    if upload.keep_staging:
        raise ConfigError(f"part={part} keeps no set on this machine, so keep_staging can't be given. Leave it out.")
    try_writing(quick, f"part-{part.number}-of-{part.count}")
    with part_folder(upload.staging or default_staging(where)) as place:
        folder = OutFolder(place, config.token)
        held = read_held(storage, _find_manifest(storage), mode, place / INDEX, progress.say)
        if held.set is not None:
            refuse_other_config(held.set.manifest, config, mode, str(where / MANIFEST))
        outlet = BucketOutlet(open_for_sending(where, storage.options), folder.staged, held, part)
        build = FolderBuild(folder, config, mode, progress, lambda: held.set, make_executor, outlet)
        build.run_part(part, str(where))


def open_place(where: Location, upload: UploadOptions) -> tuple[Storage, Storage]:
    """Open a place to build in; return it also with fewer retries, for the lease. A wrong key fails here."""
    if where.scheme in ("http", "https"):
        raise ConfigError(
            f"out={str(where)!r}: {where.scheme}:// can be read, but not written to. Give s3://, gs://, az:// or a "
            "folder."
        )
    options = parse_options(upload.storage_options)
    storage = Storage(where, options)
    _find_manifest(storage)
    quick = dataclasses.replace(options, retry_timeout=min(options.retry_timeout, _LEASE_RETRIES))
    return storage, Storage(where, quick)


@dataclass(frozen=True, slots=True)
class _StorageBuild:
    """A build while it holds the lease of its destination."""

    config: BuildConfig
    folder: OutFolder
    storage: Storage
    passes: bool
    """Whether shards only pass through the staging folder, unit by unit; else the whole set stands there first."""
    mode: BuildMode
    progress: Progress
    make_executor: MakeExecutor
    lease: Lease

    def run(self) -> Manifest:
        """Build, send what is not there, put the manifest in place; remove earlier versions if that is asked for."""
        cache, say = self.folder.out / INDEX, self.progress.say
        held = read_held(self.storage, _find_manifest(self.storage), self.mode, cache, say)
        if held.set is not None:
            refuse_other_config(held.set.manifest, self.config, self.mode, str(self.storage.root / MANIFEST))
        find, outlet = partial(find_previous, self.folder, held, self.mode), self._open_outlet(held)
        taking = outlet if self.passes else None
        build = FolderBuild(self.folder, self.config, self.mode, self.progress, find, self.make_executor, taking)
        built = build.run()
        held, versions = note_faults(held, built.kept), BucketVersions(self.storage, held.listed or {})
        current = None if held.set is None else held.set.manifest
        goal = number_version(built.manifest, current, versions.numbers)
        if left := versions.clear([goal] if current is None else [goal, current]):
            say(f"removed {count_of(left, 'object')} of an upload that never ended")
        if goal == current and held.set is not None and held.set.is_whole and not self.mode.overwrite:
            say_up_to_date(str(self.storage.root), goal, self.progress)
            superseded = []
        else:
            superseded = self._replace(held, goal, versions, outlet)
        if left := remove_left_over(self.storage, [goal, *superseded, *versions.read()]):
            say(f"removed {count_of(left, 'object')} of builds that never ended")
        self._tidy(held, goal, versions, superseded)
        return goal

    def _open_outlet(self, held: Held) -> BucketOutlet:
        sending = open_for_sending(self.storage.root, self.storage.options)
        return BucketOutlet(sending, self.folder.staged, held, self.lease, anew=self.mode.overwrite)

    def _replace(self, held: Held, goal: Manifest, versions: BucketVersions, outlet: BucketOutlet) -> list[Manifest]:
        """Send a set and make it the newest version; return the version before, if there is one."""
        current = None if held.set is None else held.set.manifest
        versions.announce(goal)
        self._send(held, goal, outlet.sent)
        if goal != current:
            if current is not None:
                versions.keep(current)
            self._put_manifest(held, goal)
        versions.settle()
        if held.set is not None and held.set.faults and not self.mode.overwrite:
            self.progress.say(describe_mended(held.set, goal))
        return [] if current is None or goal == current else [current]

    def _send(self, held: Held, goal: Manifest, sent: Mapping[str, str]) -> None:
        sending = open_for_sending(self.storage.root, self.storage.options)
        local = [self.folder.staged, self.folder.out]
        errands = plan_transfer(sending, local, goal, held, self.lease, sent=sent, anew=self.mode.overwrite)
        total = len(list_files(goal))
        carry_out(errands, total, self.storage.options.requests_in_flight, self.progress)

    def _put_manifest(self, held: Held, goal: Manifest) -> None:
        """Put the manifest in place, unless somebody else changed the one that was seen at the beginning."""
        self.lease.check()
        data, changed = goal.to_json().encode(), False
        try:
            if not self.lease.strict:
                now = _find_manifest(self.storage)
                seen = held.version
                changed = (now is None) != (seen is None) or (now is not None and seen is not None and now != seen)
                if not changed:
                    write(self.storage, MANIFEST, data)
            elif held.version is None:
                create(self.storage, MANIFEST, data)
            else:
                replace(self.storage, MANIFEST, data, held.version)
        except ConflictError:
            changed = True
        if changed:
            raise BuildError(
                f"{self.storage.root / MANIFEST}: was changed by somebody else during this build, and left as it is. "
                "Give the same command again to look at it anew."
            )

    def _tidy(self, held: Held, goal: Manifest, versions: BucketVersions, superseded: list[Manifest]) -> None:
        """Remove what only earlier versions need, or say that it is kept; and what killed builds left of a lease."""
        if probes := self.lease.list_left_over(held.listed or {}):
            remove(self.storage, sorted(probes))
        where = str(self.storage.root)
        earlier = {version.set_version: version for version in (*versions.read(), *superseded)}
        kept = [version for number, version in earlier.items() if number != goal.set_version]
        if kept and self.mode.prune:
            self.progress.say(describe_pruned(where, versions.prune(goal, kept), len(kept)))
        elif kept:
            self.progress.say(describe_superseded(where, list_superseded(kept, goal), len(kept)))


def _find_manifest(storage: Storage) -> ObjectInfo | None:
    try:
        return storage.info(MANIFEST)
    except FileNotFoundError:
        return None
