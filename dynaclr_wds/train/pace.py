"""Steps to rates: how fast a loop is, what it waits for, how long the rest takes, and when to say so."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from dynaclr_wds.time_left import TimeLeft, write_duration


class Pace:
    """Counts samples, and seconds of waiting for a loader, from when it is made; pauses are left out.

    Parameters
    ----------
    loader
        Counts its own `waited_seconds`, as `ThreadDataLoader` does; of others, waiting is not known.
    """

    def __init__(self, loader: Any) -> None:
        self.samples = 0
        self.steps = 0
        self._loader = loader
        self._waited = self._read_waited()
        self._begun = time.perf_counter()
        self._paused_at: float | None = None

    def add(self, batch: Any) -> None:
        """Count a batch."""
        self.steps += 1
        self.samples += len(batch["anchor"]) if isinstance(batch, Mapping) and "anchor" in batch else 0

    def pause(self) -> None:
        """Stop the clock."""
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Let the clock run again."""
        if self._paused_at is not None:
            self._begun += time.perf_counter() - self._paused_at
            self._paused_at = None

    @property
    def seconds(self) -> float:
        """Seconds on the clock."""
        return max((self._paused_at or time.perf_counter()) - self._begun, 1e-9)

    @property
    def waiting(self) -> float | None:
        """Fraction of the time in which the loop waited for the loader; None where it isn't counted."""
        waited = self._read_waited()
        return None if waited is None or self._waited is None else min((waited - self._waited) / self.seconds, 1.0)

    def describe(self, world_size: int) -> list[str]:
        """Say the rate, and what was waited for."""
        found = [f"{self.samples * world_size / self.seconds:,.0f} samples/s"] if self.samples else []
        found += [] if self.waiting is None else [f"{self.waiting:.0%} of the time waiting for the loader"]
        return found

    def _read_waited(self) -> float | None:
        return getattr(self._loader, "waited_seconds", None)


class Remaining:
    """Guesses how long the rest of a training takes: its steps, and what is between them and the end of their epochs.

    Steps count by their own pace. Validations, checkpoints and the like count by what an epoch of this run took of
    them; before one has ended, they are left out.
    """

    def __init__(self, least_seconds: float) -> None:
        self._steps = TimeLeft(least_seconds)
        self._between, self._epochs = 0.0, 0
        self._mark = time.perf_counter()

    def add_step(self) -> None:
        """Count a step, which ends now."""
        self._steps.add(1, self._lap())

    def add_between(self) -> None:
        """Count the time since the last mark as one between steps."""
        self._between += self._lap()

    def end_epoch(self) -> None:
        """Count an epoch, which ends now but for its checkpoint."""
        self.add_between()
        self._epochs += 1

    def describe(self, steps: int | float, epochs: int | float, validates: bool = False) -> list[str]:
        """Say how long so many steps and ends of epochs will take; nothing while that can't be told."""
        seconds = self._steps.guess(steps)
        if seconds is None or not 0 < steps < math.inf:
            return []
        if not self._epochs:
            return [f"about {write_duration(seconds)} left" + (", validation not counted" if validates else "")]
        return [f"about {write_duration(seconds + epochs * self._between / self._epochs)} left"]

    def _lap(self) -> float:
        begun, self._mark = self._mark, time.perf_counter()
        return self._mark - begun


class Stride:
    """Chooses at which steps lines are printed: all of them, or where these come too fast, every 2nd, 5th, 10th, ….

    Lines then keep coming at whole multiples, and never more often.

    Parameters
    ----------
    every
        Steps from line to line, if there is time.
    least_seconds
        Time that should be between two lines.
    """

    def __init__(self, every: int, least_seconds: float) -> None:
        self.every = every
        self._factor = 1
        self._least_seconds = least_seconds

    def is_due(self, step: int, seconds_per_step: float) -> bool:
        """Whether a line is due after a step; it widens the stride where lines would come too fast."""
        if step % (self.every * self._factor):
            return False
        while self.every * self._factor * seconds_per_step < self._least_seconds:
            self._factor = next(f for f in _round_factors() if f > self._factor)
        return step % (self.every * self._factor) == 0


def _round_factors() -> Iterator[int]:
    """Yield 1, 2, 5, 10, 20, 50 and so on."""
    for power in count():
        yield from (digit * 10**power for digit in (1, 2, 5))
