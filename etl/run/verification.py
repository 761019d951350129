"""Checks the manifest and the index of a set, and its shards in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.contract import MANIFEST, Manifest, array_dtypes, array_path
from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.index_checks import check_arrays
from dynaclr_wds.npy_files import map_array
from etl.pack.cells import list_cells
from etl.pack.read_back import CheckJob, Finding, check_shard
from etl.pack.table_checks import check_tables
from etl.run.executors import ThreadUnits, run_units
from etl.run.progress import Progress
from etl.run.set_files import LocalFiles, SetFiles

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a check of a set has found, and how far it came."""

    found: list[Finding]
    manifest: Manifest | None
    """None where it is damaged; then nothing else was checked."""
    index_is_whole: bool
    """Whether blocks and cells could be told apart."""
    shards_read: int
    """Shards whose every byte was read."""


def verify_set(root: Path, *, quick: bool, workers: int, progress: Progress) -> Verification:
    """Check a shard set on a disk; see `etl.verify.verify`."""
    path = root / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no manifest, so no shard set. Build it, or name its folder.")
    try:
        manifest = read_manifest_file(path, MANIFEST)
    except FormatError as error:
        return say_damaged(error, MANIFEST)
    return verify_files(LocalFiles(root), manifest, quick=quick, workers=workers, progress=progress)


def say_damaged(error: FormatError, where: str) -> Verification:
    """Say what is wrong with a manifest; `where` stands at the beginning of the error."""
    what = Finding(path=MANIFEST, what=str(error).removeprefix(f"{where}: "))
    return Verification(found=[what], manifest=None, index_is_whole=False, shards_read=0)


def verify_files(files: SetFiles, manifest: Manifest, *, quick: bool, workers: int, progress: Progress) -> Verification:
    """Check the files of a set whose manifest is valid; paths in what is found are relative to the manifest."""
    found = list(_check_files(files, manifest))
    arrays, in_index = _check_index(files.folder, manifest, found)
    jobs = [] if quick else _plan_jobs(files, manifest, arrays, {finding.path for finding in found})
    if arrays is not None:
        found = [_name_cells(finding, manifest, arrays) for finding in found]
    damaged = {finding.path for finding in found}  # what else is wrong with these follows from it
    found += [finding for finding in in_index if finding.path == MANIFEST or finding.path not in damaged]
    if jobs:
        found += _check_shards(manifest, jobs, workers, progress)
    return Verification(found=found, manifest=manifest, index_is_whole=arrays is not None, shards_read=len(jobs))


def _check_index(root: Path, manifest: Manifest, found: list[Finding]) -> tuple[Arrays | None, list[Finding]]:
    """Check the index arrays and the tables against each other; return the arrays if they are whole and fit."""
    if any(finding.path.endswith(".npy") for finding in found):
        return None, []
    try:
        paths = {name: manifest.index_file(array_path(name)) for name in array_dtypes(manifest)}
        arrays = {name: map_array(root / path) for name, path in paths.items()}
        check_arrays(manifest, arrays)
        return arrays, [*_check_counts(manifest, arrays), *check_tables(root, manifest, arrays)]
    except (OSError, ValueError) as error:  # FormatError is a ValueError
        path_of, _, what = str(error).removeprefix(f"{root}/").partition(": ")
        return None, [Finding(path=path_of, what=what)]


def _name_cells(finding: Finding, manifest: Manifest, arrays: Arrays) -> Finding:
    """Add to a finding about a whole shard whose patches it holds."""
    number = next((n for n, shard in enumerate(manifest.shards) if shard.path == finding.path), None)
    if number is None:
        return finding
    blocks = np.searchsorted(arrays["block_shard"], [number, number + 1])
    rows = arrays["clip_first"][arrays["block_first"][blocks]].tolist()
    return replace(finding, cells=list_cells(manifest, arrays, *rows))


def _check_files(files: SetFiles, manifest: Manifest) -> Iterator[Finding]:
    """Check that every file is there and of its size, and index files against their checksums."""
    for shard in manifest.shards:
        yield from _check_file(files, shard.path, shard.bytes)
    for file in manifest.files:
        yield from _check_file(files, file.path, file.bytes, file.xxh3)


def _check_file(files: SetFiles, path: str, size: int, xxh3: str | None = None) -> Iterator[Finding]:
    try:
        fault = files.describe_fault(path, size, xxh3)
    except StorageError as error:
        fault = f"can't be read ({error})"
    if fault:
        yield Finding(path=path, what=fault)


def _check_counts(manifest: Manifest, arrays: Arrays) -> Iterator[Finding]:
    """Check what the manifest counts, and that it knows the source of every FOV."""
    count = len(manifest.partitions)
    of_shard = np.array([shard.partition for shard in manifest.shards], np.int64)
    of_clip = of_shard[arrays["block_shard"]][arrays["clip_block"]]
    of_patch = of_clip[arrays["patch_clip"]]
    lineages = np.unique(np.stack([of_clip, arrays["clip_lineage"]]), axis=1)[0]
    places = {
        "observations": of_patch[arrays["patch_is_sample"]],
        "with_candidate": of_patch[arrays["patch_has_candidate"]],
        "lineages": lineages,
        "clips": of_clip,
        "patches": of_patch,
        "shards": of_shard,
    }
    counted = {name: np.bincount(place, minlength=count).tolist() for name, place in places.items()}
    counted["bytes"] = [sum(s.bytes for s in manifest.shards if s.partition == number) for number in range(count)]
    for number, partition in enumerate(manifest.partitions):
        for name, values in counted.items():
            if getattr(partition, name) != values[number]:
                what = f"{dict(partition.labels)} has {values[number]:,}, not {name}={getattr(partition, name):,}"
                yield Finding(path=MANIFEST, what=what)
    fovs = {(fov.experiment, fov.fov_name) for fov in manifest.fovs}
    for fov in sorted(fovs - {(source.experiment, source.fov_name) for source in manifest.sources}):
        yield Finding(path=MANIFEST, what=f"says nothing about the source of {fov}")


def _plan_jobs(files: SetFiles, manifest: Manifest, arrays: Arrays | None, skipped: set[str]) -> list[CheckJob]:
    """Plan to read every shard of the right size."""
    return [
        CheckJob(open=files.open, manifest=manifest, number=number, arrays=arrays)
        for number, shard in enumerate(manifest.shards)
        if shard.path not in skipped
    ]


def _check_shards(manifest: Manifest, jobs: Sequence[CheckJob], workers: int, progress: Progress) -> list[Finding]:
    blocks = sum(manifest.shards[job.number].blocks for job in jobs)
    with progress.stage("verify", blocks, "blocks") as advance, ThreadUnits(workers, advance) as pool:
        return [finding for found in run_units(pool, check_shard, jobs, workers) for finding in found]
