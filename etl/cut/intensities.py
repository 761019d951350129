"""Merges FOV statistics into stored ones: per frame, FOV and experiment, with what the plates carry.

Those of frames, and of FOVs whose movie is whole, are made by the unit that cuts them. Those of a FOV whose movie is in
segments, and of an experiment, are merged by the index; nothing in a shard depends on them. Statistics found in a
plate's VisCy-style `normalization` attributes take the place of computed ones, one by one: a plate that carries mean
and std only keeps those, and the rest is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dynaclr_wds.contract import STATISTICS
from etl.cut.job import FovCut
from etl.cut.statistics import Summary, apply_normalization
from etl.source.plates import Fov

Summaries = tuple[Summary, ...]
"""One per channel; empty, that of no frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatistics:
    """Statistics of some FOVs; the last axes are (stored channel, `contract.STATISTICS`)."""

    timepoint: Float[np.ndarray, "frames channels 8"]
    """Of the frames that were read of all FOVs, one after the other."""
    fov: Float[np.ndarray, "fovs channels 8"] | None
    """None where frames that come later change it."""
    summaries: tuple[Summaries, ...]
    """What merges into the statistics of the experiment: one of all FOVs; in a segment one of each, also of those of
    which nothing is left."""


def plan_group_statistics(
    fovs: Sequence[Fov], cuts: Sequence[FovCut], channels: tuple[str, ...], *, fill_blank: bool
) -> GroupStatistics:
    """Merge the statistics of whole movies upward.

    Parameters
    ----------
    fovs, cuts
        One per FOV that has observations, in the order of the index.
    channels
        Stored channels.
    fill_blank
        Give blank frames, which have no statistics of their own, those of their FOV: cells in them are kept, and must
        be normalised as their neighbours are.
    """
    tables, rows = [np.empty((0, len(channels), len(STATISTICS)))], [np.empty((0, len(channels), len(STATISTICS)))]
    merged: Summaries = ()
    for fov, cut in zip(fovs, cuts, strict=True):
        frames, row = plan_fov_statistics(
            fov, take_frame_statistics(fov, cut, channels), cut.summaries, channels, fill_blank=fill_blank
        )
        tables.append(frames)
        rows.append(row[None])
        merged = merge_summaries(merged, cut.summaries)
    return GroupStatistics(
        timepoint=np.concatenate(tables), fov=np.concatenate(rows), summaries=(merged,) * bool(merged)
    )


def take_frame_statistics(fov: Fov, cut: FovCut, channels: tuple[str, ...]) -> Float[np.ndarray, "frames channels 8"]:
    """Take the statistics of the frames that were read, with what the plate carries; NaN where a frame is blank."""
    frames = cut.timepoint.copy()
    for row in np.flatnonzero(np.isfinite(frames[..., 0]).any(axis=1)).tolist():
        apply_normalization(frames[row], fov.normalization, channels, "timepoint", cut.first + row)
    return frames


def plan_fov_statistics(
    fov: Fov,
    frames: Float[np.ndarray, "frames channels 8"],
    summaries: Summaries,
    channels: tuple[str, ...],
    *,
    fill_blank: bool,
) -> tuple[Float[np.ndarray, "frames channels 8"], Float[np.ndarray, "channels 8"]]:
    """Return the statistics of the frames of a whole movie, and of all of them together.

    Parameters
    ----------
    frames
        As `take_frame_statistics`; blank ones are filled in place.
    summaries
        Of all frames.
    """
    row = np.array([summary.statistics() for summary in summaries])
    apply_normalization(row, fov.normalization, channels, "fov")
    if fill_blank:
        _fill(row, np.broadcast_to(_NEUTRAL, row.shape))
        _fill(frames, np.broadcast_to(row, frames.shape))
    return frames, row


def plan_dataset_statistics(
    fovs: Sequence[Fov], summaries: Summaries, channels: tuple[str, ...], *, fill_blank: bool
) -> Float[np.ndarray, "channels 8"]:
    """Take the statistics of an experiment.

    Parameters
    ----------
    fovs
        Those that have observations, in the order of the index.
    summaries
        Merged from all groups; empty where there is no observation.
    """
    if not summaries:
        return np.full((len(channels), len(STATISTICS)), np.nan)
    dataset = np.array([summary.statistics() for summary in summaries])
    for fov in reversed(fovs):  # the first FOV that carries any counts
        apply_normalization(dataset, fov.normalization, channels, "dataset")
    if fill_blank:
        _fill(dataset, np.broadcast_to(_NEUTRAL, dataset.shape))
    return dataset


def merge_summaries(before: Summaries, more: Summaries) -> Summaries:
    """Merge the summaries of channels; an empty tuple is that of no frame at all."""
    if not before or not more:
        return before or more
    return tuple(a.merged(b) for a, b in zip(before, more, strict=True))  # type: ignore[arg-type]


def widen(table: Float[np.ndarray, "n c 8"], width: int) -> Float[np.ndarray, "n width 8"]:
    """Fill the channel axis up with NaN; what is stored is float32."""
    wide = np.full((len(table), width, len(STATISTICS)), np.nan, np.float32)
    wide[:, : table.shape[1]] = table
    return wide


_NEUTRAL = np.array([0.0 if name not in ("std", "iqr") else 1.0 for name in STATISTICS])
"""Of a channel that is blank throughout: its pixels stay as they are."""


def _fill(table: Float[np.ndarray, "... 8"], above: Float[np.ndarray, "... 8"]) -> None:
    """Replace NaN by what stands above."""
    missing = np.isnan(table)
    table[missing] = above[missing]
