"""Finds what is suspicious in track tables: wrong units, frames counted from 1, lost parents, lost conditions.

Looks at the sums per FOV of `etl/sql/track_tables.sql`, never at rows. Rules and their limits are in docs/FORMAT.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from dynaclr_wds.suspicions import SuspicionRecord
from dynaclr_wds.words import count_of, list_some
from etl.queries import TrackTable
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Plate
from etl.suspicious.words import suspicion

MANY = 0.01
"""Share of rows outside the image, or the movie, from which on they are suspicious."""

MOST_OF_IMAGE = 0.7
"""Centroids in a corner reach at most this far along both axes, as a share of the image."""

CHANCE = 1e-6
"""Cells that lie anywhere would be in such a corner with less than this probability."""

Tables = Sequence[TrackTable]


def find_in_tables(experiment: ExperimentConfig, tables: Tables) -> Iterator[SuspicionRecord]:
    """Yield what is suspicious in the track tables of one experiment."""
    filled = [table for table in tables if table.rows]
    if not filled:
        return
    yield from _find_corner(experiment, filled)
    yield from _find_outside(experiment, filled)
    late = [table for table in filled if _ends_late(table)]
    if _starts_at_one(filled):
        yield _frames_from_one(experiment, filled, None)
    elif late:
        yield _frames_from_one(experiment, late, late[0].fov_name)
    else:
        yield from _find_outside_movie(experiment, filled)
    yield from _find_missing_parents(experiment, filled)


def find_gone_conditions(
    config: BuildConfig, experiment: ExperimentConfig, plate: Plate, tables: Tables, kept: Mapping[str, int]
) -> Iterator[SuspicionRecord]:
    """Yield the conditions of an experiment of which nothing is left, though nobody left them out on purpose.

    Parameters
    ----------
    kept
        Condition → observations that are left.
    """
    for condition, wells in experiment.condition_wells.items():
        asked = [well for well in config.wells_of(experiment) if well in wells]
        there = [name for name in plate.fovs if name.rpartition("/")[0] in asked]
        mine = [table for table in tables if table.condition == condition]
        if kept.get(condition) or not asked or (there and not mine):
            continue
        rows, named = sum(table.rows for table in mine), list_some(asked)
        if not mine:
            why = f"the plate has no field of view in {named}"
        elif not rows:
            where = "track table" if len(mine) == 1 else f"{len(mine):,} track tables"
            why = f"there is no row in the {where} of {named}"
        else:
            why = f"all {count_of(rows, 'row')} of {named} were left out; the summary says why"
        yield suspicion(
            "condition_gone", experiment.name, condition, rows,
            f"no cell of the condition {condition!r} is left: {why}. Compare condition_wells with the plate and its "
            "track tables, or remove the condition.",
        )  # fmt: skip


def _find_corner(experiment: ExperimentConfig, tables: Tables) -> Iterator[SuspicionRecord]:
    found = tables if _is_corner(tables) else [table for table in tables if _is_corner([table])]
    if not found:
        return
    rows, place = sum(table.rows for table in found), None if found is tables else found[0].fov_name
    where = "" if place is None else f" of {list_some([table.fov_name for table in found])}"
    yield suspicion(
        "cells_in_corner", experiment.name, place, rows,
        f"all {count_of(rows, 'centroid')}{where} lie in the corner of the image where y and x begin "
        f"({_reach(found)}). y and x must be pixels, and these look like micrometres: "
        f"{_guess_factor(experiment, found)}. If so, give the experiment `tracks_unit: um`.",
    )  # fmt: skip


def _is_corner(tables: Tables) -> bool:
    """Say whether cells lie only near y = x = 0, and are too many for that to be chance."""
    far_y, far_x = _shares(tables)
    near_y = min((table.y_min or 0) / table.height for table in tables)
    near_x = min((table.x_min or 0) / table.width for table in tables)
    if not (0 < far_y <= MOST_OF_IMAGE and 0 < far_x <= MOST_OF_IMAGE):
        return False
    if abs(near_y) > far_y / 4 or abs(near_x) > far_x / 4:
        return False
    return sum(table.tracks for table in tables) * math.log(far_y * far_x) < math.log(CHANCE)


def _shares(tables: Tables) -> tuple[float, float]:
    """Return how far the centroids reach along y and x, as a share of the image."""
    return (
        max((table.y_max or 0) / table.height for table in tables),
        max((table.x_max or 0) / table.width for table in tables),
    )


def _reach(tables: Tables) -> str:
    worst = max(tables, key=lambda t: max((t.y_max or 0) / t.height, (t.x_max or 0) / t.width))
    return f"y up to {worst.y_max:.5g} of {worst.height}, x up to {worst.x_max:.5g} of {worst.width}"


def _guess_factor(experiment: ExperimentConfig, tables: Tables) -> str:
    """Say which factor would spread the centroids over the image."""
    far_y, far_x = _shares(tables)
    if experiment.pixel_size_um is not None:
        y_um, x_um = experiment.pixel_size_um[-2:]
        reached = max(far_y / y_um, far_x / x_um)
        if 0.5 < reached <= 1:
            size = f"{y_um:g}" if y_um == x_um else f"{y_um:g} (y) and {x_um:g} (x)"
            return f"divided by the pixel size of {size} µm they would reach {reached:.0%} of the image"
    return f"multiplied by {1 / max(far_y, far_x):.2g} they would just fill it"


def _find_outside(experiment: ExperimentConfig, tables: Tables) -> Iterator[SuspicionRecord]:
    outside, rows = sum(table.outside_image for table in tables), sum(table.rows for table in tables)
    if outside < MANY * rows or not outside:
        return
    low = min(min(table.y_min or 0, table.x_min or 0) for table in tables)
    if sum(table.inside_swapped for table in tables) == rows:
        guess = "All would lie inside if y and x changed places"
    elif low < 0:
        guess = f"The smallest is {low:.5g}: their zero may be in the middle of the image"
    else:
        guess = f"They may be pixels of a larger image, or another unit: {_guess_factor(experiment, tables)}"
    yield suspicion(
        "outside_image", experiment.name, None, outside,
        f"{count_of(outside, 'centroid')} of {rows:,} ({outside / rows:.0%}) lie outside the image and were left out "
        f"({_reach(tables)}). {guess}. y and x must be pixels of the plate's full resolution: convert them.",
    )  # fmt: skip


def _ends_late(table: TrackTable) -> bool:
    """Say whether frames are numbered up to the number of frames, and none is 0."""
    return (table.first_t or 0) >= 1 and table.last_t == table.frames


def _starts_at_one(tables: Tables) -> bool:
    """Say whether no table has a frame 0, and all begin at 1 or one ends where counting from 1 would."""
    firsts = {table.first_t for table in tables}
    return 0 not in firsts and min(first or 0 for first in firsts) >= 1 and (
        firsts == {1} or any(_ends_late(table) for table in tables)
    )  # fmt: skip


def _frames_from_one(experiment: ExperimentConfig, tables: Tables, place: str | None) -> SuspicionRecord:
    late = [table for table in tables if _ends_late(table)]
    lost = sum(table.outside_time for table in tables)
    where = "" if place is None else f" of {list_some([table.fov_name for table in tables])}"
    ends = f", and the last is {late[0].last_t} where the movie's frames are 0 to {late[0].frames - 1}" if late else ""
    left_out = f", and {count_of(lost, 'row')} past its end were left out" if lost else ""
    first = min(table.first_t or 0 for table in tables)
    return suspicion(
        "frames_from_one", experiment.name, place, sum(table.rows for table in tables),
        f"frames seem to be counted from 1: the smallest t{where} is {first}{ends}. If so, every cell is cut from the "
        f"frame after its own{left_out}. Subtract 1 from t in the track tables.",
    )  # fmt: skip


def _find_outside_movie(experiment: ExperimentConfig, tables: Tables) -> Iterator[SuspicionRecord]:
    outside, rows = sum(table.outside_time for table in tables), sum(table.rows for table in tables)
    if outside < MANY * rows or not outside:
        return
    worst = max(tables, key=lambda table: (table.last_t or 0) - table.frames)
    yield suspicion(
        "outside_movie", experiment.name, None, outside,
        f"{count_of(outside, 'row')} of {rows:,} ({outside / rows:.0%}) have a t that is no frame of the movie and "
        f"were left out (t up to {worst.last_t} in {worst.fov_name}, whose frames are 0 to {worst.frames - 1}). "
        "t must count frames from 0, not minutes: convert it.",
    )  # fmt: skip


def _find_missing_parents(experiment: ExperimentConfig, tables: Tables) -> Iterator[SuspicionRecord]:
    found = [table for table in tables if table.missing_parents]
    if not found:
        return
    missing, tracks = sum(table.missing_parents for table in found), sum(table.tracks for table in tables)
    who = f"{count_of(missing, 'track')} of {tracks:,} {'names' if missing == 1 else 'name'}"
    example = f"track {found[0].orphan} of {found[0].fov_name}"
    if sum(table.zero_parents for table in found) == missing:
        text = f"{who} parent 0, but there is no track 0, as {example}. If 0 stands for no parent, write -1."
    else:
        text = (
            f"{who} a parent that is not in the track table, as {example} names {found[0].missing_parent}. Each starts "
            "a lineage of its own, so sisters may be taken for unrelated cells. Add the parents' rows if they were "
            "filtered out, or write -1."
        )
    yield suspicion("missing_parents", experiment.name, found[0].fov_name, missing, text)
