"""Says what is cut from one field of view, and what the pass over its pixels finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from etl.cut.statistics import Summary
from etl.layout.segments import WHOLE, Segment
from etl.source.config import OnBadFov, OnBlank, OnNan
from etl.source.patch_grid import PatchGrid
from etl.source.plates import Fov
from etl.source.stored import Stack, StoredPatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingRoom:
    """Room for frames while they are cut."""

    memory_bytes: int
    """What reading may hold."""
    folder: Path
    """Where frames go that do not fit into it, in files without a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutJob:
    """What to take from one FOV."""

    fov: Fov
    channel_names: tuple[str, ...]
    """Stored channels, in stored order."""
    channels: tuple[int, ...]
    """Their places on the plate."""
    patch: StoredPatch
    stack: Stack
    t: Int[np.ndarray, " obs"]
    """Frame of each observation, ascending."""
    y: Int[np.ndarray, " obs"]
    """Row of the image where the middle of the patch is."""
    x: Int[np.ndarray, " obs"]
    """Column, likewise."""
    on_blank: OnBlank
    on_nan: OnNan
    room: ReadingRoom
    segment: Segment = WHOLE
    on_bad_fov: OnBadFov = "error"

    @property
    def frames(self) -> range:
        """Frames that are read."""
        return self.segment.read(self.fov.shape[0])

    @property
    def own_frames(self) -> range:
        """Those of them that count in statistics of the FOV."""
        return self.segment.own(self.fov.shape[0])

    @property
    def read_channels(self) -> tuple[int, ...]:
        """Places on the plate of what is read: the stored channels, and that of which the focus is measured."""
        return self.stack.list_read(self.channels)

    @property
    def all_slices(self) -> slice:
        """Slices of which frames need some; where all need the same, those."""
        return self.stack.all_slices(self.fov.shape[2])

    @property
    def patch_bytes(self) -> int:
        """Size of one patch."""
        return int(np.prod(self.patch.shape)) * self.patch.dtype.itemsize

    @property
    def grids(self) -> tuple[PatchGrid, PatchGrid]:
        """Where pixels lie along y and x."""
        (height, width), (y, x) = self.patch.shape[2:], self.patch.scale[1:]
        return PatchGrid(size=height, scale=y), PatchGrid(size=width, scale=x)


@dataclass(frozen=True, slots=True, kw_only=True)
class FovCut:
    """What the pass over the pixels of one FOV found. Frames are those that were read."""

    first: int
    """The first frame."""
    timepoint: Float[np.ndarray, "frames channels 8"]
    """NaN where a channel of a frame is blank or has no finite pixel."""
    summaries: tuple[Summary, ...]
    """One per channel, of the segment's own frames that are not blank in it."""
    blank: Bool[np.ndarray, " obs"]
    """Patches with a channel that is entirely fill value."""
    nonfinite: Bool[np.ndarray, " obs"]
    """Other patches with NaN or infinite pixels."""
    z_focus: Float[np.ndarray, " frames"]
    """Slice of the plate in focus; NaN where it was not asked for."""
    z_start: Float[np.ndarray, " frames"]
    """Place of the first stored slice in the plate's stack."""
