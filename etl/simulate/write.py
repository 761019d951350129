"""Writes simulated movies: OME-Zarr 0.5 plates, track tables and `experiments.yaml`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import UInt16
from ome_zarr_models.v05.hcs import HCSAttrs
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.well import WellAttrs
from zarr.codecs import BloscCodec

from etl.simulate.design import ExperimentDesign, SimulationConfig
from etl.simulate.track import Row

PIXEL_UM = 0.65
FRAMES_PER_WRITE = 8


def write_plate(path: Path, config: SimulationConfig, design: ExperimentDesign) -> list[tuple[str, str]]:
    """Write the metadata of a plate and of its wells; return the (condition, `row/col/fov`) to fill."""
    wells = sorted((well, condition) for condition, names in design.condition_wells.items() for well in names)
    rows = sorted({well.split("/")[0] for well, _ in wells}, key=lambda name: (len(name), name))
    columns = sorted({well.split("/")[1] for well, _ in wells}, key=int)
    plate = {
        "version": "0.5",
        "name": design.name,
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": name} for name in columns],
        "wells": [
            {"path": well, "rowIndex": rows.index(well.split("/")[0]), "columnIndex": columns.index(well.split("/")[1])}
            for well, _ in wells
        ],
        "field_count": config.fovs,
    }
    _write_group(path, HCSAttrs.model_validate({"version": "0.5", "plate": plate}))
    images = [{"path": str(fov)} for fov in range(config.fovs)]
    well_attributes = WellAttrs.model_validate({"version": "0.5", "well": {"version": "0.5", "images": images}})
    for row in rows:
        zarr.create_group(path / row, zarr_format=3)
    for well, _ in wells:
        _write_group(path / well, well_attributes)
    return [(condition, f"{well}/{fov}") for well, condition in wells for fov in range(config.fovs)]


def _write_group(path: Path, attributes: Any) -> None:
    zarr.create_group(
        path, zarr_format=3, attributes={"ome": attributes.model_dump(mode="json", by_alias=True, exclude_none=True)}
    )


def write_image(path: Path, config: SimulationConfig, design: ExperimentDesign) -> zarr.Array[Any]:
    """Write the metadata of one FOV and return its empty array (T, C, Z, Y, X)."""
    spatial = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = [design.interval_minutes * 60, 1.0, 2.0, PIXEL_UM, PIXEL_UM]
    multiscale = {
        "name": path.name,
        "axes": [{"name": "t", "type": "time", "unit": "second"}, {"name": "c", "type": "channel"}, *spatial],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }
    attributes = ImageAttrs.model_validate({"version": "0.5", "multiscales": [multiscale]})
    described = attributes.model_dump(mode="json", by_alias=True, exclude_none=True)
    described["omero"] = {"channels": [{"label": name, "active": True} for name in design.channel_names]}
    zarr.create_group(path, zarr_format=3, attributes={"ome": described})
    shape = (config.frames, len(design.channels), config.z, config.size, config.size)
    edge = min(config.size, 128 if config.sharded else 512)
    covered = -(-config.size // edge) * edge
    frames = min(config.frames, FRAMES_PER_WRITE)
    return zarr.create_array(
        path / "0",
        shape=shape,
        dtype="uint16",
        chunks=(1, 1, config.z, edge, edge),
        shards=(frames, shape[1], config.z, covered, covered) if config.sharded else None,
        compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
        dimension_names=["t", "c", "z", "y", "x"],
        zarr_format=3,
    )


def write_frames(array: zarr.Array[Any], first: int, frames: list[UInt16[np.ndarray, "c z y x"]]) -> None:
    """Write consecutive frames from number `first` on, in one call: whole chunks and whole shards."""
    array[first : first + len(frames)] = np.stack(frames)


def write_tracks(path: Path, rows: list[Row], config: SimulationConfig, *, blank_parent: bool) -> None:
    """Write one track table, ordered by (track_id, t); no parent is -1 or, if `blank_parent`, an empty field."""
    path.parent.mkdir(parents=True, exist_ok=True)
    none = "" if blank_parent else -1
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        z_name = ["z"] if config.z > 1 else []
        writer.writerow(["track_id", "t", *z_name, "y", "x", "id", "parent_track_id", "parent_id"])
        for track, t, z, y, x, number, parent, parent_id in sorted(rows):
            z_value = [f"{z:.2f}"] if config.z > 1 else []
            links = [none if value < 0 else value for value in (parent, parent_id)]
            writer.writerow([track, t, *z_value, f"{y:.2f}", f"{x:.2f}", number, *links])


def describe_experiment(design: ExperimentDesign) -> dict[str, Any]:
    """Return the entry of `experiments.yaml`, with paths relative to it."""
    return {
        "name": design.name,
        "data_path": f"{design.name}/plate.zarr",
        "tracks_path": f"{design.name}/tracks",
        "channel_names": list(design.channel_names),
        "source_channel": list(design.source_channel),
        "condition_wells": {condition: list(wells) for condition, wells in design.condition_wells.items()},
        "interval_minutes": design.interval_minutes,
        "start_hpi": design.start_hpi,
        "organelle": "mitochondria",
        "date": f"2025-01-{1 + design.index % 28:02d}",
        "moi": 1.0,
    }


def describe_shards(config: SimulationConfig) -> dict[str, Any]:
    """Return the `shards:` section: patches that hold a cell, and some shards and blocks in every partition."""
    patch = config.patch_size
    per_well = config.fovs * config.frames * config.cells * patch * patch * config.z * 2 * 2
    partition = per_well * config.wells // 2
    shard_bytes = min(max(partition // 4, 1 << 20), 512 << 20)
    return {
        "yx_patch_size": [patch, patch],
        "tau_range_hours": [0.5, 2.0],
        "shard_bytes": shard_bytes,
        "block_bytes": min(max(shard_bytes // 8, 1 << 17), 8 << 20),
    }
