"""Tables to arrays: restores index arrays that are damaged from the Parquet tables, which say the same with names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32, Int, Shaped

from dynaclr_wds.contract import ARRAYS, LEVELS, OBSERVATIONS, STATISTICS, STATS, Manifest

_COLUMNS = {
    "obs_track_id": "track_id",
    "obs_t": "t",
    "obs_z_start": "z_start",
    "obs_z_focus": "z_focus",
}
"""Array → column of the observations."""


def restore_arrays(
    root: Path, manifest: Manifest, tables: Collection[str], names: Collection[str]
) -> dict[str, Shaped[np.ndarray, "*shape"]]:
    """Restore arrays, of those that say what was cut; the result lacks what can't be told.

    Parameters
    ----------
    tables
        Paths of the tables that are whole.
    names
        Arrays to restore.
    """
    found: dict[str, Shaped[np.ndarray, "*shape"]] = {}
    if "fov_first_frame" in names:
        found["fov_first_frame"] = _first_frames(manifest)
    if OBSERVATIONS in tables:
        wanted = {name: column for name, column in _COLUMNS.items() if name in names}
        table = pq.read_table(root / OBSERVATIONS, columns=["experiment", "fov_name", *wanted.values()])
        found |= {name: table[column].to_numpy().astype(ARRAYS[name]) for name, column in wanted.items()}
        if "obs_fov" in names:
            rows = {(fov.experiment, fov.fov_name): row for row, fov in enumerate(manifest.fovs)}
            keys = zip(table["experiment"].to_pylist(), table["fov_name"].to_pylist(), strict=True)
            found["obs_fov"] = np.array([rows[key] for key in keys], ARRAYS["obs_fov"])
    if STATS in tables:
        found |= {name: values for name, values in _read_statistics(root, manifest).items() if name in names}
    return found


def _first_frames(manifest: Manifest) -> Int[np.ndarray, " fovs_and_one"]:
    frames = np.array([fov.frames for fov in manifest.fovs], np.int64)
    return np.concatenate([[0], np.cumsum(frames)]).astype(ARRAYS["fov_first_frame"])


def _read_statistics(root: Path, manifest: Manifest) -> dict[str, Float32[np.ndarray, "rows channels 8"]]:
    """Read the statistics of all levels: a row of the table is one channel of a row of an array."""
    numbers = {record.name: row for row, record in enumerate(manifest.experiments)}
    of_fov = np.array([numbers[fov.experiment] for fov in manifest.fovs], np.int64)
    of_frame = np.repeat(of_fov, np.diff(_first_frames(manifest)))
    of_level = dict(zip(LEVELS, (of_frame, of_fov, np.arange(len(numbers))), strict=True))
    channels = np.array([record.shape[0] for record in manifest.experiments])
    table = pq.read_table(root / STATS, columns=list(STATISTICS))
    rows = np.stack([table[name].to_numpy() for name in STATISTICS], axis=1)
    found, at = {}, 0
    for level, experiment in of_level.items():
        stored = np.arange(channels.max()) < channels[experiment][:, None]
        values = np.full((*stored.shape, len(STATISTICS)), np.nan, ARRAYS[f"stats_{level}"])
        values[stored] = rows[at : at + int(stored.sum())]
        found[f"stats_{level}"], at = values, at + int(stored.sum())
    return found
