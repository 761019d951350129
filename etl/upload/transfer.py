"""Files of a staged set to objects: what is there already, and what has to be sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import BuildError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.sending import PARTS_IN_FLIGHT, read_checksum, send_file
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.words import count_of
from etl.run.executors import ThreadUnits, reporter, run_units
from etl.run.output import file_size
from etl.run.progress import BYTES, Progress
from etl.run.versions import list_checksums, list_files
from etl.upload.held import Held
from etl.upload.lease import Lease

_REQUESTS = 16
"""At a time, unless `requests_in_flight` says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One object to make."""

    storage: Storage
    name: str
    xxh3: str
    bytes: int
    file: Path
    lease: Lease


def plan_transfer(
    storage: Storage,
    folders: Sequence[Path],
    goal: Manifest,
    held: Held,
    lease: Lease,
    *,
    sent: Mapping[str, str],
    anew: bool,
) -> list[Errand]:
    """Say which objects have to be made, large ones first.

    An object that is there with the right size is believed when it belongs to the set that is held and whole, or says
    of itself that it has the right checksum.

    Parameters
    ----------
    storage
        Of `dynaclr_wds.storage.sending.open_for_sending`, for the destination.
    folders
        Where the files are, in one or another.
    goal
        The manifest that will be at the destination.
    sent
        Path → checksum of what is there already, though the held set does not name it.
    anew
        Send everything else.

    Raises
    ------
    BuildError
        A file is neither staged nor held.
    """
    sums, known = list_checksums(goal), held.sums
    doubtful: list[Errand] = []
    for path, size in sorted(list_files(goal).items(), key=lambda item: (-item[1], item[0])):
        if sent.get(path) == sums[path] or (known.get(path) == sums[path] and not anew):
            continue
        file = next((folder / path for folder in folders if file_size(folder / path) == size), None)
        if file is None:
            raise BuildError(
                f"{folders[-1] / path}: is missing, though it was built. Give the same command again; it is built anew."
            )
        doubtful.append(Errand(storage=storage, name=path, xxh3=sums[path], bytes=size, file=file, lease=lease))
    return doubtful if anew else _leave_out_made(doubtful, held)


def _leave_out_made(errands: Sequence[Errand], held: Held) -> list[Errand]:
    """Leave out the objects that an earlier run made."""
    bad = frozenset() if held.set is None else frozenset(list_files(held.set.manifest)) - held.files

    def is_made(errand: Errand) -> bool:
        if errand.name in bad or (held.listed is not None and not _has_size(held.listed, errand)):
            return False
        return read_checksum(errand.storage, errand.name) == errand.xxh3

    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="dynaclr-look") as pool:
        return [errand for errand, made in zip(errands, pool.map(is_made, errands), strict=True) if not made]


def _has_size(listed: Mapping[str, ObjectInfo], errand: Errand) -> bool:
    found = listed.get(errand.name)
    return found is not None and found.size == errand.bytes


def carry_out(errands: Sequence[Errand], total: int, in_flight: int | None, progress: Progress) -> None:
    """Make the objects, several at a time; at the first failure, and at Ctrl-C, unfinished uploads are given up.

    Parameters
    ----------
    total
        Number of objects of the set.
    in_flight
        Requests at a time.
    """
    if len(errands) < total:
        progress.say(f"upload: {count_of(total - len(errands), 'file')} of {total:,} are there already")
    if not errands:
        return
    where = errands[0].storage.root
    progress.say(f"upload: sending shards and index to {where}; the manifest, which makes them visible, comes last")
    size = sum(errand.bytes for errand in errands)
    workers = max(1, (in_flight or _REQUESTS) // PARTS_IN_FLIGHT)
    with progress.stage("upload", size, BYTES) as advance, ThreadUnits(workers, advance) as pool:
        run_units(pool, carry_out_one, errands, workers)


def carry_out_one(errand: Errand) -> None:
    """Make one object."""
    tell = reporter()

    def advance(done: int) -> None:
        errand.lease.check()
        tell(done, done)

    send_file(errand.storage, errand.name, errand.file, errand.xxh3, advance)
