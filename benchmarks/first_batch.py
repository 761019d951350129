"""A set of ten million observations on a far server to the first batch, in seconds; the index cached, and not.

A small simulated set is built, and its index repeated, with hard links to its shards, until it has as many rows: what
is read is real, and checked. nginx serves it, by way of a link that delays each answer by 30 ms and limits each
connection to 60 MB/s. Counted is all that a training waits for, from the DataModule to the first batch, in a fresh
process that has imported the library.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks` and `tests`, which are not installed
from benchmarks.loader import make_shards
from dynaclr_wds.contract import MANIFEST, FileRecord, Manifest, array_path, checksum, format_checksum
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.shardset import ShardSet
from tests.servers.bucket import Bucket
from tests.servers.far_link import FarLink
from tests.servers.nginx import Nginx
from tests.servers.proxy import Link

FAR = Link(delay_seconds=0.03, bytes_per_second=60e6)
BATCH_SIZE = 256
MOST_TRACKS = 1_000_000
"""Track ids of a field of view in the set that is repeated are below."""


class Repeat:
    """Where the rows of a table go when each of its runs is repeated on its own.

    Parameters
    ----------
    run
        Number of the run of each row; ascending.
    times
        How often.
    """

    def __init__(self, run: np.ndarray, times: int) -> None:
        edges = np.searchsorted(run, np.arange(int(run[-1]) + 2))
        sizes = np.diff(edges)
        first = times * edges[:-1][run] + np.arange(len(run)) - edges[:-1][run]
        self.rows = first + np.arange(times)[:, None] * sizes[run]
        """(times, rows): new row of each old one."""

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Repeat values that are the same in all copies, or given for each copy: (times, rows, …)."""
        times, rows = self.rows.shape
        each = (
            values
            if values.ndim > 1 and values.shape[:2] == (times, rows)
            else np.broadcast_to(values, (times, *values.shape))
        )
        out = np.empty((times * rows, *each.shape[2:]), each.dtype)
        out[self.rows.ravel()] = each.reshape(times * rows, *each.shape[2:])
        return out


def repeat_set(source: ShardSet, target: Path, times: int) -> None:
    """Write a set whose fields of view hold the cells of another one's so many times."""
    m, a = source.manifest, source.arrays
    shard_partition = np.array([s.partition for s in m.shards])
    block_partition = shard_partition[a["block_shard"]]
    clip_partition = block_partition[a["clip_block"]]
    tables = {
        "obs": Repeat(a["obs_fov"], times),
        "track": Repeat(a["obs_fov"][np.unique(a["obs_track"], return_index=True)[1]], times),
        "patch": Repeat(clip_partition[a["patch_clip"]], times),
        "clip": Repeat(clip_partition, times),
        "block": Repeat(block_partition, times),
        "shard": Repeat(shard_partition, times),
    }
    lineages = int(a["obs_lineage"].max()) + 1
    points_to = {
        "obs_track": "track",
        "obs_patch": "patch",
        "patch_obs": "obs",
        "patch_clip": "clip",
        "clip_block": "block",
        "block_shard": "shard",
    }
    arrays = {}
    for name, values in a.items():
        table = tables.get("obs" if name.startswith("label_") else name.partition("_")[0])
        if name in points_to:
            values = tables[points_to[name]].rows[:, values].astype(values.dtype)
        elif name.endswith("_lineage"):
            values = (values + lineages * np.arange(times)[:, None]).astype(values.dtype)
        elif name in ("obs_track_id", "obs_parent_track_id"):
            values = np.where(values < 0, values, values + MOST_TRACKS * np.arange(times)[:, None])
        elif name in ("clip_first", "block_first"):
            assert table is not None
            arrays[name] = np.concatenate([[0], np.cumsum(table.spread(np.diff(values)))]).astype(values.dtype)
            continue
        elif name.startswith(("fov_", "stats_")):
            arrays[name] = np.asarray(values)
            continue
        assert table is not None, name
        arrays[name] = table.spread(np.asarray(values))
    write_set(source, target, times, tables, arrays)


def write_set(
    source: ShardSet, target: Path, times: int, tables: dict[str, Repeat], arrays: dict[str, np.ndarray]
) -> None:
    """Write arrays, links to the shards, and the manifest."""
    m = source.manifest
    files = []
    for name, values in arrays.items():
        place = m.index_file(array_path(name))
        path = target / place
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
        digest = format_checksum(checksum(np.memmap(path, np.uint8)))
        files.append(FileRecord(path=place, bytes=path.stat().st_size, xxh3=digest))
    for file in m.files:
        if file.path.endswith(".parquet"):
            shutil.copy(source.root / file.path, target / file.path)
            files.append(file)
    shards = {}
    for copy in range(times):
        for row, shard in enumerate(m.shards):
            record = dataclasses.replace(shard, path=f"{copy:05d}/{shard.path}")
            shards[int(tables["shard"].rows[copy, row])] = record
            (target / record.path).parent.mkdir(parents=True, exist_ok=True)
            os.link(source.root / shard.path, target / record.path)
    counts = ("observations", "with_candidate", "lineages", "clips", "patches", "shards", "bytes")
    manifest: Manifest = dataclasses.replace(
        m,
        files=tuple(sorted(files, key=lambda file: file.path)),
        shards=tuple(shards[row] for row in range(len(shards))),
        partitions=tuple(
            dataclasses.replace(p, **{name: times * getattr(p, name) for name in counts}) for p in m.partitions
        ),
    )
    (target / MANIFEST).write_text(manifest.to_json())


def wait_for_batch(url: str, cache: str, window: str) -> list[float]:
    """Seconds until the set is open, until the loader is made, and until the first batch is there."""
    begin = time.perf_counter()
    options: dict[str, Any] = {"allow_http": True, "requests_in_flight": 16}
    data = MultiExperimentDataModule(
        shards=url,
        storage_options=options,
        cache_dir=cache,
        batch_size=BATCH_SIZE,
        num_workers=2,
        tau_range=(0.5, 1.5),
        window_bytes=window or None,
        num_streams=1,
        channel_dropout_channels=(),
    )
    data.setup("fit")
    found = [time.perf_counter() - begin]
    loader = data.train_dataloader()
    batch = next(iter(loader))
    found.append(time.perf_counter() - begin)
    assert len(batch["anchor"]) == BATCH_SIZE
    return found


def run_alone(url: str, cache: Path, window: str) -> list[float]:
    """Measure in a fresh process."""
    call = "import sys; from benchmarks.first_batch import wait_for_batch as f; print(*f(*sys.argv[1:]), flush=True)"
    call += "; import os; os._exit(0)"  # what was asked for ahead is not waited for
    found = subprocess.run(
        [sys.executable, "-c", call, url, str(cache), window],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    if found.returncode:
        raise RuntimeError(found.stderr[-2000:])
    return [float(word) for word in found.stdout.split()[-2:]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/first_batch.py", description=__doc__)
    parser.add_argument("--millions", type=float, default=10.0, help="of observations, about (%(default)s)")
    parser.add_argument("--gib", type=float, default=0.25, help="of pixels that are built (%(default)s)")
    parser.add_argument("--window", default="4G", help="window_bytes of streaming (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = ShardSet.open(make_shards(folder, 32, "float16", given.gib))
        times = max(1, round(given.millions * 1e6 / len(source.arrays["obs_fov"])))
        repeat_set(source, folder / "many", times)
        nginx = stack.enter_context(Nginx())
        nginx.files("bench").symlink_to(folder / "many", target_is_directory=True)
        plain = Bucket(url=f"{nginx.plain_endpoint}/bench", endpoint=nginx.plain_endpoint)
        link = stack.enter_context(FarLink(plain.endpoint, FAR))
        url = link.before(plain).url
        size = sum(path.stat().st_size for path in (folder / "many" / "index" / "arrays").iterdir())
        rows = times * len(source.arrays["obs_fov"])
        print(f"{platform.machine()}, {os.cpu_count()} CPUs; {rows / 1e6:.1f} million observations", end=", ")
        print(f"{times * len(source.manifest.shards):,} shards; {size / 2**20:,.0f} MiB of index arrays\n")
        print(f"{'seconds':34}{'open and planned':>18}{'first batch':>14}")
        for mode, window in (("exact", ""), ("streaming", given.window)):
            cold, warm = [], []
            for number in range(given.repeats):
                cache = folder / f"cache-{mode}-{number}"
                cold.append(run_alone(url, cache, window))
                warm.append(run_alone(url, cache, window))
                shutil.rmtree(cache)
            for name, rows_of in (("index not cached", cold), ("index cached", warm)):
                opened, first = (statistics.median(row[place] for row in rows_of) for place in (0, 1))
                print(f"{mode + ', ' + name:34}{opened:18.1f}{first:14.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
