"""Wherever units run, people see how many frames are done, and how many units run and wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import etl.run.executors
import etl.run.progress
from etl.build_shards import build_part, build_shards
from etl.run.engines import SubmititUnits
from etl.run.executors import Advance, run_units
from etl.run.progress import BarProgress, LineProgress, Progress
from etl.run.unit_counts import UnitCounts
from etl.source.experiments import parse_build_config
from tests.plates import make_collection

pytestmark = pytest.mark.usefixtures("without_fsync")


def elsewhere(workers: int, _: Advance) -> Executor:
    """Run units in threads that nobody listens to, as those on another machine."""
    return ThreadPoolExecutor(workers)


class Followed(Progress):
    """Keeps what it is told of the frames."""

    def __init__(self) -> None:
        self.total, self.done, self.said = 0, list[tuple[int, int]](), list[str]()

    @contextmanager
    def stage(self, name: str, total: int, unit: str, describe: Any = None) -> Iterator[Advance]:
        assert (name, unit) == ("build", "frames")
        self.total = total
        yield lambda done, size: self.done.append((done, size)) if done else self.said.append(describe())
        self.said.append(describe())


def test_frames_of_units_that_run_elsewhere_count_when_the_unit_ends(tmp_path: Path):
    """6 FOVs of 8 frames, 2 channels of 64 × 64 uint16: 131,072 bytes each; the first of two parts was built before."""
    config = parse_build_config(make_collection(tmp_path / "in", group_bytes=1), {"workers": 1})
    build_part(config, tmp_path / "out", "1/2")
    followed = Followed()
    build_shards(config, tmp_path / "out", progress=followed, make_executor=elsewhere)
    assert followed.total == 48
    assert sorted(followed.done) == [(8, 0)] * 3 + [(8, 131_072)] * 3
    assert set(followed.said) >= {"groups: 6 of 6 built, 0 running, 0 waiting"}


def test_units_that_run_and_wait_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(etl.run.executors, "_LOOK_SECONDS", 0.005)
    steps = [threading.Event() for _ in range(3)]
    counts = UnitCounts[int](3, lambda job: (job + 1, 100))
    told: list[tuple[int, int]] = []
    counts.advance = lambda done, size: told.append((done, size)) if done else None

    def see(text: str) -> None:
        end = time.monotonic() + 60
        while counts.describe() != text:
            assert time.monotonic() < end, counts.describe()
            time.sleep(0.002)

    with ThreadPoolExecutor(1) as pool:
        run = threading.Thread(target=run_units, args=(pool, lambda job: steps[job].wait(60), range(3), 1, counts))
        run.start()
        for ended in range(3):
            see(f"groups: {ended} of 3 built, 1 running, {2 - ended} waiting")
            steps[ended].set()
        run.join(60)
    assert counts.describe() == "groups: 3 of 3 built, 0 running, 0 waiting"
    assert told == [(1, 100), (2, 100), (3, 100)]


def test_jobs_that_wait_in_the_queue_do_not_run():
    class Job:
        state = "PENDING"

        def done(self) -> bool:
            return False

        def cancel(self, check: bool) -> None:
            pass

    jobs = [Job(), Job(), Job()]
    left = iter(jobs)
    executor = SubmititUnits(lambda *_: next(left), poll_seconds=60.0)  # type: ignore[arg-type,return-value]
    futures = [executor.submit(print) for _ in jobs]
    jobs[1].state = "RUNNING"
    counts = UnitCounts[int](5, lambda _: (0, 0))
    counts.look(executor, futures)
    assert counts.describe() == "groups: 0 of 5 built, 1 running, 4 waiting"
    executor._over.set()
    executor.shutdown(cancel_futures=True)


def test_lines_say_it_every_15_seconds_and_every_5_minutes_while_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now, waiting = [0.0], ["2 waiting"]
    monkeypatch.setattr(etl.run.progress.time, "monotonic", lambda: now[0])
    times = []
    with LineProgress().stage("build", 80, "frames", lambda: f"1 running, {waiting[0]}") as advance:
        for _ in range(700):
            now[0] += 1.0
            if now[0] == 650:
                waiting[0] = "1 waiting"
                advance(40, 4_000_000)
            advance(0, 0)
            if line := capsys.readouterr().err:
                times.append((now[0], line))
    assert [time for time, _ in times] == [15, 315, 615, 650]
    assert times[0][1] == "build: 0/80 frames (); 1 running, 2 waiting\n"
    assert times[3][1].startswith("build: 40/80 frames (0 frames/s, 0 MB/s")
    assert times[3][1].endswith("; 1 running, 1 waiting\n")


def test_the_bar_says_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "160")
    with BarProgress().stage("build", 80, "frames", lambda: "1 running, 2 waiting") as advance:
        advance(0, 0)
        advance(40, 4_000_000)
    assert "1 running, 2 waiting" in capsys.readouterr().err
