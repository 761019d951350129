"""Checks the manifest and the index of a set, and its shards in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.contract import MANIFEST, FileRecord, Manifest, array_dtypes, array_path
from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.index_checks import check_arrays, map_array
from dynaclr_wds.manifest_checks import parse_manifest
from etl.pack.read_back import CheckJob, Finding, Readable, check_shard
from etl.pack.table_checks import check_tables
from etl.run.executors import ThreadUnits, run_units
from etl.run.output import checksum_file, file_size
from etl.run.progress import Progress

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]


@runtime_checkable
class SetFiles(Protocol):
    """The files of a set, wherever they are; paths are those of the manifest."""

    @property
    def folder(self) -> Path:
        """Folder of this machine with the index files that `has_index` was true for."""
        ...

    def size(self, path: str) -> int:
        """Size of a file; -1 where there is none."""
        ...

    def has_index(self, file: FileRecord) -> str:
        """Have an index file in `folder`; return its checksum."""
        ...

    def open(self, path: str) -> AbstractContextManager[Readable]:
        """Open a file for reading."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The files of a set on a disk."""

    folder: Path

    def size(self, path: str) -> int:
        """Size of a file; -1 where there is none."""
        return file_size(self.folder / path)

    def has_index(self, file: FileRecord) -> str:
        """Return the checksum of an index file."""
        return checksum_file(self.folder / file.path)

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        return (self.folder / path).open("rb")


def verify_set(root: Path, *, quick: bool, workers: int, progress: Progress) -> list[Finding]:
    """Check a shard set on a disk; see `etl.verify.verify`."""
    path = root / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no manifest, so no shard set. Build it, or name its folder.")
    try:
        manifest = parse_manifest(path.read_bytes(), MANIFEST)
    except FormatError as error:
        return [describe_manifest(error, MANIFEST)]
    return verify_files(LocalFiles(root / manifest.folder), manifest, quick=quick, workers=workers, progress=progress)


def describe_manifest(error: FormatError, where: str) -> Finding:
    """Say what is wrong with a manifest; `where` stands at the beginning of the error."""
    return Finding(path=MANIFEST, what=str(error).removeprefix(f"{where}: "))


def verify_files(
    files: SetFiles, manifest: Manifest, *, quick: bool, workers: int, progress: Progress
) -> list[Finding]:
    """Check the files of a set whose manifest is valid; paths in what is found are relative to the manifest."""
    found = list(_check_files(files, manifest))
    arrays = None
    if not any(finding.path.endswith(".npy") for finding in found):
        try:
            arrays = {name: map_array(files.folder / array_path(name)) for name in array_dtypes(manifest)}
            check_arrays(manifest, arrays)
            found += _check_counts(manifest, arrays)
            found += check_tables(files.folder, manifest, arrays)
        except (OSError, ValueError) as error:  # FormatError is a ValueError
            arrays = None
            path_of, _, what = str(error).removeprefix(f"{files.folder}/").partition(": ")
            found.append(Finding(path=path_of, what=what))
    if not quick:
        found += _check_shards(files, manifest, arrays, workers, progress, {finding.path for finding in found})
    if not manifest.folder:
        return found
    return [f if f.path == MANIFEST else replace(f, path=f"{manifest.folder}/{f.path}") for f in found]


def _check_files(files: SetFiles, manifest: Manifest) -> Iterator[Finding]:
    """Check that every file is there and of its size, and index files against their checksums."""
    for shard in manifest.shards:
        yield from _check_size(files, shard.path, shard.bytes)
    for file in manifest.files:
        wrong = list(_check_size(files, file.path, file.bytes))
        try:
            if not wrong and (there := files.has_index(file)) != file.xxh3:
                what = f"the bytes are not those that were written (checksum {there}, the manifest says {file.xxh3})"
                wrong.append(Finding(path=file.path, what=what))
        except StorageError as error:
            wrong.append(Finding(path=file.path, what=f"can't be read ({error})"))
        yield from wrong


def _check_size(files: SetFiles, path: str, size: int) -> Iterator[Finding]:
    there = files.size(path)
    if there < 0:
        yield Finding(path=path, what="is missing")
    elif there != size:
        yield Finding(path=path, what=f"has {there:,} bytes, the manifest says {size:,}")


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


def _check_shards(
    files: SetFiles, manifest: Manifest, arrays: Arrays | None, workers: int, progress: Progress, skipped: set[str]
) -> list[Finding]:
    """Read every shard of the right size."""
    jobs = [
        CheckJob(open=files.open, manifest=manifest, number=number, arrays=arrays)
        for number, shard in enumerate(manifest.shards)
        if shard.path not in skipped
    ]
    blocks = sum(manifest.shards[job.number].blocks for job in jobs)
    with progress.stage("verify", blocks, "blocks") as advance, ThreadUnits(workers, advance) as pool:
        return [finding for found in run_units(pool, check_shard, jobs, workers) for finding in found]
