"""Reads the frames of a field of view, every chunk once, and takes from each the slices that are wanted.

Frames are read in runs that end where chunks (shards, where there are any) end. Where the focus is measured, whole
stacks are read; where the metadata say it, the slices that a run needs. A run that is too large for the memory that
there is goes to a file, cell by cell (`read_plan.py`, `filed_frames.py`).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from dynaclr_wds.errors import DynaCLRError, FovError, PlateError
from etl.cut.filed_frames import FiledPixels, FiledStack
from etl.cut.focus import find_focus
from etl.cut.job import CutJob
from etl.cut.read_plan import ReadPlan, Wanted, plan_reading, plan_runs
from etl.run.executors import Interrupted, report
from etl.run.file_room import FileRoom
from etl.run.memory import trim_memory
from etl.source.plate_boxes import cut_box, read_box

Run = tuple[int, int, slice]
"""First frame, one past the last, slices."""
Stacks = Num[np.ndarray, "_ _ _ _"] | list[FiledStack]
"""Channels of a frame, each (Z, Y, X)."""
Pixels = Num[np.ndarray, "_ _ _ _ _"] | FiledPixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame as far as it is wanted."""

    t: int
    pixels: Stacks
    """Stored channels, each (Z, Y, X) with the slices around the stored ones."""
    focus: float
    """Slice of the plate in focus; NaN where it was not asked for."""
    start: float
    """Place of the first stored slice in the plate's stack."""
    offset: float
    """Place of the first stored slice in `pixels`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return sum(stack.nbytes for stack in self.pixels)


def read_frames(job: CutJob) -> Iterator[Frame]:
    """Yield the frames of a FOV that a job reads, in order.

    Raises
    ------
    FovError
        A chunk that does not decode, or that changed while it was read.
    StorageError
        A request to object storage failed.
    BuildError
        The disk can't hold a run that is too large for memory.
    """
    everything, array = job.all_slices, job.fov.array
    plan = plan_reading(Wanted(array=array, channels=job.read_channels, z=everything), job.room.memory_bytes)
    edges = plan_runs(job.frames, plan.frames)
    runs = [(begin, end, _plan_slices(job, begin, end, everything)) for begin, end in edges]
    coming = _read_runs(job, plan, runs)
    for begin, end, read in runs:
        pixels = next(coming)
        for t in range(begin, end):
            yield _take(job, pixels, t - begin, t, read)
        del pixels  # before the next run is read


def read_frame(job: CutJob, t: int) -> Frame:
    """Read one frame by itself, into memory, for a look at it; see `read_frames`."""
    wanted = Wanted(array=job.fov.array, channels=job.read_channels, z=_plan_slices(job, t, t + 1, job.all_slices))
    pixels = _read_run(job, plan_reading(wanted, sys.maxsize), t, t + 1, wanted.z)
    return _take(job, pixels, 0, t, wanted.z)


def _read_runs(job: CutJob, plan: ReadPlan, runs: Sequence[Run]) -> Iterator[Pixels]:
    """Read runs of frames in order, ahead of need: from a disk one, in object storage some, each costs a round trip."""
    if not plan.ahead:
        yield from (_read_run(job, plan, *run) for run in runs)
        return
    coming: deque[Future[Pixels]] = deque()
    waiting = deque(runs)
    pool = ThreadPoolExecutor(plan.ahead, "dynaclr-frames")
    try:
        while waiting or coming:
            while waiting and len(coming) <= plan.ahead:  # the one that is needed now, and those ahead of it
                coming.append(pool.submit(_read_run, job, plan, *waiting.popleft()))
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _plan_slices(job: CutJob, begin: int, end: int, everything: slice) -> slice:
    """Say which slices a run of frames needs."""
    stack = job.stack
    if stack.focus is None:
        return everything
    wanted = [stack.slices(stack.first(focus)) for focus in stack.focus[begin:end]]
    return slice(min(z.start for z in wanted), max(z.stop for z in wanted))


def _take(job: CutJob, pixels: Pixels, number: int, t: int, read: slice) -> Frame:
    """Take the stored channels, and the slices around the stored ones."""
    stack, count = job.stack, len(job.channels)
    focus = float("nan") if stack.focus is None else stack.focus[t]
    if stack.measured is not None:  # its channel is the last one that was read, unless it is stored too
        channel = job.read_channels.index(stack.measured)
        whole = _take_stacks(pixels, number, channel + 1, slice(None))[channel]
        focus = float(find_focus(whole, stack.pixel_size_um))
    start = stack.first(focus)
    wanted = stack.slices(start)
    taken = _take_stacks(pixels, number, count, slice(wanted.start - read.start, wanted.stop - read.start))
    return Frame(t=t, pixels=taken, focus=focus, start=start, offset=start - wanted.start)


def _take_stacks(pixels: Pixels, number: int, channels: int, z: slice) -> Stacks:
    return pixels.take(number, channels, z) if isinstance(pixels, FiledPixels) else pixels[number, :channels, z]


def _read_run(job: CutJob, plan: ReadPlan, begin: int, end: int, z: slice) -> Pixels:
    wanted = Wanted(array=job.fov.array, channels=job.read_channels, z=z)
    try:
        return _read_pixels(job, plan, wanted, begin, end)
    except PlateError as error:
        raise FovError(str(error)) from error
    except (Interrupted, DynaCLRError):
        raise
    except Exception as error:  # whatever a store or codec raises
        frames = f"frame {begin}" if end - begin == 1 else f"frames {begin} to {end - 1}"
        why = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        raise FovError(
            f"{job.fov.where}: {frames} can't be read ({why}). Every chunk must decode. {_CURES[job.on_bad_fov]}"
        ) from error


_CURES = {
    "error": "Restore the plate, or leave the field of view out with exclude_fovs, or all such with on_bad_fov: skip.",
    "skip": "Restore the plate, and build again.",
}


def _read_pixels(job: CutJob, plan: ReadPlan, wanted: Wanted, begin: int, end: int) -> Pixels:
    """Read the boxes of a run, cell by cell; one that is a single cell, with its channels in order, is not copied."""
    array, channels = wanted.array, wanted.channels
    cells = [cell for box in wanted.list_boxes(begin, end) for cell in cut_box(box, plan.step)]
    if len(cells) == 1 and not plan.is_filed and wanted.is_in_order:
        return read_box(array, cells[0])
    shape = (end - begin, len(channels), wanted.z.stop - wanted.z.start, *array.shape[3:])
    pixels: Pixels
    if plan.is_filed:
        pixels = FiledPixels(FileRoom((end - begin) * wanted.frame_bytes, job.room.folder), shape, array.dtype)
    else:
        pixels = np.empty(shape, array.dtype)
    for cell in cells:
        block = read_box(array, cell)
        t, c, z, y, x = cell
        frames, slices = (
            slice(part.start - first, part.stop - first) for part, first in ((t, begin), (z, wanted.z.start))
        )
        for place, channel in enumerate(channels):
            if c.start <= channel < c.stop:
                pixels[frames, place, slices, y, x] = block[:, channel - c.start]
        del block  # before the next one is read
        if plan.is_filed:
            trim_memory()
        report(0)
    return pixels
