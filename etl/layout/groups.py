"""Fields of view to groups: which FOVs are built together, by one unit of work, into shards of their own. Pure.

A group is closed before it would grow beyond a size, and from half of that size on behind a FOV whose name says so, by
a hash. So where a FOV comes or goes, groups a little further on begin and end where they did before, and their shards
stay. The same FOVs always make the same groups, whatever there was before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dynaclr_wds.contract import part_path
from etl.layout.segments import Segment

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
    run: range
    """FOVs of the index whose segments are joined together: these, or more."""
    segment: Segment
    """Frames of them."""
    observations: int
    """How many are cut."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGroup:
    """FOVs that are to be built together; numbers count in the index."""

    experiment: int
    """Row of the config's experiments."""
    run: range
    """FOVs whose segments are joined together."""
    fovs: range
    """Those of the group."""
    segment: Segment


def plan_segment_groups(
    names: Sequence[str], sizes: Int[np.ndarray, "fovs segments"], group_bytes: int
) -> Iterator[tuple[range, int, range]]:
    """Put the FOVs of one experiment into runs, and those of a run, segment by segment, into groups.

    A run is what `plan_groups` makes of the first segment, which frames that come later don't change. Where a later
    segment has more cells, several groups share the FOVs of a run.

    Parameters
    ----------
    names
        Of the FOVs, in order.
    sizes
        Bytes of the patches of each segment's own frames.

    Yields
    ------
    tuple
        FOVs of the run, the number of the segment, FOVs of the group.
    """
    for run in plan_groups(names, sizes[:, 0].tolist(), group_bytes):
        for number in range(sizes.shape[1]):
            own = slice(run.start, run.stop)
            for group in plan_groups(names[own], sizes[own, number].tolist(), group_bytes):
                yield run, number, range(run.start + group.start, run.start + group.stop)


def _closes(name: str) -> bool:
    return hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % _ONE_IN == 0
