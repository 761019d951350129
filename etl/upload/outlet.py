"""Sends the shards of each unit when it ends, and removes them here: the disk holds those of a few units only.

The part of a unit is sent after its shards. So a build that was stopped goes on from what has arrived, also with
another staging folder: it fetches the parts, and builds the groups of which shards are missing. In the same way
`--finish` takes what the parts of a build have sent. Notes (`notes.py`) say what is being sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dynaclr_wds.contract import FileRecord, bad_part_path, part_path
from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.files import write_whole
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.sending import read_checksum, send_file
from etl.run.executors import reporter
from etl.run.output import file_size
from etl.run.parts import BuildPart
from etl.unit.part import Part, read_part
from etl.upload.held import Held
from etl.upload.lease import Lease
from etl.upload.notes import Note, count_parts, read_notes, write_note

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
    sender
        The lease of a build; or which part of one sends, for parts need no lease.
    anew
        Believe nothing that is there; send everything.
    """

    def __init__(
        self, storage: Storage, staged: Path, held: Held, sender: Lease | BuildPart, *, anew: bool = False
    ) -> None:
        self._storage, self._staged, self._held, self._sender, self._anew = storage, staged, held, sender, anew
        self._taken: dict[str, Mapping[str, str]] = {}
        self._whole: set[str] = set()
        self._note = Note(())
        self._damaged: set[str] = set()
        self.sent: dict[str, str] = {}
        """Path → checksum of what is there because of this build, or of one that was stopped."""

    @property
    def where(self) -> str:
        """The place, as people know it."""
        return str(self._storage.root)

    def look(self, digests: Sequence[str]) -> None:
        """Find what has arrived of some groups."""
        self._check()
        if self._anew:
            return
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="dynaclr-look") as pool:
            self._taken = dict(zip(digests, pool.map(self._find_taken, digests), strict=True))

    def begin(self, digests: Sequence[str]) -> None:
        """Note which groups will be sent."""
        if digests:
            self._note = Note(tuple(digests), self._sender.count if isinstance(self._sender, BuildPart) else 0)
            write_note(self._storage, self._note)

    def is_taken(self, digest: str) -> bool:
        """Whether the part of a group has arrived, and all of its shards; or the note that FOVs can't be read."""
        return digest in self._whole

    def list_taken(self, digest: str) -> Mapping[str, str]:
        """Return path → checksum of the shards of a group that have arrived."""
        return self._taken.get(digest, {})

    def read_counts(self, digests: Sequence[str]) -> set[int]:
        """Return in how many parts some of these groups were to be built, as far as that is noted."""
        return count_parts(read_notes(self._storage).values(), digests)

    def take(self, part: FileRecord) -> None:
        """Send the shards of a unit, then its part; remove the shards here."""
        found = read_part(self._staged / part.path)
        for shard in () if found is None else found.shards:
            file = self._staged / shard.path
            if file_size(file) == shard.bytes:
                self._send(shard.path, shard.bytes, shard.xxh3)
                file.unlink()
        self._send(part.path, part.bytes, part.xxh3)
        if isinstance(self._sender, BuildPart):  # a build that ended meanwhile may have removed it
            write_note(self._storage, self._note)

    def _check(self) -> None:
        if isinstance(self._sender, Lease):
            self._sender.check()

    def _send(self, path: str, size: int, xxh3: str) -> None:
        if self._anew or not self._is_there(path, size, xxh3):
            tell = reporter()

            def advance(_done: int) -> None:
                self._check()
                tell(0, 0)

            try:
                send_file(self._storage, path, self._staged / path, xxh3, advance)
            except (StorageError, FormatError):
                if isinstance(self._sender, Lease) or read_checksum(self._storage, path) != xxh3:
                    raise  # else another copy of this part sent the same meanwhile
        self.sent[path] = xxh3

    def _find_taken(self, digest: str) -> dict[str, str]:
        """Return path → checksum of the shards of a group that have arrived; fetch its parts, if they have."""
        found: dict[str, str] = {}
        for path in (part_path(digest), bad_part_path(digest)):
            part = self._read_part(path)
            if part is None or part.digest != digest:
                continue
            away = [shard for shard in part.shards if file_size(self._staged / shard.path) != shard.bytes]
            there = {s.path: s.xxh3 for s in away if self._is_there(s.path, s.bytes, s.xxh3)}
            if len(there) == len(away):
                self._whole.add(digest)
            found |= there
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
