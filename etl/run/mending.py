"""Faults of a set to sentences: says which files are not what was written, what is built again, and what stays."""

from __future__ import annotations

from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.words import count_of
from etl.pack.previous import PreviousSet
from etl.run.versions import list_checksums, list_files

_MOST = 20
"""Files that are listed; the rest are counted."""


def describe_faults(found: PreviousSet) -> list[str]:
    """Say which files are not what was written, why, and what that means for the build.

    Parameters
    ----------
    found
        The set that is there, its parts checked.
    """
    files = len(list_files(found.manifest))
    if not found.faults:
        return [f"{found.where}: all {files:,} files are what was written; nothing to mend."]
    is_are = "is" if len(found.faults) == 1 else "are"
    lines = [f"{found.where}: {len(found.faults):,} of {files:,} files {is_are} not what was written:"]
    lines += [f"  {path}: {why}" for path, why in list(found.faults.items())[:_MOST]]
    if len(found.faults) > _MOST:
        lines.append(f"  and {len(found.faults) - _MOST:,} more")
    return [*lines, _describe_work(found)]


def _describe_work(found: PreviousSet) -> str:
    """Say what has to be made again, which may be more than what is damaged."""
    shards, parts = count_of(len(found.manifest.shards), "shard"), [p for p in found.parts if p in found.faults]
    bad = sum(shard.path in found.faults for shard in found.manifest.shards)
    said = []
    if parts:
        more = f" and {len(parts) - 1:,} more" if len(parts) > 1 else ""
        said.append(
            f"{parts[0]}{more} says what was cut, so {count_of(len(parts), 'group')} of fields of view (of "
            f"{len(found.parts):,}) must be cut again; shards that are whole and come out the same are kept."
        )
    if bad:
        said.append(f"Built again from the plates: {bad:,} of {shards}. The others stay; the index is written again.")
    if not said:
        said.append(f"All {shards} are whole and stay; only the index is written again.")
    return " ".join(said)


def describe_damaged_manifest(why: str) -> str:
    """Say that nothing of a set can be believed without its manifest."""
    return f"{why.rstrip('.')}. {MANIFEST} says what all other files must be, so the whole set is built again."


def describe_mended(found: PreviousSet, now: Manifest) -> str:
    """Say how many files were made again, and how many are as they were."""
    old = list_checksums(found.manifest)
    same = {path for path, xxh3 in list_checksums(now).items() if old.get(path) == xxh3 and path not in found.faults}
    parts = []
    for noun, paths in (("shard", [s.path for s in now.shards]), ("index file", [f.path for f in now.files])):
        parts.append(f"{len(paths) - len(same.intersection(paths)):,} of {count_of(len(paths), noun)}")
    return f"{found.where}: mended. Built again: {' and '.join(parts)}; the others are as they were."
