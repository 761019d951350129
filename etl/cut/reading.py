"""Reads the frames of a field of view, every chunk once, and takes from each the slices that are wanted.

Frames are read in runs that end where chunks (shards, where there are any) end. Where the focus is measured, whole
stacks are read; where the metadata say it, the slices that a run needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from dynaclr_wds.errors import DynaCLRError, PlateError
from etl.cut.focus import find_focus
from etl.cut.job import CutJob
from etl.run.executors import Interrupted
from etl.source.image_axes import Image
from etl.source.plate_boxes import read_box
from etl.source.plate_store import PlateStore

RUN_BYTES = 1 << 30
"""Frames of one shard are read together up to this size, then in runs of whole chunks."""
_RUNS_AHEAD, _AHEAD_BYTES = 4, 1 << 28
"""Most runs that are read ahead of need from object storage, and most bytes of them together."""

Run = tuple[int, int, slice]
"""First frame, one past the last, slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame as far as it is wanted."""

    t: int
    pixels: Num[np.ndarray, "c z y x"]
    """Stored channels, the slices around the stored ones."""
    focus: float
    """Slice of the plate in focus; NaN where it was not asked for."""
    start: float
    """Place of the first stored slice in the plate's stack."""
    offset: float
    """Place of the first stored slice in `pixels`."""


def read_frames(job: CutJob) -> Iterator[Frame]:
    """Yield the frames of a FOV in order.

    Raises
    ------
    PlateError
        A chunk that does not decode, or that changed while it was read.
    StorageError
        A request to object storage failed.
    """
    stack, array = job.stack, job.fov.array
    everything = stack.slices(stack.middle) if stack.is_fixed else slice(0, array.shape[2])
    runs = [(begin, end, _plan_slices(job, begin, end, everything)) for begin, end in plan_runs(array, everything)]
    for (begin, end, read), pixels in zip(runs, _read_runs(job, runs), strict=True):
        for t in range(begin, end):
            yield _take(job, pixels[t - begin], t, read)


def read_frame(job: CutJob, t: int) -> Frame:
    """Read one frame by itself, for a look at it; see `read_frames`."""
    whole = slice(0, job.fov.array.shape[2])
    everything = job.stack.slices(job.stack.middle) if job.stack.is_fixed else whole
    read = _plan_slices(job, t, t + 1, everything)
    return _take(job, _read_run(job, t, t + 1, read)[0], t, read)


def _read_runs(job: CutJob, runs: Sequence[Run]) -> Iterator[Num[np.ndarray, "frames channels z y x"]]:
    """Read runs of frames in order, ahead of need: from a disk one, in object storage some, each costs a round trip."""
    ahead = _count_ahead(job.fov.array, runs)
    if not ahead:
        yield from (_read_run(job, *run) for run in runs)
        return
    coming: deque[Future[Num[np.ndarray, "frames channels z y x"]]] = deque()
    waiting = deque(runs)
    pool = ThreadPoolExecutor(ahead, "dynaclr-frames")
    try:
        while waiting or coming:
            while waiting and len(coming) <= ahead:  # the one that is needed now, and those ahead of it
                coming.append(pool.submit(_read_run, job, *waiting.popleft()))
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _count_ahead(array: Image, runs: Sequence[Run]) -> int:
    """Say how many runs to read ahead: one from a disk, none where they are large."""
    pixels = max((end - begin) * (z.stop - z.start) for begin, end, z in runs)
    size = pixels * array.shape[1] * array.shape[3] * array.shape[4] * array.dtype.itemsize
    most = _RUNS_AHEAD if isinstance(array.store, PlateStore) else 1
    return min(most, _AHEAD_BYTES // size)


def _plan_slices(job: CutJob, begin: int, end: int, everything: slice) -> slice:
    """Say which slices a run of frames needs."""
    stack = job.stack
    if stack.focus is None:
        return everything
    wanted = [stack.slices(stack.first(focus)) for focus in stack.focus[begin:end]]
    return slice(min(z.start for z in wanted), max(z.stop for z in wanted))


def _take(job: CutJob, pixels: Num[np.ndarray, "channels z y x"], t: int, read: slice) -> Frame:
    """Take the stored channels, and the slices around the stored ones."""
    stack, count = job.stack, len(job.channels)
    focus = float("nan") if stack.focus is None else stack.focus[t]
    if stack.measured is not None:  # its channel is the last one that was read, unless it is stored too
        place = job.channels.index(stack.measured) if stack.measured in job.channels else count
        focus = float(find_focus(pixels[place], stack.pixel_size_um))
    start = stack.first(focus)
    wanted = stack.slices(start)
    taken = pixels[:count, wanted.start - read.start : wanted.stop - read.start]
    return Frame(t=t, pixels=taken, focus=focus, start=start, offset=start - wanted.start)


def _read_run(job: CutJob, begin: int, end: int, z: slice) -> Num[np.ndarray, "frames channels z y x"]:
    try:
        measured = job.stack.measured
        more = () if measured is None or measured in job.channels else (measured,)
        return _read_channels(job.fov.array, begin, end, (*job.channels, *more), z)
    except (Interrupted, DynaCLRError):
        raise
    except Exception as error:  # whatever a store or codec raises
        raise PlateError(
            f"{job.fov.where}: frames {begin} to {end - 1} can't be read ({error!r}). Every chunk must decode. "
            "Restore the plate, or leave the field of view out with exclude_fovs."
        ) from error


def plan_runs(array: Image, z: slice) -> Iterator[tuple[int, int]]:
    """Yield runs of frames [begin, end) that share no chunk: whole shards while they fit, else whole chunks."""
    frames, chunk = array.shape[0], array.chunks[0]
    run = array.shards[0] if array.shards else chunk
    frame_bytes = array.shape[1] * (z.stop - z.start) * array.shape[3] * array.shape[4] * array.dtype.itemsize
    if run * frame_bytes > RUN_BYTES:
        run = max(RUN_BYTES // (frame_bytes * chunk), 1) * chunk
        if array.shards:  # runs must not straddle shards, whose index would be read twice otherwise
            run = next(size for size in range(run, 0, -chunk) if array.shards[0] % size == 0)
    for begin in range(0, frames, run):
        yield begin, min(begin + run, frames)


def _read_channels(
    array: Image, begin: int, end: int, channels: tuple[int, ...], z: slice
) -> Num[np.ndarray, "frames channels z y x"]:
    """Read some frames; one read for all channels that share a chunk, or lie side by side."""
    low, high = min(channels), max(channels)
    if set(channels) == set(range(low, high + 1)):
        block = read_box(array, (slice(begin, end), slice(low, high + 1), z))
        return block if list(channels) == sorted(channels) else block[:, [channel - low for channel in channels]]
    chunk = array.chunks[1]
    groups: dict[int, list[int]] = {}
    for place, channel in enumerate(channels):
        groups.setdefault(channel // chunk, []).append(place)
    pixels = None
    for places in groups.values():
        low, high = min(channels[p] for p in places), max(channels[p] for p in places)
        block = read_box(array, (slice(begin, end), slice(low, high + 1), z))
        if pixels is None:
            pixels = np.empty((block.shape[0], len(channels), *block.shape[2:]), block.dtype)
        for place in places:
            pixels[:, place] = block[:, channels[place] - low]
    assert pixels is not None, "the config asks for at least one channel"
    return pixels
