"""Runs of cells to counts: strata, labels, tracks, τ, hours, places and the largest lineages. Pure.

Everything is a sum over runs, so a collection of any size needs the memory of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64

from dynaclr_wds.tau import least_tau
from etl.inspect.collection import Collection, Run
from etl.inspect.lineage_trees import Tree, list_trees

DENSITY = 24
"""Squares of the field of view along y and x, in which cells are counted."""
_MOST_TAUS, _MOST_BINS, _TREES = 12, 24, 6
_EVEN = 4
"""Widths that are tried for bins that hold as many frames as each other."""
_WIDTHS = (0.25, 0.5, 1, 2, 3, 4, 6, 12, 24, 48, 96, 168)
"""Hours of a bin of HPI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Counts of cells that have something in common."""

    cells: int
    with_positive: int
    tracks: int
    lineages: int
    fovs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentCount(Count):
    """Counts of an experiment."""

    divisions: int
    """Tracks with at least two daughters."""
    tracks_with_gaps: int
    lengths: Mapping[int, int]
    """Cells of a track → tracks."""
    steps: Mapping[int, int]
    """Frames from a cell to the next of its track → how often."""
    cycles: Mapping[int, int]
    """Frames from one division to the next → tracks."""
    tau: Mapping[int, int]
    """τ in frames → cells whose lineage was seen so much later."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """All that is counted."""

    experiments: tuple[ExperimentCount, ...]
    strata: tuple[Count, ...]
    labels: Mapping[str, tuple[Count, ...]]
    """Label → of each of its values, and last of cells without one."""
    hours: tuple[float, ...]
    """Edges of the bins of HPI."""
    hpi: Int64[np.ndarray, "strata bins"]
    places: Int64[np.ndarray, "experiments y x"]
    """Cells in each square of the field of view."""
    trees: tuple[tuple[Tree, ...], ...]
    """The largest lineages of each experiment."""
    stratum_fovs: tuple[Mapping[int, int], ...]
    """Of each stratum: field of view → cells with a positive, or 0."""


def list_taus(tau_frames: tuple[int, int]) -> list[int]:
    """List the τ of a range that are counted: all of them, or some that are evenly spread."""
    low, high = int(least_tau(tau_frames[0])), tau_frames[1]
    if high < low:
        return []
    return sorted({round(value) for value in np.linspace(low, high, min(high - low + 1, _MOST_TAUS)).tolist()})


def plan_hours(first: float, last: float, interval_minutes: Sequence[float] = ()) -> tuple[float, ...]:
    """Choose bins of HPI that hold a range of hours: whole hours, or simple parts and multiples, and not too many.

    Bins that hold as many frames as each other are taken before others, so that counts don't seem to swing.

    Parameters
    ----------
    interval_minutes
        Minutes between frames, of each experiment.
    """
    widths = [width for width in _WIDTHS if (last - first) / width < _MOST_BINS - 1]
    hours = [minutes / 60 for minutes in interval_minutes if minutes]
    even = [w for w in widths[:_EVEN] if all(w > h * 0.999 and abs(w / h - round(w / h)) < 1e-6 for h in hours)]
    width = (even or widths or [max((last - first) / 12, 1.0)])[0]
    start = np.floor(first / width) * width
    count = int(np.floor((last - start) / width + 1e-6)) + 1
    return tuple((start + width * np.arange(count + 1)).tolist())


def quantile_of(counts: Mapping[int, int], share: float) -> int:
    """Return the least value that so large a share of the counted values does not exceed; 0 of none."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            return value
    return 0


class Tallying:
    """Adds up runs.

    Parameters
    ----------
    collection
        What they are of.
    """

    def __init__(self, collection: Collection) -> None:
        self._experiments, self._fovs, self._labels = collection.experiments, collection.fovs, collection.labels
        experiments, strata = len(self._experiments), len(collection.strata)
        self._hours = self._plan_hours()
        self._hpi = np.zeros((strata, len(self._hours) - 1), np.int64)
        self._places = np.zeros((experiments, DENSITY, DENSITY), np.int64)
        self._size = np.array([(fov.height, fov.width) for fov in self._fovs], np.float64).reshape(-1, 2)
        self._of_experiment = [_Sums() for _ in range(experiments)]
        self._of_stratum = np.zeros((strata, 5), np.int64)
        self._of_label = {label.name: np.zeros((len(label.values) + 1, 5), np.int64) for label in self._labels}
        self._trees: list[tuple[Tree, ...]] = [()] * experiments
        self._stratum_fovs: list[dict[int, int]] = [{} for _ in range(strata)]

    def _plan_hours(self) -> tuple[float, ...]:
        known = {record.name: record for record in self._experiments}
        first = [known[fov.experiment].start_hpi for fov in self._fovs]
        spans = [(fov.frames - 1) * known[fov.experiment].interval_minutes / 60 for fov in self._fovs]
        last = [begin + span for begin, span in zip(first, spans, strict=True)]
        minutes = [record.interval_minutes for record in self._experiments]
        return plan_hours(min(first, default=0.0), max(last, default=0.0), minutes)

    def add(self, run: Run) -> None:
        """Add the cells of a run."""
        record = self._experiments[run.experiment]
        self._of_experiment[run.experiment].add(run, list_taus(record.tau_frames) if record.interval_minutes else [])
        self._of_stratum += _count(run, run.stratum, len(self._of_stratum))
        for name, sums in self._of_label.items():
            codes = run.labels[name]
            sums += _count(run, np.where(codes < 0, len(sums) - 1, codes), len(sums))
        self._add_places(run)
        trees = list_trees(run, _TREES, record.start_hpi, record.interval_minutes / 60)
        both = (*self._trees[run.experiment], *trees)
        self._trees[run.experiment] = tuple(sorted(both, key=lambda tree: tree.rank)[:_TREES])
        key = run.stratum.astype(np.int64) * len(self._fovs) + run.fov
        for places, kind in ((key, 0), (key[run.has_positive], 1)):
            for place, count in zip(*(found.tolist() for found in np.unique(places, return_counts=True)), strict=True):
                stratum, fov = divmod(place, len(self._fovs))
                self._stratum_fovs[stratum][fov] = count * kind

    def _add_places(self, run: Run) -> None:
        """Count cells by hours, and by their place in the field of view."""
        bins = len(self._hours) - 1
        width = self._hours[1] - self._hours[0]
        place = np.floor((run.hpi.astype(np.float64) - self._hours[0]) / width + 1e-5).astype(np.int64)
        key = run.stratum.astype(np.int64) * bins + np.clip(place, 0, bins - 1)
        self._hpi += np.bincount(key, minlength=self._hpi.size).reshape(self._hpi.shape)
        y, x = (
            np.clip(np.floor(values / self._size[run.fov, axis] * DENSITY), 0, DENSITY - 1).astype(np.int64)
            for axis, values in enumerate((run.y, run.x))
        )
        square = np.bincount(y * DENSITY + x, minlength=DENSITY * DENSITY)
        self._places[run.experiment] += square.reshape(DENSITY, DENSITY)

    def finish(self) -> Tally:
        """Return what was counted."""
        return Tally(
            experiments=tuple(sums.finish() for sums in self._of_experiment),
            strata=_make_counts(self._of_stratum),
            labels={name: _make_counts(sums) for name, sums in self._of_label.items()},
            hours=self._hours,
            hpi=self._hpi,
            places=self._places,
            trees=tuple(self._trees),
            stratum_fovs=tuple(self._stratum_fovs),
        )


def _make_counts(sums: Int64[np.ndarray, "groups 5"]) -> tuple[Count, ...]:
    return tuple(Count(**dict(zip(Count.__slots__, row, strict=True))) for row in sums.tolist())


class _Sums:
    """Sums of one experiment."""

    def __init__(self) -> None:
        self._counts = np.zeros(5, np.int64)
        self._divisions = self._gaps = 0
        self._many: dict[str, dict[int, int]] = {name: {} for name in ("lengths", "steps", "cycles", "tau")}

    def add(self, run: Run, taus: Sequence[int]) -> None:
        self._counts += _count(run, np.zeros(len(run), np.int64), 1)[0]
        first = run.first
        daughters = np.bincount(run.parent[run.parent >= 0], minlength=len(run.parent))
        self._divisions += int((daughters > 1).sum())
        step = np.diff(run.t)[np.diff(run.track) == 0]
        with_gap = run.track[1:][np.diff(run.track) == 0][step > 1]
        self._gaps += len(np.unique(with_gap))
        length = np.diff(np.append(first, len(run)))
        span = run.t[np.append(first[1:], len(run)) - 1] - run.t[first] + 1
        self._add("lengths", length)
        self._add("steps", step)
        self._add("cycles", span[(daughters > 1) & (run.parent >= 0)])
        for tau, count in zip(taus, _count_later(run, taus), strict=True):
            self._many["tau"][tau] = self._many["tau"].get(tau, 0) + count

    def _add(self, name: str, values: Int[np.ndarray, " n"]) -> None:
        sums = self._many[name]
        for value, count in zip(*(found.tolist() for found in np.unique(values, return_counts=True)), strict=True):
            sums[value] = sums.get(value, 0) + count

    def finish(self) -> ExperimentCount:
        cells, with_positive, tracks, lineages, fovs = self._counts.tolist()
        return ExperimentCount(
            cells=cells,
            with_positive=with_positive,
            tracks=tracks,
            lineages=lineages,
            fovs=fovs,
            divisions=self._divisions,
            tracks_with_gaps=self._gaps,
            lengths=self._many["lengths"],
            steps=self._many["steps"],
            cycles=self._many["cycles"],
            tau=self._many["tau"],
        )


def _count_later(run: Run, taus: Sequence[int]) -> list[int]:
    """Count the cells whose lineage was seen τ frames later, for each τ."""
    step = int(run.t.max(initial=0)) + max(taus, default=0) + 2
    key = np.sort(run.lineage.astype(np.int64) * step + run.t, kind="stable")
    counts = []
    for tau in taus:
        place = np.minimum(np.searchsorted(key, key + tau), len(key) - 1)
        counts.append(int((key[place] == key + tau).sum()))
    return counts


def _count(run: Run, group: Int[np.ndarray, " n"], groups: int) -> Int64[np.ndarray, "groups 5"]:
    """Count cells, cells with a positive, tracks, lineages and fields of view of each group."""
    found = np.zeros((groups, 5), np.int64)
    found[:, 0] = np.bincount(group, minlength=groups)
    found[:, 1] = np.bincount(group[run.has_positive], minlength=groups)
    # of cells that stand together one is enough
    new = np.ones(len(run), bool)
    new[1:] = (np.diff(run.track) != 0) | (np.diff(group) != 0)
    rows = np.flatnonzero(new)
    for column, owner in ((2, run.track), (3, run.lineage), (4, run.fov)):
        found[:, column] = _count_distinct(owner[rows], group[rows], groups)
    return found


def _count_distinct(
    owner: Int[np.ndarray, " n"], group: Int[np.ndarray, " n"], groups: int
) -> Int64[np.ndarray, " groups"]:
    pairs = np.unique(owner.astype(np.int64) * groups + group)
    return np.bincount(pairs % groups, minlength=groups)


def is_seen_at(run: Run, rows: Int64[np.ndarray, " k"], tau: int) -> Bool[np.ndarray, " k"]:
    """Say whether the lineage of cells was seen τ frames later."""
    step = int(run.t.max(initial=0)) + tau + 2
    key = run.lineage.astype(np.int64) * step + run.t
    return np.isin(key[rows] + tau, key)
