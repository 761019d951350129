"""Takes fingerprints of track files and plates: what a set was made of, and whether that changed since.

No pixel is read. A plate's pixels are known by the names, sizes and times of their chunk files, its metadata and the
tracks by their bytes. Where movies are in segments, each of these has a fingerprint of the chunks that it reads. In
object storage ETags take the place of times, and of the bytes of tables: chunks are listed or, where there is no
listing, asked for one by one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import xxhash

from dynaclr_wds.contract import SourceRecord
from dynaclr_wds.errors import PlateError, StorageError
from dynaclr_wds.storage.location import Location, is_url, parse_place
from dynaclr_wds.storage.objects import open_object
from dynaclr_wds.storage.versions import ObjectInfo
from dynaclr_wds.words import count_of, list_some
from etl.layout.segments import WHOLE, Segment, plan_segments
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.plate_store import METADATA, find_chunks
from etl.source.plates import Fov, Plate
from etl.source.preflight import plan_fovs
from etl.source.remote_tracks import AT_ONCE, RemoteTracks
from etl.source.track_places import is_source, list_fov_sources

Key = tuple[str, str]
"""(experiment, fov_name)."""

_MOST_NAMED = 8


def fingerprint_sources(
    config: BuildConfig,
    plates: Mapping[str, Plate],
    trusted: Mapping[Key, SourceRecord] | None = None,
    absent: dict[Key, int] | None = None,
) -> dict[Key, SourceRecord]:
    """Take the fingerprints of every FOV that a config asks for, in the order of the config.

    Parameters
    ----------
    trusted
        Records that are taken over without a look, unless the movie has more segments now.
    absent
        Takes the number of chunks that are not there, of the FOVs that lack some.

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

    looked_at = {e.name for e, fov in asked if config.segment_frames or (e.name, fov.name) not in trusted}
    tables = {
        e.name: _Tables(e, f"{config.where}: experiments[{number}]")
        for number, e in enumerate(config.experiments)
        if e.name in looked_at
    }

    def cut(experiment: ExperimentConfig, fov: Fov) -> list[range]:
        frames, length = fov.shape[0], config.segment_frames
        segments = [WHOLE] if length is None else plan_segments(frames, length, config.tau_frames(experiment)[1])
        return [segment.read(frames) for segment in segments]

    def take(pair: tuple[ExperimentConfig, Fov]) -> SourceRecord:
        experiment, fov = pair
        key = experiment.name, fov.name
        if key in trusted and len(trusted[key].pixels.split()) == len(cut(experiment, fov)):
            return trusted[key]
        record, missing = _fingerprint_fov(tables[experiment.name], fov, cut(experiment, fov))
        if missing and absent is not None:
            absent[key] = missing
        return record

    is_remote = any(fov.store is not None or is_url(experiment.tracks_path) for experiment, fov in asked)
    with ThreadPoolExecutor(max(config.workers, AT_ONCE) if is_remote else config.workers) as pool:
        return {(record.experiment, record.fov_name): record for record in pool.map(take, asked)}


class _Tables:
    """The tables of an experiment; `where` is its YAML path."""

    def __init__(self, experiment: ExperimentConfig, where: str) -> None:
        self.experiment = experiment
        self._remote = RemoteTracks(experiment, where) if is_url(experiment.tracks_path) else None
        self._annotations = self._fingerprint_annotations()
        self._shared = self._fingerprint_shared()

    def fingerprint(self, fov_name: str) -> str:
        """Hash the track files of a FOV, and the annotation table, which is read once for all FOVs."""
        digest = xxhash.xxh3_64(self._annotations)
        if self._remote is not None:
            for source in self._remote.list_sources(fov_name):
                for name, info in source.objects.items():
                    digest.update(f"{name}\0{info.size}\0{_mark(info)}\n".encode())
        elif self._shared:
            digest.update(self._shared)
        else:
            for path in list_fov_sources(self.experiment, fov_name):
                _add_source(digest, path)
        return digest.hexdigest()

    def _fingerprint_shared(self) -> bytes:
        """Hash the one table of all FOVs, once; empty where each FOV has its own."""
        if self._remote is not None or not is_source(self.experiment):
            return b""
        digest = xxhash.xxh3_64()
        _add_source(digest, Path(self.experiment.tracks_path))
        return digest.digest()

    def _fingerprint_annotations(self) -> bytes:
        """Empty without a table, or where it is not there: the index says so."""
        if self.experiment.annotations is None:
            return b""
        place, digest = parse_place(self.experiment.annotations), xxhash.xxh3_64()
        try:
            if isinstance(place, Location):
                storage, name = open_object(place, self.experiment.storage)
                info = storage.info(name)
                digest.update(f"{info.size}\0{_mark(info)}".encode())
            else:
                _add_file(digest, place)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return b""
        return digest.digest()


def _mark(info: ObjectInfo) -> str:
    """Return what tells versions of an object apart, beside its size."""
    return info.etag or str(info.changed)


def take_pixels(record: SourceRecord, segment: Segment) -> str:
    """Return the fingerprint of the chunks that a segment reads; empty where the movie ends before."""
    prints = record.pixels.split()
    return prints[segment.number] if segment.number < len(prints) else ""


def _fingerprint_fov(tables: _Tables, fov: Fov, segments: Sequence[range]) -> tuple[SourceRecord, int]:
    """Take the fingerprints of one FOV, with one of the pixels for each segment; count the chunks that are absent."""
    try:
        metadata, pixels, missing = _fingerprint_array(fov, segments)
        record = SourceRecord(
            experiment=tables.experiment.name,
            fov_name=fov.name,
            tracks=tables.fingerprint(fov.name),
            metadata=metadata,
            pixels=pixels,
        )
        return record, missing
    except StorageError:
        raise
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
    verbs = {"added": "added", "gone": "gone", "tracks": "files of tracks changed", "pixels": "files of pixels changed"}
    return [
        f"{experiment}: {verbs.get(kind, 'metadata changed')}: {list_some(names, _MOST_NAMED)}"
        for (experiment, kind), names in found.items()
    ]


def describe_absent(absent: Mapping[Key, int]) -> list[str]:
    """Say which FOVs lack chunks, one line per experiment; Zarr reads them as fill value and says nothing."""
    lines = []
    for experiment in dict.fromkeys(name for name, _ in sorted(absent)):
        found = {fov: count for (name, fov), count in sorted(absent.items()) if name == experiment}
        lines.append(
            f"{experiment}: {count_of(sum(found.values()), 'chunk')} of the plate not there, in "
            f"{list_some(list(found), _MOST_NAMED)}: their pixels are read as the fill value. Some programs leave out "
            "chunks that are empty; if the plate is still being written, build again when it is complete; if it was "
            "copied, or its disk failed, restore it."
        )
    return lines


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)


def _add_source(digest: Any, path: Path) -> None:
    """Add the bytes of a file; of a folder, as that of a GEFF, the names, sizes and times of what is in it."""
    if not path.is_dir():
        _add_file(digest, path)
        return
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        status = file.stat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())


def _fingerprint_array(fov: Fov, segments: Sequence[range]) -> tuple[str, str, int]:
    """Hash metadata documents, and the names, sizes and times of chunk files; count those that are not there."""
    metadata = xxhash.xxh3_64()
    of_plate = [fov.plate_normalization, fov.plate_focus_slice]
    metadata.update(json.dumps(of_plate, sort_keys=True).encode())
    image, array = fov.group, fov.stored.path
    names = [f"{folder}/{name}".lstrip("/") for folder in (image, array) for name in METADATA]
    if fov.store is not None:
        for name, document in fov.store.read_documents(names).items():
            metadata.update(f"{name}\0".encode() + document)
        chunks = [(name, info.size, _mark(info)) for name, info in sorted(find_chunks(fov.store, fov.stored).items())]
    else:
        plate = Path(fov.plate_path)
        for name in names:
            if (plate / name).is_file():
                metadata.update(f"{name}\0".encode())
                _add_file(metadata, plate / name)
        chunks = sorted(_list_local(str(plate / array), ""))
    lines = [(name, f"{name}\0{size}\0{mark}\n".encode()) for name, size, mark in chunks]
    pixels = " ".join(_hash_lines(lines) if len(segments) == 1 else _hash_segments(fov, lines, segments))
    steps = fov.stored.shards or fov.stored.chunks
    wanted = prod(-(-size // step) for size, step in zip(fov.stored.shape, steps, strict=True))
    return metadata.hexdigest(), pixels, max(wanted - len(chunks), 0)


def _hash_lines(lines: Sequence[tuple[str, bytes]]) -> list[str]:
    return [xxhash.xxh3_64(b"".join(line for _, line in lines)).hexdigest()]


def _hash_segments(fov: Fov, lines: Sequence[tuple[str, bytes]], segments: Sequence[range]) -> list[str]:
    """Hash the chunks of each segment: those that hold a frame that it reads."""
    axis = fov.axes.index("t")  # or there would be one frame
    step = (fov.stored.shards or fov.stored.chunks)[axis]
    place = [_find_place(name, axis) for name, _ in lines]
    return [
        xxhash.xxh3_64(
            b"".join(
                line
                for (_, line), at in zip(lines, place, strict=True)
                if at is None or frames.start // step <= at <= (frames.stop - 1) // step
            )
        ).hexdigest()
        for frames in segments
    ]


def _find_place(name: str, axis: int) -> int | None:
    """Return the number of a chunk along an axis, from a name such as `c/0/1/0` or `0.1.0`; None for another file."""
    numbers = [part for part in name.replace(".", "/").split("/") if part != "c"]
    return int(numbers[axis]) if axis < len(numbers) and numbers[axis].isdecimal() else None


def _list_local(folder: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """Yield (name, size, time in ns) of every chunk file below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _list_local(entry.path, f"{prefix}{entry.name}/")
            elif entry.name not in METADATA:
                status = entry.stat()
                yield prefix + entry.name, status.st_size, str(status.st_mtime_ns)
