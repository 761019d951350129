"""Fields of view to groups: which FOVs are built together, by one unit of work, into shards of their own. Pure.

A group is closed before it would grow beyond a size, and from half of that size on behind a FOV whose name says so, by
a hash. So where a FOV comes or goes, groups a little further on begin and end where they did before, and their shards
stay. The same FOVs always make the same groups, whatever there was before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int

from dynaclr_wds.contract import part_path

_ONE_IN = 4
"""Of so many FOVs, one closes its group early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """FOVs that are built together."""

    experiment: int
    """Row of the config's experiments."""
    first: int
    """The first FOV of the index."""
    last: int
    """One past the last."""
    rows: slice
    """Observations of the index."""
    digest: str
    """Of all that the group is made of."""

    @property
    def part(self) -> str:
        """Path of the part, relative to the set."""
        return part_path(self.digest)


def plan_groups(names: Sequence[str], sizes: Sequence[int], group_bytes: int) -> list[range]:
    """Put the FOVs of one experiment into groups.

    Parameters
    ----------
    names
        Of the FOVs, in order.
    sizes
        Bytes of the patches of each.
    group_bytes
        Most bytes of a group of several FOVs.

    Returns
    -------
    list
        Runs of FOVs; together they hold each FOV once.
    """
    groups, begin, total = [], 0, 0
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        if number > begin and total + size > group_bytes:
            groups.append(range(begin, number))
            begin, total = number, 0
        total += size
        if 2 * total >= group_bytes and _closes(name):
            groups.append(range(begin, number + 1))
            begin, total = number + 1, 0
    if begin < len(names):
        groups.append(range(begin, len(names)))
    return groups


def plan_group_runs(
    names: Sequence[str],
    experiment: Int[np.ndarray, " fovs"],
    bytes_of_fov: Int[np.ndarray, " fovs"],
    group_bytes: int,
) -> list[tuple[int, int, int]]:
    """Put the FOVs of a collection into groups: the experiment of each, its first FOV, and one past its last.

    Parameters
    ----------
    names
        Of all FOVs; those of an experiment are adjacent.
    experiment
        Of each FOV.
    bytes_of_fov
        Of the patches of its observations, each counted once.
    """
    runs = []
    for number, run in groupby(range(len(names)), experiment.tolist().__getitem__):
        rows = list(run)
        own = slice(rows[0], rows[-1] + 1)
        planned = plan_groups(names[own], bytes_of_fov[own].tolist(), group_bytes)
        runs += [(number, rows[fovs.start], rows[fovs.stop - 1] + 1) for fovs in planned]
    return runs


def _closes(name: str) -> bool:
    return hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % _ONE_IN == 0
