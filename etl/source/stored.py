"""Says what the patches of an experiment are: shape, dtype, scale, and which slices of the plate's stack they hold.

Pure but for the metadata of the plate's arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynaclr_wds.errors import ConfigError
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.focus import BAND, band_weights, read_focus
from etl.source.plates import Fov
from etl.source.z_options import Reduction, ZFocus

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
    reductions: tuple[Reduction, ...]
    """How each channel is reduced to one slice."""

    @property
    def is_reduced(self) -> bool:
        """Whether patches hold one slice that stands for several."""
        return is_reduced(self.reductions)

    @property
    def is_resampled(self) -> bool:
        """Whether stored pixels lie between pixels of the plate along an axis."""
        return self.scale != (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Which slices of the stack the patches of a FOV are made of."""

    size: int
    """Slices at the stored step, before they are reduced to one."""
    scale: float
    """Slices of the plate per stored slice."""
    ends: tuple[int, int]
    """Slices of the plate that may be taken: first, and one past the last."""
    middle: float
    """Place of the first slice without focus: as many are left out below as above."""
    below: int = 0
    """Slices to take below the focus."""
    focus: tuple[float, ...] | None = None
    """Slice in focus of every frame, as the metadata say it."""
    measured: int | None = None
    """Channel of the plate whose focus is measured; None where it isn't."""
    pixel_size_um: tuple[float, float] = (1.0, 1.0)
    """Of the plate along y and x, for measuring."""

    @property
    def is_fixed(self) -> bool:
        """Whether all frames have the same slices."""
        return self.focus is None and self.measured is None

    def all_slices(self, depth: int) -> slice:
        """Return the slices of a stack of this depth of which frames need some; where all need the same, those."""
        return self.slices(self.middle) if self.is_fixed else slice(0, depth)

    def list_read(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """Return the channels that are read for some stored ones: also that of which the focus is measured."""
        more = () if self.measured is None or self.measured in channels else (self.measured,)
        return (*channels, *more)

    @property
    def center(self) -> int:
        """Stored slice in the middle."""
        return self.size // 2

    def first(self, focus: float) -> float:
        """Return the place of the first stored slice, moved to where the stack has all of them; NaN is no focus."""
        if math.isnan(focus):
            return self.middle
        low, high = self.ends
        most = high - 1 - (self.size - 1) * self.scale
        return float(min(max(focus - self.below * self.scale, low), max(most, low)))

    def slices(self, first: float) -> slice:
        """Return the slices of the plate that lie around the stored ones, of which the first is at `first`."""
        last = first + (self.size - 1) * self.scale
        low, high = self.ends
        return slice(max(math.floor(first + _ALMOST), low), min(math.ceil(last - _ALMOST) + 1, high))


def plan_stored(config: BuildConfig, experiment: ExperimentConfig, fov: Fov) -> StoredPatch:
    """Say what the patches of an experiment are; all its FOVs agree."""
    source = fov.array.dtype
    reductions = config.reductions_for(experiment)
    depth = 1 if is_reduced(reductions) else plan_stack(config, experiment, fov).size
    return StoredPatch(
        shape=(len(experiment.source_channel), depth, *config.yx_patch_size),
        dtype=np.dtype(source if config.dtype == "source" else config.dtype).newbyteorder("<"),
        scale=config.scale_for(experiment),
        reductions=reductions,
    )


def is_reduced(reductions: tuple[Reduction, ...]) -> bool:
    """Whether an experiment's channels are reduced to one slice: all are, or none."""
    return "none" not in reductions


def plan_stack(config: BuildConfig, experiment: ExperimentConfig, fov: Fov) -> Stack:
    """Say which slices of a FOV's stack are taken: around the focus, or as many as fit around the middle of the range.

    Raises
    ------
    PlateError
        Metadata about the focus that can't be.
    """
    depth, scale = fov.shape[2], config.scale_for(experiment)[0]
    taken = config.z_slices(depth)
    asked = max(round((taken.stop - taken.start) / scale), 1) if config.z_focus is None else config.z_focus.window
    fitting = math.floor((depth - 1) / scale + _ALMOST) + 1
    size = asked if config.z_focus is None else min(asked, fitting)
    middle = (taken.start + taken.stop - 1 - (size - 1) * scale) / 2
    stack = Stack(size=size, scale=scale, ends=(taken.start, taken.stop), middle=middle)
    return stack if config.z_focus is None else _focus_stack(config.z_focus, experiment, fov, stack)


def _focus_stack(options: ZFocus, experiment: ExperimentConfig, fov: Fov, stack: Stack) -> Stack:
    channel = focus_channel(options, experiment)
    stack = replace(stack, below=options.below(stack.size))
    focus = read_focus(fov, channel, options.level)
    if focus is not None:
        return replace(stack, focus=focus)
    y, x = (experiment.pixel_size_um or (1.0, 1.0))[-2:]
    return replace(stack, measured=experiment.channel_names.index(channel), pixel_size_um=(y, x))


def focus_channel(options: ZFocus, experiment: ExperimentConfig) -> str:
    """Return the channel whose focus counts."""
    return options.channel or experiment.source_channel[0]


def check_focus(config: BuildConfig, experiment: ExperimentConfig, fov: Fov, where: str) -> None:
    """Check that a FOV has as many slices as are asked for, and that its focus is known or can be measured.

    Raises
    ------
    ConfigError
        Names the option that can't be had; `where` is the YAML path of the experiment.
    PlateError
        Metadata about the focus that can't be.
    """
    options = config.z_focus
    if options is None:
        return
    at = f"{config.where}: shards.z_focus"
    _check_focus_known(options, experiment, fov, at, where)
    size = plan_stack(config, experiment, fov).size
    if size < options.window and not is_reduced(config.reductions_for(experiment)):
        raise ConfigError(
            f"{at}.window={options.window} is more than the {size} slices that the stack of {fov.where} has. Lower it, "
            "or reduce slices to one (z_reduction), for which their number need not be the same everywhere."
        )


def _check_focus_known(options: ZFocus, experiment: ExperimentConfig, fov: Fov, at: str, where: str) -> None:
    channel = focus_channel(options, experiment)
    if read_focus(fov, channel, options.level) is not None:
        return
    said = f"the focus_slice attributes of {fov.where} don't say the focus of {channel!r}"
    if options.level != "timepoint":
        raise ConfigError(
            f"{at}.level={options.level!r}, but {said}, and it is measured frame by frame only. Write them with "
            "VisCy's `qc run`, or use level: timepoint."
        )
    if channel not in experiment.channel_names:
        raise ConfigError(
            f"{at}.channel={channel!r}, but {said}, and what is measured must be one of {where}.channel_names "
            f"{list(experiment.channel_names)}. Correct it."
        )
    if experiment.pixel_size_um is None:
        raise ConfigError(
            f"{where}.pixel_size_um is missing, and the plate doesn't say it either, but {said}, and to measure it the "
            "size of a pixel must be known. Give it."
        )
    y, x = experiment.pixel_size_um[-2:]
    if not band_weights((fov.shape[3], fov.shape[4]), (y, x)).any():
        low, high = (1 / frequency for frequency in reversed(BAND))
        raise ConfigError(
            f"{where}.pixel_size_um={list(experiment.pixel_size_um)}: {said}, and images of {list(fov.shape[3:])} such "
            f"pixels show no structures of {low:.1f} to {high:.1f} µm, by which it would be measured. Correct it, or "
            "write focus_slice."
        )
