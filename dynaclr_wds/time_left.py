"""Steps to the time that is left: says how long the rest of a run takes, once it can be told. Imports nothing."""

from __future__ import annotations


class TimeLeft:
    """Guesses how long the rest takes from the pace of the steps that this run did.

    A step counts by the square of when it was done, so that a slow start is soon forgotten and one slow step moves
    little. Steps of an earlier run, and pauses, are left out by not adding them.

    Parameters
    ----------
    least_seconds
        Seconds that must have been added before there is a guess.
    least_steps
        Calls of `add` that must have been made before there is a guess.
    """

    def __init__(self, least_seconds: float = 10.0, least_steps: int = 3) -> None:
        self._least_seconds, self._least_steps = least_seconds, least_steps
        self._calls, self._elapsed = 0, 0.0
        self._steps, self._seconds = 0.0, 0.0  # weighted sums

    def add(self, steps: int, seconds: float) -> None:
        """Count steps of this run, and the seconds that they took."""
        self._calls += 1
        before, self._elapsed = self._elapsed, self._elapsed + seconds
        keep = (before / self._elapsed) ** 2 if self._elapsed > 0 else 0.0
        self._steps = self._steps * keep + steps
        self._seconds = self._seconds * keep + seconds

    def guess(self, steps: int | float) -> float | None:
        """Guess the seconds that so many steps will take; None while too little was done to tell."""
        if self._calls < self._least_steps or self._elapsed < self._least_seconds or self._steps <= 0:
            return None
        return steps * self._seconds / self._steps


def write_duration(seconds: int | float) -> str:
    """Write a guessed time as people say it: `40 s`, `12 min`, `3 h 20 min`, `2 days 5 h`."""
    if seconds < 60:
        return f"{max(round(seconds / 5) * 5, 5)} s" if seconds < 57.5 else "1 min"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"
