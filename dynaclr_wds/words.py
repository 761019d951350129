"""Numbers to words: what both halves print where they count something. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number and what it counts: `1 track`, `1,200 tracks`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def list_some(names: Sequence[str], most: int = 4) -> str:
    """List the first few names, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def percent(share: float) -> str:
    """Write a fraction as a percentage: `11.6%`, with one more digit below 2 %."""
    return f"{share:.2%}" if share < 0.02 else f"{share:.1%}"


def size_of(number: float | int) -> str:
    """Write a number of bytes in the largest unit of 1,024: `900 bytes`, `12.4 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def size_option(number: int) -> str:
    """Write a number of bytes as it is typed after an option, rounded up: `12.4M`."""
    for unit, scale in (("T", 2**40), ("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if number >= scale:
            return f"{-(-number * 10 // scale) / 10:g}{unit}"
    return str(number)
