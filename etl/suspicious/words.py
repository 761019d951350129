"""Puts suspicions into words: numbers, lists of names, and the experiment that each is about."""

from __future__ import annotations

from collections.abc import Sequence

from dynaclr_wds.suspicions import SuspicionRecord


def suspicion(code: str, experiment: str | None, place: str | None, count: int, text: str) -> SuspicionRecord:
    """Make a record; its text begins with the experiment, and is one line whatever names are in it."""
    whole = text if experiment is None else f"{experiment}: {text}"
    line = "".join(letter if letter.isprintable() else "�" for letter in whole)
    return SuspicionRecord(code=code, experiment=experiment, place=place, count=count, text=line)


def write_size(size: Sequence[float]) -> str:
    """Write a pixel size in micrometres: one number where y and x are alike, else all; empty where it is not known."""
    alike = len(size) == 2 and size[0] == size[1]
    return " x ".join(f"{value:g}" for value in (size[:1] if alike else size)) + " µm" * bool(size)


def write_bytes(count: int) -> str:
    """Write a number of bytes in the largest unit: `6.35 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
