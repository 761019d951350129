"""Divides the memory of a build among its units: how many run at once, and what each may hold.

`memory_limit` bounds the whole build. Its index comes first and is made within it; what is left when the units begin is
theirs. Where all workers can't have enough to work at full speed, fewer units run; where one alone can't, it puts what
does not fit into files. So the limit changes how a build runs, and no byte of what it writes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.words import count_of
from etl.run.executors import Elsewhere, MakeExecutor, ThreadUnits, usable_memory

Place = Literal["threads", "processes", "elsewhere"]
"""Where units run: in threads of this process, in processes of this machine, or on other machines."""
PROGRAM_BYTES = 280 << 20
"""What a process that runs units holds anyhow: Python and libraries."""
_STEP = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitNeed:
    """What a unit needs, in bytes."""

    least: int
    """Without which it can't run."""
    whole: int
    """With which no frame goes to a file."""
    good: int
    """With which more would not make it faster."""
    frames: int
    """File that frames go to, if they do."""
    where: str
    """Whose unit it is, for errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How memory is divided."""

    units: int
    """At once."""
    bytes: int
    """Of each, beside what its process holds anyhow."""


def share_memory(
    limit: int, needs: Sequence[UnitNeed], workers: int, place: Place, *, disk_bytes: int, where: str
) -> Shares:
    """Divide the memory of a build among its units.

    Parameters
    ----------
    limit
        `memory_limit`.
    needs
        Of the units that will run.
    workers
        Most units at once.
    disk_bytes
        What files of frames may take together, of all units that run at once; one unit may always have one.
    where
        The config, for errors.

    Raises
    ------
    ConfigError
        The limit is too small for the largest unit alone.
    """
    trim_memory()
    held = 0 if place == "elsewhere" else resident_bytes()
    own = 0 if place == "threads" else PROGRAM_BYTES

    def share(units: int) -> int:
        return (_usable(limit) - held) // (1 if place == "elsewhere" else units) - own

    least, good = max(needs, key=lambda need: need.least), max(need.good for need in needs)
    if share(1) < least.least:
        smallest = ((held + own + least.least) * 8 // 7 // _STEP + 1) * _STEP
        raise ConfigError(
            f"{where}: shards.memory_limit={limit:,} bytes are too few for a unit of {least.where}: it needs "
            f"{least.least:,} for one chunk of the plate, one patch and what makes shards of them, beside "
            f"{held + own:,} that the program holds. Give --memory-limit {smallest >> 20}M or more."
        )
    units = next((n for n in range(workers, 0, -1) if share(n) >= good), 0)
    if not units:
        units = next(n for n in range(workers, 0, -1) if share(n) >= least.least)
        files = max((need.frames for need in needs if need.whole > share(units)), default=0)
        units = min(units, max(disk_bytes // files, 1)) if files else units
    return Shares(units=units, bytes=share(units))


def find_place(make_executor: MakeExecutor) -> Place:
    """Say where the units of an executor run; one that is not ours has processes."""
    if make_executor is ThreadUnits:
        return "threads"
    return "elsewhere" if isinstance(make_executor, Elsewhere) else "processes"


def describe_shares(shares: Shares, workers: int) -> str | None:
    """Say that memory lets fewer units run than there are workers; None where it lets all."""
    if shares.units >= workers:
        return None
    return (
        f"memory: {count_of(shares.units, 'unit')} at a time, not {workers}, with {shares.bytes >> 20:,} MiB each, "
        "within --memory-limit"
    )


def memory_here() -> int:
    """Return what a unit may hold on the machine where it runs, whatever it was given elsewhere."""
    return _usable(usable_memory()) - PROGRAM_BYTES


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # not now, but at most
    return most if sys.platform == "darwin" else most * 1024


def trim_memory() -> None:
    """Give memory back that allocators keep after large buffers were freed, most of them by threads of a library."""
    trim = _load_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _load_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; None of other C libraries, which have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def find_room(limit: int) -> int:
    """Return what is left of `memory_limit` now: less what this process holds, and what allocators keep."""
    trim_memory()
    return _usable(limit) - resident_bytes()


def _usable(limit: int) -> int:
    """Return a limit less an eighth, for what allocators keep."""
    return limit - limit // 8
