"""Threads without a unit help the units that run, and the next frames are read while some are cut."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import etl.cut.reading
from etl.cut.job import CutJob, ReadingRoom
from etl.cut.read_plan import ReadPlan
from etl.cut.reading import Pixels, read_frames
from etl.run.executors import Interrupted, ThreadUnits, report, run_units, share_out
from etl.source.plates import open_plate
from etl.source.stored import Stack, StoredPatch
from tests.plates import make_collection

LONG = 60.0


@pytest.fixture
def pool() -> Iterator[ThreadUnits]:
    with ThreadUnits(2, lambda _done, _size: None) as pool:
        yield pool


def test_the_only_unit_has_all_threads_and_its_results_are_in_order(pool: ThreadUnits):
    both = threading.Barrier(2)

    def work(number: int) -> int:
        if number < 2:
            both.wait(LONG)  # passed by two threads only
        report(1)
        return number**2

    def unit(_: None) -> list[int]:
        return share_out(work, range(5))

    assert run_units(pool, unit, [None], 2) == ([0, 1, 4, 9, 16],)


def test_nobody_helps_where_every_thread_has_a_unit(pool: ThreadUnits):
    both, ended = threading.Barrier(2), threading.Barrier(2)

    def unit(_: int) -> set[str]:
        both.wait(LONG)
        names = share_out(lambda _number: threading.current_thread().name, range(20))
        ended.wait(LONG)
        return set(names)

    first, second = run_units(pool, unit, [0, 1], 2)
    assert {len(first), len(second)} == {1}
    assert first != second


def test_what_a_helper_raises_is_raised_by_its_unit(pool: ThreadUnits):
    both = threading.Barrier(2)

    def work(number: int) -> int:
        both.wait(LONG)
        if threading.current_thread().name.startswith("helper"):
            raise ValueError(f"of {number // 2}")
        return number

    with pytest.raises(ValueError, match="of 0"):
        run_units(pool, lambda _: share_out(work, range(2)), [None], 2)


def test_helpers_end_when_a_build_is_stopped(pool: ThreadUnits):
    both, done = threading.Barrier(2), []

    def work(number: int) -> None:
        if number < 2:
            both.wait(LONG)
            pool.stop_units()
        report(1)
        done.append(number)

    with pytest.raises(Interrupted):
        run_units(pool, lambda _: share_out(work, range(100)), [None], 2)
    assert not done


def test_without_a_pool_things_are_done_one_after_the_other():
    assert share_out(lambda number: (number, threading.current_thread().name), range(3)) == [
        (number, threading.current_thread().name) for number in range(3)
    ]


def test_the_next_frames_are_read_while_some_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_collection(tmp_path, experiments=1, lineages=1)
    (path,) = tmp_path.rglob("*.zarr")
    fov = next(iter(open_plate(path).fovs.values()))
    begun, read = [threading.Event() for _ in range(fov.shape[0])], etl.cut.reading._read_run

    def read_run(job: CutJob, plan: ReadPlan, begin: int, end: int, z: slice) -> Pixels:
        begun[begin].set()
        return read(job, plan, begin, end, z)

    monkeypatch.setattr(etl.cut.reading, "_read_run", read_run)
    monkeypatch.setattr(etl.cut.reading, "plan_runs", lambda frames, _run: [(t, t + 1) for t in frames])
    patch = StoredPatch(shape=(1, 1, 4, 4), dtype=fov.array.dtype, scale=(1.0, 1.0, 1.0), reductions=("none",))
    none = np.empty(0, np.int64)
    job = CutJob(
        fov=fov,
        channel_names=("a",),
        channels=(0,),
        patch=patch,
        stack=Stack(size=1, scale=1.0, ends=(0, 1), middle=0.0),
        t=none,
        y=none,
        x=none,
        on_blank="drop",
        on_nan="error",
        room=ReadingRoom(memory_bytes=1 << 30, folder=tmp_path),
    )
    for frame in read_frames(job):
        assert all(event.wait(LONG) for event in begun[: frame.t + 2])
        assert not any(event.is_set() for event in begun[frame.t + 2 :])
