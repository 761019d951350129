"""Reads shards back: compares every byte with its checksum and every member with the index.

One fault is said once, as precisely as it can be: a block whose bytes are not what was written is searched for members
that are damaged. Where there are some, they are named, and only else all that the block holds; and a file is only named
where none of its parts was.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import xxhash
from jaxtyping import Float, Shaped

from dynaclr_wds.codec import CodecError, decompress
from dynaclr_wds.contract import (
    NO_CODEC,
    NO_ID,
    STATISTICS,
    SUFFIXES,
    ExperimentRecord,
    FovRecord,
    Manifest,
    array_path,
    channel_checksum,
    checksum,
    format_checksum,
    label_array,
    npy_header,
)
from dynaclr_wds.strict_json import parse_json
from dynaclr_wds.tau import candidate_span
from dynaclr_wds.words import count_of
from etl.layout.clips import MEMBER_HEADER, member_bytes
from etl.pack.cells import TrackCells, count_cells, describe_cells, list_cells
from etl.pack.tar_headers import name_digits
from etl.pack.tars import sum_channels
from etl.run.executors import report

CHANGED = "the bytes are not those that were written"

_MOST = 20
"""Findings that are listed of one shard; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    path: str
    """File, relative to the set."""
    what: str
    block: int | None = None
    """Row of the blocks."""
    clip: str | None = None
    """Key of the clip."""
    patch: int | None = None
    """Number of the patch in its clip."""
    row: int | None = None
    """Row of the patches."""
    cells: tuple[TrackCells, ...] = ()
    """Whose patches are damaged, or may be; empty where that can't be told."""

    def __str__(self) -> str:
        places = {"block": self.block, "clip": self.clip, "patch": self.patch, "row": self.row}
        place = ", ".join(f"{name} {value}" for name, value in places.items() if value is not None)
        said = f"{self.path}: {place}: {self.what}" if place else f"{self.path}: {self.what}"
        if not self.cells:
            return said
        named, number = describe_cells(self.cells), count_of(count_cells(self.cells), "cell")
        if self.patch is not None or self.clip is not None:
            return f"{said} ({number}: {named})"
        return (
            f"{said}; {f'it holds {number}' if self.block is None else f'any of its {number} may be damaged'}: {named}"
        )


@runtime_checkable
class Readable(Protocol):
    """A file that is read from front to back."""

    def read(self, size: int, /) -> bytes:
        """Read the next bytes, fewer at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """One shard to read back."""

    open: Callable[[str], AbstractContextManager[Readable]]
    """Opens a file of the set by its path."""
    manifest: Manifest
    number: int
    """Row of the shards."""
    arrays: Mapping[str, Shaped[np.ndarray, "*shape"]] | None
    """Index arrays that fit each other; None checks the file as a whole only."""


def check_shard(job: CheckJob) -> tuple[Finding, ...]:
    """Read one shard and compare it with the manifest and the index."""
    record = job.manifest.shards[job.number]
    found: list[Finding] = []
    try:
        with job.open(record.path) as file:
            for finding in _check_file(job, file):
                found.append(finding)
                if len(found) > _MOST:
                    found[-1] = Finding(path=record.path, what="and more; the rest of this shard was not looked at")
                    break
    except OSError as error:
        found.append(Finding(path=record.path, what=f"can't be read ({error.strerror or error})"))
    return tuple(found)


def _check_file(job: CheckJob, file: Readable) -> Iterator[Finding]:
    record = job.manifest.shards[job.number]
    whole, blocks_are_good = xxhash.xxh3_64(), True
    if job.arrays is not None:
        first, last = np.searchsorted(job.arrays["block_shard"], [job.number, job.number + 1]).tolist()
        for block in range(first, last):
            begin, end = int(job.arrays["block_begin"][block]), int(job.arrays["block_end"][block])
            data = file.read(end - begin)
            whole.update(data)
            is_good = checksum(data) == int(job.arrays["block_xxh3"][block])
            blocks_are_good &= is_good
            yield from _check_block(job, job.arrays, block, data, is_good)
            report(1, len(data))
    tail, is_zero = 0, True
    while data := file.read(1 << 23):
        tail += len(data)
        whole.update(data)
        report(0)
        is_zero &= data.count(0) == len(data)
    if job.arrays is not None and not is_zero:
        yield Finding(path=record.path, what="has something other than zeros behind its last clip")
    if job.arrays is not None and tail < 2 * MEMBER_HEADER:
        yield Finding(path=record.path, what="does not end with zeros, as a tar does")
    if job.arrays is None:
        report(record.blocks, tail)
    parts_are_good = blocks_are_good and (is_zero or job.arrays is None)
    if format_checksum(whole.intdigest()) != record.xxh3 and parts_are_good:  # else they have said it
        sums = f"checksum {format_checksum(whole.intdigest())}, the manifest says {record.xxh3}"
        yield Finding(path=record.path, what=f"{CHANGED} ({sums})")


def _check_block(
    job: CheckJob, arrays: Mapping[str, Shaped[np.ndarray, "*shape"]], block: int, data: bytes, is_good: bool
) -> Iterator[Finding]:
    path = job.manifest.shards[job.number].path
    first, last = arrays["block_first"][block : block + 2].tolist()
    readers = [_ClipReader(job, arrays, block, clip, data) for clip in range(first, last)]
    found = [finding for reader in readers for finding in reader.check(block_is_good=is_good)]
    if not is_good and not found:
        cells = list_cells(job.manifest, arrays, *arrays["clip_first"][[first, last]].tolist())
        yield Finding(path=path, block=block, what=CHANGED, cells=cells)
    yield from found


class _Wrong(Exception):
    """A member that can't be read; the message says why."""


class _Member(NamedTuple):
    """Where a patch is in a block."""

    begin: int
    """First byte behind the tar header."""
    pixels: int
    """First byte behind the npy header."""
    size: int
    """Bytes of both."""


def _decode_header(data: bytes, size: int, codec: str) -> bytes:
    """Return an npy header as it is without the codec; empty where it can't be decoded."""
    if codec == NO_CODEC:
        return data
    try:
        return decompress(data, size)
    except CodecError:
        return b""


class _ClipReader:
    """Reads one clip out of a block's bytes."""

    def __init__(
        self, job: CheckJob, arrays: Mapping[str, Shaped[np.ndarray, "*shape"]], block: int, clip: int, data: bytes
    ) -> None:
        self._path = job.manifest.shards[job.number].path
        self._manifest, self._arrays, self._block, self._data = job.manifest, arrays, block, data
        self._begin = int(arrays["block_begin"][block])
        self._first, self._last = arrays["clip_first"][clip : clip + 2].tolist()
        self._key: str | None = None

    def check(self, *, block_is_good: bool) -> Iterator[Finding]:
        """Compare the members of the clip with the index.

        Parameters
        ----------
        block_is_good
            The block's checksum is right, so pixels of another checksum than the index says are a fault of the index.
        """
        fov, experiment = self._owner()
        header = npy_header(experiment.dtype, experiment.shape)
        width, suffix, end = name_digits(self._last - self._first), SUFFIXES[self._manifest.codec], 0
        for number, row in enumerate(range(self._first, self._last)):
            member = self._find_member(row, header, experiment)
            end = member.begin - MEMBER_HEADER + member_bytes(member.size)
            try:
                self._check_patch(member, header, f"{number:0{width}d}{suffix}")
            except _Wrong as error:
                yield self._finding(str(error), number, row)
            if (what := self._compare_pixels(member.pixels, row, experiment)) is None:
                continue
            if block_is_good:
                yield Finding(path=self._manifest.index_file(array_path("patch_xxh3")), row=row, what=what)
            else:
                yield self._finding(f"{CHANGED} ({what})", number, row)
        try:
            yield from self._check_json(self._read_json(end), fov, experiment)
        except _Wrong as error:
            yield self._finding(str(error))
        except (AttributeError, TypeError) as error:
            yield self._finding(f"the JSON is not built as a clip's is ({error})")

    def _owner(self) -> tuple[FovRecord, ExperimentRecord]:
        fov = self._manifest.fovs[int(self._arrays["obs_fov"][self._arrays["patch_obs"][self._first]])]
        return fov, next(e for e in self._manifest.experiments if e.name == fov.experiment)

    def _finding(self, what: str, patch: int | None = None, row: int | None = None) -> Finding:
        rows = (self._first, self._last) if row is None else (row, row + 1)
        cells = list_cells(self._manifest, self._arrays, *rows)
        return Finding(path=self._path, block=self._block, clip=self._key, patch=patch, row=row, what=what, cells=cells)

    def _member(self, at: int) -> tarfile.TarInfo:
        """Read the tar header that ends at a byte of the block."""
        try:
            return tarfile.TarInfo.frombuf(self._data[at - MEMBER_HEADER : at], "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise _Wrong(f"no tar header where the index says ({error})") from error

    def _find_member(self, row: int, header: bytes, experiment: ExperimentRecord) -> _Member:
        """Say where the member of a patch is, in the block."""
        pixels = int(self._arrays["patch_offset"][row]) - self._begin
        if self._manifest.codec == NO_CODEC:
            return _Member(pixels - len(header), pixels, len(header) + experiment.patch_bytes)
        begin = (pixels - 1) // MEMBER_HEADER * MEMBER_HEADER  # a compressed header is small
        return _Member(begin, pixels, pixels - begin + int(self._arrays["patch_stored"][row].sum()))

    def _check_patch(self, member: _Member, header: bytes, name: str) -> None:
        at, pixels, size = member
        info = self._member(at)
        key, _, rest = info.name.partition(".")
        self._key = self._key or key
        if rest != name or key != self._key:
            raise _Wrong(f"the member is named {info.name!r}, not {self._key}.{name}")
        if info.size != size or not info.isreg():
            raise _Wrong(f"the member has {info.size} bytes, not {size}")
        if _decode_header(self._data[at:pixels], len(header), self._manifest.codec) != header:
            raise _Wrong(
                f"the npy header is not what the experiment's dtype and shape ask for, {header[10:].strip()!r}"
            )

    def _compare_pixels(self, at: int, row: int, experiment: ExperimentRecord) -> str | None:
        """Say which channel of a patch has not the checksum that the index says; None where all have."""
        said = self._arrays["patch_xxh3"][row].tolist()
        if self._manifest.codec == NO_CODEC:
            found = sum_channels(memoryview(self._data)[at : at + experiment.patch_bytes], experiment.shape[0])
        else:
            found = []
            for channel, length in enumerate(self._arrays["patch_stored"][row, : experiment.shape[0]].tolist()):
                try:
                    pixels = decompress(memoryview(self._data)[at : at + length], experiment.channel_bytes)
                except CodecError as error:
                    return f"channel {channel} can't be decoded: {error}"
                found.append(channel_checksum(pixels))
                at += length
        for channel, (one, other) in enumerate(zip_longest(found, said, fillvalue=0)):
            if one != other:
                return f"channel {channel} has checksum {one:08x}, the index says {other:08x}"
        return None

    def _read_json(self, end: int) -> dict[str, Any]:
        info = self._member(end + MEMBER_HEADER)
        if info.name != f"{self._key}.json":
            raise _Wrong(f"the member behind the patches is {info.name!r}, not {self._key}.json")
        try:
            record = parse_json(self._data[end + MEMBER_HEADER : end + MEMBER_HEADER + info.size])
        except ValueError as error:
            raise _Wrong(f"the JSON can't be parsed ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("patches"), list):
            raise _Wrong("the JSON has no patches")
        return record

    def _check_json(self, record: dict[str, Any], fov: FovRecord, experiment: ExperimentRecord) -> Iterator[Finding]:
        expected = {
            "key": self._key,
            "experiment": experiment.name,
            "fov_name": fov.fov_name,
            "channel_names": list(experiment.source_channel),
            "shape": list(experiment.shape),
            "dtype": experiment.dtype,
            "interval_minutes": experiment.interval_minutes,
            "tau_frames": list(experiment.tau_frames),
        }
        for name, value in expected.items():
            if record.get(name) != value:
                yield self._finding(f"the JSON says {name}={record.get(name)!r}, the manifest {value!r}")
        count = self._last - self._first
        if len(record["patches"]) != count:
            yield self._finding(f"the JSON has {len(record['patches'])} patches, the index {count}")
            return
        for number, (said, indexed) in enumerate(zip(record["patches"], self._indexed(experiment), strict=True)):
            labels = {**record.get("labels", {}), **said.get("labels", {})}
            found = {name: said.get(name) for name in indexed} | {"labels": labels}
            for name, value in indexed.items():
                if found[name] != value:
                    what = f"the JSON says {name}={found[name]!r}, the index {value!r}"
                    yield self._finding(what, number, self._first + number)
        yield from self._check_statistics(record, experiment)

    def _indexed(self, experiment: ExperimentRecord) -> Iterator[dict[str, Any]]:
        """Yield what the index knows of each patch, as the JSON says it."""
        rows = slice(self._first, self._last)
        obs, t = self._arrays["patch_obs"][rows], self._arrays["patch_t"][rows]
        is_sample = self._arrays["patch_is_sample"][rows].tolist()
        has_candidate = self._arrays["patch_has_candidate"][rows].tolist()
        low, high = (places.tolist() for places in candidate_span(t, experiment.tau_frames))
        names = ("track_id", "parent_track_id", "id", "t")
        columns = {name: self._arrays[f"obs_{name}"][obs].tolist() for name in names}
        codes = {label: self._arrays[label_array(label.name)][obs].tolist() for label in self._manifest.labels}
        for n in range(len(obs)):
            candidates = list(range(low[n], high[n])) if is_sample[n] else []
            if bool(candidates) != has_candidate[n]:
                yield {"has_candidate": has_candidate[n]}
                continue
            labels = {k.name: None if c[n] == NO_ID else k.values[c[n]] for k, c in codes.items()}
            columns_n = {name: values[n] for name, values in columns.items()}
            yield columns_n | {"is_sample": is_sample[n], "candidates": candidates, "labels": labels}

    def _check_statistics(self, record: dict[str, Any], experiment: ExperimentRecord) -> Iterator[Finding]:
        row = int(self._arrays["obs_fov"][self._arrays["patch_obs"][self._first]])
        first, channels = int(self._arrays["fov_first_frame"][row]), experiment.shape[0]
        said = record.get("statistics", {})
        in_segments = self._manifest.config.get("segment_frames") is not None
        tables = [] if in_segments else [("fov", said.get("fov"), self._arrays["stats_fov"][row])]
        for t in sorted(set(self._arrays["patch_t"][self._first : self._last].tolist())):
            timepoint = said.get("timepoint", {}).get(str(t))
            tables.append((f"timepoint {t}", timepoint, self._arrays["stats_timepoint"][first + t]))
        for name, table, indexed in tables:
            if not _agrees(table, indexed[:channels], may_lack=in_segments):
                yield self._finding(f"the JSON's statistics ({name}) are not those of the index")


def _agrees(said: Any, indexed: Float[np.ndarray, "channels 8"], *, may_lack: bool) -> bool:
    """Whether a table of the JSON, null for NaN, holds the numbers of the index.

    Parameters
    ----------
    may_lack
        A channel of a frame that is blank may be null, while the index gives it the statistics of its FOV.
    """
    try:
        flat = [math.nan if value is None else value for channel in said for value in channel]
        table = np.array(flat, np.float32).reshape(-1, len(STATISTICS))
    except (TypeError, ValueError):
        return False
    if may_lack and table.shape == indexed.shape:
        table = np.where(np.isnan(table), indexed, table)
    return np.array_equal(table, indexed, equal_nan=True)
