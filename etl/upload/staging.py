"""The local folder that a set is built in before it is sent: made, told from others, and removed when it has served.

It is an ordinary folder of a build, so what an interrupted build did is found again. A hidden file says that we made it
and gives it the name by which a lease is recognised as our own.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dynaclr_wds.contract import MANIFEST
from dynaclr_wds.errors import BuildError, FormatError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.files import write_whole
from dynaclr_wds.storage.index_cache import default_folder
from dynaclr_wds.storage.location import Location
from etl.run.versions import list_files, prune, remove_file
from etl.scratch import remove_abandoned, scratch_folder

_MARK = ".staged-by-etl.build_shards"
_PARTS = ".parts"
"""Folder in it for what parts of a build have on this machine, each a folder of its own."""
INDEX = ".held"
"""Folder in it for the index of the set that is at the destination."""


def default_staging(where: Location) -> Path:
    """Return the folder for sets that go to a place, in the user's cache folder."""
    return default_folder() / "staging" / hashlib.sha256(str(where).encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Staging:
    """A staging folder that is in use."""

    folder: Path
    owner: str
    """Its name, made at random."""
    borrowed: bool
    """Whether it held a set of the user's, which is not removed."""

    def remove_if_unused(self) -> None:
        """Remove what is ours when nothing was built, so that a build that was refused leaves no trace."""
        if {path.name for path in self.folder.iterdir()} <= {_MARK, INDEX}:
            self.remove()

    def remove(self) -> None:
        """Remove the set and what is ours; what else is there stays."""
        shutil.rmtree(self.folder / INDEX, ignore_errors=True)
        remove_abandoned(self.folder / _PARTS)
        _remove_if_empty(self.folder / _PARTS)
        if not self.borrowed:
            path = self.folder / MANIFEST
            try:
                manifest = read_manifest_file(path) if path.is_file() else None
            except FormatError:
                manifest = None
            if manifest is not None:
                prune(self.folder, manifest)
                for name in list_files(manifest):
                    remove_file(self.folder, name)
            path.unlink(missing_ok=True)
        (self.folder / _MARK).unlink(missing_ok=True)
        _remove_if_empty(self.folder)


@contextmanager
def part_folder(staging: Path) -> Iterator[Path]:
    """Make a folder for a part of a build, which goes when the block ends: what it has sent is in the bucket.

    Parts of one machine, and copies of one part, have folders of their own. Those of parts that were killed go when
    another part begins there, or a build ends.
    """
    try:
        with scratch_folder("part", staging / _PARTS) as folder:
            yield folder
    finally:
        _remove_if_empty(staging / _PARTS)
        _remove_if_empty(staging)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def use_staging(folder: Path) -> Staging:
    """Take a folder that is there, and locked, for staging.

    Raises
    ------
    BuildError
        It holds files that are neither ours nor those of a set.
    """
    mark = folder / _MARK
    if mark.is_file() and (words := mark.read_text(encoding="utf-8").split()):
        return Staging(folder, words[0], borrowed="borrowed" in words)
    is_set = (folder / MANIFEST).is_file()
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others and not is_set:
        raise BuildError(
            f"{folder}: holds other files ({', '.join(others[:3])}), but no {MANIFEST}. Name an empty folder or a new "
            "one with --staging."
        )
    staging = Staging(folder, uuid.uuid4().hex, borrowed=is_set)
    with write_whole(mark) as file:
        file.write(f"{staging.owner} {'borrowed' if is_set else 'made'}\n".encode())
    return staging
