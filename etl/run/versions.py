"""Versions of a set: numbers them, keeps the manifests of earlier ones, and finds and removes what only these need.

A build never removes what an earlier version names, so whoever has opened one goes on reading it. No path stands for
two contents: a shard has the digest of its group in its name, and an index its hash in its folder's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from dynaclr_wds.contract import MANIFEST, VERSIONS_DIR, Manifest, version_path
from dynaclr_wds.errors import BuildError, FormatError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.files import write_whole
from dynaclr_wds.words import count_of
from etl.run.output import naming_file
from etl.suspicious.words import write_bytes


def list_files(manifest: Manifest) -> dict[str, int]:
    """Return the path and size of every file of a set but its manifest."""
    return {shard.path: shard.bytes for shard in manifest.shards} | {file.path: file.bytes for file in manifest.files}


def list_checksums(manifest: Manifest) -> dict[str, str]:
    """Return the path and checksum of every file of a set but its manifest."""
    return {s.path: s.xxh3 for s in manifest.shards} | {f.path: f.xxh3 for f in manifest.files}


def number_version(manifest: Manifest, before: Manifest | None, kept: Iterable[int]) -> Manifest:
    """Give a manifest the number of its version.

    Parameters
    ----------
    before
        The manifest that is in place; None where there is none, or it is damaged.
    kept
        Numbers of earlier versions.

    Returns
    -------
    Manifest
        With the number of `before` where nothing else differs, else with a higher one than any before.
    """
    if before is not None and is_same(manifest, before):
        return before
    highest = max([0, *kept] + ([] if before is None else [before.set_version]))
    return dataclasses.replace(manifest, set_version=highest + 1)


def is_same(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests differ in nothing but the number of the version."""
    return one.to_json() == dataclasses.replace(other, set_version=one.set_version).to_json()


def list_superseded(earlier: Iterable[Manifest], manifest: Manifest) -> dict[str, int]:
    """Return the path and size of the files that only earlier versions name."""
    found: dict[str, int] = {}
    for version in earlier:
        found |= list_files(version)
    needed = list_files(manifest)
    return {path: size for path, size in found.items() if path not in needed}


def describe_superseded(where: str, superseded: Mapping[str, int], versions: int) -> str:
    """Say what is kept for readers of earlier versions."""
    return (
        f"{where}: {describe_size(superseded)} of {count_of(versions, 'earlier version')} of the set stay for "
        "trainings that read them. --prune removes them."
    )


def describe_pruned(where: str, superseded: Mapping[str, int], versions: int) -> str:
    """Say what was removed."""
    return f"{where}: removed {describe_size(superseded)} of {count_of(versions, 'earlier version')} of the set"


def describe_size(files: Mapping[str, int]) -> str:
    """Count files and their bytes."""
    return f"{count_of(len(files), 'file')} ({write_bytes(sum(files.values()))})"


def parse_number(path: str) -> int | None:
    """Return the number of the version that `versions/<number>.json` is of; None for another path."""
    digits = path.removeprefix(f"{VERSIONS_DIR}/").removesuffix(".json")
    return int(digits) if digits.isdecimal() and path == version_path(int(digits)) else None


def list_versions(out: Path) -> list[int]:
    """Return the numbers of the earlier versions that a folder keeps, in order."""
    paths = (f"{VERSIONS_DIR}/{path.name}" for path in (out / VERSIONS_DIR).glob("*.json"))
    return sorted(number for number in map(parse_number, paths) if number is not None)


def read_versions(out: Path) -> list[Manifest]:
    """Read the manifests of the earlier versions that a folder keeps; those that are damaged are left out."""
    found = []
    for number in list_versions(out):
        try:
            found.append(read_manifest_file(out / version_path(number)))
        except FormatError:
            continue  # what it names is not known any more
    return found


def keep_version(out: Path) -> None:
    """Keep the manifest that is in place, before another one takes its place; one that is damaged is not kept."""
    try:
        manifest = read_manifest_file(out / MANIFEST)
    except FormatError:
        return
    path = out / version_path(manifest.set_version)
    with naming_file(path), write_whole(path) as file:
        file.write((out / MANIFEST).read_bytes())


def prune(out: Path, manifest: Manifest) -> dict[str, int]:
    """Remove the files that only earlier versions name, then their manifests; return path → size of the files."""
    superseded = list_superseded(read_versions(out), manifest)
    for path in superseded:
        remove_file(out, path)
    for number in list_versions(out):
        remove_file(out, version_path(number))
    return superseded


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
