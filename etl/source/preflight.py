"""Checks a config against its plates before any work is done.

Reads metadata, never pixels. Every error names the YAML path of the value that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dynaclr_wds.errors import ConfigError, PlateError
from dynaclr_wds.storage.location import is_url
from dynaclr_wds.words import list_some
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.images import list_images, open_images
from etl.source.plates import Fov, Plate, open_plate
from etl.source.stored import check_focus


def open_plates(config: BuildConfig) -> dict[str, Plate]:
    """Open the plate of every experiment, the wells of `condition_wells` only.

    Raises
    ------
    ConfigError
        A plate that is not there.
    PlateError
        A plate that is not OME-Zarr, or is damaged.
    StorageError
        A plate that cannot be read.
    """
    plates: dict[str, Plate] = {}
    for number, experiment in enumerate(config.experiments):
        where = f"{config.where}: experiments[{number}].data_path={experiment.data_path!r}"
        try:
            plates[experiment.name] = _open(experiment)
        except (FileNotFoundError, PlateError) as error:
            if images := _list_unnamed(experiment):
                raise ConfigError(
                    f"{where} is no plate, but holds images {images[:8]}. Say which is of which well, such as "
                    f"`wells: {{A/1: [{images[0]}]}}`."
                ) from error
            if isinstance(error, PlateError):
                error.add_note(f"This plate is {where}.")
                raise
            raise ConfigError(f"{where} has no plate. Give the folder of an OME-Zarr HCS plate.") from error
        except (ValueError, OSError) as error:
            error.add_note(f"This plate is {where}.")
            raise
    return plates


def _open(experiment: ExperimentConfig) -> Plate:
    if experiment.wells is None:
        return open_plate(experiment.data_path, experiment.well_conditions, experiment.storage, experiment.level)
    return open_images(experiment.data_path, experiment.wells, experiment.storage, experiment.level)


def _list_unnamed(experiment: ExperimentConfig) -> list[str]:
    """List the images on a disk that an experiment does not give a well, where it gives none at all."""
    if experiment.wells is not None or is_url(experiment.data_path):
        return []
    return list_images(Path(experiment.data_path))


def plan_fovs(config: BuildConfig, experiment: ExperimentConfig, names: Iterable[str]) -> tuple[str, ...]:
    """Choose the FOVs (`row/col/fov`) that are built, sorted by name."""
    wells = config.wells_of(experiment)
    excluded = {*config.exclude_fovs, *experiment.exclude_fovs}
    return tuple(sorted(name for name in names if name.rpartition("/")[0] in wells and name not in excluded))


def check_plates(config: BuildConfig, plates: Mapping[str, Plate]) -> None:
    """Check all that the config says about the plates.

    Raises
    ------
    ConfigError
        A well or FOV that the plate does not have, channel names that differ, a `z_range` outside the stack,
        a patch larger than the image (unless patches are padded), FOVs of one experiment that differ in depth or
        dtype, a pixel size that is needed and not known, or a focus that can't be found.
    PlateError
        Metadata about the focus that can't be.
    """
    _check_excluded(config, plates)
    for number, experiment in enumerate(config.experiments):
        where = f"{config.where}: experiments[{number}]"
        plate = plates[experiment.name]
        _check_pixel_size(config, experiment, where)
        _check_wells(experiment.condition_wells, plate, f"{where}.condition_wells")
        for label, groups in experiment.well_labels.items():
            _check_wells(groups, plate, f"{where}.well_labels.{label}")
        dtypes: dict[str, str] = {}
        depths: dict[int, str] = {}
        for name in plan_fovs(config, experiment, plate.fovs):
            fov = plate.fovs[name]
            _check_channels(experiment, fov, where)
            _check_size(config, experiment, fov)
            check_focus(config, experiment, fov, where)
            dtypes.setdefault(fov.array.dtype.name, fov.where)
            depths.setdefault(fov.shape[2], fov.where)
        if len(dtypes) > 1:
            raise ConfigError(f"{where}.data_path: FOVs differ in dtype: {dtypes}. Give all FOVs of a plate one dtype.")
        if config.z_range is None and config.z_focus is None and len(depths) > 1:
            raise ConfigError(
                f"{config.where}: shards.z_range=None takes whole stacks, but their depths differ in {where}: "
                f"{depths}. Give a z_range that all have."
            )


def describe_left_wells(config: BuildConfig, plates: Mapping[str, Plate]) -> list[str]:
    """Say which wells of the plates no condition names, a line per experiment; nothing where wells were chosen."""
    lines = []
    for experiment in config.experiments:
        wells = [well for well in plates[experiment.name].wells if well not in experiment.well_conditions]
        if wells and config.include_wells is None and experiment.include_wells is None:
            why = "left out, because condition_wells names no condition of theirs"
            lines.append(f"{experiment.name}: {why}: {list_some(wells)}.")
    return lines


def _check_wells(groups: Mapping[str, tuple[str, ...]], plate: Plate, where: str) -> None:
    for name, wells in groups.items():
        for well in wells:
            if well not in plate.wells:
                raise ConfigError(
                    f"{where}.{name}={well!r} is not a well of {plate.path}, which has {list(plate.wells)}. Correct it."
                )


def _check_excluded(config: BuildConfig, plates: Mapping[str, Plate]) -> None:
    every = {name for plate in plates.values() for name in plate.fovs}
    lists = [("shards", config.exclude_fovs, every)]
    for number, experiment in enumerate(config.experiments):
        lists.append((f"experiments[{number}]", experiment.exclude_fovs, set(plates[experiment.name].fovs)))
    for where, excluded, there in lists:
        for name in excluded:
            if name not in there:
                raise ConfigError(
                    f"{config.where}: {where}.exclude_fovs={name!r} is in no listed well; FOVs there are "
                    f"{sorted(there)}. Correct it."
                )


def _check_channels(experiment: ExperimentConfig, fov: Fov, where: str) -> None:
    named = experiment.channel_names
    count = fov.shape[1]
    if fov.channel_names != named if fov.channel_names else count != len(named):
        there = f"the plate has {list(fov.channel_names)}" if fov.channel_names else f"the plate has {count} channels"
        raise ConfigError(
            f"{where}.channel_names={list(named)}, but {there} ({fov.where}). Copy the plate's, in order."
        )
    if count != len(named):
        raise ConfigError(f"{fov.where}: {count} channels, but labels for {len(named)}. Correct the plate's omero.")


def _check_pixel_size(config: BuildConfig, experiment: ExperimentConfig, where: str) -> None:
    reference, own = config.reference_pixel_size_um, experiment.pixel_size_um
    if reference is not None and len(own or ()) < len(reference):
        axes = " ".join("zyx"[-len(reference) :])
        raise ConfigError(
            f"{where}.pixel_size_um={own and list(own)} doesn't say the size of a pixel along each of {axes}, and "
            f"neither does the plate, but shards.reference_pixel_size_um={list(reference)} rescales these. Give it, or "
            "leave the experiment out."
        )


def _check_size(config: BuildConfig, experiment: ExperimentConfig, fov: Fov) -> None:
    _, _, depth, height, width = fov.shape
    if config.z_range is not None and config.z_range[1] > depth:
        raise ConfigError(
            f"{config.where}: shards.z_range={list(config.z_range)} is outside the stack of {fov.where}, which has "
            f"{depth} slices. Lower it."
        )
    grids = config.grids_for(experiment)
    pairs = list(zip(grids, (height, width), strict=True))
    bounds = [grid.centres(length, beyond=config.border == "pad") for grid, length in pairs]
    if any(least > greatest for least, greatest in bounds):
        most = [int(length / grid.scale) for grid, length in pairs]
        resampled = any(grid.scale != 1 for grid in grids)
        size = f" at {list((config.reference_pixel_size_um or ())[-2:])} µm" if resampled else ""
        raise ConfigError(
            f"{config.where}: shards.yx_patch_size={list(config.yx_patch_size)}{size} is larger than the image of "
            f"{fov.where}, which is {most}{size}. Lower it to {most} at most, or pad patches (--border pad)."
        )
