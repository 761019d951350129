"""Where the files of a shard set lie, and what they hold: for tests that look at a set beside the loader."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from dynaclr_wds.contract import MANIFEST, array_path


def find_index(shards: Path) -> Path:
    """Folder of a set's index."""
    return shards / json.loads((shards / MANIFEST).read_bytes())["index"]


def find_array(shards: Path, name: str) -> Path:
    """File of an array of a set's index."""
    return find_index(shards) / array_path(name)


def load_array(shards: Path, name: str) -> np.ndarray:
    """Read an array of a set's index."""
    return np.load(find_array(shards, name))


def digests(out: Path) -> dict[str, str]:
    """Hash all that a set is, whatever versions it had: path → digest of each file that is not an earlier version's."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    superseded = {name for name in found if name.startswith("versions/")}
    for name in list(superseded):
        superseded |= _list_named(found[name])
    superseded -= _list_named(found.get(MANIFEST, b"{}"))
    return {
        name: hashlib.sha256(_without_version(data) if name == MANIFEST else data).hexdigest()
        for name, data in found.items()
        if name not in superseded
    }


def _list_named(manifest: bytes) -> set[str]:
    try:
        record = json.loads(manifest)
        return {entry["path"] for key in ("shards", "files") for entry in record[key]}
    except (ValueError, KeyError, TypeError):
        return set()


def _without_version(manifest: bytes) -> bytes:
    """Leave the number of the version out, and the checksum that follows from it."""
    try:
        record = json.loads(manifest)
        return json.dumps({key: value for key, value in record.items() if key not in ("set_version", "xxh3")}).encode()
    except (ValueError, AttributeError):
        return manifest
