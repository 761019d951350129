"""Seeded tiny plates and tracks for tests, written by tensorstore: a library the reader does not use.

`write_plate` writes OME-Zarr 0.4 (Zarr v2) or 0.5 (Zarr v3, sharded or not) and returns the pixels it
wrote; `write_tracks` writes the track file of one FOV; `make_collection` puts several together with
an experiments.yaml whose two conditions look different. Metadata is written by hand as JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts
import yaml

from etl.source.experiments import BuildConfig, ExperimentConfig

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]

KEEP_ALL = {"max_border_shift_px": 9999}
"""Option that keeps cells in the corners of the small images, which these plates have on purpose."""


def write_plate(
    path: Path,
    *,
    version: str = "0.5",
    fovs: Sequence[str] = ("A/1/0",),
    shape: tuple[int, ...] = (6, 2, 1, 64, 64),
    dtype: str = "uint16",
    channel_names: Sequence[str] | None = ("Phase", "GFP"),
    chunks: tuple[int, ...] | None = None,
    shards: tuple[int, ...] | None = None,
    pixels: Mapping[str, np.ndarray] | None = None,
    normalization: Mapping[str, Any] | None = None,
    scales: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Write a plate; return FOV name → pixels (T, C, Z, Y, X).

    `chunks` default to one plane, `shards` (0.5 only) to none. `pixels` are random and never zero
    unless given. `normalization` has the key "" for the plate's and FOV names for the FOVs' attributes.
    `scales` holds arguments of `set_scale` by FOV name.
    """
    normalization = normalization or {}
    written: dict[str, np.ndarray] = {}
    wells: dict[str, list[str]] = {}
    for number, fov in enumerate(fovs):
        well, _, image = fov.rpartition("/")
        wells.setdefault(well, []).append(image)
        rng = np.random.default_rng([7, seed, number])
        data = (pixels or {}).get(fov)
        written[fov] = data = (rng.uniform(1, 200, shape) if data is None else data).astype(dtype)
        metadata = set_scale(image_metadata(version, data.ndim, channel_names), **(scales or {}).get(fov, {}))
        write_group(path / fov, version, metadata, normalization.get(fov))
        write_array(path / fov / "0", version, data, chunks or (1,) * (data.ndim - 2) + data.shape[-2:], shards)
    for well, images in wells.items():
        write_group(path / well.split("/")[0], version, {}, None)
        write_group(path / well, version, {"well": {"images": [{"path": image} for image in images]}}, None)
    write_group(path, version, {"plate": plate_metadata(wells)}, normalization.get(""))
    return written


def plate_metadata(wells: Iterable[str]) -> dict[str, Any]:
    """Make the `plate` entry of a plate with these wells (`row/col`)."""
    pairs = [well.split("/") for well in wells]
    rows = list(dict.fromkeys(row for row, _ in pairs))
    columns = list(dict.fromkeys(column for _, column in pairs))
    return {
        "rows": [{"name": row} for row in rows],
        "columns": [{"name": column} for column in columns],
        "wells": [
            {"path": f"{row}/{column}", "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
            for row, column in pairs
        ],
    }


def image_metadata(version: str, ndim: int, channel_names: Sequence[str] | None) -> dict[str, Any]:
    """Make the `multiscales` and `omero` entries of an image whose axes are the last `ndim` of TCZYX."""
    kinds = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    multiscale: dict[str, Any] = {
        "axes": [{"name": name, "type": kinds[name]} for name in "tczyx"[-ndim:]],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * ndim}]}],
    }
    if version == "0.4":
        multiscale["version"] = "0.4"
    metadata: dict[str, Any] = {"multiscales": [multiscale]}
    if channel_names is not None:
        metadata["omero"] = {"channels": [{"label": name, "color": "FFFFFF"} for name in channel_names]}
    return metadata


def set_scale(
    metadata: dict[str, Any],
    *,
    scale: Sequence[float] | None = None,
    units: Mapping[str, str] | None = None,
    whole: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Give the image of `image_metadata` a scale along (T, C, Z, Y, X), units by axis name, and one of all levels."""
    (multiscale,) = metadata["multiscales"]
    if scale is not None:
        multiscale["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": list(scale)}]
    if whole is not None:
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": list(whole)}]
    multiscale["axes"] = [axis | {"unit": units[axis["name"]]} if axis["name"] in (units or {}) else axis
                          for axis in multiscale["axes"]]  # fmt: skip
    return metadata


def write_group(path: Path, version: str, ome: Mapping[str, Any], normalization: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    extra = {} if normalization is None else {"normalization": normalization}
    if version == "0.4":
        ome = {key: {**value, "version": "0.4"} if key in ("plate", "well") else value for key, value in ome.items()}
        (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
        (path / ".zattrs").write_text(json.dumps({**ome, **extra}))
    else:
        attributes = {"ome": {"version": "0.5", **ome}, **extra} if ome else extra
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (path / "zarr.json").write_text(json.dumps(document))


def write_array(
    path: Path, version: str, data: np.ndarray, chunks: tuple[int, ...], shards: tuple[int, ...] | None
) -> None:
    spec: dict[str, Any] = {"kvstore": {"driver": "file", "path": str(path)}, "create": True, "delete_existing": True}
    if version == "0.4":
        spec["driver"] = "zarr"
        spec["metadata"] = {
            "shape": list(data.shape),
            "dtype": data.dtype.str,
            "chunks": list(chunks),
            "dimension_separator": "/",
            "compressor": {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1},
        }
    else:
        codecs: list[Any] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 1}},
        ]
        if shards is not None:
            codecs = [{"name": "sharding_indexed", "configuration": {"chunk_shape": list(chunks), "codecs": codecs}}]
        spec["driver"] = "zarr3"
        spec["metadata"] = {
            "shape": list(data.shape),
            "data_type": data.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shards or chunks)}},
            "codecs": codecs,
        }
    ts.open(spec).result()[...] = data


def write_tracks(root: Path, fov: str, rows: Sequence[Row], name: str = "tracks.csv") -> Path:
    """Write the track file of one FOV, CSV, TSV or Parquet by its name; columns are those of the first row."""
    path = root / fov / name
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0]) if rows else ["track_id", "t", "y", "x"]
    if name.endswith(".parquet"):
        pq.write_table(pa.table({column: [row[column] for row in rows] for column in columns}), path)
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return path


def random_tracks(
    rng: np.random.Generator, *, frames: int, height: int, width: int, lineages: int = 3, gap: float = 0.1
) -> list[dict[str, Any]]:
    """Draw cells that walk, divide and are sometimes missed; track ids start at 0."""
    rows: list[dict[str, Any]] = []
    alive: list[tuple[int, int, float, float]] = []
    next_id = 0
    for t in range(frames):
        if t == 0:
            for _ in range(lineages):
                alive.append((next_id, -1, rng.uniform(0, height), rng.uniform(0, width)))
                next_id += 1
        moved: list[tuple[int, int, float, float]] = []
        for track, parent, y, x in alive:
            if t and rng.random() < 0.1:
                daughters = [(next_id + k, track, y, x) for k in range(2)]
                next_id += 2
            else:
                daughters = [(track, parent, y, x)]
            for track_id, parent_id, y0, x0 in daughters:
                y1 = float(np.clip(y0 + rng.normal(0, 2), 0, height - 1))
                x1 = float(np.clip(x0 + rng.normal(0, 2), 0, width - 1))
                moved.append((track_id, parent_id, y1, x1))
                if track_id != track or rng.random() >= gap:
                    row = {"track_id": track_id, "t": t, "y": round(y1, 3), "x": round(x1, 3)}
                    rows.append({**row, "parent_track_id": parent_id})
        alive = moved
    return rows


def write_experiments(path: Path, experiments: Sequence[Mapping[str, Any]], **options: Any) -> Path:
    """Write an experiments.yaml with build `options` under `shards:`; return its path."""
    document: dict[str, Any] = {"experiments": [dict(experiment) for experiment in experiments]}
    if options:
        document["shards"] = options
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def make_collection(
    root: Path,
    *,
    experiments: int = 2,
    fovs: Sequence[str] = ("A/1/0", "A/1/1", "B/2/0"),
    shape: tuple[int, ...] = (8, 2, 1, 64, 64),
    lineages: int = 3,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Write `experiments` plates with tracks and an experiments.yaml; return the YAML's path.

    Wells of row A are `control`, all others `infected` and twice as bright. Even experiments are OME-Zarr 0.4,
    uint16, channels (Phase, GFP); odd ones 0.5, sharded, with the channels the other way round. Source
    channels are always (Phase, GFP). One frame is 30 minutes. `options` go under `shards:`.
    """
    options = {"yx_patch_size": [16, 16], "tau_range_hours": [0.5, 1.0]} | KEEP_ALL | options
    entries = []
    for number in range(experiments):
        name = f"experiment{number}"
        names = ["Phase", "GFP"][:: -1 if number % 2 else 1] if shape[1] == 2 else [f"ch{c}" for c in range(shape[1])]
        pixels: dict[str, np.ndarray] = {}
        for index, fov in enumerate(fovs):
            rng = np.random.default_rng([11, seed, number, index])
            bright = 1 if fov.startswith("A/") else 2
            pixels[fov] = bright * rng.integers(1, 200, shape)
            rows = random_tracks(rng, frames=shape[0], height=shape[3], width=shape[4], lineages=lineages)
            write_tracks(root / name / "tracks", fov, rows)
        write_plate(
            root / name / "plate.zarr",
            version="0.5" if number % 2 else "0.4",
            fovs=fovs,
            channel_names=names,
            chunks=(1, 1, 1, 32, 32),
            shards=(2, shape[1], shape[2], 64, 64) if number % 2 else None,
            pixels=pixels,
        )
        wells = list(dict.fromkeys(fov.rpartition("/")[0] for fov in fovs))
        conditions = {
            "control": [well for well in wells if well.startswith("A/")],
            "infected": [well for well in wells if not well.startswith("A/")],
        }
        entries.append(
            {
                "name": name,
                "data_path": f"{name}/plate.zarr",
                "tracks_path": f"{name}/tracks",
                "channel_names": names,
                "source_channel": sorted(names, reverse=True) if shape[1] == 2 else names,
                "condition_wells": {condition: wells for condition, wells in conditions.items() if wells},
                "interval_minutes": 30.0,
                "start_hpi": float(number),
            }
        )
    return write_experiments(root / "experiments.yaml", entries, **options)


def make_fov(
    tmp_path: Path, rows: Rows, name: str = "tracks.csv", *, experiment: Row | None = None, **options: Any
) -> BuildConfig:
    """One experiment `a` with one FOV A/1/0 of 10 frames of 32 x 32, patches 8 x 8, τ of 1 to 2 frames.

    `experiment` adds fields to the experiment, `options` to the build.
    """
    if not (tmp_path / "plate").exists():
        write_plate(tmp_path / "plate", shape=(10, 1, 1, 32, 32), dtype="uint8", channel_names=("Phase",))
    write_tracks(tmp_path / "tracks", "A/1/0", rows, name)
    entry = ExperimentConfig(
        name="a",
        data_path=str(tmp_path / "plate"),
        tracks_path=str(tmp_path / "tracks"),
        channel_names=("Phase",),
        source_channel=("Phase",),
        condition_wells={"mock": ("A/1",)},
        **({"interval_minutes": 30.0} | dict(experiment or {})),
    )
    settings = {"yx_patch_size": (8, 8), "tau_range_hours": (0.5, 1.0)} | KEEP_ALL | options
    return BuildConfig(experiments=(entry,), **settings)


def table(header: str, *rows: tuple[Any, ...]) -> Rows:
    """Make rows from a header of column names."""
    return [dict(zip(header.split(), row, strict=True)) for row in rows]


def cells(*rows: tuple[Any, ...], header: str = "track_id t parent_track_id") -> Rows:
    """Make track rows in the middle of the image of `make_fov`."""
    return [{"y": 16.0, "x": 16.0} | row for row in table(header, *rows)]
