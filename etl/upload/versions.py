"""Versions of a set in object storage: keeps the manifests of earlier ones, and removes what only these need.

Before an upload, the manifest that it leads to is put beside them. So it is known what an upload has sent that never
ended, and the next one removes that; no other object is ever touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynaclr_wds.contract import VERSIONS_DIR, Manifest, version_path
from dynaclr_wds.errors import FormatError
from dynaclr_wds.file_checks import MOST_MANIFEST_BYTES
from dynaclr_wds.manifest_checks import parse_manifest
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.storage.writing import remove, write
from etl.run.versions import list_files, list_superseded, parse_number

_NEXT = f"{VERSIONS_DIR}/next.json"
"""Manifest of a set that is being sent."""


@dataclass(frozen=True, slots=True)
class BucketVersions:
    """The versions of a set below one location."""

    storage: Storage
    listed: Mapping[str, ObjectInfo]
    """What was there when the build began."""

    @property
    def numbers(self) -> list[int]:
        """Numbers of the earlier versions that are kept, in order."""
        return sorted(number for number in map(parse_number, self.listed) if number is not None)

    def read(self) -> list[Manifest]:
        """Read the manifests of earlier versions; those that are damaged are left out."""
        found = (self._read(version_path(number)) for number in self.numbers)
        return [manifest for manifest in found if manifest is not None]

    def keep(self, manifest: Manifest) -> None:
        """Keep the manifest of the version that is about to be replaced."""
        write(self.storage, version_path(manifest.set_version), manifest.to_json().encode())

    def clear(self, needed: list[Manifest]) -> int:
        """Remove what an upload left that never ended, but what is needed; return how many objects."""
        left = self._list_left_over(needed)
        self._remove(left)
        if _NEXT in self.listed:
            remove(self.storage, [_NEXT])
        return len(left)

    def announce(self, goal: Manifest) -> None:
        """Say what is going to be sent."""
        write(self.storage, _NEXT, goal.to_json().encode())

    def settle(self) -> None:
        """Say that all of it has arrived."""
        remove(self.storage, [_NEXT])

    def prune(self, manifest: Manifest, kept: list[Manifest]) -> dict[str, int]:
        """Remove what only earlier versions name, then their manifests; return path → size of the files."""
        superseded = list_superseded(kept, manifest)
        self._remove(superseded)
        numbers = {version.set_version for version in kept} | set(self.numbers)
        self._remove([version_path(number) for number in sorted(numbers)])
        return superseded

    def _list_left_over(self, needed: list[Manifest]) -> list[str]:
        """List what an upload has sent that never ended, and that nothing else names."""
        sent = self._read(_NEXT) if _NEXT in self.listed else None
        if sent is None:
            return []
        named = {path for manifest in (*needed, *self.read()) for path in list_files(manifest)}
        return sorted(path for path in list_files(sent) if path not in named and path in self.listed)

    def _read(self, name: str) -> Manifest | None:
        try:
            return parse_manifest(self.storage.read(name, MOST_MANIFEST_BYTES), str(self.storage.root / name))
        except (FormatError, FileNotFoundError):
            return None

    def _remove(self, names: Mapping[str, int] | list[str]) -> None:
        if names:
            remove(self.storage, sorted(names))
