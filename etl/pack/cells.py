"""Rows of patches to cells: says whose patches a block or a shard holds, by track and frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.contract import Manifest
from dynaclr_wds.words import count_of

_TRACKS = 3
"""Tracks that a text names; the rest are counted."""
_RUNS = 3
"""Runs of frames that a text names of a track."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackCells:
    """Cells of one track: one per frame."""

    experiment: str
    fov_name: str
    track_id: int
    t: tuple[int, ...]
    """Frames, ascending."""


def list_cells(
    manifest: Manifest, arrays: Mapping[str, Shaped[np.ndarray, "*shape"]], first: int, last: int
) -> tuple[TrackCells, ...]:
    """List the cells of some patches, in the order of the index.

    Parameters
    ----------
    arrays
        Index arrays that fit each other.
    first, last
        Rows of the patches: the first, and one past the last.
    """
    obs = np.unique(arrays["patch_obs"][first:last])  # observations are ordered by FOV, track and frame
    edges = np.flatnonzero(np.diff(arrays["obs_track"][obs], prepend=-1)).tolist()
    found = []
    for begin, end in zip(edges, [*edges[1:], obs.size], strict=True):
        fov = manifest.fovs[int(arrays["obs_fov"][obs[begin]])]
        track, t = int(arrays["obs_track_id"][obs[begin]]), tuple(arrays["obs_t"][obs[begin:end]].tolist())
        found.append(TrackCells(experiment=fov.experiment, fov_name=fov.fov_name, track_id=track, t=t))
    return tuple(found)


def count_cells(cells: Iterable[TrackCells]) -> int:
    """Count cells; one that is listed twice is one."""
    return len({(c.experiment, c.fov_name, c.track_id, t) for c in cells for t in c.t})


def describe_cells(cells: Sequence[TrackCells]) -> str:
    """Name the first cells, and count the rest: `e0, FOV A/1/0, track_id 3, t 0 to 7; and 2 cells of 2 more tracks`."""
    named, before = [], ""
    for track in cells[:_TRACKS]:
        place = f"{track.experiment}, FOV {track.fov_name}, "
        named.append(f"{'' if place == before else place}track_id {track.track_id}, t {_write_runs(track.t)}")
        before = place
    rest = cells[_TRACKS:]
    if rest:
        number = count_of(count_cells(rest), "cell")
        named.append(f"and {number} of {count_of(len(rest), 'more track')}")
    return "; ".join(named)


def _write_runs(t: Sequence[int]) -> str:
    """Write frames as runs: `0 to 7, 9`; many runs as one with gaps."""
    edges = [0, *(n for n in range(1, len(t)) if t[n] != t[n - 1] + 1), len(t)]
    runs = [t[begin:end] for begin, end in pairwise(edges)]
    if len(runs) > _RUNS:
        return f"{t[0]} to {t[-1]} with gaps"
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
