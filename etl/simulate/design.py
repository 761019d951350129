"""Plans what to simulate: the design of each experiment (plates, channels, optics), from the options.

Every experiment has its own microscope: gain, background, noise, sharpness, frame interval, channel names and channel
order are drawn from (seed, experiment), so raw intensities can't be compared between experiments. The biology can: how
organelles are arranged, and what infection does to them, is the same in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CONDITIONS = ("uninfected", "infected")
"""In the order of `SimulationConfig.condition_ratio`."""

INTERVALS_MINUTES = (30.0, 20.0, 40.0, 24.0)
"""Frame intervals; experiment i takes number i modulo 4."""

_LAYOUTS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("phase", "Phase3D"), ("organelle", "raw GFP EX488 EM525-45")),
    (("organelle", "raw mCherry EX561 EM600-37"), ("phase", "Phase")),
    (("nucleus", "DAPI"), ("phase", "Brightfield QPI"), ("organelle", "MitoTracker")),
    (("phase", "Retardance"), ("nucleus", "SiR-DNA"), ("organelle", "mNeonGreen")),
)
_TAG_EXPERIMENT = 0x51A1
_MINIMA = {
    "experiments": 1,
    "wells": 2,
    "fovs": 1,
    "frames": 1,
    "size": 32,
    "z": 1,
    "cells": 1,
    "cell_radius": 3,
    "onset_hpi": 0,
    "workers": 1,
    "seed": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """Size and content of a simulated collection."""

    experiments: int = 4
    """Plates, each with its own microscope."""
    wells: int = 2
    """Wells per plate, shared out between the conditions by `condition_ratio`, at least one each."""
    fovs: int = 4
    """Fields of view per well."""
    frames: int = 24
    """Timepoints per movie; their interval differs between experiments."""
    size: int = 256
    """Height and width of a frame in pixels."""
    z: int = 1
    """Planes of the stack."""
    cells: int = 16
    """Cells in view at the start, on average over FOVs."""
    cell_radius: float = 12.0
    """Mean radius of a cell in pixels."""
    condition_ratio: tuple[int, int] = (1, 1)
    """Wells of uninfected to wells of infected cells."""
    onset_hpi: float = 6.0
    """Hours post infection at which half of the response is reached, on average over lineages."""
    sharded: bool = False
    """Write Zarr shards of 8 frames, all channels and planes, with small chunks inside."""
    workers: int = 1
    """Processes; the result does not depend on them."""
    seed: int = 0
    """Same seed and sizes, same bytes."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ValueError
            A value out of range, named with what is allowed.
        """
        for name, low in _MINIMA.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be >= {low}. Give a larger value.")
        if len(self.condition_ratio) != 2 or min(self.condition_ratio) < 1:
            raise ValueError(
                f"condition_ratio={self.condition_ratio} must be two whole numbers >= 1. "
                "Give the wells of uninfected to infected cells, as in 4 1."
            )
        if self.size < 4 * self.cell_radius:
            raise ValueError(
                f"size={self.size} must be >= 4 * cell_radius = {4 * self.cell_radius:g} pixels. "
                "Give larger frames or smaller cells."
            )

    @property
    def patch_size(self) -> int:
        """Height and width in pixels that show a cell with a rim around it: a multiple of 8 where it fits."""
        return min(8 * math.ceil(5.0 * self.cell_radius / 8), self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelDesign:
    """One channel of a plate and how its detector turns light into counts."""

    kind: str
    """phase | organelle | nucleus."""
    name: str
    gain: float
    """Counts per unit of signal."""
    background: float
    """Counts where nothing is."""
    noise: float
    """Read noise in counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentDesign:
    """One plate: what is on it and how it is seen."""

    index: int
    name: str
    channels: tuple[ChannelDesign, ...]
    """In the order of the plate."""
    condition_wells: dict[str, tuple[str, ...]]
    interval_minutes: float
    start_hpi: float
    blur_px: float
    """Standard deviation of the point spread function."""
    vignette: float
    """Relative loss of light in the corners."""
    speed_px_per_hour: float

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names in the order of the plate."""
        return tuple(channel.name for channel in self.channels)

    @property
    def source_channel(self) -> tuple[str, str]:
        """Names of the phase and the organelle channel, in this order."""
        by_kind = {channel.kind: channel.name for channel in self.channels}
        return by_kind["phase"], by_kind["organelle"]

    def hpi(self, frame: int) -> float:
        """Hours post infection of a frame."""
        return self.start_hpi + frame * self.interval_minutes / 60


def plan_experiment(config: SimulationConfig, index: int) -> ExperimentDesign:
    """Draw the design of experiment number `index`: a function of (config, index) alone."""
    rng = np.random.default_rng([_TAG_EXPERIMENT, config.seed, index])
    layout = _LAYOUTS[index % len(_LAYOUTS)]
    return ExperimentDesign(
        index=index,
        name=f"sim_{index:02d}",
        channels=tuple(_sample_channel(rng, kind, name) for kind, name in layout),
        condition_wells=_plan_wells(config),
        interval_minutes=INTERVALS_MINUTES[index % len(INTERVALS_MINUTES)],
        start_hpi=float(np.round(rng.uniform(1.0, 4.0), 1)),
        blur_px=float(rng.uniform(0.5, 0.9)),
        vignette=float(rng.uniform(0.05, 0.3)),
        speed_px_per_hour=float(config.cell_radius * rng.uniform(0.6, 1.0)),
    )


def _sample_channel(rng: np.random.Generator, kind: str, name: str) -> ChannelDesign:
    if kind == "phase":
        background = rng.uniform(6000, 30000)
        gain = background * rng.uniform(0.15, 0.35)
        return ChannelDesign(kind=kind, name=name, gain=gain, background=background, noise=gain * 0.03)
    gain = float(np.exp(rng.uniform(np.log(300), np.log(4000))))
    return ChannelDesign(
        kind=kind, name=name, gain=gain, background=float(rng.uniform(90, 800)), noise=float(rng.uniform(3, 12))
    )


def _plan_wells(config: SimulationConfig) -> dict[str, tuple[str, ...]]:
    """Share out the wells; conditions take turns along the plate so that position tells nothing."""
    healthy, infected = config.condition_ratio
    n_infected = min(max(round(config.wells * infected / (healthy + infected)), 1), config.wells - 1)
    places = {int((i + 0.5) * config.wells / n_infected) for i in range(n_infected)}
    wells: dict[str, list[str]] = {condition: [] for condition in CONDITIONS}
    for place in range(config.wells):
        row, column = divmod(place, 12)
        wells[CONDITIONS[place in places]].append(f"{_row_name(row)}/{column + 1}")
    return {condition: tuple(names) for condition, names in wells.items()}


def _row_name(row: int) -> str:
    """Letters as on a plate: A … Z, AA, AB …."""
    high, low = divmod(row, 26)
    return (_row_name(high - 1) if high else "") + chr(ord("A") + low)
