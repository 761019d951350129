"""The part of a build that one of several machines does: every n-th group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dynaclr_wds.errors import ConfigError

_Item = TypeVar("_Item")
_PART = re.compile(r"([0-9]+)/([0-9]+)")


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
