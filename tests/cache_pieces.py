"""Ranges to keep in a cache folder, for tests and for the processes that they start; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynaclr_wds.storage.byte_cache import KeptRange

PAGE = 4096


def piece(number: int) -> tuple[KeptRange, memoryview]:
    """A range whose file fills one page, with bytes of its own."""
    size = PAGE - 24
    data = np.random.default_rng(number).integers(0, 256, size, np.uint8)
    return KeptRange("0123456789abcdef", number * size, (number + 1) * size), data.data


def taken(folder: Path) -> int:
    """Bytes of all files, whole or not."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != "used")
