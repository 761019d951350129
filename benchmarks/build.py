"""Measures how fast a build cuts and packs, beside reading the same plate once and writing the same bytes once.

    python benchmarks/build.py [--megabytes 600] [--kinds dense-float32 …] [--layouts sharded …] [--readers]

A plate is read whole by each of the readers that are installed (zarr, zarrs, tensorstore), and as many bytes as the
shards have are written and forced to disk; the fastest reader's time and that of writing are what a build is compared
with. *Ours* is how a build reads, and no part of what it is compared with. CPU seconds are those of the whole process;
the least that they could be is what the fastest reader and writing take. The files are in the page cache, so it is
software that is measured. With `--readers` only reading is.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec

from dynaclr_wds.contract import Manifest
from etl.build_shards import build_shards
from etl.run.executors import Advance, usable_cpus
from etl.run.progress import Progress
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.plate_boxes import read_box


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is built."""

    dtype: str
    patch: int
    """Height and width of a patch."""
    cells: int
    """Cells in each frame of 1024 x 1024 pixels."""


KINDS = {
    "dense-float32": Kind(dtype="float32", patch=192, cells=60),
    "sparse-float32": Kind(dtype="float32", patch=192, cells=8),
    "dense-uint16": Kind(dtype="uint16", patch=64, cells=400),
    "sparse-uint16": Kind(dtype="uint16", patch=64, cells=40),
}
CHANNELS, SIZE, FOVS = 2, 1024, 4
LAYOUTS: dict[str, Mapping[str, Any]] = {
    "sharded": {"chunks": (1, 1, 1, SIZE, SIZE), "shards": (5, CHANNELS, 1, SIZE, SIZE)},
    "chunks": {"chunks": (1, 1, 1, SIZE, SIZE)},
    "raw": {"chunks": (1, 1, 1, SIZE, SIZE), "compressors": None},
    "tiles": {"chunks": (1, 1, 1, 256, 256), "shards": (5, CHANNELS, 1, SIZE, SIZE)},
}
COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")


def write_source(root: Path, kind: Kind, layout: str, megabytes: int) -> BuildConfig:
    """Write a plate of noise as cameras make it, and tracks that move; return the config of its build."""
    frames = max(round(megabytes * 1e6 / (FOVS * CHANNELS * SIZE**2 * np.dtype(kind.dtype).itemsize)), 2)
    rng = np.random.default_rng(0)
    plane = rng.poisson(200, (SIZE + 64, SIZE + 64)).astype(kind.dtype)
    if kind.dtype == "float32":
        plane = (plane / 1000 + rng.normal(0, 0.001, plane.shape)).astype("float32")
    group = zarr.open_group(root / "plate.zarr", mode="w")
    group.attrs["ome"] = {"version": "0.5", "plate": _describe_plate()}
    well = group.create_group("A/1")
    well.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": str(fov)} for fov in range(FOVS)]}}
    for fov in range(FOVS):
        image = group.create_group(f"A/1/{fov}")
        image.attrs["ome"] = {"version": "0.5", **_describe_image()}
        shape = (frames, CHANNELS, 1, SIZE, SIZE)
        options = {"compressors": COMPRESSOR, "serializer": BytesCodec(), **LAYOUTS[layout]}
        array = image.create_array("0", shape=shape, dtype=kind.dtype, **options)
        step = LAYOUTS[layout].get("shards", (1,))[0]
        for t in range(0, frames, step):
            count = min(step, frames - t)
            block = np.empty((count, *shape[1:]), kind.dtype)
            for n in range(count):
                for c in range(CHANNELS):
                    y, x = rng.integers(0, 64, 2)
                    block[n, c, 0] = plane[y : y + SIZE, x : x + SIZE]
            array[t : t + count] = block
        _write_tracks(root / "tracks/A/1" / str(fov) / "tracks.csv", rng, frames, kind.cells)
    entry = ExperimentConfig(
        name="bench",
        data_path=str(root / "plate.zarr"),
        tracks_path=str(root / "tracks"),
        channel_names=("a", "b"),
        source_channel=("a", "b"),
        condition_wells={"all": ("A/1",)},
        interval_minutes=30.0,
    )
    return BuildConfig(
        experiments=(entry,), yx_patch_size=(kind.patch, kind.patch), max_border_shift_px=9999, workers=usable_cpus()
    )


def _describe_plate() -> dict[str, Any]:
    wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}]
    return {"rows": [{"name": "A"}], "columns": [{"name": "1"}], "wells": wells}


def _describe_image() -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    transform = {"type": "scale", "scale": [1.0] * 5}
    datasets = [{"path": "0", "coordinateTransformations": [transform]}]
    axes = [{"name": name, "type": kinds[name]} for name in "tczyx"]
    return {"multiscales": [{"axes": axes, "datasets": datasets}], "omero": {"channels": [{"label": n} for n in "ab"]}}


def _write_tracks(path: Path, rng: np.random.Generator, frames: int, cells: int) -> None:
    path.parent.mkdir(parents=True)
    places = rng.uniform(0, SIZE, (cells, 2))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["track_id", "t", "y", "x", "parent_track_id"])
        for t in range(frames):
            places = np.clip(places + rng.normal(0, 2, places.shape), 0, SIZE - 1)
            writer.writerows([n, t, round(y, 2), round(x, 2), -1] for n, (y, x) in enumerate(places.tolist()))


def list_readers() -> dict[str, Callable[[Path], int]]:
    """Name → function that reads an array whole and returns its bytes, for what is installed."""
    readers: dict[str, Callable[[Path], int]] = {"zarr": _read_zarr}
    try:
        import zarrs  # noqa: F401

        readers["zarrs"] = _read_zarrs
    except ImportError:
        pass
    try:
        import tensorstore  # noqa: F401

        readers["tensorstore"] = _read_tensorstore
    except ImportError:
        pass
    return readers


def _read_ours(path: Path) -> int:
    array = zarr.open_array(path, mode="r")
    return sum(read_box(array, [run]).nbytes for run in _runs(array.shape[0]))


def _runs(frames: int) -> Iterator[slice]:
    for begin in range(0, frames, 10):
        yield slice(begin, min(begin + 10, frames))


def _read_zarr(path: Path) -> int:
    array = zarr.open_array(path, mode="r")
    return sum(np.asarray(array[run]).nbytes for run in _runs(array.shape[0]))


def _read_zarrs(path: Path) -> int:
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return _read_zarr(path)


def _read_tensorstore(path: Path) -> int:
    import tensorstore as ts

    array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()
    return sum(array[run].read().result().nbytes for run in _runs(array.shape[0]))


def read_plate(root: Path, reader: Callable[[Path], int], workers: int) -> int:
    """Read every FOV of a plate, several at a time; return the bytes of its pixels."""
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(reader, [root / "plate.zarr/A/1" / str(fov) / "0" for fov in range(FOVS)]))


def write_bytes(path: Path, size: int) -> None:
    """Write as many bytes, and force them to disk."""
    block = np.random.default_rng(1).bytes(1 << 23)
    with path.open("wb", buffering=0) as file:
        for begin in range(0, size, len(block)):
            file.write(block[: min(len(block), size - begin)])
        os.fsync(file.fileno())
    path.unlink()


class Stages(Progress):
    """Takes the time of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str, *_: Any) -> Iterator[Advance]:  # noqa: ARG002 - shows nothing
        """Time a stage."""
        begin, cpu = time.perf_counter(), time.process_time()
        yield lambda _done, _bytes: None
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - begin
        self.cpu[name] = self.cpu.get(name, 0) + time.process_time() - cpu


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds and CPU seconds of some work."""
    begin, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - cpu


def measure_readers(root: Path, workers: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return seconds and CPU seconds of each reader, and of ours; they take turns."""
    readers = {**list_readers(), "ours": _read_ours}
    found = [
        {name: timed(lambda r=reader: read_plate(root, r, workers)) for name, reader in readers.items()}
        for _ in range(rounds)
    ]
    return {name: min(times[name] for times in found) for name in readers}


def describe_readers(root: Path, config: BuildConfig, rounds: int) -> str:
    """Measure reading only; return the GB/s of each reader, and its CPU seconds for a GB."""
    size = read_plate(root, _read_ours, config.workers) / 1e9
    reads = measure_readers(root, config.workers, rounds)
    texts = (f"{name} {size / seconds:.2f} ({cpu / size:.2f})" for name, (seconds, cpu) in reads.items())
    return f"| {size:.2f} | {', '.join(texts)} |"


def measure(root: Path, config: BuildConfig, rounds: int) -> str:
    """Measure one kind; return a row of the table."""
    workers, out = config.workers, root / "out"
    reads = measure_readers(root, workers, rounds)
    fastest = min(list_readers(), key=lambda name: reads[name])
    size = read_plate(root, list_readers()[fastest], workers)
    best: tuple[float, float] | None = None
    for _ in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        stages = Stages()
        manifest: Manifest = build_shards(config, out, progress=stages)
        took = sum(stages.seconds.values()), sum(stages.cpu.values())
        best = took if best is None else min(best, took)
    assert best is not None, "there is a round"
    shards = sum(shard.bytes for shard in manifest.shards)
    shutil.rmtree(out)
    writing = min(timed(lambda: write_bytes(root / "written", shards)) for _ in range(rounds))
    least, least_cpu = (a + b for a, b in zip(reads[fastest], writing, strict=True))
    readers = ", ".join(f"{name} {size / seconds / 1e9:.2f}" for name, (seconds, _) in reads.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return (
        f"| {size / 1e9:.2f} | {shards / 1e9:.2f} | {readers} | {shards / writing[0] / 1e9:.2f} | {least:.2f} | "
        f"{best[0]:.2f} | {100 * least / best[0]:.0f} % | {best[1] / (shards / 1e9):.1f} | "
        f"{least_cpu / (shards / 1e9):.1f} | {peak:.2f} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table: a row per kind."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--megabytes", type=int, default=600, help="of the plate")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["sharded"])
    parser.add_argument("--readers", action="store_true", help="measure reading only")
    parser.add_argument("--folder", type=Path, default=None, help="where plates and shards are written")
    arguments = parser.parse_args(argv)
    if arguments.readers:
        print("| | plate, GB | GB/s (core-s a GB) |\n| --- | ---: | --- |")
    else:
        print(
            "| | plate, GB | shards, GB | read, GB/s | write, GB/s | both, s | cut + pack, s | of both | core-s a GB "
            "| least | RSS, GB |"
        )
        print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    describe = describe_readers if arguments.readers else measure
    for layout, name in product(arguments.layouts, arguments.kinds):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            root = Path(temporary)
            config = write_source(root, KINDS[name], layout, arguments.megabytes)
            print(f"| {name}, {layout} {describe(root, config, arguments.rounds)}", flush=True)


if __name__ == "__main__":
    main()
