"""Checks index arrays: whether they fit each other and the manifest.

`ShardSet.open` and `etl.verify` both ask here. The checks are structural: dtypes, lengths, order, ranges, and rows that
refer to each other. What they let pass can't send a reader to a row, block or byte that isn't there. They read every
array once, in chunks, and never a shard; whether the bytes are those that were written is a matter of checksums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int

from dynaclr_wds.contract import MEMBER_HEADER, NO_CODEC, NO_ID, STATISTICS, Manifest, array_dtypes, label_array
from dynaclr_wds.errors import FormatError
from dynaclr_wds.offset_checks import Arrays, PlainOffsets, StoredOffsets, check_range, index_error, require
from dynaclr_wds.row_checks import count_samples

_CHUNK = 1 << 16


def check_arrays(manifest: Manifest, arrays: Arrays) -> None:
    """Check that the arrays of a set fit each other and its manifest.

    Parameters
    ----------
    manifest
        Manifest of the set.
    arrays
        Memory-mapped or loaded.

    Raises
    ------
    FormatError
        Names the first array, and the first row of it, that can't be.
    """
    try:
        for check in (_check_shapes, _check_runs, _check_blocks):
            check(manifest, arrays)
        with ThreadPoolExecutor(2, thread_name_prefix="dynaclr-check") as pool:
            patches = pool.submit(_check_patches, manifest, arrays)
            observations = pool.submit(_check_observations, manifest, arrays)
            partitions = pool.submit(_check_partitions, manifest, arrays)
        for found in (observations, patches, partitions):  # what one finds wrong may have let the next one stumble
            found.result()
    except FormatError as error:
        raise FormatError(manifest.index_file(str(error))) from None


def _check_shapes(manifest: Manifest, arrays: Arrays) -> None:
    """Check names, dtypes and lengths."""
    kinds = array_dtypes(manifest)
    for name, dtype in kinds.items():
        if name not in arrays:
            raise index_error(name, "is missing")
        if arrays[name].dtype != np.dtype(dtype):
            raise index_error(name, f"has dtype {arrays[name].dtype.str}, the format says {dtype}")
    observations = sum(partition.observations for partition in manifest.partitions)
    patches = sum(partition.patches for partition in manifest.partitions)
    clips = sum(shard.clips for shard in manifest.shards)
    blocks = sum(shard.blocks for shard in manifest.shards)
    fovs = len(manifest.fovs)
    last = (max((e.shape[0] for e in manifest.experiments), default=0), len(STATISTICS))
    shapes: dict[str, tuple[int, ...]] = {
        "clip_first": (clips + 1,),
        "block_first": (blocks + 1,),
        "patch_xxh3": (patches, last[0]),
        "patch_stored": (patches, last[0]),
        "fov_first_frame": (fovs + 1,),
        "stats_timepoint": (sum(fov.frames for fov in manifest.fovs), *last),
        "stats_fov": (fovs, *last),
        "stats_dataset": (len(manifest.experiments), *last),
    }
    lengths = {"obs": observations, "label": observations, "patch": patches, "clip": clips, "block": blocks}
    for name in kinds:
        shape = shapes.get(name) or (lengths[name.partition("_")[0]],)
        if arrays[name].shape != shape:
            raise index_error(name, f"has shape {arrays[name].shape}, the manifest says {shape}")


def _check_runs(manifest: Manifest, arrays: Arrays) -> None:
    """Check the CSR arrays, and the columns that say the same row by row."""
    for name, rows in (("clip_first", "patch_clip"), ("block_first", "clip_block")):
        first, member = arrays[name], arrays[rows]
        require(name, first[1:] > first[:-1], first[1:], "must be above the entry before it", offset=1)
        if first[0] != 0 or first[-1] != len(member):
            raise index_error(name, f"runs from {first[0]} to {first[-1]}, not from 0 to {len(member)}")
    frames = np.array([fov.frames for fov in manifest.fovs], np.int64)
    first = arrays["fov_first_frame"]
    expected = np.concatenate([[0], np.cumsum(frames)])
    require("fov_first_frame", first == expected, first, "must be the sum of the frames of the FOVs before")
    clip_block = np.repeat(np.arange(len(arrays["block_shard"])), np.diff(arrays["block_first"]))
    require("clip_block", arrays["clip_block"] == clip_block, arrays["clip_block"], "must be the block of block_first")


def _check_blocks(manifest: Manifest, arrays: Arrays) -> None:
    """Check that the blocks of a shard follow each other, and end inside it."""
    counts = np.array([shard.blocks for shard in manifest.shards], np.int64)
    shard = np.repeat(np.arange(len(counts)), counts)
    require("block_shard", arrays["block_shard"] == shard, arrays["block_shard"], "must follow the manifest's shards")
    begin, end = arrays["block_begin"], arrays["block_end"]
    starts = np.diff(shard, prepend=-1) > 0
    before = np.where(starts, 0, np.roll(end, 1))
    require("block_begin", begin == before, begin, "must be where the block before it ends, 0 in a new shard")
    sizes = np.array([record.bytes for record in manifest.shards], np.int64)
    good = (end > begin) & (end % MEMBER_HEADER == 0) & (end <= sizes[shard])
    require("block_end", good, end, "must be whole tar members after block_begin, inside the shard")
    clips = np.bincount(shard, weights=np.diff(arrays["block_first"]), minlength=len(counts))
    wrong = np.flatnonzero(clips != [record.clips for record in manifest.shards])
    if wrong.size:
        record = manifest.shards[wrong[0]]
        raise index_error(
            "block_first", f"gives {int(clips[wrong[0]])} clips to {record.path}, which has {record.clips}"
        )


def _check_observations(manifest: Manifest, arrays: Arrays) -> None:
    """Check the columns of observations, FOV by FOV: they are ordered by FOV."""
    fov = arrays["obs_fov"]
    for rows in _chunks(len(fov)):
        check_range("obs_fov", fov[rows], 0, len(manifest.fovs) - 1, "a row of Manifest.fovs", rows.start)
        _check_steps("obs_fov", fov, rows, len(manifest.fovs))
        _check_steps("obs_track", arrays["obs_track"], rows, 1)
        lineage = arrays["obs_lineage"][rows]
        check_range("obs_lineage", lineage, 0, len(fov) - 1, "the number of a lineage", rows.start)
    if len(fov) and arrays["obs_track"][0] != 0:
        raise index_error("obs_track", f"row 0 is {arrays['obs_track'][0]}; it must be 0")
    edges = np.searchsorted(fov, np.arange(len(manifest.fovs) + 1, dtype=fov.dtype))
    codes = {label.name: {value: code for code, value in enumerate(label.values)} for label in manifest.labels}
    for row, record in enumerate(manifest.fovs):
        fixed = {"experiment": record.experiment, "well": record.well}
        for rows in _chunks(int(edges[row + 1]), int(edges[row])):
            check_range("obs_t", arrays["obs_t"][rows], 0, record.frames - 1, "a frame of its FOV", rows.start)
            for name, table in codes.items():
                low, high = NO_ID, len(table) - 1
                if name in fixed:
                    low = high = table.get(fixed[name], -2)
                what = f"a code of {name!r}" + (f", here of {fixed[name]!r}" if name in fixed else "")
                check_range(label_array(name), arrays[label_array(name)][rows], low, high, what, rows.start)


def _check_patches(manifest: Manifest, arrays: Arrays) -> None:
    """Check the columns of patches; every observation must be a sample in one row, the one that it points to."""
    offsets = PlainOffsets(manifest, arrays) if manifest.codec == NO_CODEC else StoredOffsets(manifest, arrays)
    samples = count_samples(arrays, *offsets.strides)
    if samples is None or manifest.codec != NO_CODEC:
        chunks = list(_chunks(len(arrays["patch_obs"])))
        halves = [chunks[: (len(chunks) + 1) // 2], chunks[(len(chunks) + 1) // 2 :]]
        check = _check_chunks if samples is None else _check_offsets
        with ThreadPoolExecutor(2) as pool:
            counts = list(pool.map(lambda half: check(arrays, half, offsets), halves))
        samples = sum(counts) if samples is None else samples
    if samples != len(arrays["obs_patch"]):
        raise index_error(
            "patch_is_sample", f"marks {samples} rows, but there are {len(arrays['obs_patch'])} observations"
        )
    offsets.check_blocks()


def _check_offsets(arrays: Arrays, chunks: Sequence[slice], offsets: PlainOffsets) -> int:  # noqa: ARG001
    """Check where some rows of patches lie."""
    for rows in chunks:
        offsets.check_rows(rows)
    return 0


class _Room:
    """Memory for a chunk of rows, used again and again: to get fresh memory would take longer than the checks."""

    def __init__(self) -> None:
        self._flat: dict[str, np.ndarray[Any, Any]] = {name: np.empty(_CHUNK, dtype) for name, dtype in _ROOM.items()}
        self._count = np.arange(_CHUNK)

    def __call__(self, name: str, rows: int) -> Any:
        """Return room for so many rows."""
        return self._flat[name][:rows]

    def take(self, values: Int[np.ndarray, " n"], at: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """Take values at places that were checked; they are there until others of their size are taken."""
        out = self("taken_8" if values.dtype.itemsize == 8 else "taken_4", len(at)).view(values.dtype)
        return np.take(values, at, out=out, mode="clip")

    def count(self, rows: slice) -> Int[np.ndarray, " rows"]:
        """Number rows."""
        size = rows.stop - rows.start
        numbers: Int[np.ndarray, " rows"] = np.add(self._count[:size], rows.start, out=self("number", size))
        return numbers

    def number_runs(self, edges: Int[np.ndarray, " runs"], rows: slice) -> Int[np.ndarray, " rows"]:
        """Number the runs that begin at `edges` from 0, the first at the begin of the rows or before it."""
        begins = self("begins", rows.stop - rows.start)
        begins[:] = 0
        begins[edges[1:] - rows.start] = 1
        numbers: Int[np.ndarray, " rows"] = np.cumsum(begins, out=self("run", len(begins)))
        return numbers


_ROOM = {
    **{"row": np.intp, "run": np.intp, "number": np.int64, "taken_4": np.int32, "taken_8": np.int64, "gap": np.int64},
    **{"begins": np.int8, "good": np.bool_, "same": np.bool_},
}


def _check_chunks(arrays: Arrays, chunks: Sequence[slice], offsets: PlainOffsets) -> int:
    """Check some rows of patches; return how many are samples."""
    room = _Room()
    for rows in chunks:
        _check_chunk(arrays, rows, room)
        offsets.check_rows(rows)
    return sum(int(np.count_nonzero(arrays["patch_is_sample"][rows])) for rows in chunks)


def _check_chunk(arrays: Arrays, rows: slice, room: _Room) -> None:
    """Check a chunk of rows of patches."""
    at, obs, clip = rows.start, arrays["patch_obs"][rows], arrays["patch_clip"][rows]
    size, first = len(obs), arrays["clip_first"]
    check_range("patch_obs", obs, 0, len(arrays["obs_patch"]) - 1, "an observation", at)
    row_of, good = room("row", size), room("good", size)
    np.copyto(row_of, obs)  # once, or every take would convert it
    low, high = np.searchsorted(first, np.array([rows.start, rows.stop - 1], first.dtype), "right") - 1
    run = room.number_runs(first[low : high + 1], rows)
    np.equal(np.subtract(clip, low, out=room("taken_8", size)), run, out=good)
    require("patch_clip", good, clip, "must be the clip of clip_first", at)
    t, is_sample = arrays["patch_t"][rows], arrays["patch_is_sample"][rows]
    np.equal(t, room.take(arrays["obs_t"], row_of), out=good)
    require("patch_t", good, t, "must be the frame of the observation", at)
    np.greater_equal(t[1:], t[:-1], out=good[1:])
    good[1:] |= np.not_equal(clip[1:], clip[:-1], out=room("same", size)[1:])
    require("patch_t", good[1:], t[1:], "must ascend in a clip", at + 1)
    lineage = room.take(arrays["clip_lineage"][low : high + 1], run)
    wanted = room("number", size).view(np.int32)[:size]
    np.equal(lineage, np.take(arrays["obs_lineage"], row_of, out=wanted, mode="clip"), out=good)
    require("clip_lineage", good, lineage, "must be the lineage of the clip's observations", at, "patch row")
    home = room.take(arrays["obs_patch"], row_of)
    np.equal(np.equal(home, room.count(rows), out=good), is_sample, out=good)
    require("obs_patch", good, home, "must be the one row where its observation is a sample", at, "patch row")
    np.greater_equal(is_sample, arrays["patch_has_candidate"][rows], out=good)
    require("patch_has_candidate", good, ~good, "must be False where patch_is_sample is", at)


def _check_steps(name: str, values: Int[np.ndarray, " n"], rows: slice, most: int) -> None:
    """Check that values ascend, by `most` at a time."""
    begin = max(rows.start - 1, 0)
    step = np.diff(values[begin : rows.stop])
    if step.size and (step.min() < 0 or step.max() > most):
        good = (step >= 0) & (step <= most)
        require(name, good, values[begin + 1 : rows.stop], f"must ascend by {most} at most", begin + 1)


def _check_partitions(manifest: Manifest, arrays: Arrays) -> None:
    """Check that every clip stands in a shard of its own partition."""
    partition = np.array([shard.partition for shard in manifest.shards], np.int64)
    of_block, clips = partition[arrays["block_shard"]], np.diff(arrays["block_first"])
    heads = arrays["patch_obs"][arrays["clip_first"][:-1]]
    for label in manifest.labels:
        if label.name in manifest.shard_by:
            codes = {value: code for code, value in enumerate(label.values)}
            wanted = [p.labels.get(label.name) for p in manifest.partitions]
            expected = np.array([NO_ID if v is None else codes.get(v, -2) for v in wanted], np.int32)
            found = arrays[label_array(label.name)][heads]
            good = found == np.repeat(expected[of_block], clips)
            require(label_array(label.name), good, found, "must be that of the clip's partition", 0, "clip")


def _chunks(stop: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, stop, _CHUNK):
        yield slice(first, min(first + _CHUNK, stop))
