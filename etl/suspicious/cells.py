"""Counts what the tracks of an experiment are like, and finds jumps and experiments without anchors.

Looks at the observations that are left, which are sorted by (track, t), with numpy, one experiment at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
from jaxtyping import Int, Shaped

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.suspicions import FactsRecord, SuspicionRecord
from dynaclr_wds.tau import least_tau
from dynaclr_wds.words import count_of
from etl.index import Index
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The observations of one experiment that are left."""

    columns: Columns
    """As `etl.layout.jobs.read_columns`, the rows of the experiment."""
    tables: Sequence[TrackTable]
    """Its track tables."""

    @classmethod
    def by_experiment(cls, config: BuildConfig, index: Index, columns: Columns) -> list[Cells]:
        """Take the rows of each experiment, which are adjacent, in the order of the config."""
        tables = {name: list(group) for name, group in groupby(index.tables, attrgetter("experiment"))}
        edges = np.searchsorted(columns["experiment_index"], np.arange(len(config.experiments) + 1)).tolist()
        return [
            cls(
                columns={name: values[edges[number] : edges[number + 1]] for name, values in columns.items()},
                tables=tables.get(experiment.name, ()),
            )
            for number, experiment in enumerate(config.experiments)
        ]

    def __len__(self) -> int:
        return int(self.columns["t"].size)


def count_facts(config: BuildConfig, experiment: ExperimentConfig, cells: Cells, index: Index) -> FactsRecord:
    """Count tracks, divisions, gaps, moved patches and stacks, and empty track tables of one experiment."""
    track, gap = cells.columns["track_index"], _track_steps(cells)
    tracks = track[np.flatnonzero(np.diff(track, prepend=-1))]  # rows are sorted by track
    shift = np.maximum(_shifts(cells, "y"), _shifts(cells, "x"))
    parent = index.tracks["parent_track_index"].to_numpy()[tracks]
    daughters = np.bincount(parent[parent >= 0], minlength=1)
    return FactsRecord(
        experiment=experiment.name,
        tracks=tracks.size,
        divisions=int((daughters > 1).sum()),
        tracks_with_gaps=np.unique(track[1:][gap > 1]).size,
        moved_patches=int((shift > 0).sum()),
        largest_move_px=round(float(shift.max(initial=0)), 2),
        padded_patches=int(_reach_beyond(config, experiment, cells, index).sum()),
        empty_tables=sum(not table.rows for table in cells.tables),
        clamped_stacks=_count_clamped(config, experiment, cells),
    )


def _count_clamped(config: BuildConfig, experiment: ExperimentConfig, cells: Cells) -> int:
    """Count frames whose first slice is not where the focus asks for it."""
    if config.z_focus is None:
        return 0
    below = config.z_focus.below(config.z_focus.window) * config.scale_for(experiment)[0]
    moved = np.abs(cells.columns["z_focus"] - below - cells.columns["z_start"]) > _ALMOST
    frames = np.stack([cells.columns["fov_index"][moved], cells.columns["t"][moved]])
    return int(np.unique(frames, axis=1).shape[1])


def _track_steps(cells: Cells) -> Int[np.ndarray, " steps"]:
    """Frames from each observation to the next of its track; 0 where the next is of another track."""
    track, t = cells.columns["track_index"], cells.columns["t"]
    return np.where(np.diff(track) == 0, np.diff(t), 0)


def _shifts(cells: Cells, axis: str) -> Shaped[np.ndarray, " obs"]:
    """How many whole pixels of the image each patch was moved along an axis."""
    return np.abs(cells.columns[f"{axis}_clamp"] - np.floor(cells.columns[axis]))


def _reach_beyond(
    config: BuildConfig, experiment: ExperimentConfig, cells: Cells, index: Index
) -> Shaped[np.ndarray, " obs"]:
    """Whether each patch reaches beyond its image."""
    beyond = np.zeros(len(cells), bool)
    fov = cells.columns["fov_index"]
    for axis, grid, length in zip("yx", config.grids_for(experiment), ("height", "width"), strict=True):
        image = np.array([getattr(record, length) for record in index.fovs], np.int64)[fov]
        beyond |= grid.reaches_beyond(cells.columns[f"{axis}_clamp"], image)
    return beyond


def find_alike(config: BuildConfig, experiment: ExperimentConfig, cells: Cells, index: Index) -> list[SuspicionRecord]:
    """Find cells of one frame that have the very same patch, as all of them have where a patch is as large as an image.

    Only where images are less than twice as high and wide as a patch, so that moving is what makes them alike.
    """
    fovs = [index.fovs[number] for number in np.unique(cells.columns["fov_index"]).tolist()]
    height, width = (grid.extent for grid in config.grids_for(experiment))
    if all(fov.height >= 2 * height or fov.width >= 2 * width for fov in fovs):
        return []
    names = ("fov_index", "t", "y_clamp", "x_clamp")
    key = np.zeros(len(cells), np.int64)
    for name in names:
        values = cells.columns[name].astype(np.int64)
        key = key * (int(values.max(initial=0)) + 1) + values
    counts = np.unique(key, return_counts=True)[1]
    alike = int(counts[counts > 1].sum())
    if alike <= ALIKE * len(cells):
        return []
    text = (
        f"{alike:,} of {len(cells):,} cells have the same patch as another cell of their frame, because patches of "
        f"{list(config.yx_patch_size)} were moved to lie inside images that are hardly larger. Training can't tell "
        "such cells apart. Lower yx_patch_size, or give --border pad, which keeps each cell in the middle."
    )
    return [suspicion("patches_alike", experiment.name, None, alike, text)]


def find_jumps(config: BuildConfig, experiment: ExperimentConfig, cells: Cells, index: Index) -> list[SuspicionRecord]:
    """Find steps from one frame to the next that are far longer than the others of the experiment."""
    before = np.flatnonzero(_track_steps(cells) == 1)
    y, x = (np.diff(cells.columns[axis])[before].astype(np.float64) for axis in ("y", "x"))
    length = np.hypot(y, x)
    if not length.size:
        return []
    median = float(np.median(length))
    limit = max(JUMP * median, min(grid.extent for grid in config.grids_for(experiment)) / 2)
    jumps = int((length > limit).sum())
    if not jumps:
        return []
    worst = int(before[np.argmax(length)])
    fov = index.fovs[int(cells.columns["fov_index"][worst])].fov_name
    track, t = int(cells.columns["track_id"][worst]), int(cells.columns["t"][worst])
    text = (
        f"{count_of(jumps, 'step')} of {length.size:,} from one frame to the next {'is' if jumps == 1 else 'are'} "
        f"longer than {limit:.3g} px, where half of all steps are shorter than {median:.2g} px. The longest is "
        f"{length.max():.4g} px: {fov}, track {track}, from t = {t} to {t + 1}. Tracks that go on in another cell make "
        "wrong positives. Look at them, and cut the tracks there."
    )
    return [suspicion("tracks_jump", experiment.name, fov, jumps, text)]


def find_no_anchors(config: BuildConfig, experiment: ExperimentConfig, cells: Cells) -> str | None:
    """Say why no cell of an experiment has a temporal positive; None where one has, or where there is no time."""
    if cells.columns["has_candidate"].any() or (len(cells) and not experiment.has_time):
        return None
    if not len(cells):
        return "no cell of it is left"
    frames = max((table.frames for table in cells.tables), default=0)
    least = int(least_tau(config.tau_frames(experiment)[0]))
    asked = (
        f"the shortest τ of tau_range_hours={list(config.tau_range_hours)} is {count_of(least, 'frame')} at "
        f"interval_minutes={experiment.minutes:g}"
    )
    if frames <= least:
        return f"{asked}, and its movies have {count_of(frames, 'frame')}"
    longest = _longest_lineage(cells)
    if longest < least:
        return f"{asked}, and the last cell of its longest lineage comes {count_of(longest, 'frame')} after the first"
    most = config.tau_frames(experiment)[1]
    return f"{asked}, and no lineage was seen at two times that are {least} to {most} frames apart"


def _longest_lineage(cells: Cells) -> int:
    """Most frames between the first and the last observation of a lineage."""
    lineage, t = np.unique(cells.columns["lineage_index"], return_inverse=True)[1], cells.columns["t"]
    first, last = np.full(lineage.max() + 1, np.iinfo(t.dtype).max, t.dtype), np.zeros(lineage.max() + 1, t.dtype)
    np.minimum.at(first, lineage, t)
    np.maximum.at(last, lineage, t)
    return int((last - first).max())


def check_anchors(config: BuildConfig, columns: Columns, index: Index) -> None:
    """Check that some cell has a temporal positive, unless the config allows a set without any.

    Cells of an experiment without time need none.

    Raises
    ------
    ConfigError
        None has, and `on_no_anchor` is `error`.
    """
    if config.on_no_anchor == "keep" or columns["has_candidate"].any():
        return
    split = zip(config.experiments, Cells.by_experiment(config, index, columns), strict=True)
    found = {experiment.name: find_no_anchors(config, experiment, cells) for experiment, cells in split}
    if None in found.values():
        return
    reasons = [f"{name}: {why}" for name, why in found.items()]
    more = f"; and {len(reasons) - 3} more experiments" if len(reasons) > 3 else ""
    raise ConfigError(
        f"{config.where}: no cell has a positive, so nothing can be trained on its {columns['t'].size:,} cells "
        f"({'; '.join(reasons[:3])}{more}). Correct interval_minutes, lower tau_range_hours, track cells for longer, "
        "or give on_no_anchor: keep to build all the same."
    )
