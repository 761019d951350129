"""What is inspected, before or after a build: its experiments, and its cells run by run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64

from dynaclr_wds.contract import ExperimentRecord, FovRecord, LabelRecord, SkippedRecord
from dynaclr_wds.suspicions import SuspicionRecord
from etl.inspect.frame_cuts import FrameCut
from etl.inspect.pixels import FrameLook

RUN_CELLS = 1 << 21
"""Most cells of a run of several fields of view."""

Labels = Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """The cells of some adjacent fields of view of one experiment, in order of (FOV, track, t)."""

    experiment: int
    """Place in `Collection.experiments`."""
    fov: Int[np.ndarray, " n"]
    """Place in `Collection.fovs`."""
    track: Int[np.ndarray, " n"]
    """Counted from 0."""
    lineage: Int[np.ndarray, " n"]
    """Counted from 0."""
    t: Int[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    """Centroid in pixels of the image."""
    x: Float[np.ndarray, " n"]
    hpi: Float[np.ndarray, " n"]
    has_positive: Bool[np.ndarray, " n"]
    stratum: Int[np.ndarray, " n"]
    """Place in `Collection.strata`."""
    labels: Mapping[str, Int[np.ndarray, " n"]]
    """Label → place in its record's values, −1 for none."""
    parent: Int[np.ndarray, " tracks"]
    """Track that each track descends from, −1 without one."""
    track_id: Int[np.ndarray, " tracks"]
    """As in the track table."""

    def __len__(self) -> int:
        return len(self.t)

    @property
    def first(self) -> Int64[np.ndarray, " tracks"]:
        """The first cell of each track."""
        return np.flatnonzero(np.diff(self.track, prepend=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is stored, or would be."""

    bytes: Sequence[int]
    """Of the shards of each experiment."""
    index_bytes: int
    """Of the other files: index and parts."""
    is_estimate: bool
    codec: str
    spread: int = 0
    """How far the shards may be off either way, by how much the patches that were compressed differ."""
    compressed: int = 0
    """Patches that were compressed to estimate what a codec makes of all of them."""

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.bytes) + self.index_bytes


@runtime_checkable
class Collection(Protocol):
    """Experiments that are looked at."""

    what: str
    """The YAML or the set, as the user gave it."""
    is_built: bool
    experiments: tuple[ExperimentRecord, ...]
    fovs: tuple[FovRecord, ...]
    """Fields of view with cells, adjacent by experiment."""
    labels: tuple[LabelRecord, ...]
    strata: tuple[Labels, ...]
    """Values of the labels that shards are partitioned by."""
    tau_range_hours: tuple[float, float]
    dropped: Mapping[str, Mapping[str, int]]
    """Experiment → reason → cells left out, as far as it is known."""
    skipped: tuple[SkippedRecord, ...]
    """Fields of view that the build had to leave out."""
    workers: int
    """Threads of a build."""

    def runs(self) -> Iterator[Run]:
        """Yield all cells."""
        ...

    def take(self, fov: int) -> Run:
        """Return the cells of one field of view."""
        ...

    def find_sizes(self, seen: Sequence[Sequence[FrameCut]]) -> Sizes:
        """Say how large the files of a set are, or would be, by the frames of each experiment that were looked at."""
        ...

    def find_suspicious(self) -> tuple[SuspicionRecord, ...]:
        """Say what a build finds suspicious."""
        ...

    def count_frames(self, experiment: int) -> int:
        """Count the frames of an experiment."""
        ...

    def find_statistics(self, experiment: int) -> Float32[np.ndarray, "c k"] | None:
        """Return the statistics of each channel, as `contract.STATISTICS`; None before they are known."""
        ...

    def look_at_frames(self, experiment: int, wanted: Sequence[tuple[int, int]]) -> Iterator[FrameLook]:
        """Look at frames (FOV, t); after a build at all of them, by what was noted then."""
        ...

    def read_patches(self, fov: int, rows: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k c y x"]:
        """Read the middle slices of the patches of cells, given by their rows in `take(fov)`."""
        ...


def split_runs(
    experiment: Int[np.ndarray, " f"], first: Int64[np.ndarray, " f1"], most: int = RUN_CELLS
) -> Iterator[tuple[int, int]]:
    """Split fields of view into runs of one experiment: first FOV, and one past the last.

    Parameters
    ----------
    experiment
        Of each FOV; adjacent.
    first
        CSR: cells of each FOV.
    most
        Cells of a run of more than one FOV.
    """
    begin = 0
    for fov in range(1, len(experiment) + 1):
        ends = fov == len(experiment) or experiment[fov] != experiment[begin] or first[fov + 1] - first[begin] > most
        if ends:
            yield begin, fov
            begin = fov


def name_stratum(labels: Labels) -> str:
    """Write the values of a stratum as one name."""
    return ", ".join(value if value is not None else "none" for value in labels.values()) or "all"
