"""The same patches from the same server to samples/s: our loader beside MosaicML Streaming and LitData.

Their formats know no pairs, so their samples are single patches, counted in twos; they shuffle as they do by default.
Each reads whole epochs from an empty cache, with two workers, from SeaweedFS on loopback. All are measured in turn,
several times over; medians count. LitData refuses servers without TLS; it is told not to.

The peers are no dependencies of the project: `pip install mosaicml-streaming litdata obstore boto3`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import obstore

sys.path.pop(0)  # this folder has a `streaming`, too
sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks` and `tests`, which are not installed
from benchmarks.loader import make_shards
from benchmarks.object_store import Setting, make_data
from dynaclr_wds.shardset import ShardSet
from tests.remote import upload
from tests.servers.seaweedfs import SeaweedFS

WORKERS = 2


def read_patches(shards: ShardSet) -> Iterator[np.ndarray]:
    """Yield every stored patch."""
    import webdataset as wds

    urls = [str(shards.root / record.path) for record in shards.manifest.shards]
    for sample in wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode():
        yield from (value for key, value in sample.items() if key.endswith("npy"))


def write_mosaic(shards: ShardSet, folder: Path) -> None:
    """Write the patches as MosaicML's shards of 64 MB."""
    from streaming import MDSWriter

    shape = ",".join(map(str, shards.manifest.experiments[0].shape))
    with MDSWriter(out=str(folder), columns={"patch": f"ndarray:float32:{shape}"}, size_limit=1 << 26) as writer:
        for patch in read_patches(shards):
            writer.write({"patch": patch})


def write_litdata(shards: ShardSet, folder: Path) -> None:
    """Write the patches as LitData's chunks of 64 MB."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes=1 << 26)
    for number, patch in enumerate(read_patches(shards)):
        cache[number] = {"patch": patch}
    cache.done()
    cache.merge()


# What follows runs in a process of its own: the library keeps threads and shared memory.


def read_mosaic(url: str, cache: str, batch_size: int) -> float:
    """Read an epoch with MosaicML Streaming; samples/s."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    data = StreamingDataset(remote=url, local=cache, shuffle=True, batch_size=2 * batch_size)
    return _count(DataLoader(data, batch_size=2 * batch_size, num_workers=WORKERS))


def read_litdata(url: str, cache: str, batch_size: int) -> float:
    """Read an epoch with LitData; samples/s."""
    import litdata.streaming.downloader
    from litdata import StreamingDataLoader, StreamingDataset

    litdata.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    data = StreamingDataset(url, cache_dir=cache, shuffle=True, storage_options=options)
    return _count(StreamingDataLoader(data, batch_size=2 * batch_size, num_workers=WORKERS, shuffle=True))


def _count(loader: Iterator[dict[str, np.ndarray]]) -> float:
    begin, patches = time.perf_counter(), 0
    for batch in loader:
        patches += len(batch["patch"])
    return patches / 2 / (time.perf_counter() - begin)


def run_peer(name: str, url: str, batch_size: int, environment: dict[str, str]) -> float:
    """Read an epoch in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        call = f"import sys; from benchmarks.peers import {name} as f; print(f(*sys.argv[1:3], int(sys.argv[3])))"
        found = subprocess.run(
            [sys.executable, "-c", call, url, cache, str(batch_size)],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | environment,
            cwd=Path(__file__).parents[1],
        )
        if found.returncode:
            raise RuntimeError(found.stderr[-2000:])
        return float(found.stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python benchmarks/peers.py", description=__doc__)
    parser.add_argument("--shards", type=Path, help="a shard set; simulated in a temporary folder when left out")
    parser.add_argument("--gib", type=float, default=1.0, help="of simulated shards, about (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="samples (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shards = ShardSet.open(given.shards or make_shards(folder, 192, "float32", given.gib))
        bucket = stack.enter_context(SeaweedFS()).bucket("bench")
        url = upload(bucket, shards.root, "set")
        for name, write in (("mosaic", write_mosaic), ("litdata", write_litdata)):
            write(shards, folder / name)
            for path in sorted((folder / name).iterdir()):
                obstore.put(bucket.store(retries=2, seconds=60), f"{name}/{path.name}", path.read_bytes())
            shutil.rmtree(folder / name)
        options = bucket.storage_options()
        keys = {
            "AWS_ACCESS_KEY_ID": options["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": options["secret_access_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_ENDPOINT_URL": bucket.endpoint,
            "AWS_ENDPOINT_URL": bucket.endpoint,
        }
        setting = Setting(
            name="ours",
            bucket=bucket,
            url=url,
            cache=str(folder / "cache"),
            batch_size=given.batch_size,
            in_flight=16,
            window=0.4,
        )
        ours = make_data(setting, window_bytes="40%", num_streams=1, relax_lineages=True)
        rates: dict[str, list[float]] = {"ours, streaming": [], "MosaicML Streaming": [], "LitData": []}
        for number in range(given.repeats):
            assert ours.train_sampler is not None
            ours.train_sampler.set_epoch(number)
            begin = time.perf_counter()
            samples = sum(len(batch["anchor"]) for batch in ours.train_dataloader())
            rates["ours, streaming"].append(samples / (time.perf_counter() - begin))
            for name, peer in (("MosaicML Streaming", "mosaic"), ("LitData", "litdata")):
                rate = run_peer(f"read_{peer}", f"{bucket.url}/{peer}", given.batch_size, keys)
                rates[name].append(rate)
        for name, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(rates["ours, streaming"], values, strict=True))
            print(f"{name:22}{statistics.median(values):9,.0f} samples/s   ours is {ratio:.1f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
