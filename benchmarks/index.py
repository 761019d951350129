"""Track tables to index and layout, and to the counts of `inspect`: seconds and memory, up to 81 million observations.

Track tables are simulated as Parquet: a table a field of view, 25 fields of view an experiment, tracks of 8 to 32
frames of which every tenth divides. Everything after that is what a build runs; plates, pixels and the writing of index
files are missing.
Every size is measured in a process of its own. Scratch files go to `--scratch`, and are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from dynaclr_wds.byte_sizes import parse_size
from etl.indexing import store_index
from etl.inspect.plates import PlateCollection
from etl.inspect.tally import Tallying
from etl.layout.clips import plan_shards
from etl.layout.jobs import plan_experiments, plan_named_clips, read_columns
from etl.pack.contents import estimate_clip_bytes
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate
from etl.stored_index import StoredIndex

TRACKS = 2500
"""Of a field of view; about 20 observations each."""
FOVS = 25
"""Of an experiment."""
FRAMES, SIDE = 160, 2048


def simulate_table(seed: int) -> pa.Table:
    """Make the track table of one field of view: odd ones frame by frame, even ones track by track."""
    rng = np.random.default_rng([1, seed])
    daughters = TRACKS // 5
    roots = TRACKS - daughters
    first = 2 * (TRACKS * 2 // 25)  # daughters of roots; those that follow are of daughters
    parent = np.full(TRACKS, -1)
    mothers = [
        rng.choice(roots, first // 2, replace=False),
        roots + rng.choice(first, (daughters - first) // 2, replace=False),
    ]
    parent[roots:] = np.repeat(np.concatenate(mothers), 2)
    length, start = rng.integers(8, 33, TRACKS), np.zeros(TRACKS, np.int64)
    start[:roots] = rng.integers(0, 60, roots)
    for born in (slice(roots, roots + first), slice(roots + first, TRACKS)):
        start[born] = start[parent[born]] + length[parent[born]]
    track = np.repeat(np.arange(TRACKS), length)
    t = np.arange(track.size) - np.repeat(np.cumsum(length) - length, length) + start[track]
    place = rng.uniform(60, SIDE - 60, (2, TRACKS))[:, track] + rng.normal(0, 2, (2, track.size))
    columns = {
        "track_id": track + 1,
        "t": t,
        "y": place[0].round(3),
        "x": place[1].round(3),
        "parent_track_id": np.where(parent < 0, -1, parent + 1)[track],
    }
    order = np.lexsort((track, t)) if seed % 2 else slice(None)
    return pa.table({name: values[order] for name, values in columns.items()})


def simulate(folder: Path, fovs: int) -> int:
    """Write track tables; return the number of their rows."""

    def write(number: int) -> int:
        table = simulate_table(number)
        place = folder / f"e{number // FOVS:03}/A/{1 + number % FOVS // 5}/{number % 5}"
        place.mkdir(parents=True)
        pq.write_table(table, place / "tracks.parquet")
        return len(table)

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(write, range(fovs)))


def describe_plates(folder: Path, memory_limit: int) -> tuple[BuildConfig, dict[str, Plate]]:
    """Make the config of a build, and plates that only say how large their images are."""
    image = zarr.create_array({}, shape=(FRAMES, 1, 1, SIDE, SIDE), chunks=(1, 1, 1, SIDE, SIDE), dtype="uint16")
    experiments, plates = [], {}
    for root in sorted(folder.iterdir()):
        fovs = {}
        for place in sorted(root.glob("*/*/*")):
            fov = Fov(plate_path=str(root), name=str(place.relative_to(root)))
            fov.__dict__.update(array=image, channel_names=("Phase",))
            fovs[fov.name] = fov
        wells = tuple(dict.fromkeys(fov.well for fov in fovs.values()))
        plates[root.name] = Plate(path=str(root), wells=wells, fovs=fovs)
        experiments.append(
            ExperimentConfig(
                name=root.name,
                data_path=str(root),
                tracks_path=str(root),
                channel_names=("Phase",),
                source_channel=("Phase",),
                condition_wells={"mock": wells[:1], "infected": wells[1:]} if len(wells) > 1 else {"mock": wells},
                interval_minutes=30.0,
            )
        )
    options = {"yx_patch_size": (64, 64), "workers": len(os.sched_getaffinity(0)), "memory_limit": memory_limit}
    return BuildConfig(experiments=tuple(experiments), **options), plates


def lay_out(config: BuildConfig, plates: dict[str, Plate], index: StoredIndex) -> tuple[int, int]:
    """Lay out every field of view as a group of its own; return the numbers of clips and patches."""
    experiments = plan_experiments(config, plates)

    def plan(fov: int) -> tuple[int, int]:
        place = int(index.experiment_index[fov])
        own = BuildConfig(**{**{k: getattr(config, k) for k in _SHARED}, "experiments": (config.experiments[place],)})
        part = index.take(fov, fov + 1)
        clips, keys = plan_named_clips(own, part, read_columns(part.observations))
        size = estimate_clip_bytes(clips, experiments[place])
        plan_shards(clips.clip_partition, size, config.shard_bytes, config.block_bytes)
        return keys.size, clips.patch_obs.size

    with ThreadPoolExecutor(config.workers) as pool:
        clips, patches = zip(*pool.map(plan, range(len(index.fovs))), strict=True)
    return sum(clips), sum(patches)


_SHARED = ("yx_patch_size", "workers", "memory_limit", "tau_range_hours")


class Meter:
    """Measures phases of this process: seconds, and the most memory that was resident."""

    def __init__(self) -> None:
        self.phases: dict[str, tuple[float, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        begin = time.perf_counter()
        yield
        self.phases[name] = time.perf_counter() - begin, _status("VmHWM") / 2**30


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def measure_build(folder: Path, memory_limit: int) -> dict[str, object]:
    """Index and lay out, in this process."""
    meter = Meter()
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        config, plates = describe_plates(folder, memory_limit)
        with meter.phase("index"):
            index = store_index(config, plates, Path(work))
        with meter.phase("layout"):
            clips, patches = lay_out(config, plates, index)
        with meter.phase("inspect"):
            counting = PlateCollection(config, plates, index, str(folder))
            tallying = Tallying(counting)
            for run in counting.runs():
                tallying.add(run)
            tallying.finish()
        stored = sum(path.stat().st_size for path in Path(work).rglob("*") if path.is_file())
    rows = index.observations.rows
    return {"observations": rows, "clips": clips, "patches": patches, "bytes": stored / rows, **meter.phases}


def measure_process(arguments: Sequence[str]) -> dict[str, object]:
    """Measure in a fresh process, which prints its figures as JSON."""
    command = [sys.executable, __file__, "--inside", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def print_line(millions: float, found: dict[str, object]) -> None:
    """Print the figures of one size."""
    phases = {name: value for name, value in found.items() if isinstance(value, list)}
    seconds = sum(phases[name][0] for name in ("index", "layout"))
    each = ", ".join(f"{name} {seconds:.1f} s {peak:.2f} GiB" for name, (seconds, peak) in phases.items())
    rows = found["observations"]
    assert isinstance(rows, int)
    print(
        f"{millions:g} million: {rows:,} observations, {found['clips']:,} clips, {found['patches']:,} patches; {each}; "
        f"index and layout {seconds:.1f} s, {rows / seconds / 1e6:.2f} million/s, {found['bytes']:.0f} bytes of "
        "scratch each",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/index.py", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10], help="of observations (%(default)s)")
    parser.add_argument("--memory_limit", type=parse_size, default=parse_size("8G"), help="as the build's (8G)")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for scratch files (the system's)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside is not None:
        print(json.dumps(measure_build(given.inside, given.memory_limit)))
        return 0
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {np.__version__}")
    for millions in given.millions:
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            simulate(Path(scratch, "tables"), max(round(millions * 1e6 / (20 * TRACKS)), 1))
            print_line(millions, measure_process([f"{scratch}/tables", "--memory_limit", str(given.memory_limit)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
