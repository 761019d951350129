"""Counts what the tracks of an experiment are like, and finds jumps and experiments without anchors.

Looks at the observations that are left, group by group, with numpy; of an experiment only the lengths of its steps are
held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
from jaxtyping import Float64, Int, Shaped

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.suspicions import FactsRecord, SuspicionRecord
from dynaclr_wds.tau import least_tau
from dynaclr_wds.words import count_of
from etl.index import Index
from etl.layout.jobs import read_columns
from etl.queries import TrackTable
from etl.source.config import BuildConfig, ExperimentConfig
from etl.suspicious.words import suspicion

JUMP = 20.0
"""A step is a jump when it is longer than this many median steps of its experiment, and than half a patch. In real
movies of slow cells, sound tracks have steps of 16 medians where the outline of a cell changes."""

ALIKE = 0.25
"""Fraction of cells that may have the patch of another cell of their frame."""

_ALMOST = 1e-3
"""Slices that rounding may be off."""

Columns = Mapping[str, Shaped[np.ndarray, " obs"]]
"""As `etl.layout.jobs.read_columns`."""


class CellSums:
    """What is known of the cells of one experiment, added up over groups of fields of view.

    Tracks and lineages never leave their field of view, so all but the median of steps are sums.

    Parameters
    ----------
    tables
        Its track tables.
    """

    def __init__(self, config: BuildConfig, experiment: ExperimentConfig, tables: Sequence[TrackTable]) -> None:
        self.experiment, self.tables = experiment, tables
        self._config, self._grids = config, config.grids_for(experiment)
        self.cells = self.tracks = self.divisions = self.tracks_with_gaps = 0
        self.moved = self.padded = self.clamped = self.alike = 0
        self.largest_move, self.longest_lineage = 0.0, 0
        self.has_candidate, self.are_images_large = False, True
        self.conditions: dict[str, int] = {}
        """Condition → cells."""
        self.steps, self.median_step, self.jumps, self.longest_step = 0, 0.0, 0, Step(-1.0, "", 0, 0)
        self._lengths: list[Float64[np.ndarray, " steps"]] = []

    def add(self, index: Index, columns: Columns) -> None:
        """Add the cells of a group, whose rows are sorted by (track, t)."""
        if not columns["t"].size:
            return
        self.cells += columns["t"].size
        self.tracks += len(index.tracks)
        parent, gap = index.tracks["parent_track_index"].to_numpy(), _track_steps(columns)
        self.divisions += int((np.bincount(parent[parent >= 0], minlength=1) > 1).sum())
        self.tracks_with_gaps += np.unique(columns["track_index"][1:][gap > 1]).size
        shift = np.maximum(_shifts(columns, "y"), _shifts(columns, "x"))
        self.moved += int((shift > 0).sum())
        self.largest_move = max(self.largest_move, float(shift.max()))
        self.has_candidate |= bool(columns["has_candidate"].any())
        if not self.has_candidate:
            self.longest_lineage = max(self.longest_lineage, _longest_lineage(columns))
        self._add_images(index, columns)
        self._add_steps(index, columns, np.flatnonzero(gap == 1))
        if self._config.z_focus is not None and "z_focus" in columns:
            self.clamped += self._count_clamped(columns)

    def _add_images(self, index: Index, columns: Columns) -> None:
        """Add what depends on the size of the images."""
        fov = columns["fov_index"]
        self.are_images_large &= all(self._is_large(record) for record in index.fovs)
        if not all(self._is_large(table) for table in self.tables):
            self.alike += _count_alike(columns)
        beyond = np.zeros(fov.size, bool)
        for axis, grid, length in zip("yx", self._grids, ("height", "width"), strict=True):
            image = np.array([getattr(record, length) for record in index.fovs], np.int64)[fov]
            beyond |= grid.reaches_beyond(columns[f"{axis}_clamp"], image)
        self.padded += int(beyond.sum())
        for record, count in zip(index.fovs, np.bincount(fov, minlength=len(index.fovs)).tolist(), strict=True):
            condition = self.experiment.well_conditions[record.well]
            self.conditions[condition] = self.conditions.get(condition, 0) + count

    def _is_large(self, image: FovRecord | TrackTable) -> bool:
        height, width = (grid.extent for grid in self._grids)
        return image.height >= 2 * height or image.width >= 2 * width

    def _add_steps(self, index: Index, columns: Columns, before: Int[np.ndarray, " steps"]) -> None:
        """Add the steps from one frame to the next."""
        y, x = (np.diff(columns[axis])[before].astype(np.float64) for axis in ("y", "x"))
        length = np.hypot(y, x)
        self._lengths.append(length)
        if length.size and length.max() > self.longest_step.length:
            worst = int(before[np.argmax(length)])
            fov = index.fovs[int(columns["fov_index"][worst])].fov_name
            track, t = int(columns["track_id"][worst]), int(columns["t"][worst])
            self.longest_step = Step(float(length.max()), fov, track, t)

    def _count_clamped(self, columns: Columns) -> int:
        """Count frames whose first slice is not where the focus asks for it."""
        focus = self._config.z_focus
        assert focus is not None
        below = focus.below(focus.window) * self._config.scale_for(self.experiment)[0]
        moved = np.abs(columns["z_focus"] - below - columns["z_start"]) > _ALMOST
        frames = np.stack([columns["fov_index"][moved], columns["t"][moved]])
        return int(np.unique(frames, axis=1).shape[1])

    @property
    def longest_usual_step(self) -> float:
        """Pixels; a longer step is a jump."""
        return max(JUMP * self.median_step, min(grid.extent for grid in self._grids) / 2)

    def close(self) -> None:
        """Find what needs all cells at once; the steps are let go."""
        length = np.concatenate([np.empty(0), *self._lengths])
        self._lengths = []
        self.steps = length.size
        if length.size:
            self.median_step = float(np.median(length))
            self.jumps = int((length > self.longest_usual_step).sum())


@dataclass(frozen=True, slots=True)
class Step:
    """A step from one frame to the next."""

    length: float
    """Pixels."""
    fov_name: str
    track_id: int
    t: int


class Census:
    """Adds up the cells of all experiments; groups of one experiment follow each other.

    Parameters
    ----------
    tables
        Track tables of all experiments.
    """

    def __init__(self, config: BuildConfig, tables: Sequence[TrackTable]) -> None:
        of = {name: list(group) for name, group in groupby(tables, attrgetter("experiment"))}
        self._sums = [CellSums(config, experiment, of.get(experiment.name, ())) for experiment in config.experiments]
        self._at = 0

    def add(self, experiment: int, index: Index, columns: Columns | None = None) -> None:
        """Add the cells of a group.

        Parameters
        ----------
        experiment
            Row of the config's experiments.
        columns
            Numeric columns of the index, where they were read before.
        """
        if experiment != self._at:
            self._sums[self._at].close()
            self._at = experiment
        self._sums[experiment].add(index, read_columns(index.observations) if columns is None else columns)

    def finish(self) -> list[CellSums]:
        """Return the sums of each experiment, in the order of the config, when all were added."""
        self._sums[self._at].close()
        return self._sums


def count_facts(sums: CellSums) -> FactsRecord:
    """Count tracks, divisions, gaps, moved patches and stacks, and empty track tables of one experiment."""
    return FactsRecord(
        experiment=sums.experiment.name,
        tracks=sums.tracks,
        divisions=sums.divisions,
        tracks_with_gaps=sums.tracks_with_gaps,
        moved_patches=sums.moved,
        largest_move_px=round(sums.largest_move, 2),
        padded_patches=sums.padded,
        empty_tables=sum(not table.rows for table in sums.tables),
        clamped_stacks=sums.clamped,
    )


def _track_steps(columns: Columns) -> Int[np.ndarray, " steps"]:
    """Frames from each observation to the next of its track; 0 where the next is of another track."""
    return np.where(np.diff(columns["track_index"]) == 0, np.diff(columns["t"]), 0)


def _shifts(columns: Columns, axis: str) -> Shaped[np.ndarray, " obs"]:
    """How many whole pixels of the image each patch was moved along an axis."""
    return np.abs(columns[f"{axis}_clamp"] - np.floor(columns[axis]))


def _count_alike(columns: Columns) -> int:
    """Count cells that have the very same patch as another one of their frame."""
    key = np.zeros(columns["t"].size, np.int64)
    for name in ("fov_index", "t", "y_clamp", "x_clamp"):
        values = columns[name].astype(np.int64)
        key = key * (int(values.max(initial=0)) + 1) + values
    counts = np.unique(key, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def _longest_lineage(columns: Columns) -> int:
    """Most frames between the first and the last observation of a lineage."""
    lineage, t = columns["lineage_index"], columns["t"]
    first = np.full(int(lineage.max()) + 1, np.iinfo(t.dtype).max, t.dtype)
    last = np.zeros(first.size, t.dtype)
    np.minimum.at(first, lineage, t)
    np.maximum.at(last, lineage, t)
    return int((last - first).max())


def find_alike(config: BuildConfig, sums: CellSums) -> list[SuspicionRecord]:
    """Find cells of one frame that have the very same patch, as all of them have where a patch is as large as an image.

    Only where images are less than twice as high and wide as a patch, so that moving is what makes them alike.
    """
    if sums.are_images_large or sums.alike <= ALIKE * sums.cells:
        return []
    text = (
        f"{sums.alike:,} of {sums.cells:,} cells have the same patch as another cell of their frame, because patches "
        f"of {list(config.yx_patch_size)} were moved to lie inside images that are hardly larger. Training can't tell "
        "such cells apart. Lower yx_patch_size, or give --border pad, which keeps each cell in the middle."
    )
    return [suspicion("patches_alike", sums.experiment.name, None, sums.alike, text)]


def find_jumps(sums: CellSums) -> list[SuspicionRecord]:
    """Find steps from one frame to the next that are far longer than the others of the experiment."""
    jumps, worst = sums.jumps, sums.longest_step
    if not jumps:
        return []
    text = (
        f"{count_of(jumps, 'step')} of {sums.steps:,} from one frame to the next {'is' if jumps == 1 else 'are'} "
        f"longer than {sums.longest_usual_step:.3g} px, where half of all steps are shorter than "
        f"{sums.median_step:.2g} px. The longest is {worst.length:.4g} px: {worst.fov_name}, track {worst.track_id}, "
        f"from t = {worst.t} to {worst.t + 1}. Tracks that go on in another cell make wrong positives. Look at them, "
        "and cut the tracks there."
    )
    return [suspicion("tracks_jump", sums.experiment.name, worst.fov_name, jumps, text)]


def find_no_anchors(config: BuildConfig, sums: CellSums) -> str | None:
    """Say why no cell of an experiment has a temporal positive; None where one has, or where there is no time."""
    experiment = sums.experiment
    if sums.has_candidate or (sums.cells and not experiment.has_time):
        return None
    if not sums.cells:
        return "no cell of it is left"
    frames = max((table.frames for table in sums.tables), default=0)
    least = int(least_tau(config.tau_frames(experiment)[0]))
    asked = (
        f"the shortest τ of tau_range_hours={list(config.tau_range_hours)} is {count_of(least, 'frame')} at "
        f"interval_minutes={experiment.minutes:g}"
    )
    if frames <= least:
        return f"{asked}, and its movies have {count_of(frames, 'frame')}"
    if sums.longest_lineage < least:
        longest = count_of(sums.longest_lineage, "frame")
        return f"{asked}, and the last cell of its longest lineage comes {longest} after the first"
    most = config.tau_frames(experiment)[1]
    return f"{asked}, and no lineage was seen at two times that are {least} to {most} frames apart"


def check_anchors(config: BuildConfig, has_candidate: bool, count: Callable[[], Sequence[CellSums]]) -> None:
    """Check that some cell has a temporal positive, unless the config allows a set without any.

    Cells of an experiment without time need none.

    Parameters
    ----------
    has_candidate
        Whether any cell has.
    count
        Adds up the cells of each experiment; only called where none has.

    Raises
    ------
    ConfigError
        None has, and `on_no_anchor` is `error`.
    """
    if config.on_no_anchor == "keep" or has_candidate:
        return
    sums = count()
    found = {of.experiment.name: find_no_anchors(config, of) for of in sums}
    if None in found.values():
        return
    reasons = [f"{name}: {why}" for name, why in found.items()]
    more = f"; and {len(reasons) - 3} more experiments" if len(reasons) > 3 else ""
    raise ConfigError(
        f"{config.where}: no cell has a positive, so nothing can be trained on its {sum(of.cells for of in sums):,} "
        f"cells ({'; '.join(reasons[:3])}{more}). Correct interval_minutes, lower tau_range_hours, track cells for "
        "longer, or give on_no_anchor: keep to build all the same."
    )
