"""Track tables to an open set, and to the counts of `inspect`: seconds and memory, up to 81 million observations.

Track tables are simulated as Parquet: a table a field of view, 25 fields of view an experiment, tracks of 8 to 32
frames of which every tenth divides. Everything after that is what a build and a training run, but for pixels: what
units note is made from the layout, with statistics of nothing (not measured), and shards are holes in files.
Every step is measured in a process of its own. Scratch files go to `--scratch`, and are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from dynaclr_wds.byte_sizes import parse_size

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks`, which is not installed
from benchmarks.index_set import Meter, join_groups, measure_first_batch, measure_open, measure_read, note_groups
from etl.indexing import store_index
from etl.inspect.plates import PlateCollection
from etl.inspect.tally import Tallying
from etl.layout.clips import plan_shards
from etl.layout.jobs import plan_experiments, plan_named_clips, read_columns
from etl.pack.contents import estimate_clip_bytes
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate, Scale
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
    nothing = Scale(interval_minutes=None, pixel_size_um=(None, None, None))
    experiments, plates = [], {}
    for root in sorted(folder.iterdir()):
        fovs = {}
        for place in sorted(root.glob("*/*/*")):
            fov = Fov(plate_path=str(root), name=str(place.relative_to(root)))
            fov.__dict__.update(array=image, channel_names=("Phase",), scale=nothing, normalization=None)
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


def measure_index(folder: Path, memory_limit: int, meter: Meter) -> dict[str, object]:
    """Index and lay out; what the other steps need of it is left in the folder."""
    config, plates = describe_plates(folder / "tables", memory_limit)
    (folder / "columns").mkdir()
    with meter.phase("index"):
        index = store_index(config, plates, folder / "columns")
    with meter.phase("layout"):
        clips, patches = lay_out(config, plates, index)
    with meter.phase("inspect"):
        counting = PlateCollection(config, plates, index, str(folder))
        tallying = Tallying(counting)
        for run in counting.runs():
            tallying.add(run)
        tallying.finish()
    stored = sum(path.stat().st_size for path in (folder / "columns").rglob("*") if path.is_file())
    (folder / "index.pickle").write_bytes(pickle.dumps(index))  # of our own, for the next step
    rows = index.observations.rows
    return {"observations": rows, "clips": clips, "patches": patches, "bytes": stored / rows}


def measure_step(step: str, folder: Path, memory_limit: int) -> dict[str, object]:
    """Run one step in this process."""
    meter, found = Meter(), dict[str, object]()
    if step == "index":
        found = measure_index(folder, memory_limit, meter)
    elif step in ("note", "join"):
        config, plates = describe_plates(folder / "tables", memory_limit)
        index = pickle.loads((folder / "index.pickle").read_bytes())
        with meter.phase(step):
            (note_groups if step == "note" else join_groups)(folder / "set", config, plates, index)
    elif step.startswith("batch"):
        found = measure_first_batch(folder / "set", meter, focus="focus" in step, streaming="streaming" in step)
    else:
        found = (measure_read if step == "read" else measure_open)(folder / "set", meter)
    return found | dict(meter.phases)


STEPS = (
    *("index", "note", "join", "read", "open", "open again"),
    *("batch", "batch with leak and focus", "batch, streaming", "batch, streaming with leak and focus"),
)


def measure_process(step: str, folder: Path, memory_limit: int) -> dict[str, object]:
    """Measure a step in a fresh process, which prints its figures as JSON."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--memory_limit", str(memory_limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def print_step(found: Mapping[str, object]) -> None:
    """Print the figures of a step."""
    for name, value in found.items():
        if isinstance(value, list | tuple):
            print(f"  {name}: {value[0]:.2f} s, {value[1]:.2f} GiB", flush=True)
        elif isinstance(value, int | float):
            print(f"  {name}: {value:,.{0 if isinstance(value, int) else 1}f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/index.py", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10], help="of observations (%(default)s)")
    parser.add_argument("--memory_limit", type=parse_size, default=parse_size("8G"), help="as the build's (8G)")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for scratch files (the system's)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step is not None:
        print(json.dumps(measure_step(given.step, given.folder, given.memory_limit)))
        return 0
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {np.__version__}")
    for millions in given.millions:
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            simulate(Path(scratch, "tables"), max(round(millions * 1e6 / (20 * TRACKS)), 1))
            print(f"{millions:g} million", flush=True)
            for step in STEPS:
                print_step(measure_process(step, Path(scratch), given.memory_limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
