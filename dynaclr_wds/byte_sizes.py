"""Reads a number of bytes as people write it: `4000000`, `512K`, `8M`, `1.5GiB`."""

from __future__ import annotations

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZES = "4000000, 512M, 1.5GiB"
"""Examples, for errors."""


def parse_size(text: str) -> int:
    """Read a number of bytes; units are powers of 1024, with or without `B` or `iB`.

    Raises
    ------
    ValueError
        It is no size, or no finite one.
    """
    number = text.strip().rstrip("BbiKMGTkmgt")
    unit = text.strip()[len(number) :].upper().removesuffix("B").removesuffix("I")
    if unit not in _UNITS:
        raise ValueError(f"{text!r} is no size in bytes. Give one such as {SIZES}.")
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no size in bytes. Give one such as {SIZES}.") from error
