"""Builds a set into object storage: lease, local build, transfer, manifest, removal of what was replaced.

Shards and index go into a folder that has the hash of the set in its name, so nothing that a reader of an older
manifest uses is written over. The manifest comes last and names the folder. A build that was stopped anywhere goes on
when the same command is given again, and ends with the same objects.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dynaclr_wds.contract import MANIFEST, Manifest, manifest_checksum
from dynaclr_wds.errors import BuildError, ConfigError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import Location
from dynaclr_wds.storage.options import StorageOptions, parse_options
from dynaclr_wds.storage.sending import open_for_sending
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.storage.writing import ConflictError, create, remove, replace, write
from dynaclr_wds.words import count_of
from etl.run.commit import list_files
from etl.run.executors import MakeExecutor, ThreadUnits
from etl.run.mending import describe_mended
from etl.run.output import OutFolder
from etl.run.progress import Progress
from etl.run.update import BuildMode, build_in, refuse_other_config, say_up_to_date
from etl.source.experiments import BuildConfig
from etl.upload.held import Held, find_previous, note_faults, place, read_held
from etl.upload.lease import Lease, hold_lease
from etl.upload.staging import INDEX, default_staging, use_staging
from etl.upload.transfer import carry_out, plan_transfer

_FOLDER = re.compile(r"build-[0-9a-f]{16}")
_LEASE_RETRIES = 30.0
"""Longest `retry_timeout` for the lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How a set gets into object storage."""

    staging: Path | None = None
    """Local folder to build in first; None = one of the user's cache folder, the same for the same destination."""
    keep_staging: bool = False
    """Leave the local copy where it is."""
    keep_replaced: bool = False
    """Leave the files of sets that were replaced where they are."""
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
    if where.scheme in ("http", "https"):
        raise ConfigError(
            f"out={str(where)!r}: {where.scheme}:// can be read, but not written to. Give s3://, gs://, az:// or a "
            "folder."
        )
    options = parse_options(upload.storage_options)
    storage = Storage(where, options)
    _find_manifest(storage)  # a wrong key fails here, before anything is made
    folder = OutFolder(upload.staging or default_staging(where), config.token)
    with folder.locked(lambda: progress.say(f"{where}: another build is running here; waiting for it to end.")):
        staging = use_staging(folder.out)
        quick = dataclasses.replace(options, retry_timeout=min(options.retry_timeout, _LEASE_RETRIES))
        try:
            with hold_lease(Storage(where, quick), staging.owner, progress.say) as lease:
                build = _StorageBuild(config, folder, storage, upload, mode, progress, make_executor, lease)
                manifest = build.run()
        except BaseException:
            staging.remove_if_unused()
            raise
        if upload.keep_staging:
            progress.say(f"{folder.out}: the local copy is kept")
        else:
            staging.remove()
    return manifest


@dataclass(frozen=True, slots=True)
class _StorageBuild:
    """A build while it holds the lease of its destination."""

    config: BuildConfig
    folder: OutFolder
    storage: Storage
    upload: UploadOptions
    mode: BuildMode
    progress: Progress
    make_executor: MakeExecutor
    lease: Lease

    def run(self) -> Manifest:
        """Build, send what is not there, put the manifest in place, remove what it replaced."""
        cache, say = self.folder.out / INDEX, self.progress.say
        held = read_held(self.storage, _find_manifest(self.storage), self.mode, cache, say)
        if held.set is not None:
            refuse_other_config(held.set.manifest, self.config, self.mode, str(self.storage.root / MANIFEST))
        find = partial(find_previous, self.folder, held, self.mode)
        built = build_in(self.folder, self.config, self.mode, self.progress, find, self.make_executor)
        goal, held = name_folder(built.manifest), note_faults(held, built.kept)
        same = held.set is not None and held.set.manifest.to_json() == goal.to_json()
        if same and held.set is not None and held.set.is_whole and not self.mode.overwrite:
            say_up_to_date(str(self.storage.root), goal, self.progress)
        else:
            self._send(held, goal)
            if not same:
                self._put_manifest(held, goal)
            if held.set is not None and held.set.faults and not self.mode.overwrite:
                say(describe_mended(held.set, goal))
        if not self.upload.keep_replaced:
            self._remove_replaced(held, goal)
        return goal

    def _send(self, held: Held, goal: Manifest) -> None:
        sending = open_for_sending(self.storage.root, self.storage.options)
        errands = plan_transfer(sending, self.folder.out, goal, held, self.lease, anew=self.mode.overwrite)
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

    def _remove_replaced(self, held: Held, goal: Manifest) -> None:
        """Remove objects that the new manifest doesn't need: of the set before it, and of uploads that never ended."""
        listed = self.storage.list() or {}
        old = {name for name in listed if _is_left_over(name, goal.folder)} | self.lease.list_left_over(listed)
        if held.set is not None and held.set.manifest.folder != goal.folder:
            old |= {place(held.set.manifest, path) for path in list_files(held.set.manifest)}
        if old:
            remove(self.storage, sorted(old))
            self.progress.say(f"removed {count_of(len(old), 'object')} of sets that were replaced, or never finished")


def name_folder(manifest: Manifest) -> Manifest:
    """Return a manifest whose files are in a folder that is named by all that they hold."""
    local = dataclasses.asdict(dataclasses.replace(manifest, folder=""))
    return dataclasses.replace(manifest, folder=f"build-{manifest_checksum(local)}")


def _is_left_over(name: str, folder: str) -> bool:
    first, slash, _ = name.partition("/")
    return bool(slash) and first != folder and _FOLDER.fullmatch(first) is not None


def _find_manifest(storage: Storage) -> ObjectInfo | None:
    try:
        return storage.info(MANIFEST)
    except FileNotFoundError:
        return None
