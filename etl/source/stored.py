"""Says what the patches of an experiment are: shape, dtype, scale, and which slices of the plate's stack they hold.

Pure but for the metadata of the plate's arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Fov

_ALMOST = 1e-6
"""Slices that rounding may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPatch:
    """What all patches of an experiment are."""

    shape: tuple[int, int, int, int]
    """(C, Z, Y, X)."""
    dtype: np.dtype[Any]
    """Little-endian."""
    scale: tuple[float, float, float]
    """Pixels of the plate per stored pixel along z, y and x."""

    @property
    def is_resampled(self) -> bool:
        """Whether stored pixels lie between pixels of the plate along an axis."""
        return self.scale != (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Which slices of the stack the patches of a FOV are made of."""

    size: int
    """Slices at the stored step."""
    scale: float
    """Slices of the plate per stored slice."""
    first: float
    """Place of the first one in the plate's stack; a whole number where z is not resampled."""
    ends: tuple[int, int]
    """Slices of the plate that may be taken: first, and one past the last."""

    def slices(self, first: float) -> slice:
        """Return the slices of the plate that lie around the stored ones, of which the first is at `first`."""
        last = first + (self.size - 1) * self.scale
        low, high = self.ends
        return slice(max(math.floor(first + _ALMOST), low), min(math.ceil(last - _ALMOST) + 1, high))


def plan_stored(config: BuildConfig, experiment: ExperimentConfig, fov: Fov) -> StoredPatch:
    """Say what the patches of an experiment are; all its FOVs agree."""
    source = fov.array.dtype
    depth = plan_stack(config, experiment, fov).size
    return StoredPatch(
        shape=(len(experiment.source_channel), depth, *config.yx_patch_size),
        dtype=np.dtype(source if config.dtype == "source" else config.dtype).newbyteorder("<"),
        scale=config.scale_for(experiment),
    )


def plan_stack(config: BuildConfig, experiment: ExperimentConfig, fov: Fov) -> Stack:
    """Say which slices of a FOV's stack are taken: as many as fit, around the middle of the range."""
    taken, scale = config.z_slices(fov.shape[2]), config.scale_for(experiment)[0]
    size = max(round((taken.stop - taken.start) / scale), 1)
    first = (taken.start + taken.stop - 1 - (size - 1) * scale) / 2
    return Stack(size=size, scale=scale, first=first, ends=(taken.start, taken.stop))
