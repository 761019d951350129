"""Defines what a build says about its data: counts, and what looks wrong. A part of the on-disk contract.

Both stand in the manifest. `etl/suspicious/` finds them; the rules are in docs/FORMAT.md. Imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsRecord:
    """What was counted of one experiment that is neither good nor bad."""

    experiment: str
    tracks: int
    divisions: int
    """Tracks with at least two daughters in the set."""
    tracks_with_gaps: int
    """Tracks that miss a frame between their first and their last."""
    moved_patches: int
    """Observations whose patch was moved to lie inside the image."""
    largest_move_px: float
    """The furthest that one was moved, along y or x."""
    padded_patches: int
    """Observations whose patch reaches beyond the image, and is filled with the nearest pixels."""
    empty_tables: int
    """FOVs whose track table has no row."""
    clamped_stacks: int = 0
    """Frames whose slices begin elsewhere than the focus asks, because the stack ends too near."""
    measured_focus: int = 0
    """FOVs whose focus was measured, because their metadata don't say it."""


SUSPICIONS: dict[str, str] = {
    "cells_in_corner": "all centroids lie near y = x = 0: micrometres for pixels",
    "outside_image": "many centroids lie outside the image",
    "outside_movie": "many rows have a t that is no frame of the movie",
    "frames_from_one": "frames seem to be counted from 1",
    "no_anchors": "no cell of the experiment has a temporal positive",
    "condition_gone": "no observation of a condition is left",
    "missing_parents": "tracks name a parent that has no row",
    "interval_differs": "interval_minutes is not what the plate says",
    "pixel_size_differs": "pixel_size_um is not what the plate says",
    "pixel_not_square": "pixels differ between y and x",
    "pixel_sizes_vary": "experiments, or FOVs of one experiment, differ in pixel size",
    "channels_differ": "a channel stands at different places of `source_channel`",
    "tracks_jump": "steps of tracks that are far longer than the others",
    "patches_alike": "cells of one frame have the same patch, because it was moved into the image",
    "tau_shortened": "a part of tau_range_hours rounds to no frame",
}
"""Code → what looks wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspicionRecord:
    """One thing about the data that looks wrong."""

    code: str
    """One of `SUSPICIONS`."""
    experiment: str | None
    """None where it is about the whole set."""
    place: str | None
    """FOV or condition, of which there may be more; None where it is about all of the experiment."""
    count: int
    """How many rows, tracks, steps, FOVs or experiments it is about, as the text says."""
    text: str
    """What it is, with numbers, and what to do: for people, in one line."""
