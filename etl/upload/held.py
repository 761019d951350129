"""What is at the destination before a build: the set of an earlier build, of which a new one may keep files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dynaclr_wds.contract import MANIFEST
from dynaclr_wds.errors import BuildError, FormatError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.shard_files import read_manifest
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.versions import ObjectInfo
from etl.pack.previous import PreviousSet, read_previous
from etl.run.mending import describe_damaged_manifest
from etl.run.output import OutFolder
from etl.run.set_files import LocalFiles
from etl.run.update import BuildMode
from etl.run.versions import list_checksums, list_files
from etl.upload.bucket_files import BucketFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is at the destination."""

    version: ObjectInfo | None
    """Of the manifest; None where there is none."""
    listed: Mapping[str, ObjectInfo] | None
    """Every object below the destination; None where there is no listing."""
    set: PreviousSet | None
    """The set; None where there is none, or its manifest is damaged."""

    @property
    def files(self) -> frozenset[str]:
        """Paths of the files of the set that are whole."""
        return frozenset() if self.set is None else list_whole(self.set)

    @property
    def sums(self) -> Mapping[str, str]:
        """Path → checksum of the files of the set that are whole."""
        whole = self.files
        sums = {} if self.set is None else list_checksums(self.set.manifest)
        return {path: xxh3 for path, xxh3 in sums.items() if path in whole}


def read_held(
    storage: Storage, version: ObjectInfo | None, mode: BuildMode, cache: Path, say: Callable[[str], None]
) -> Held:
    """Look what is at the destination.

    Parameters
    ----------
    version
        Of the manifest, as it was just seen; None where there is none.
    cache
        Folder for the index of the set, which is downloaded when a build wants to keep something.
    say
        Tells the user something.

    Raises
    ------
    BuildError
        The manifest is damaged, and the mode doesn't say that the set may be replaced.
    StorageError
        A request failed.
    """
    listed = storage.list()
    if version is None:
        return Held(version=None, listed=listed, set=None)
    try:
        content, manifest = read_manifest(storage)
    except FileNotFoundError:
        return Held(version=None, listed=listed, set=None)
    except FormatError as error:
        if mode.replace or mode.overwrite or mode.repair:
            say(describe_damaged_manifest(str(error)))
            return Held(version=version, listed=listed, set=None)
        raise BuildError(f"{error} Give --replace to build it anew, or another --out.") from error
    files = BucketFiles(storage, manifest, cache / hashlib.sha256(content).hexdigest()[:32], listed)
    held = read_previous(str(storage.root), files, manifest, checked=mode.repair)
    return Held(version=version, listed=listed, set=held)


def list_whole(found: PreviousSet) -> frozenset[str]:
    """Return the paths of the files of a set that are what was written."""
    return frozenset(list_files(found.manifest)) - frozenset(found.faults)


def note_faults(held: Held, kept: PreviousSet | None) -> Held:
    """Add to a held set what a build that started from it found to be damaged, when it opened the index."""
    if held.set is None or kept is None or kept.where != held.set.where:
        return held
    return dataclasses.replace(held, set=dataclasses.replace(held.set, faults=kept.faults))


def find_previous(folder: OutFolder, held: Held, mode: BuildMode) -> PreviousSet | None:
    """Return the set that a build starts from: what is staged, if it is of the same config, else what is held.

    A file that is not staged counts as there when the held set has the same one.
    """
    path = folder.out / MANIFEST
    try:
        manifest = read_manifest_file(path) if path.is_file() else None
    except FormatError:
        manifest = None
    if manifest is None or manifest.config_hash != folder.token:
        return held.set
    staged = read_previous(str(folder.out), LocalFiles(folder.out), manifest, checked=mode.repair)
    sums = list_checksums(manifest)
    faults = {path: fault for path, fault in staged.faults.items() if held.sums.get(path) != sums[path]}
    return dataclasses.replace(staged, faults=faults, behind=held.set)
