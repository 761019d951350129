"""Takes frame interval, pixel size and channel names from the plates where experiments.yaml does not give them.

What the YAML gives wins; `etl.suspicious.scales` says where the plate says otherwise. A frame interval that neither
gives is an error, because hours, τ and HPI follow from it. The config's hash holds what the YAML gives; a plate that
says something else later is noticed by the fingerprint of its metadata. A plate of one frame has no time: its interval
is 0, whatever the time axis says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dynaclr_wds.errors import ConfigError
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.experiments import check_tau_reaches_a_frame
from etl.source.plates import Fov, PixelSize, Plate
from etl.source.preflight import plan_fovs


def fill_in_from_plates(config: BuildConfig, plates: Mapping[str, Plate]) -> BuildConfig:
    """Return the config with interval and channels of every experiment, and pixel sizes where anything says them.

    Its hash and its record stay as they were.

    Raises
    ------
    ConfigError
        Neither the YAML nor the plate gives a frame interval or names the channels, or FOVs of the plate differ in the
        interval; or it is given as 0, and there are more frames than one; or a channel to store is none of the
        plate's; or the τ range holds no frame.
    """
    _check_intervals(config, plates)
    experiments = []
    for number, experiment in enumerate(config.experiments):
        plate = plates[experiment.name]
        fovs = [plate.fovs[name] for name in plan_fovs(config, experiment, plate.fovs) or plate.fovs]
        where = f"{config.where}: experiments[{number}]"
        found: dict[str, Any] = {}
        if not experiment.channel_names:
            found["channel_names"] = _read_channels(experiment, fovs, plate.path, where)
        if experiment.interval_minutes is None:
            found["interval_minutes"] = _read_interval(fovs, f"{where}.interval_minutes", plate.path)
        elif experiment.interval_minutes == 0:
            _check_one_frame(fovs, f"{where}.interval_minutes")
        if experiment.pixel_size_um is None and fovs and None not in fovs[0].scale.pixel_size_um[1:]:
            z, y, x = fovs[0].scale.pixel_size_um
            found["pixel_size_um"] = (y, x) if z is None else (z, y, x)
        written = {name: getattr(experiment, name) for name in found} | dict(experiment.written)
        experiments.append(dataclasses.replace(experiment, written=written, **found))
    filled = dataclasses.replace(config, experiments=tuple(experiments))
    for experiment in filled.experiments:
        if experiment.has_time:
            check_tau_reaches_a_frame(filled, experiment)
    return filled


def describe_intervals(config: BuildConfig) -> list[str]:
    """Say which frame intervals were taken from the plates, a line per experiment."""
    return [
        f"{experiment.name}: interval_minutes is not given; "
        + (
            f"the time axis of the plate says {experiment.minutes:g} minutes, and that is used."
            if experiment.has_time
            else "the plate has one frame, so there is no time, and 0 is used."
        )
        for experiment in config.experiments
        if "interval_minutes" in experiment.written
    ]


def stored_pixel_size(experiment: ExperimentConfig, scale: tuple[float, float, float]) -> PixelSize:
    """Return micrometres per stored pixel along z, y and x; None where it is not known.

    Parameters
    ----------
    scale
        Pixels of the plate per stored pixel.
    """
    there = (None, *(experiment.pixel_size_um or (None, None)))[-3:]
    z, y, x = (None if size is None else float(f"{size * s:.12g}") for size, s in zip(there, scale, strict=True))
    return z, y, x


def _read_channels(experiment: ExperimentConfig, fovs: list[Fov], plate: str, where: str) -> tuple[str, ...]:
    """Take the names of the channels from the plate."""
    names = fovs[0].channel_names if fovs else ()
    if not names:
        raise ConfigError(
            f"{where}.channel_names is missing, and {plate} does not name its channels either. List all of them, in "
            "the plate's order."
        )
    for channel in experiment.source_channel:
        if channel not in names:
            raise ConfigError(
                f"{where}.source_channel={channel!r} must be one of the channels of {plate}, {list(names)}. Correct it."
            )
    return names


def _check_intervals(config: BuildConfig, plates: Mapping[str, Plate]) -> None:
    """Check that every experiment has a frame interval, by the YAML or the plate; name all that have none."""
    lacking = []
    for number, experiment in enumerate(config.experiments):
        plate = plates[experiment.name]
        fovs = [plate.fovs[name] for name in plan_fovs(config, experiment, plate.fovs) or plate.fovs]
        if experiment.interval_minutes is None and not _says_interval(fovs):
            lacking.append((number, experiment.name, plate.path))
    if len(lacking) == 1:
        ((number, _, path),) = lacking
        raise ConfigError(
            f"{config.where}: experiments[{number}].interval_minutes is missing, and the time axis of {path} does not "
            "say it either (its scale is 1, or it has no unit of time). Give the minutes between frames."
        )
    if lacking:
        names = ", ".join(f"experiments[{number}] ({name})" for number, name, _ in lacking)
        raise ConfigError(
            f"{config.where}: interval_minutes is missing in {names}, and the time axes of their plates do not say it "
            "either (their scale is 1, or they have no unit of time). Give the minutes between frames of each: put a "
            "line such as `interval_minutes: 30.0` below the `name:` of each of these, with its own number."
        )


def _says_interval(fovs: list[Fov]) -> bool:
    """Whether any time axis says it, or there is one frame; that axes differ is another mistake."""
    return any(fov.scale.interval_minutes is not None for fov in fovs) or (
        bool(fovs) and all(fov.shape[0] == 1 for fov in fovs)
    )


def _read_interval(fovs: list[Fov], where: str, plate: str) -> float:
    """Take the frame interval from the plate, where all its FOVs agree; 0 where all of them have one frame."""
    if fovs and all(fov.shape[0] == 1 for fov in fovs):
        return 0.0
    found = {fov.scale.interval_minutes: fov.name for fov in reversed(fovs)}
    minutes = fovs[0].scale.interval_minutes
    if len(found) > 1 or minutes is None:
        said = ", ".join(f"{value or 0:g} min in {name}" for value, name in reversed(found.items()))
        raise ConfigError(
            f"{where} is missing, and the FOVs of {plate} differ in what their time axes say ({said}; 0 is nothing). "
            "Give the minutes between frames."
        )
    return minutes


def _check_one_frame(fovs: list[Fov], where: str) -> None:
    """Check that fields of view without an interval have no second frame."""
    for fov in fovs:
        if fov.shape[0] > 1:
            raise ConfigError(
                f"{where}=0 is for plates of one frame, but {fov.where} has {fov.shape[0]}. Give the minutes between "
                "frames."
            )
