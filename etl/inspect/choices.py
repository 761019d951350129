"""What is looked at: which frames, and which pairs of an anchor and a positive. Pure.

Before a build every frame that is read costs time, so the pairs of a field of view share two frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.tau import least_tau
from etl.inspect.collection import Run
from etl.inspect.tally import is_seen_at

_TAG = 0x9A12


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlace:
    """A pair of cells, by their rows in the run of a field of view."""

    fov: int
    stratum: int
    anchor: int
    positive: int | None
    """None where no cell of the stratum has a positive."""


def choose_fovs(cells: Mapping[int, int], count: int, key: tuple[int, ...]) -> list[int]:
    """Choose fields of view of a stratum, those that have anchors before the others.

    Parameters
    ----------
    cells
        Field of view → cells with a positive.
    key
        Seeds the draw.
    """
    rng = np.random.default_rng([_TAG, 0, *key])
    names = sorted(cells)
    drawn = [names[place] for place in rng.permutation(len(names)).tolist()]
    return sorted(sorted(drawn, key=lambda fov: cells[fov] == 0)[:count])


def choose_pairs(run: Run, stratum: int, tau_frames: tuple[int, int], count: int, draw: int = 0) -> list[PairPlace]:
    """Choose pairs of different lineages of one field of view: all anchors of one frame, all positives of another.

    Parameters
    ----------
    run
        The cells of the field of view.
    count
        Most pairs.
    draw
        Another number gives other frames.
    """
    fov = int(run.fov[0])
    rng = np.random.default_rng([_TAG, 1, fov, stratum, draw])
    own = run.stratum == stratum
    anchors = np.flatnonzero(own & run.has_positive)
    if not len(anchors) or tau_frames[1] < 1:
        rows = rng.permutation(np.flatnonzero(own))
        rows = rows[run.t[rows] == run.t[rows[0]]] if len(rows) else rows
        return [PairPlace(fov=fov, stratum=stratum, anchor=row, positive=None) for row in rows[:count].tolist()]
    t = int(run.t[rng.choice(anchors)])
    anchors = anchors[run.t[anchors] == t]
    taus = rng.permutation(np.arange(int(least_tau(tau_frames[0])), tau_frames[1] + 1)).tolist()
    tau = max(taus, key=lambda tau: int(is_seen_at(run, anchors, tau).sum()))
    anchors = rng.permutation(anchors[is_seen_at(run, anchors, tau)])
    _, place = np.unique(run.lineage[anchors], return_index=True)
    later = np.flatnonzero(run.t == t + tau)
    pairs = []
    for anchor in anchors[np.sort(place)][:count].tolist():
        relatives = later[run.lineage[later] == run.lineage[anchor]]
        same = relatives[run.track[relatives] == run.track[anchor]]
        positive = int(same[0]) if len(same) else int(rng.choice(relatives))
        pairs.append(PairPlace(fov=fov, stratum=stratum, anchor=anchor, positive=positive))
    return pairs


def choose_frames(fovs: Mapping[int, FovRecord], known: set[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Choose frames (FOV, t) that are spread over the fields of view and over time, beside those that are known.

    Parameters
    ----------
    known
        Frames that are looked at anyway.
    count
        Frames altogether.
    """
    frames = set(known)
    count = min(count, sum(fov.frames for fov in fovs.values()))
    wanted = max(count - len(frames), 0)
    for number in range(wanted):
        share = (2 * number + 1) / (2 * wanted)
        fov = sorted(fovs)[int(share * len(fovs))]
        steps = fovs[fov].frames
        t = next(
            (
                t
                for t in np.roll(np.arange(steps), -int(share * _STRIDE * steps) % steps).tolist()
                if (fov, t) not in frames
            ),
            0,
        )
        frames.add((fov, t))
    return sorted(frames)


_STRIDE = 0.618034 * 7
"""So that frames of FOVs that follow each other are of different times."""
