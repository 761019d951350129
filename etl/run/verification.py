"""Checks the manifest and the index of a set, and its shards in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.contract import MANIFEST, Manifest, array_dtypes, array_path
from dynaclr_wds.errors import FormatError
from dynaclr_wds.index_checks import check_arrays, map_array
from dynaclr_wds.manifest_checks import parse_manifest
from etl.pack.read_back import CheckJob, Finding, check_shard
from etl.pack.table_checks import check_tables
from etl.run.executors import ThreadUnits, run_units
from etl.run.output import checksum_file, file_size
from etl.run.progress import Progress

Arrays = Mapping[str, Shaped[np.ndarray, "*shape"]]


def verify_set(root: Path, *, quick: bool, workers: int, progress: Progress) -> list[Finding]:
    """Check a shard set; see `etl.verify.verify`."""
    path = root / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no manifest, so no shard set. Build it, or name its folder.")
    try:
        manifest = parse_manifest(path.read_bytes(), MANIFEST)
    except FormatError as error:
        return [Finding(path=MANIFEST, what=str(error).removeprefix(f"{MANIFEST}: "))]
    found = list(_check_files(root, manifest))
    arrays = None
    if not any(finding.path.endswith(".npy") for finding in found):
        try:
            arrays = {name: map_array(root / array_path(name)) for name in array_dtypes(manifest)}
            check_arrays(manifest, arrays)
            found += _check_counts(manifest, arrays)
            found += check_tables(root, manifest, arrays)
        except (OSError, ValueError) as error:  # FormatError is a ValueError
            arrays = None
            path_of, _, what = str(error).removeprefix(f"{root}/").partition(": ")
            found.append(Finding(path=path_of, what=what))
    if not quick:
        found += _check_shards(root, manifest, arrays, workers, progress, {finding.path for finding in found})
    return found


def _check_files(root: Path, manifest: Manifest) -> Iterator[Finding]:
    """Check that every file is there and of its size, and index files against their checksums."""
    for shard in manifest.shards:
        yield from _check_size(root, shard.path, shard.bytes)
    for file in manifest.files:
        wrong = list(_check_size(root, file.path, file.bytes))
        if not wrong and (there := checksum_file(root / file.path)) != file.xxh3:
            what = f"the bytes are not those that were written (checksum {there}, the manifest says {file.xxh3})"
            wrong.append(Finding(path=file.path, what=what))
        yield from wrong


def _check_size(root: Path, path: str, size: int) -> Iterator[Finding]:
    there = file_size(root / path)
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
    root: Path, manifest: Manifest, arrays: Arrays | None, workers: int, progress: Progress, skipped: set[str]
) -> list[Finding]:
    """Read every shard of the right size."""
    jobs = [
        CheckJob(root=root, manifest=manifest, number=number, arrays=arrays)
        for number, shard in enumerate(manifest.shards)
        if shard.path not in skipped
    ]
    blocks = sum(manifest.shards[job.number].blocks for job in jobs)
    with progress.stage("verify", blocks, "blocks") as advance, ThreadUnits(workers, advance) as pool:
        return [finding for found in run_units(pool, check_shard, jobs, workers) for finding in found]
