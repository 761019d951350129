"""Looks at the set that is there, and says what a new build may keep of it.

A group of FOVs is the unit of change. The part of a group has the digest of all that it is made of in its name, so a
group is kept where a part of that name is there, whole, and its shards are whole too. A file that is not whole is never
used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

from dynaclr_wds.contract import PARTS_DIR, FileRecord, Manifest, SourceRecord, group_of, shard_path
from etl.run.set_files import SetFiles
from etl.run.versions import list_checksums, list_files
from etl.unit.part import Part, read_part


@dataclass(frozen=True, kw_only=True)
class PreviousSet:
    """A shard set that an earlier build finished."""

    where: str
    """Its folder or URL, as people know it."""
    files: SetFiles
    manifest: Manifest
    faults: Mapping[str, str]
    """Path → what is wrong with it, of the listed files that are not whole."""
    behind: PreviousSet | None = None
    """Another set that has some of its files; they are not here."""

    @property
    def is_whole(self) -> bool:
        """Whether every listed file is whole."""
        return not self.faults

    @cached_property
    def sources(self) -> dict[tuple[str, str], SourceRecord]:
        """(experiment, fov_name) → fingerprint."""
        return {(s.experiment, s.fov_name): s for s in self.manifest.sources}

    @cached_property
    def parts(self) -> dict[str, FileRecord]:
        """Path → record of each part."""
        return {file.path: file for file in self.manifest.files if file.path.startswith(f"{PARTS_DIR}/")}

    def read_part(self, path: str, *, rows: bool = True) -> Part | None:
        """Read a part that is whole, as `etl.unit.part.read_part`; None where there is none."""
        if path not in self.parts or path in self.faults:
            return None
        if self.behind is not None and not self.is_here(path):
            return self.behind.read_part(path, rows=rows)
        return read_part(self.files.folder / path, rows=rows)

    def is_here(self, path: str) -> bool:
        """Whether a file is on this machine."""
        return (self.files.folder / path).is_file()

    def list_in_place(self, digest: str) -> dict[str, str]:
        """Return path → checksum of the whole shards of a group."""
        return self._whole_shards.get(group_of(shard_path((), digest, 0)), {})

    @cached_property
    def _whole_shards(self) -> dict[str, dict[str, str]]:
        """Digits of a group → path → checksum."""
        found: dict[str, dict[str, str]] = {}
        for shard in self.manifest.shards:
            if shard.path not in self.faults:
                found.setdefault(group_of(shard.path), {})[shard.path] = shard.xxh3
        return found


def read_previous(where: str, files: SetFiles, manifest: Manifest, *, checked: bool) -> PreviousSet:
    """Look which files of a set are whole.

    Parameters
    ----------
    where
        Its folder or URL, as people know it.
    checked
        Compare every file with its checksum, and not only sizes.
    """
    faults = _find_faults(files, manifest, {}, list_files(manifest), checked)
    return PreviousSet(where=where, files=files, manifest=manifest, faults=faults)


def check_parts(previous: PreviousSet, wanted: Iterable[str]) -> PreviousSet:
    """Compare some parts of a set, as far as it has them, with their checksums; from object storage, they come here."""
    there, behind = [path for path in wanted if path in previous.parts], previous.behind
    if behind is not None:
        behind = check_parts(behind, [path for path in there if not previous.is_here(path)])
        there = [path for path in there if previous.is_here(path) or path in behind.faults]
    faults = _find_faults(previous.files, previous.manifest, previous.faults, there, checked=True)
    return replace(previous, faults=faults, behind=behind)


def _find_faults(
    files: SetFiles, manifest: Manifest, known: Mapping[str, str], paths: Iterable[str], checked: bool
) -> dict[str, str]:
    """Add to known faults those of some files."""
    sizes, sums = list_files(manifest), list_checksums(manifest)
    asked = [path for path in paths if path not in known]

    def look(path: str) -> str | None:
        return files.describe_fault(path, sizes[path], sums[path] if checked else None)

    with ThreadPoolExecutor(files.checks_at_a_time, thread_name_prefix="dynaclr-check") as pool:
        found = dict(zip(asked, pool.map(look, asked), strict=True))
    return dict(known) | {path: fault for path, fault in found.items() if fault is not None}
