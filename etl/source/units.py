"""Holds the units of length and time that metadata of images and tracks are written in."""

from __future__ import annotations

from collections.abc import Mapping

MINUTES: Mapping[str, float] = {
    "millisecond": 1 / 60_000,
    "second": 1 / 60,
    "minute": 1.0,
    "hour": 60.0,
    "day": 1440.0,
}
"""Unit of OME-Zarr → minutes."""
MICROMETRES: Mapping[str, float] = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
"""Unit of OME-Zarr → micrometres."""

_LENGTHS = {
    **dict.fromkeys(("micron", "microns", "um", "µm", "μm", "micrometer", "micrometers", "micrometre"), "micrometer"),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre"), "nanometer"),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre"), "millimeter"),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), "centimeter"),
    **dict.fromkeys(("m", "meter", "metre"), "meter"),
    **dict.fromkeys(("a", "å", "angstrom"), "angstrom"),
}
"""How programs write a unit of length, in lower case → its name in OME-Zarr."""

_TIMES = {
    **dict.fromkeys(("ms", "msec"), "millisecond"),
    **dict.fromkeys(("s", "sec", "secs"), "second"),
    **dict.fromkeys(("min", "mins"), "minute"),
    **dict.fromkeys(("h", "hr", "hrs"), "hour"),
    "d": "day",
}
"""How programs write a unit of time, in lower case → its name in OME-Zarr."""


def is_pixel(unit: str) -> bool:
    """Whether a unit of positions is the pixel."""
    return unit.lower().startswith(("pixel", "px", "voxel"))


def find_micrometres(unit: str) -> float | None:
    """Return how many micrometres a unit of length is, whichever way it is written; None for anything else."""
    name = _LENGTHS.get(unit.lower())
    return None if name is None else MICROMETRES[name]


def find_minutes(unit: str) -> float | None:
    """Return how many minutes a unit of time is, whichever way it is written; None for anything else."""
    name = unit.lower()
    return MINUTES.get(_TIMES.get(name, name.removesuffix("s")))
