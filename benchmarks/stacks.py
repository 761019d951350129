"""Measures builds of a plate of large stacks under limits of memory: seconds, most resident memory, temporary disk.

    python benchmarks/stacks.py [--limits 1G 2G 4G 8G] [--dtype uint16] [--frames 3] [--workers 2]

Each build is a process of its own. Its peak is VmHWM; temporary disk is what its files without a name and its folder
take above the finished set, looked at twenty times a second. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr
from zarr.codecs import BloscCodec, BytesCodec

from dynaclr_wds.byte_sizes import parse_size
from dynaclr_wds.errors import ConfigError
from etl.build_shards import build_shards
from etl.source.experiments import parse_build_config


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlate:
    """A plate of one well."""

    dtype: str = "uint16"
    frames: int = 3
    channels: int = 2
    slices: int = 100
    size: int = 2048
    """Height and width."""
    chunk: tuple[int, int, int] = (10, 1024, 1024)
    """Along Z, Y and X."""
    fovs: int = 2
    cells: int = 30
    """In each frame of each field of view."""
    patch: int = 192

    @property
    def bytes(self) -> int:
        """Of all pixels."""
        return self.fovs * self.frame_bytes * self.frames

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return self.channels * self.slices * self.size**2 * np.dtype(self.dtype).itemsize


def write_plate(root: Path, plate: StackPlate) -> Path:
    """Write a plate of noise as cameras make it, tracks that move, and experiments.yaml; return that."""
    rng = np.random.default_rng(0)
    noise = rng.poisson(200, (plate.size + 64, plate.size + 64))
    plane = noise.astype(plate.dtype) if np.dtype(plate.dtype).kind == "u" else (noise / 1e3).astype(plate.dtype)
    group = zarr.open_group(root / "plate.zarr", mode="w")
    wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}]
    group.attrs["ome"] = {
        "version": "0.5",
        "plate": {"rows": [{"name": "A"}], "columns": [{"name": "1"}], "wells": wells},
    }
    well = group.create_group("A/1")
    well.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": str(fov)} for fov in range(plate.fovs)]}}
    names = [f"c{number}" for number in range(plate.channels)]
    for fov in range(plate.fovs):
        image = group.create_group(f"A/1/{fov}")
        image.attrs["ome"] = {"version": "0.5", **_describe_image(names)}
        _write_stacks(image, plate, plane, rng)
        _write_tracks(root / f"tracks/A/1/{fov}/tracks.csv", plate, rng)
    entry = {
        "name": "stacks",
        "data_path": "plate.zarr",
        "tracks_path": "tracks",
        "channel_names": names,
        "source_channel": names,
        "condition_wells": {"all": ["A/1"]},
        "interval_minutes": 30.0,
    }
    options = {"yx_patch_size": [plate.patch, plate.patch], "max_border_shift_px": 9999}
    (root / "experiments.yaml").write_text(yaml.safe_dump({"experiments": [entry], "shards": options}))
    return root / "experiments.yaml"


def _describe_image(names: Sequence[str]) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    transform = {"type": "scale", "scale": [1.0] * 5}
    datasets = [{"path": "0", "coordinateTransformations": [transform]}]
    axes = [{"name": name, "type": kinds[name]} for name in "tczyx"]
    return {
        "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"channels": [{"label": n} for n in names]},
    }


def _write_stacks(image: zarr.Group, plate: StackPlate, plane: np.ndarray, rng: np.random.Generator) -> None:
    shape = (plate.frames, plate.channels, plate.slices, plate.size, plate.size)
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    array = image.create_array(
        "0", shape=shape, chunks=(1, 1, *plate.chunk), dtype=plate.dtype, compressors=codec, serializer=BytesCodec()
    )
    step = plate.chunk[0]
    for t, c, z in np.ndindex(plate.frames, plate.channels, -(-plate.slices // step)):
        slab = np.empty((min(step, plate.slices - z * step), plate.size, plate.size), plate.dtype)
        for target in slab:
            y, x = rng.integers(0, 64, 2)
            target[...] = plane[y : y + plate.size, x : x + plate.size]
        array[t, c, z * step : z * step + len(slab)] = slab


def _write_tracks(path: Path, plate: StackPlate, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True)
    places = rng.uniform(0, plate.size, (plate.cells, 2))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["track_id", "t", "y", "x"])
        for t in range(plate.frames):
            places = np.clip(places + rng.normal(0, 2, places.shape), 0, plate.size - 1)
            writer.writerows([n, t, round(y, 2), round(x, 2)] for n, (y, x) in enumerate(places.tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a build took."""

    seconds: float
    peak: int
    """Most resident memory."""
    temporary: int
    """Most disk above the finished set."""
    shards: int
    """Bytes of the finished set."""


def measure(config: Path, out: Path, memory_limit: int, workers: int) -> Measured:
    """Build in a process of its own."""
    begin, most = time.perf_counter(), 0
    command = [sys.executable, __file__, "--inside", str(config), str(out), str(memory_limit), str(workers)]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=path) as process:
        while process.poll() is None:
            most = max(most, _disk_of(out) + _disk_of_unnamed(process.pid))
            time.sleep(0.05)
        said, _ = process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise ConfigError(f"The build ended with status {process.returncode}. See above.")
    whole = _disk_of(out)
    return Measured(seconds=seconds, peak=json.loads(said), temporary=max(most - whole, 0), shards=whole)


def _disk_of(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # renamed meanwhile
                total += (Path(where) / name).lstat().st_blocks * 512
    return total


def _disk_of_unnamed(pid: int) -> int:
    """Bytes on disk of the files without a name that a process has open."""
    total = 0
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()).endswith("(deleted)"):
                    total += entry.stat().st_blocks * 512
    return total


def _build_inside(config: str, out: str, memory_limit: str, workers: str) -> None:
    """Build, and print the most memory that the process held."""
    options = {"memory_limit": int(memory_limit), "workers": int(workers)}
    build_shards(parse_build_config(config, options), out)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each limit."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--limits", nargs="+", default=["1G", "2G", "4G", "8G"])
    parser.add_argument("--dtype", default="uint16")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="where plate and shards are written")
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.inside:
        _build_inside(*given.inside)
        return
    plate = StackPlate(dtype=given.dtype, frames=given.frames)
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        config, out = write_plate(Path(temporary), plate), Path(temporary) / "out"
        print(f"{plate.bytes / 1e9:.1f} GB of pixels, {plate.frame_bytes / 1e9:.2f} GB a frame", flush=True)
        print("| limit | seconds | peak, GB | temporary disk, GB | shards, GB |\n| --- | ---: | ---: | ---: | ---: |")
        for limit in given.limits:
            shutil.rmtree(out, ignore_errors=True)
            found = measure(config, out, parse_size(limit), given.workers)
            sizes = " | ".join(f"{size / 1e9:.2f}" for size in (found.peak, found.temporary, found.shards))
            print(f"| {limit} | {found.seconds:.0f} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
