"""Numbers to words: what both halves print where they count something. Imports nothing."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number and what it counts: `1 track`, `1,200 tracks`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
