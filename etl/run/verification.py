"""Checks the manifest and the index of a set, and its shards in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Shaped

from dynaclr_wds.contract import MANIFEST, OBSERVATIONS, PATCHES, Manifest, array_path, parse_manifest
from dynaclr_wds.errors import FormatError
from dynaclr_wds.index_checks import array_dtypes, check_arrays
from etl.pack.read_back import CheckJob, Finding, check_shard
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
            arrays = {name: _map(root / array_path(name)) for name in array_dtypes(manifest)}
            check_arrays(manifest, arrays)
            found += _check_tables(root, manifest, arrays)
        except (OSError, ValueError) as error:  # FormatError is a ValueError
            arrays = None
            path_of, _, what = str(error).partition(": ")
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


def _map(path: Path) -> Shaped[np.ndarray, "*shape"]:
    array: Shaped[np.ndarray, "*shape"] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return array


def _check_tables(root: Path, manifest: Manifest, arrays: Arrays) -> Iterator[Finding]:
    """Check that the tables say what the arrays say."""
    observations = {"track_id": "obs_track_id", "t": "obs_t", "id": "obs_id", "y": "obs_y", "x": "obs_x"}
    patches = {"observation": "patch_obs", "offset": "patch_offset", "t": "patch_t", "is_sample": "patch_is_sample"}
    patches["has_candidate"] = "patch_has_candidate"
    listed = {file.path for file in manifest.files}
    for path, columns in ((OBSERVATIONS, observations), (PATCHES, patches)):
        if path in listed and file_size(root / path) >= 0:
            try:
                table: Any = pq.read_table(root / path, columns=list(columns))
            except (OSError, ValueError) as error:
                yield Finding(path=path, what=f"can't be read ({error})")
                continue
            for name, array in columns.items():
                values = table[name].to_numpy().astype(arrays[array].dtype)
                if not np.array_equal(values, arrays[array], equal_nan=values.dtype.kind == "f"):
                    yield Finding(path=path, what=f"column {name!r} is not that of {array_path(array)}")


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
