"""Rows of track files to observations: puts them in the order of the index, and numbers what they belong to. Pure.

Rows come in any order, FOV by FOV; each FOV is sorted by itself, which stays within the processor's caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64, Shaped, UInt8

from etl.column_files import Columns
from etl.layout.candidates import has_temporal
from etl.queries import BatchResult


class RepeatedRow(Exception):
    """A (track_id, t) stands in two rows of a FOV."""

    def __init__(self, fov: int) -> None:
        super().__init__(fov)
        self.fov = fov


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedBatch:
    """Observations and tracks of some FOVs, in the order of the index; numbers count from 0 in every FOV."""

    observations: Columns
    """One row per kept observation, by (fov, track_id, t)."""
    tracks: Columns
    """One row per track with kept observations, by (fov, track_id): `track_id`, `parent_track_id`, `root_track_id`,
    `lineage` and `parent` (-1 without one) counted in the FOV, and `observations`, how many it has."""
    fovs: Int[np.ndarray, " f"]
    """Those that have observations."""
    counts: Int64[np.ndarray, "f 3"]
    """Observations, tracks and lineages of each."""

    def number_lineages(self) -> Int64[np.ndarray, " tracks"]:
        """Number the lineages of the batch, those of the tracks, from 0."""
        before = np.cumsum(self.counts[:, 2]) - self.counts[:, 2]
        numbers: Int64[np.ndarray, " tracks"] = self.tracks["lineage"] + np.repeat(before, self.counts[:, 1])
        return numbers


def order_batch(found: BatchResult, tau: Mapping[int, tuple[int, int]]) -> OrderedBatch:
    """Order the rows of some FOVs.

    Parameters
    ----------
    found
        What the queries gave.
    tau
        FOV → shortest and longest τ in frames, the shortest at least 1.

    Raises
    ------
    RepeatedRow
        A (track_id, t) stands in two rows of a FOV.
    """
    order = _sort_rows(found.rows)
    kept = order[found.rows["kept"][order]]
    names = [name for name in found.rows if name not in ("fov", "track_id", "kept")]
    rows = {name: found.rows[name][kept] for name in names}
    begins = _starts(found.rows["fov"][kept], found.rows["track_id"][kept])
    size = np.diff(np.append(begins, kept.size))
    tracks = _count_in_fovs(found.tracks)
    assert size.size == tracks["track_id"].size, "DuckDB has found the same tracks"
    fovs, first, number = np.unique(found.tracks["fov"], return_index=True, return_counts=True)
    edges = np.append(first, size.size)
    observations = np.add.reduceat(size, first) if first.size else np.zeros(0, np.int64)
    lineages = np.maximum.reduceat(tracks["lineage"], first) + 1 if first.size else np.zeros(0, np.int64)
    runs = [(int(edges[n]), int(edges[n + 1]), *tau[fov]) for n, fov in enumerate(fovs.tolist())]
    flags = _flag(tracks["lineage"], size, rows["t"], runs)
    return OrderedBatch(
        observations={**rows, "flags": flags},
        tracks={**tracks, "observations": size},
        fovs=fovs,
        counts=np.stack([observations, number, lineages], axis=1).astype(np.int64),
    )


def _sort_rows(rows: Columns) -> Int64[np.ndarray, " rows"]:
    """Sort by (fov, track_id, t).

    Raises
    ------
    RepeatedRow
        Two rows are the same in these.
    """
    fov, track_id, t = rows["fov"], rows["track_id"], rows["t"]
    by_fov = np.arange(fov.size) if (fov[1:] >= fov[:-1]).all() else np.argsort(fov, kind="stable")
    edges = np.append(np.flatnonzero(np.diff(fov[by_fov], prepend=-1)), fov.size)
    parts = [np.zeros(0, np.int64)]
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        own = by_fov[first:stop]
        order = own[np.lexsort((t[own], track_id[own]))]
        track, frame = track_id[order], t[order]
        if ((track[1:] == track[:-1]) & (frame[1:] == frame[:-1])).any():
            raise RepeatedRow(int(fov[order[0]]))
        parts.append(order)
    return np.concatenate(parts)


def _starts(fov: Int[np.ndarray, " n"], track_id: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " tracks"]:
    """Return the first row of each track."""
    new = np.ones(fov.size, bool)
    new[1:] = (fov[1:] != fov[:-1]) | (track_id[1:] != track_id[:-1])
    return np.flatnonzero(new)


def _count_in_fovs(tracks: Columns) -> dict[str, Shaped[np.ndarray, " tracks"]]:
    """Count tracks and lineages from the first of each FOV; those of a FOV are adjacent."""
    fov = tracks["fov"]
    begins = np.flatnonzero(np.diff(fov, prepend=-1))
    size = np.diff(np.append(begins, fov.size))
    lineage = tracks["lineage_index"]
    lowest = np.minimum.reduceat(lineage, begins) if begins.size else lineage
    parent = tracks["parent_track_index"] - np.repeat(begins, size)
    return {
        **{name: tracks[name] for name in ("track_id", "parent_track_id", "root_track_id")},
        "lineage": lineage - np.repeat(lowest, size),
        "parent": np.where(tracks["parent_track_index"] < 0, -1, parent),
    }


def _flag(
    lineage: Int[np.ndarray, " tracks"],
    size: Int64[np.ndarray, " tracks"],
    t: Int64[np.ndarray, " rows"],
    runs: Sequence[tuple[int, int, int, int]],
) -> UInt8[np.ndarray, " rows"]:
    """Flag observations that have a temporal candidate (1), and those that are one (2).

    Parameters
    ----------
    runs
        First track and one past the last, shortest and longest τ of each FOV.
    """
    flags, row = [np.zeros(0, np.uint8)], 0
    for first, stop, low, high in runs:
        own = size[first:stop]
        rows = slice(row, row + int(own.sum()))
        has, is_one = has_temporal(np.repeat(lineage[first:stop], own), t[rows], low, high)
        flags.append(has + 2 * is_one.astype(np.uint8))
        row = rows.stop
    return np.concatenate(flags)
