"""Notes in a bucket about groups that are being sent: they tell what of all that is there no manifest will ever name.

A note is written before anything of its groups is sent. Its name is the hash of what it says, so builds and parts that
write at the same time never write over each other's. When a build has ended, what notes say was sent, and no manifest
names, is removed, and the notes with it. A part of another set that still runs then writes its note again after each
group that it sends; so what came too late to be removed is known to the build after.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dynaclr_wds.contract import VERSIONS_DIR, Manifest, group_of, parse_part_path, shard_path
from dynaclr_wds.errors import FormatError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.writing import remove, write
from etl.run.versions import list_files

NOTES_DIR = f"{VERSIONS_DIR}/sending"
_MOST_BYTES = 1 << 30
_DIGEST = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Note:
    """What one build or part is sending."""

    groups: tuple[str, ...]
    """Digests."""
    parts: int = 0
    """In how many parts the set is built; 0 = as a whole."""

    def to_json(self) -> bytes:
        """Write what the object holds."""
        return json.dumps({"groups": sorted(self.groups), "parts": self.parts}).encode()

    @property
    def name(self) -> str:
        """Name of the object."""
        return f"{NOTES_DIR}/{hashlib.blake2b(self.to_json(), digest_size=16).hexdigest()}.json"


def write_note(storage: Storage, note: Note) -> None:
    """Write a note, unless it is there."""
    try:
        storage.info(note.name)
    except FileNotFoundError:
        write(storage, note.name, note.to_json())


def read_notes(storage: Storage) -> dict[str, Note]:
    """Return the notes that are there, by name; one that is damaged tells nothing."""
    names = sorted(storage.list(NOTES_DIR) or ())
    return {f"{NOTES_DIR}/{name}": _read_note(storage, f"{NOTES_DIR}/{name}") for name in names}


def _read_note(storage: Storage, name: str) -> Note:
    try:
        raw = json.loads(storage.read(name, _MOST_BYTES))
        return Note(tuple(filter(_DIGEST.fullmatch, raw["groups"])), max(int(raw["parts"]), 0))
    except (FileNotFoundError, FormatError, ValueError, KeyError, TypeError):
        return Note(())


def remove_left_over(storage: Storage, needed: Sequence[Manifest]) -> int:
    """Remove what builds have sent that no manifest names, and their notes; return how many objects."""
    notes = read_notes(storage)
    if not notes:
        return 0
    named = {path for manifest in needed for path in list_files(manifest)}
    noted = {digest for note in notes.values() for digest in note.groups}
    removed = _remove_groups(storage, noted, named)
    remove(storage, sorted(notes))
    if any(note.parts for note in notes.values()):  # they hold no lease, and may have sent more meanwhile
        removed += _remove_groups(storage, noted, named)
    return removed


def _remove_groups(storage: Storage, noted: Collection[str], named: Collection[str]) -> int:
    """Remove the shards and parts of groups, but those that are named."""
    listed: Mapping[str, object] = storage.list() or {}
    parts = (path for path in listed if parse_part_path(path) in noted)
    digits = {group_of(shard_path((), digest, 0)) for digest in noted}
    shards = (path for path in listed if path.endswith(".tar") and group_of(path) in digits)
    left = sorted(path for path in (*parts, *shards) if path not in named)
    if left:
        remove(storage, left)
    return len(left)


def count_parts(notes: Iterable[Note], digests: Iterable[str]) -> set[int]:
    """Return in how many parts some groups were to be built, as far as notes say it."""
    asked = set(digests)
    return {note.parts for note in notes if note.parts and not asked.isdisjoint(note.groups)}
