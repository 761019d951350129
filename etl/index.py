"""Track tables to the index: which cells exist, whose descendants they are, which are anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from dynaclr_wds.contract import FovRecord
from etl.experiments import BuildConfig
from etl.plates import Plate


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All that is known of the cells before a pixel is read."""

    observations: pa.Table
    """One row per kept observation, sorted by (experiment, fov_name, track_id, t)."""
    tracks: pa.Table
    """One row per track with kept observations, in track_index order."""
    fovs: tuple[FovRecord, ...]
    """In fov_index order."""
    strata: tuple[tuple[str, str], ...]
    """(experiment, condition), in stratum_index order; those with observations."""
    dropped: Mapping[str, Mapping[str, int]]
    """Experiment → reason → observations left out."""


def build_index(config: BuildConfig, plates: Mapping[str, Plate]) -> Index:
    """Build the index from the track files; checks the config against the plates first."""


def mark_anchors(observations: pa.Table, tau_frames: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Set `is_anchor` and `is_candidate` from the rows that are there."""


def drop_observations(
    index: Index, keep: Bool[np.ndarray, " observations"], reason: str, tau_frames: Mapping[str, tuple[int, int]]
) -> Index:
    """Leave observations out: count them under `reason`, number all anew, mark anchors again."""
