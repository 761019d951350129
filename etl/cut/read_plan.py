"""Plans how the frames of an array are read within the memory that there is; what is read is the same. Pure.

Frames are read in runs that share no chunk. A run is read at once where memory allows it, else in cells of whole
chunks, which then stand in memory together or, where the run is larger than that, in a file. The estimates count what a
read holds: the box itself, and of each chunk (shard) on its way the pixels and, at most as many, the stored bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from etl.source.image_axes import Image
from etl.source.plate_boxes import Box
from etl.source.plate_store import PlateStore

RUN_BYTES = 1 << 30
"""Frames of one shard are read together up to this size, then in runs of whole chunks."""
_RUNS_AHEAD, _AHEAD_BYTES = 4, 1 << 28
"""Most runs that are read ahead of need from object storage, and most bytes of them together."""
_CELL_BYTES = 1 << 26
"""What a read of a part of a run should be allowed to hold."""
_CHUNKS_AT_ONCE, _SHARDS_AT_ONCE = 10, 16
"""What zarr, or `plate_boxes`, reads at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """How the frames of an array are read."""

    frames: int
    """Of a run."""
    ahead: int
    """Runs that are read ahead of need."""
    step: tuple[int, ...]
    """Grid of the cells of a run, along T, C, Z, Y and X: multiples of chunks."""
    is_filed: bool
    """Whether the pixels of a run go to a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is read of each frame."""

    array: Image
    channels: tuple[int, ...]
    z: slice

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, as far as it is wanted."""
        y, x = self.array.shape[3:]
        return len(self.channels) * (self.z.stop - self.z.start) * y * x * self.array.dtype.itemsize

    def list_boxes(self, begin: int, end: int) -> list[Box]:
        """Return the boxes of some frames: one for all channels if they lie side by side, else for those of a chunk."""
        runs = [self.channels] if self.is_side_by_side else list(self._group_channels())
        y, x = self.array.shape[3:]
        return [(slice(begin, end), slice(min(c), max(c) + 1), self.z, slice(0, y), slice(0, x)) for c in runs]

    @property
    def is_side_by_side(self) -> bool:
        """Whether the channels follow each other on the plate, in whatever order they are wanted."""
        return len(set(self.channels)) == max(self.channels) - min(self.channels) + 1

    @property
    def is_in_order(self) -> bool:
        """Whether what is read of the plate at once is what is wanted, as it is."""
        return self.is_side_by_side and list(self.channels) == sorted(self.channels)

    def _group_channels(self) -> Iterator[list[int]]:
        chunk = self.array.chunks[1]
        for number in sorted({channel // chunk for channel in self.channels}):
            yield [channel for channel in self.channels if channel // chunk == number]


def plan_reading(wanted: Wanted, memory: int) -> ReadPlan:
    """Plan how frames are read.

    Parameters
    ----------
    memory
        Bytes that reading may hold, with the frames that are in use; at least `least_bytes`.
    """
    array = wanted.array
    frames = plan_run(wanted, min(RUN_BYTES, memory // 2))
    run, boxes = frames * wanted.frame_bytes, wanted.list_boxes(0, min(frames, array.shape[0]))
    at_once = _cost_of_run(wanted, frames)
    if at_once <= memory:
        most = _RUNS_AHEAD if isinstance(array.store, PlateStore) else 1
        ahead = min(most, _AHEAD_BYTES // run, (memory - run) // at_once)
        return ReadPlan(frames=frames, ahead=ahead, step=_whole_step(array), is_filed=False)
    widest = max(boxes, key=lambda box: box[1].stop - box[1].start)
    in_memory = run + _least_cell(wanted) <= memory
    step = _grow_step(array, widest, memory - run if in_memory else memory)
    return ReadPlan(frames=frames, ahead=0, step=step, is_filed=not in_memory)


def plan_run(wanted: Wanted, most_bytes: int) -> int:
    """Return how many frames are read together: those of a shard while they fit, else of whole chunks."""
    array, chunk = wanted.array, wanted.array.chunks[0]
    run = array.shards[0] if array.shards else chunk
    if run * wanted.frame_bytes > most_bytes:
        run = max(most_bytes // (wanted.frame_bytes * chunk), 1) * chunk
        if array.shards:  # runs must not straddle shards, whose index would be read twice otherwise
            run = next(size for size in range(run, 0, -chunk) if array.shards[0] % size == 0)
    return run


def plan_runs(frames: range, run: int) -> Iterator[tuple[int, int]]:
    """Yield runs of frames [begin, end), which end at multiples of `run`."""
    begin = frames.start
    while begin < frames.stop:
        end = min((begin // run + 1) * run, frames.stop)
        yield begin, end
        begin = end


def least_bytes(wanted: Wanted) -> int:
    """Return the bytes without which nothing can be read: those of one chunk, and of it on its way."""
    return _least_cell(wanted)


def whole_bytes(wanted: Wanted) -> int:
    """Return the bytes with which frames are read into memory, not into a file."""
    frames = min(plan_run(wanted, 1), wanted.array.shape[0])
    by_cells = frames * wanted.frame_bytes + max(_least_cell(wanted), _CELL_BYTES)
    return min(_cost_of_run(wanted, frames), by_cells)


def good_bytes(wanted: Wanted) -> int:
    """Return the bytes with which frames of ordinary size are read as fast as with more."""
    frames = min(plan_run(wanted, _AHEAD_BYTES), wanted.array.shape[0])
    run = frames * wanted.frame_bytes
    return run + _cost_of_run(wanted, frames) if run <= _AHEAD_BYTES else whole_bytes(wanted)


def _cost_of_run(wanted: Wanted, frames: int) -> int:
    """Bytes that are held while a run is read at once."""
    boxes = wanted.list_boxes(0, min(frames, wanted.array.shape[0]))
    apart = 0 if wanted.is_in_order else frames * wanted.frame_bytes
    return apart + max(_cost(wanted.array, box) for box in boxes)


def _cost(array: Image, box: Box) -> int:
    """Bytes that are held while a box is read: its pixels, and what is on its way."""
    size = prod(part.stop - part.start for part in box) * array.dtype.itemsize
    chunk = prod(array.chunks) * array.dtype.itemsize
    chunks = _count_cells(box, array.chunks)
    if array.shards is None:
        return size + 2 * chunk * min(chunks, _CHUNKS_AT_ONCE)
    shards = _count_cells(box, array.shards)
    at_once = min(shards, _SHARDS_AT_ONCE)
    return size + 2 * size * at_once // shards + 2 * chunk * min(chunks, _CHUNKS_AT_ONCE * at_once)


def _count_cells(box: Box, sizes: Sequence[int]) -> int:
    return prod(-(-part.stop // size) - part.start // size for part, size in zip(box, sizes, strict=True))


def _least_cell(wanted: Wanted) -> int:
    array = wanted.array
    return max(_cost(array, _first_cell(box, array.chunks)) for box in wanted.list_boxes(0, array.chunks[0]))


def _first_cell(box: Box, step: Sequence[int]) -> Box:
    """Return a box of one cell of a grid, or as much of it as a box has."""
    return tuple(slice(0, min(part.stop - part.start, size)) for part, size in zip(box, step, strict=True))


def _whole_step(array: Image) -> tuple[int, ...]:
    return tuple(-(-size // chunk) * chunk for size, chunk in zip(array.shape, array.chunks, strict=True))


def _grow_step(array: Image, box: Box, most: int) -> tuple[int, ...]:
    """Return the largest cells of whole chunks that may be read, whole along the last axes first."""
    step, whole = list(array.chunks), _whole_step(array)
    for axis in reversed(range(len(step))):
        chunk, part = array.chunks[axis], box[axis]
        needed = -(-part.stop // chunk) - part.start // chunk

        def cost(count: int, axis: int = axis, chunk: int = chunk) -> int:
            return _cost(array, _first_cell(box, [*step[:axis], count * chunk, *step[axis + 1 :]]))

        count = max(bisect_right(range(1, needed + 1), most, key=cost), 1)
        if count < needed:
            step[axis] = _align(count * chunk, array.shards[axis] if array.shards else 1)
            break
        step[axis] = whole[axis]
    return tuple(step)


def _align(step: int, shard: int) -> int:
    """Let a step that is longer than a shard end where shards end."""
    return step // shard * shard if step > shard else step
