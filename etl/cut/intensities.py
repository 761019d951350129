"""Merges FOV statistics into stored ones: per frame, FOV and experiment, with what the plates carry.

Statistics found in a plate's VisCy-style `normalization` attributes take the place of computed ones, one by one: a
plate that carries mean and std only keeps those, and the rest is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dynaclr_wds.contract import STATISTICS, ExperimentRecord, FovRecord
from etl.cut.job import FovCut
from etl.cut.statistics import Summary, apply_normalization
from etl.source.plates import Fov


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentStatistics:
    """Statistics of one experiment; the last axes are (stored channel, `contract.STATISTICS`)."""

    timepoint: tuple[Float[np.ndarray, "_ channels 8"], ...]
    """One per FOV."""
    fov: Float[np.ndarray, "fovs channels 8"]
    dataset: Float[np.ndarray, "channels 8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities:
    """Statistics of a set as they are stored; the last axes are (channel, `contract.STATISTICS`).

    The channel axis is as long as the most channels that an experiment stores; others are filled up with NaN.
    """

    fov_first_frame: Int[np.ndarray, " fovs_and_one"]
    timepoint: Float[np.ndarray, "frames channels 8"]
    fov: Float[np.ndarray, "fovs channels 8"]
    dataset: Float[np.ndarray, "experiments channels 8"]


def plan_experiment_statistics(
    fovs: Sequence[Fov], cuts: Sequence[FovCut], channels: tuple[str, ...], *, fill_blank: bool
) -> ExperimentStatistics:
    """Merge the statistics of an experiment upward.

    Parameters
    ----------
    fovs, cuts
        One per FOV that has observations, in the order of the index.
    channels
        Stored channels.
    fill_blank
        Give blank frames, which have no statistics of their own, those of their FOV, or of the experiment: cells in
        them are kept, and must be normalised as their neighbours are.
    """
    timepoint, fov_table = [], []
    merged: tuple[Summary, ...] | None = None
    for fov, cut in zip(fovs, cuts, strict=True):
        frames = cut.timepoint.copy()
        for t in np.flatnonzero(np.isfinite(frames[..., 0]).any(axis=1)).tolist():
            apply_normalization(frames[t], fov.normalization, channels, "timepoint", t)
        timepoint.append(frames)
        row = np.array([summary.statistics() for summary in cut.summaries])
        apply_normalization(row, fov.normalization, channels, "fov")
        fov_table.append(row)
        merged = cut.summaries if merged is None else _merged(merged, cut.summaries)
    assert merged is not None, "an experiment without observations has no statistics"
    dataset = np.array([summary.statistics() for summary in merged])
    for fov in reversed(fovs):  # the first FOV that carries any counts
        apply_normalization(dataset, fov.normalization, channels, "dataset")
    if fill_blank:
        _fill_blank(timepoint, fov_table, dataset)
    return ExperimentStatistics(timepoint=tuple(timepoint), fov=np.array(fov_table), dataset=dataset)


def plan_intensities(
    fovs: Sequence[FovRecord],
    experiments: Sequence[ExperimentRecord],
    statistics: Sequence[ExperimentStatistics | None],
) -> Intensities:
    """Put the statistics of all experiments into tables.

    Parameters
    ----------
    fovs
        In the order of the index, which is that of the experiments.
    experiments
        In the order of the manifest.
    statistics
        One per experiment; None where it has no observation.
    """
    width = max(experiment.shape[0] for experiment in experiments)
    found = [s for s in statistics if s is not None]
    frames = [_widen(table, width) for s in found for table in s.timepoint]
    assert [len(table) for table in frames] == [fov.frames for fov in fovs], "FOVs are in the order of the index"
    nothing = np.full((1, width, len(STATISTICS)), np.nan)
    return Intensities(
        fov_first_frame=np.cumsum([0, *(len(table) for table in frames)]),
        timepoint=np.concatenate(frames).astype(np.float32),
        fov=np.concatenate([_widen(s.fov, width) for s in found]).astype(np.float32),
        dataset=np.concatenate([nothing if s is None else _widen(s.dataset[None], width) for s in statistics]).astype(
            np.float32
        ),
    )


def _widen(table: Float[np.ndarray, "n c 8"], width: int) -> Float[np.ndarray, "n width 8"]:
    wide = np.full((len(table), width, len(STATISTICS)), np.nan)
    wide[:, : table.shape[1]] = table
    return wide


def _fill_blank(
    timepoint: Sequence[Float[np.ndarray, "_ c 8"]],
    fovs: Sequence[Float[np.ndarray, "c 8"]],
    dataset: Float[np.ndarray, "c 8"],
) -> None:
    """Replace NaN from above: a frame takes its FOV's, a FOV the experiment's; an empty channel is left as it is."""
    scale = np.array([0.0 if name not in ("std", "iqr") else 1.0 for name in STATISTICS])
    _fill(dataset, np.broadcast_to(scale, dataset.shape))
    for frames, fov in zip(timepoint, fovs, strict=True):
        _fill(fov, dataset)
        _fill(frames, np.broadcast_to(fov, frames.shape))


def _fill(table: Float[np.ndarray, "... 8"], above: Float[np.ndarray, "... 8"]) -> None:
    missing = np.isnan(table)
    table[missing] = above[missing]


def _merged(before: tuple[Summary, ...], more: tuple[Summary, ...]) -> tuple[Summary, ...]:
    return tuple(a.merged(b) for a, b in zip(before, more, strict=True))  # type: ignore[arg-type]
