"""FOV statistics to stored statistics: per frame, FOV and experiment, with what the plates carry.

Statistics found in a plate's VisCy-style `normalization` attributes take the place of computed ones,
one by one: a plate that carries mean and std only keeps those, and the rest is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dynaclr_wds.contract import STATISTICS, FovRecord
from etl.cut.frames import FovCut
from etl.cut.statistics import Summary, apply_normalization
from etl.source.plates import Fov


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities:
    """Statistics as they are stored; the last axes are (channel, `contract.STATISTICS`).

    The channel axis is as long as the most channels that an experiment stores; others are filled up with NaN.
    """

    fov_first_frame: Int[np.ndarray, " fovs_and_one"]
    timepoint: Float[np.ndarray, "frames channels 8"]
    fov: Float[np.ndarray, "fovs channels 8"]
    dataset: Float[np.ndarray, "experiments channels 8"]


def plan_intensities(
    records: Sequence[FovRecord],
    fovs: Sequence[Fov],
    cuts: Sequence[FovCut],
    source_channels: Sequence[tuple[str, tuple[str, ...]]],
) -> Intensities:
    """Merge the statistics upward.

    Parameters
    ----------
    records, fovs, cuts
        One per FOV, in the order of the index.
    source_channels
        (experiment, stored channels) in the order of the manifest.
    """
    rows = {name: row for row, (name, _) in enumerate(source_channels)}
    width = max(len(channels) for _, channels in source_channels)
    fov_table = np.full((len(records), width, len(STATISTICS)), np.nan)
    dataset = np.full((len(source_channels), width, len(STATISTICS)), np.nan)
    merged: dict[str, tuple[Summary, ...]] = {}
    timepoint = [np.empty((0, width, len(STATISTICS)))]
    for number, (record, fov, cut) in enumerate(zip(records, fovs, cuts, strict=True)):
        channels = source_channels[rows[record.experiment]][1]
        count = len(channels)
        fov_table[number, :count] = [summary.statistics() for summary in cut.summaries]
        apply_normalization(fov_table[number, :count], fov.normalization, channels, "fov")
        frames = np.full((len(cut.timepoint), width, len(STATISTICS)), np.nan)
        frames[:, :count] = cut.timepoint
        for t in np.flatnonzero(~cut.zero).tolist():
            apply_normalization(frames[t, :count], fov.normalization, channels, "timepoint", t)
        timepoint.append(frames)
        before = merged.get(record.experiment)
        merged[record.experiment] = cut.summaries if before is None else _merged(before, cut.summaries)
    for name, summaries in merged.items():
        dataset[rows[name], : len(summaries)] = [summary.statistics() for summary in summaries]
    for record, fov in reversed(list(zip(records, fovs, strict=True))):  # the first FOV that carries any counts
        row = rows[record.experiment]
        channels = source_channels[row][1]
        apply_normalization(dataset[row, : len(channels)], fov.normalization, channels, "dataset")
    return Intensities(
        fov_first_frame=np.cumsum([0, *(len(frames) for frames in timepoint[1:])]),
        timepoint=np.concatenate(timepoint).astype(np.float32),
        fov=fov_table.astype(np.float32),
        dataset=dataset.astype(np.float32),
    )


def _merged(before: tuple[Summary, ...], more: tuple[Summary, ...]) -> tuple[Summary, ...]:
    return tuple(a.merged(b) for a, b in zip(before, more, strict=True))  # type: ignore[arg-type]
