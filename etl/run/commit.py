"""Puts staged files in place: makes another version of the set the newest one.

The new manifest is first written into the work folder. From then on the set is whole, only its files lie in two places,
and this run or a later one brings them together: the manifest of the version before is kept under its number, every
staged file gets its place, and the new manifest takes the place of the old one. So a reader finds a whole set at any
moment. Each step may be done twice.
"""

from __future__ import annotations

from pathlib import Path

from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.errors import FormatError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.files import rename_whole, write_whole
from etl.run.output import OutFolder, discard_work, file_size, naming_file
from etl.run.versions import is_same, keep_version, list_files, list_versions, number_version

_NEXT = "manifest.next"


def commit(folder: OutFolder, manifest: Manifest) -> Manifest:
    """Put a set in place whose new files are staged, and remove the work folder; return it with its version."""
    numbered = number_version(manifest, _read_current(folder.out), list_versions(folder.out))
    with naming_file(folder.work / _NEXT), write_whole(folder.work / _NEXT) as file:
        file.write(numbered.to_json().encode())
    _carry_out(folder.out, folder.work, numbered)
    return numbered


def finish_commits(folder: OutFolder) -> None:
    """Carry out what a run began that was stopped in the middle of its commit."""
    for work in folder.work_folders():
        record = work / _NEXT
        if record.is_file():
            try:
                manifest = read_manifest_file(record)
            except FormatError:
                record.unlink()  # damaged since: what is staged is looked at shard by shard
                continue
            if all(_find_size(folder.out, work, path) == size for path, size in list_files(manifest).items()):
                _carry_out(folder.out, work, manifest)
            else:
                record.unlink()


def _read_current(out: Path) -> Manifest | None:
    try:
        return read_manifest_file(out / MANIFEST) if (out / MANIFEST).is_file() else None
    except FormatError:
        return None


def _find_size(out: Path, work: Path, path: str) -> int:
    """Size of a file where it will be taken from: where it is staged, else in its place."""
    staged = file_size(work / "staged" / path)
    return staged if staged >= 0 else file_size(out / path)


def _carry_out(out: Path, work: Path, manifest: Manifest) -> None:
    before = _read_current(out)
    if before is not None and not is_same(before, manifest):
        keep_version(out)
    for path in list_files(manifest):
        staged = work / "staged" / path
        if staged.is_file():
            with naming_file(out / path):
                rename_whole(staged, out / path)
    with naming_file(out / MANIFEST):
        rename_whole(work / _NEXT, out / MANIFEST)
    discard_work(work)
