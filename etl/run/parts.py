"""The part of a build that one of several machines does: every n-th group; and which parts did not end."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.words import count_of
from etl.run.output import PARTS_OF

_Item = TypeVar("_Item")
_PART = re.compile(r"([0-9]+)/([0-9]+)")
_MOST = 8
"""Parts that are named; the rest are counted."""


@dataclass(frozen=True, slots=True)
class BuildPart:
    """Part `number` of `count`, counted from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        """Check the range.

        Raises
        ------
        ConfigError
            No such part.
        """
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"part={self}: parts are 1/{self.count} to {self.count}/{self.count}. Correct it.")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def take(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Return the items that are this part's: the same for the same items, whatever else runs."""
        return items[self.number - 1 :: self.count]


def parse_part(text: str) -> BuildPart:
    """Read `i/n`.

    Raises
    ------
    ConfigError
        Something else.
    """
    match = _PART.fullmatch(text)
    if match is None:
        raise ConfigError(f"part={text!r} must be i/n, such as 1/4 for the first of four. Correct it.")
    return BuildPart(int(match[1]), int(match[2]))


def note_part(work: Path, part: BuildPart) -> None:
    """Note in a work folder in how many parts its set is built."""
    (work / f"{PARTS_OF}{part.count}").touch()


def read_counts(work: Path) -> set[int]:
    """Return in how many parts the set of a work folder was built, as far as it is noted."""
    return {int(path.name.removeprefix(PARTS_OF)) for path in work.glob(f"{PARTS_OF}*")}


def describe_missing(missing: Sequence[int], groups: int, counts: Collection[int]) -> str:
    """Say which groups are not built yet, and what to run.

    Parameters
    ----------
    missing
        Their numbers, from 0.
    groups
        Number of all groups.
    counts
        In how many parts the set was built; where that are several numbers, the one with the fewest parts to run is
        told.
    """
    tries = [sorted({number % count + 1 for number in missing}) for count in sorted(counts)]
    fewest = min(range(len(tries)), key=lambda place: len(tries[place]), default=None)
    run = "the parts that did not end"
    if fewest is not None:
        parts = [f"--part {BuildPart(number, sorted(counts)[fewest])}" for number in tries[fewest]]
        shown, more = parts[:_MOST], len(parts) - _MOST
        shown = [*shown, f"{more:,} more"] if more > 0 else shown
        run = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    is_are = "is" if len(missing) == 1 else "are"
    return (
        f"{count_of(len(missing), 'group')} of {groups:,} {is_are} not built yet (number {missing[0] + 1:,} is the "
        f"first). Run {run}, then --finish; or leave out --finish, and this command builds them."
    )
