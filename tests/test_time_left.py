"""The time that is left is told when it can be told, from what this run did, and does not jump."""

from __future__ import annotations

import pytest

import etl.run.progress
from dynaclr_wds.time_left import TimeLeft, write_duration
from etl.run.progress import LineProgress


def test_nothing_is_guessed_before_there_is_something_to_go_by():
    left = TimeLeft(least_seconds=10.0, least_steps=3)
    left.add(1, 6.0)
    left.add(1, 6.0)
    assert left.guess(100) is None  # two steps
    left.add(1, 6.0)
    assert left.guess(100) == pytest.approx(600.0)
    quick = TimeLeft(least_seconds=10.0, least_steps=3)
    for _ in range(90):
        quick.add(1, 0.1)
    assert quick.guess(100) is None  # nine seconds


def test_a_slow_start_is_soon_forgotten():
    """A plain mean would still say 1,190 s after 20 steps of which the first took 20 s."""
    left = TimeLeft()
    left.add(1, 20.0)
    for _ in range(100):
        left.add(1, 1.0)
    assert left.guess(1000) == pytest.approx(1000.0, rel=0.03)


def test_one_slow_step_moves_the_guess_little():
    left = TimeLeft()
    for _ in range(200):
        left.add(1, 1.0)
    left.add(1, 5.0)
    assert left.guess(1000) == pytest.approx(1000.0, rel=0.07)


def test_steps_in_bursts_are_one_pace():
    left = TimeLeft()
    for _ in range(50):
        left.add(0, 1.0)
        left.add(8, 3.0)
    assert left.guess(100) == pytest.approx(50.0, rel=0.03)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "5 s"), (42, "40 s"), (58, "1 min"), (754, "13 min"), (3600, "1 h"), (12_000, "3 h 20 min"),
        (190_800, "2 days 5 h"), (172_800, "2 days"),
    ],
)  # fmt: skip
def test_times_are_written_as_people_say_them(seconds: float, text: str):
    assert write_duration(seconds) == text


def test_a_build_that_goes_on_counts_only_what_it_does_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Of 100 frames 60 were cut before; 20 more take 2 s each: 20 left are 40 s, and not 10."""
    now = [0.0]
    monkeypatch.setattr(etl.run.progress.time, "monotonic", lambda: now[0])
    with LineProgress().stage("cut", 100, "frames") as advance:
        for _ in range(6):
            advance(10, 0)
        for _ in range(20):
            now[0] += 2.0
            advance(1, 4_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "cut: 68/100 frames (60 kept, 0 frames/s, 2 MB/s, about 1 min left)"
    assert lines[-1] == "cut: 80/100 frames (60 kept, 0 frames/s, 2 MB/s, about 40 s left)"
    assert len(lines) == 3


def test_nothing_is_left_at_the_end_of_a_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    monkeypatch.setattr(etl.run.progress.time, "monotonic", lambda: now[0])
    with LineProgress().stage("pack", 40, "patches") as advance:
        for _ in range(4):
            now[0] += 5.0
            advance(10, 5_000_000)
    assert capsys.readouterr().err.splitlines()[-1] == "pack: 40/40 patches (2 patches/s, 1 MB/s)"
