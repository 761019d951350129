"""Takes fingerprints of track files and plates: what a set was made of, and whether that changed since.

No pixel is read. A plate's pixels are known by the names, sizes and times of their chunk files (in object storage by
their ETags), its metadata and the tracks by their bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from dynaclr_wds.contract import SourceRecord
from dynaclr_wds.errors import PlateError
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate
from etl.source.preflight import plan_fovs
from etl.source.track_formats import list_tables

_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup")

Key = tuple[str, str]
"""(experiment, fov_name)."""


def fingerprint_sources(
    config: BuildConfig, plates: Mapping[str, Plate], trusted: Mapping[Key, SourceRecord] | None = None
) -> dict[Key, SourceRecord]:
    """Take the fingerprints of every FOV that a config asks for, in the order of the config.

    Parameters
    ----------
    trusted
        Records that are taken over without a look.

    Raises
    ------
    PlateError
        A plate that can't be listed.
    """
    trusted = trusted or {}
    asked = [
        (experiment, plates[experiment.name].fovs[name])
        for experiment in config.experiments
        for name in plan_fovs(config, experiment, plates[experiment.name].fovs)
    ]

    looked_at = {experiment.name for experiment, fov in asked if (experiment.name, fov.name) not in trusted}
    annotations = {e.name: _fingerprint_annotations(e) for e in config.experiments if e.name in looked_at}

    def take(pair: tuple[ExperimentConfig, Fov]) -> SourceRecord:
        experiment, fov = pair
        known = trusted.get((experiment.name, fov.name))
        return known or fingerprint_fov(experiment, fov, annotations[experiment.name])

    with ThreadPoolExecutor(config.workers) as pool:
        return {(record.experiment, record.fov_name): record for record in pool.map(take, asked)}


def fingerprint_fov(experiment: ExperimentConfig, fov: Fov, annotations: bytes) -> SourceRecord:
    """Take the fingerprints of one FOV; `annotations` is that of its experiment's annotation table."""
    try:
        metadata, pixels = _fingerprint_array(fov)
        return SourceRecord(
            experiment=experiment.name,
            fov_name=fov.name,
            tracks=_fingerprint_tracks(experiment, fov.name, annotations),
            metadata=metadata,
            pixels=pixels,
        )
    except OSError as error:
        raise PlateError(
            f"{fov.where}: its files can't be listed ({error}). Restore them, or leave the field of view out with "
            "exclude_fovs."
        ) from error


def describe_changes(old: Mapping[Key, SourceRecord], new: Mapping[Key, SourceRecord]) -> list[str]:
    """Say what changed, one line per experiment and kind of change."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in dict.fromkeys((*old, *new)):
        if key not in old or key not in new:
            kinds = ["added" if key in new else "gone"]
        else:
            kinds = [k for k in ("tracks", "metadata", "pixels") if getattr(old[key], k) != getattr(new[key], k)]
        for kind in kinds:
            found.setdefault((key[0], kind), []).append(key[1])
    verbs = {"added": "added", "gone": "gone", "tracks": "tracks changed", "pixels": "pixels changed"}
    return [
        f"{experiment}: {verbs.get(kind, 'metadata changed')}: {_shorten(names)}"
        for (experiment, kind), names in found.items()
    ]


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _fingerprint_annotations(experiment: ExperimentConfig) -> bytes:
    """Hash the bytes of the annotation table, once for all FOVs; empty without a table, or where it is not there."""
    digest = xxhash.xxh3_64()
    if experiment.annotations is None or not Path(experiment.annotations).is_file():
        return b""  # a table that is asked for and not there is an error of the index
    _add_file(digest, Path(experiment.annotations))
    return digest.digest()


def _fingerprint_tracks(experiment: ExperimentConfig, fov_name: str, annotations: bytes) -> str:
    """Hash the bytes of the track file, and the fingerprint of the annotation table."""
    digest = xxhash.xxh3_64(annotations)
    for path in list_tables(Path(experiment.tracks_path) / fov_name):
        _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)


def _fingerprint_array(fov: Fov) -> tuple[str, str]:
    """Hash metadata documents, and the names, sizes and times of chunk files."""
    metadata, pixels = xxhash.xxh3_64(), xxhash.xxh3_64()
    of_plate = [fov.plate_normalization, fov.plate_focus_slice]
    metadata.update(json.dumps(of_plate, sort_keys=True).encode())
    image, array = fov.name, fov.array.path
    if "://" in fov.plate_path:
        import fsspec  # here, because only plates in object storage need it

        files, root = fsspec.core.url_to_fs(fov.plate_path)
        for folder in (image, array):
            for name in _METADATA:
                path = f"{root}/{folder}/{name}"
                if files.exists(path):
                    metadata.update(f"{folder}/{name}\0".encode() + files.cat_file(path))
        chunks = _list_remote(files, f"{root}/{array}")
    else:
        plate = Path(fov.plate_path)
        for folder in (image, array):
            for name in _METADATA:
                if (plate / folder / name).is_file():
                    metadata.update(f"{folder}/{name}\0".encode())
                    _add_file(metadata, plate / folder / name)
        chunks = sorted(_list_local(str(plate / array), ""))
    for name, size, mark in chunks:
        pixels.update(f"{name}\0{size}\0{mark}\n".encode())
    return metadata.hexdigest(), pixels.hexdigest()


def _list_local(folder: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """Yield (name, size, time in ns) of every chunk file below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _list_local(entry.path, f"{prefix}{entry.name}/")
            elif entry.name not in _METADATA:
                status = entry.stat()
                yield prefix + entry.name, status.st_size, str(status.st_mtime_ns)


def _list_remote(files: Any, root: str) -> list[tuple[str, int, str]]:
    """List (name, size, ETag or time) of every chunk below a URL."""
    found = files.find(root, detail=True)
    marks = ("ETag", "etag", "md5Hash", "LastModified", "mtime")
    return sorted(
        (path[len(root) :], info["size"], next((str(info[m]) for m in marks if info.get(m)), ""))
        for path, info in found.items()
        if path.rpartition("/")[2] not in _METADATA
    )
