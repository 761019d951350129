"""Finds what is suspicious in time, space and channels.

Intervals and pixel sizes that plates contradict, τ that can't be had, channels that change places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dynaclr_wds.suspicions import SuspicionRecord
from dynaclr_wds.tau import least_tau
from dynaclr_wds.words import count_of, list_some
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Fov
from etl.suspicious.words import suspicion, write_size

TOLERANCE = 0.01
"""Relative difference up to which two intervals or two pixel sizes count as the same."""


def find_in_scales(config: BuildConfig, experiment: ExperimentConfig, fovs: Sequence[Fov]) -> Iterator[SuspicionRecord]:
    """Yield what is suspicious about the frame interval, pixel size and τ of one experiment; `fovs` are those built."""
    if experiment.has_time:
        yield from _find_interval(experiment, fovs)
        yield from _find_tau(config, experiment)
    yield from _find_pixel_size(experiment, fovs)


def find_between_experiments(config: BuildConfig) -> Iterator[SuspicionRecord]:
    """Yield experiments that differ in the order of channels, or in pixel size unless patches are rescaled to one."""
    yield from _find_moved_channels(config.experiments)
    sizes: dict[tuple[float, ...], list[str]] = {}
    for experiment in config.experiments if config.reference_pixel_size_um is None else ():
        if experiment.pixel_size_um is not None:
            size = experiment.pixel_size_um[-2:]
            alike = next((known for known in sizes if not _differ(known, size)), size)
            sizes.setdefault(alike, []).append(experiment.name)
    if len(sizes) > 1:
        groups = "; ".join(f"{write_size(size)} in {list_some(names)}" for size, names in sizes.items())
        yield suspicion(
            "pixel_sizes_vary", None, None, len(sizes),
            f"experiments differ in pixel size: {groups}. Cells look larger in one than in another, and patches show "
            "more or less of their surroundings. Give reference_pixel_size_um to rescale them, or train on them apart.",
        )  # fmt: skip


def _find_moved_channels(experiments: Sequence[ExperimentConfig]) -> Iterator[SuspicionRecord]:
    """Find channels that stand at different places in experiments that one network could take all channels of."""
    places: dict[tuple[int, str], dict[int, str]] = {}
    for experiment in experiments:
        names = experiment.source_channel
        for place, name in enumerate(names):
            shown = experiment.channel_markers.get(name, name)
            places.setdefault((len(names), shown), {}).setdefault(place, experiment.name)
    moved = [(name, found) for (_, name), found in places.items() if len(found) > 1]
    if moved:
        name, found = moved[0]
        where = ", but ".join(f"{place} in {of}" for place, of in list(found.items())[:2])
        more = f", and {list_some([other for other, _ in moved[1:]])} moved too" if len(moved) > 1 else ""
        yield suspicion(
            "channels_differ", None, None, len(moved),
            f"experiments differ in the order of channels: {name} is channel {where}{more}. A network that sees all "
            "channels of a cell would take one for the other. Write source_channel in the same order in all "
            "experiments; only with channels_per_sample: 1 it does not matter.",
        )  # fmt: skip


def _find_interval(experiment: ExperimentConfig, fovs: Sequence[Fov]) -> Iterator[SuspicionRecord]:
    said = [(fov, fov.scale.interval_minutes) for fov in fovs]
    found = [(fov, plate) for fov, plate in said if plate is not None and _differ([plate], [experiment.minutes])]
    if found:
        (fov, plate), ours = found[0], experiment.minutes
        ratio = f"{ours / plate:.3g} times too long" if ours > plate else f"{plate / ours:.3g} times too short"
        yield suspicion(
            "interval_differs", experiment.name, fov.name, len(found),
            f"interval_minutes={ours:g}, but the time axis of the plate says {plate:g} minutes in {fov.name}"
            f"{_and_more(len(found))}. If the plate is right, all hours (τ, HPI) are {ratio}. Correct "
            "interval_minutes, or leave it out to take the plate's.",
        )  # fmt: skip


def _find_pixel_size(experiment: ExperimentConfig, fovs: Sequence[Fov]) -> Iterator[SuspicionRecord]:
    if experiment.pixel_size_um is None:
        return
    ours, given = experiment.pixel_size_um, "pixel_size_um" not in _from_plate(experiment)
    found = [(fov, plate) for fov in fovs if (plate := _said(fov, len(ours))) and _differ(plate, ours)]
    if found and given:
        yield suspicion(
            "pixel_size_differs", experiment.name, found[0][0].name, len(found),
            f"pixel_size_um is {write_size(ours)}, but the plate says {write_size(found[0][1])} in {found[0][0].name}"
            f"{_and_more(len(found))}. Correct pixel_size_um, or leave it out to take the plate's.",
        )  # fmt: skip
    elif found:
        yield suspicion(
            "pixel_sizes_vary", experiment.name, found[0][0].name, len(found),
            f"fields of view differ in pixel size: the plate says {write_size(ours)} in {fovs[0].name}, but "
            f"{write_size(found[0][1])} in {found[0][0].name}{_and_more(len(found))}. Correct the plate, or make two "
            "experiments of it.",
        )  # fmt: skip
    if _differ(ours[-2:-1], ours[-1:]):
        yield suspicion(
            "pixel_not_square", experiment.name, None, 1,
            f"pixels are {ours[-2]:g} µm along y and {ours[-1]:g} µm along x. Cells look stretched, and turning a "
            "patch changes its shape. Correct the pixel size, or resample the plate to square pixels.",
        )  # fmt: skip


def _find_tau(config: BuildConfig, experiment: ExperimentConfig) -> Iterator[SuspicionRecord]:
    """Find an end of the τ range that is less than a frame, and a range that is one frame."""
    (low, high), (least, most) = config.tau_range_hours, config.tau_frames(experiment)
    first, hours = int(least_tau(least)), experiment.minutes / 60
    if low > 0 and least == 0:
        what = f"{low:g} h can't be had"
    elif low < high and first == most:
        what = "the whole range is one frame"
    else:
        return
    frames = f"{first} to {most} frames" if most > first else count_of(first, "frame")
    drawn = f"{first * hours:.3g} to {most * hours:.3g} h" if most > first else f"{first * hours:.3g} h"
    yield suspicion(
        "tau_shortened", experiment.name, None, most - first + 1,
        f"tau_range_hours asks for {low:g} to {high:g} h, but frames are {experiment.minutes:g} minutes apart, so "
        f"{what}: positives are drawn {frames} = {drawn} after their anchor. Give a tau_range_hours that all "
        "experiments can serve, or leave it if that is what you want.",
    )  # fmt: skip


def _from_plate(experiment: ExperimentConfig) -> set[str]:
    """Keys whose value was read from the plate."""
    return {key for key, value in experiment.written.items() if value is None}


def _said(fov: Fov, axes: int) -> tuple[float, ...] | None:
    """What a FOV says of its pixel size along the last so many axes, as far as it says so."""
    z, y, x = fov.scale.pixel_size_um
    if y is None or x is None:
        return None
    return (z, y, x) if axes == 3 and z is not None else (y, x)


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    """Compare along the axes that both have."""
    shared = min(len(one), len(other))
    pairs = zip(one[len(one) - shared :], other[len(other) - shared :], strict=True)
    return any(abs(a - b) > TOLERANCE * max(a, b) for a, b in pairs)


def _and_more(count: int) -> str:
    return f" and {count_of(count - 1, 'more field')} of view" if count > 2 else " and one more" if count == 2 else ""
