"""Puts staged files in place: replaces the set that is there by the new one.

The new manifest is first written into the work folder. From then on the set is whole, only its files lie in two places,
and this run or a later one brings them together: the old manifest goes, every staged file gets its place, files that
only the old set lists go, the new manifest comes last. Each step may be done twice.
"""

from __future__ import annotations

from pathlib import Path

from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.errors import BuildError, FormatError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.files import rename_whole, write_whole
from etl.run.output import OutFolder, discard_work, file_size, naming_file

_NEXT = "manifest.next"
_OLD = "manifest.old"


def commit(folder: OutFolder, manifest: Manifest) -> None:
    """Put a set in place whose new files are staged; remove the work folder."""
    with naming_file(folder.work / _NEXT), write_whole(folder.work / _NEXT) as file:
        file.write(manifest.to_json().encode())
    _carry_out(folder.out, folder.work, manifest)


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


def list_files(manifest: Manifest) -> dict[str, int]:
    """Return the path and size of every file of a set but its manifest."""
    return {shard.path: shard.bytes for shard in manifest.shards} | {file.path: file.bytes for file in manifest.files}


def list_checksums(manifest: Manifest) -> dict[str, str]:
    """Return the path and checksum of every file of a set but its manifest."""
    return {s.path: s.xxh3 for s in manifest.shards} | {f.path: f.xxh3 for f in manifest.files}


def _find_size(out: Path, work: Path, path: str) -> int:
    """Size of a file where it will be taken from: where it is staged, else in its place."""
    staged = file_size(work / "staged" / path)
    return staged if staged >= 0 else file_size(out / path)


def _carry_out(out: Path, work: Path, manifest: Manifest) -> None:
    current = out / MANIFEST
    if current.is_file():
        with naming_file(work / _OLD), write_whole(work / _OLD) as file:
            file.write(current.read_bytes())
        current.unlink()
    listed = list_files(manifest)
    for path in listed:
        staged = work / "staged" / path
        if staged.is_file():
            with naming_file(out / path):
                rename_whole(staged, out / path)
    for path in set(_list_old(work / _OLD)) - set(listed):
        remove_file(out, path)
    with naming_file(current):
        rename_whole(work / _NEXT, current)
    discard_work(work)


def _list_old(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        old = read_manifest_file(path)
        return [f"{old.folder}/{name}" if old.folder else name for name in list_files(old)]
    except FormatError:
        return []  # damaged or foreign: files of the new set have replaced those of the same name


def remove_file(out: Path, path: str) -> None:
    """Remove a file of a set, and the folders that it leaves empty.

    Raises
    ------
    BuildError
        Its path leaves the folder.
    """
    target = (out / path).resolve()
    if out.resolve() not in target.parents:
        raise BuildError(f"{out}: lists the file {path!r}, which is outside. Remove the folder by hand.")
    target.unlink(missing_ok=True)
    for folder in target.parents:
        if folder == out.resolve() or not folder.is_dir() or any(folder.iterdir()):
            break
        folder.rmdir()
