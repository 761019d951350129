"""Sends the shards of each unit when it ends, and removes them here: the disk holds those of a few units only.

The part of a unit is sent after its shards. So a build that was stopped goes on from what has arrived, also with
another staging folder: it fetches the parts, and builds the groups of which shards are missing. Before anything is
sent, the digests of the groups are noted in the place. So what builds have sent that never ended is found, and removed
when another one has ended.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dynaclr_wds.contract import PARTS_DIR, VERSIONS_DIR, FileRecord, Manifest, group_of, part_path, shard_path
from dynaclr_wds.errors import FormatError
from dynaclr_wds.files import write_whole
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.sending import read_checksum, send_file
from dynaclr_wds.storage.writing import remove, write
from etl.run.executors import reporter
from etl.run.output import file_size
from etl.run.versions import list_files
from etl.unit.part import Part, read_part
from etl.upload.held import Held
from etl.upload.lease import Lease

_NOTE = f"{VERSIONS_DIR}/sending.json"
"""Digests of groups that are being sent."""
_MOST_BYTES = 1 << 30
_REQUESTS = 16


class BucketOutlet:
    """Takes the shards of units to a place in object storage.

    Parameters
    ----------
    storage
        Of `dynaclr_wds.storage.sending.open_for_sending`, for the destination.
    staged
        Folder that units write to.
    held
        What was there when the build began.
    anew
        Believe nothing that is there; send everything.
    """

    def __init__(self, storage: Storage, staged: Path, held: Held, lease: Lease, *, anew: bool) -> None:
        self._storage, self._staged, self._held, self._lease, self._anew = storage, staged, held, lease, anew
        self._taken: dict[str, Mapping[str, str]] = {}
        self._noted: set[str] = set()
        self._damaged: set[str] = set()
        self.sent: dict[str, str] = {}
        """Path → checksum of what is there because of this build, or of one that was stopped."""

    def begin(self, digests: Sequence[str]) -> None:
        """Note which groups will be sent, and look what has arrived of them."""
        self._lease.check()
        self._noted = self._read_note() | set(digests)
        if self._noted:
            write(self._storage, _NOTE, json.dumps({"groups": sorted(self._noted)}).encode())
        if self._anew:
            return
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="dynaclr-look") as pool:
            self._taken = dict(zip(digests, pool.map(self._find_taken, digests), strict=True))

    def list_taken(self, digest: str) -> Mapping[str, str]:
        """Return path → checksum of the shards of a group that have arrived."""
        return self._taken.get(digest, {})

    def take(self, part: FileRecord) -> None:
        """Send the shards of a unit, then its part; remove the shards here."""
        found = read_part(self._staged / part.path)
        for shard in () if found is None else found.shards:
            file = self._staged / shard.path
            if file_size(file) == shard.bytes:
                self._send(shard.path, shard.bytes, shard.xxh3)
                file.unlink()
        self._send(part.path, part.bytes, part.xxh3)

    def remove_left_over(self, needed: Sequence[Manifest]) -> int:
        """Remove what builds have sent that no manifest names; return how many objects."""
        noted = self._noted or self._read_note()
        if not noted:
            return 0
        named = {path for manifest in needed for path in list_files(manifest)}
        listed = self._storage.list() or {}
        parts = {path: digest for path in listed if (digest := _digest_of(path, noted)) is not None}
        digits = {group_of(shard_path((), digest, 0)) for digest in (*noted, *parts.values())}
        left = sorted(
            path
            for path in set(listed) - named
            if path in parts or (path.endswith(".tar") and group_of(path) in digits)
        )
        if left:
            remove(self._storage, left)
        remove(self._storage, [_NOTE])
        return len(left)

    def _send(self, path: str, size: int, xxh3: str) -> None:
        if self._anew or not self._is_there(path, size, xxh3):
            tell = reporter()

            def advance(_done: int) -> None:
                self._lease.check()
                tell(0, 0)

            send_file(self._storage, path, self._staged / path, xxh3, advance)
        self.sent[path] = xxh3

    def _find_taken(self, digest: str) -> dict[str, str]:
        """Return path → checksum of the shards of a group that have arrived; fetch its part, if it has."""
        path = part_path(digest)
        part = self._read_part(path)
        if part is None or part.digest != digest:
            return {}
        found = {
            shard.path: shard.xxh3
            for shard in part.shards
            if file_size(self._staged / shard.path) != shard.bytes
            and self._is_there(shard.path, shard.bytes, shard.xxh3)
        }
        self.sent |= found
        return found

    def _read_part(self, path: str) -> Part | None:
        """Read a part that is staged here, or else in the place, from where it is brought here."""
        place, listed = self._staged / path, self._held.listed
        if not place.is_file() and (listed is None or path in listed):
            try:
                data = self._storage.read(path, _MOST_BYTES)
            except (FileNotFoundError, FormatError):
                return None
            with write_whole(place) as file:
                file.write(data)
            if read_part(place) is None:
                self._damaged.add(path)
        return read_part(place)

    def _is_there(self, path: str, size: int, xxh3: str) -> bool:
        """Whether an object is there, and is not known to be damaged."""
        listed, before = self._held.listed, self._held.set
        if path in self._damaged or (before is not None and path in before.faults):
            return False
        if listed is not None and (path not in listed or listed[path].size != size):
            return False
        return read_checksum(self._storage, path) == xxh3

    def _read_note(self) -> set[str]:
        try:
            return set(json.loads(self._storage.read(_NOTE, _MOST_BYTES))["groups"])
        except (FileNotFoundError, FormatError, ValueError, KeyError, TypeError):
            return set()


def _digest_of(path: str, whole: Collection[str]) -> str | None:
    """Return the digest of what a part is about: of a whole group, or what was left of one; None for other files."""
    name = path.removeprefix(f"{PARTS_DIR}/").removesuffix(".npz")
    digest, _, left = name.partition("-")
    return (left or digest) if digest in whole and path == f"{PARTS_DIR}/{name}.npz" else None
