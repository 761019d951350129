"""Sets without pixels, of any size: joins what units would have noted, and opens the result as a training does.

Used by `index.py`. Shards are holes in files, so all pixels are 0; checksums of patches are those of zeros.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from dynaclr_wds.contract import (
    MANIFEST,
    MEMBER_HEADER,
    STATISTICS,
    ExperimentRecord,
    PartitionRecord,
    ShardRecord,
    SourceRecord,
    array_dtypes,
    array_path,
    channel_checksum,
    npy_header,
    part_path,
    shard_path,
)
from etl.cut.statistics import Counts
from etl.index import Index
from etl.layout.clips import TAR_TAIL, Clips, Shards, plan_shards
from etl.layout.groups import Group
from etl.layout.jobs import plan_experiments, plan_named_clips, read_columns
from etl.layout.segments import WHOLE
from etl.pack.contents import estimate_clip_bytes
from etl.pack.fov_runs import GroupParts
from etl.pack.joining import join_parts, read_rows
from etl.pack.manifest import make_manifest, name_index, write_index
from etl.source.config import BuildConfig
from etl.source.plates import Plate
from etl.stored_index import StoredIndex
from etl.suspicious.cells import Census
from etl.suspicious.report import make_report
from etl.unit.part import Part, read_part, write_part

_JSON_MEMBER = 1024


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
        self.phases[name] = time.perf_counter() - begin, read_status("VmHWM") / 2**30


def read_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def list_groups(index: StoredIndex) -> list[Group]:
    """Make every field of view a group of its own."""
    edges = index.first_observation.tolist()
    return [
        Group(
            experiment=number,
            first=fov,
            last=fov + 1,
            run=range(fov, fov + 1),
            segment=WHOLE,
            observations=edges[fov + 1] - edges[fov],
            digest=f"{fov:012x}".ljust(32, "0"),
        )
        for fov, number in enumerate(index.experiment_index.tolist())
    ]


def note_groups(out: Path, config: BuildConfig, plates: Mapping[str, Plate], index: StoredIndex) -> None:
    """Write a part for each group, and its shards, which are empty."""
    experiments = plan_experiments(config, plates)

    def note(group: Group) -> None:
        own = replace(config, experiments=(config.experiments[group.experiment],))
        part = make_part(own, experiments[group.experiment], index.take(group.first, group.last), group.digest)
        write_part(out, part_path(group.digest), part)
        for shard in part.shards:
            (out / shard.path).parent.mkdir(parents=True, exist_ok=True)
            with (out / shard.path).open("wb") as file:
                file.truncate(shard.bytes)

    with ThreadPoolExecutor(config.workers) as pool:
        for _ in pool.map(note, list_groups(index)):
            pass


def make_part(config: BuildConfig, experiment: ExperimentRecord, index: Index, digest: str) -> Part:
    """Lay out a group of one partition, and note what its unit would, if all pixels were 0."""
    columns = read_columns(index.observations)
    clips, keys = plan_named_clips(config, index, columns)
    size = estimate_clip_bytes(clips, experiment)
    shards = plan_shards(clips.clip_partition, size, config.shard_bytes, config.block_bytes)
    (labels,) = index.partitions
    records, places = place_patches(experiment, clips, shards)
    values = tuple(labels.values())
    records = [replace(record, path=shard_path(values, digest, n)) for n, record in enumerate(records)]
    channels, patches = experiment.shape[0], clips.patch_obs.size
    zeros = channel_checksum(bytes(experiment.channel_bytes))
    statistics = np.zeros((sum(fov.frames for fov in index.fovs) + 1, channels, len(STATISTICS)), np.float32)
    counts = np.zeros(1 << 16, np.int64)
    counts[0] = 1
    lineages = int(columns["lineage_index"].max()) + 1
    return Part(
        digest=digest,
        partitions=(
            PartitionRecord(
                labels=labels,
                observations=columns["t"].size,
                with_candidate=int(columns["has_candidate"].sum()),
                lineages=lineages,
                clips=keys.size,
                patches=patches,
                shards=len(records),
                bytes=sum(record.bytes for record in records),
            ),
        ),
        shards=tuple(records),
        dropped={"candidates_dropped": int(clips.obs_dropped.sum())},
        skipped=(),
        lineages=lineages,
        arrays={
            "kept": np.ones(columns["t"].size, bool),
            "fov_kept": np.ones(len(index.fovs), bool),
            "z_start": np.zeros(columns["t"].size, np.float32),
            "z_focus": np.full(columns["t"].size, np.nan, np.float32),
            "timepoint": statistics[1:],
            "fov": statistics[: len(index.fovs)],
            "patch_obs": clips.patch_obs.astype(np.int32),
            "patch_t": clips.patch_t.astype(np.int32),
            "patch_is_sample": clips.patch_is_sample,
            "patch_has_candidate": clips.patch_has_candidate,
            "patch_xxh3": np.full((patches, channels), zeros, np.uint32),
            "clip_first": clips.clip_first,
            "clip_lineage": clips.clip_lineage.astype(np.int32),
            "clip_key": np.array([int(key, 16) for key in keys.tolist()], np.uint64),
            "block_first": shards.block_first,
            "block_shard": shards.block_shard,
            **places,
        },
        summaries=((Counts(counts=counts, lowest=0),) * channels,),
    )


def place_patches(
    experiment: ExperimentRecord, clips: Clips, shards: Shards
) -> tuple[list[ShardRecord], dict[str, Shaped[np.ndarray, " n"]]]:
    """Say where patches and blocks would lie in shards without a codec, with JSON of 512 bytes."""
    header, patches = len(npy_header(experiment.dtype, experiment.shape)), np.diff(clips.clip_first)
    end = np.cumsum(patches * experiment.member_bytes + _JSON_MEMBER)
    begin = end - (patches * experiment.member_bytes + _JSON_MEMBER)
    first = shards.block_first[:-1]
    of_shard = begin[shards.shard_first[:-1]]
    shift: Int[np.ndarray, " clips"] = np.repeat(of_shard, np.diff(shards.shard_first))
    rank = np.arange(clips.patch_obs.size) - np.repeat(clips.clip_first[:-1], patches)
    offset = np.repeat(begin - shift, patches) + rank * experiment.member_bytes + MEMBER_HEADER + header
    blocks = np.bincount(shards.block_shard, minlength=of_shard.size)
    records = [
        ShardRecord(path="", partition=0, bytes=int(size) + TAR_TAIL, xxh3="0" * 16, clips=int(own), blocks=int(count))
        for size, own, count in zip(
            end[shards.shard_first[1:] - 1] - of_shard, np.diff(shards.shard_first), blocks, strict=True
        )
    ]
    return records, {
        "patch_offset": offset,
        "block_begin": begin[first] - of_shard[shards.block_shard],
        "block_end": end[shards.block_first[1:] - 1] - of_shard[shards.block_shard],
        "block_xxh3": np.zeros(first.size, np.uint64),
    }


def join_groups(out: Path, config: BuildConfig, plates: Mapping[str, Plate], index: StoredIndex) -> None:
    """Join the parts to index files and a manifest, as a build does."""

    def read(group: Group, *, rows: bool) -> Part:
        part = read_part(out / group.part, rows=rows)
        assert part is not None, f"{group.part} was noted"
        return part

    parts = GroupParts(
        config=config,
        plates=plates,
        experiments=plan_experiments(config, plates),
        index=index,
        groups=list_groups(index),
        read=read,
    )
    joined, census = join_parts(parts), Census(config, index.tables)

    def watch() -> Iterator[object]:
        for rows in read_rows(parts, joined):
            census.add(rows.experiment, rows.index, rows.columns)
            yield rows

    named = name_index(out, out / "new", write_index(out / "new", parts, joined, watch()))  # type: ignore[arg-type]
    report = make_report(config, plates, census.finish(), joined.dropped)
    none = {"tracks": "0" * 16, "metadata": "0" * 16, "pixels": "0" * 16}
    sources = [SourceRecord(experiment=fov.experiment, fov_name=fov.fov_name, **none) for fov in index.fovs]
    (out / MANIFEST).write_text(make_manifest(config, joined, sources, named, (), report).to_json())


def measure_read(shards: Path, meter: Meter) -> dict[str, object]:
    """Read index arrays from the page cache once, in two threads: no opening, and no plan, could be faster."""
    from dynaclr_wds.shardset import ShardSet

    manifest = ShardSet.open(shards, verify=False, cache_dir=shards / "cache").manifest
    arrays = {name: shards / manifest.index_file(array_path(name)) for name in array_dtypes(manifest)}

    def read(path: Path) -> None:
        piece = np.empty(1 << 20, np.uint8)
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece.data):
                pass

    for what, names in {"all arrays": tuple(arrays), "columns of a plan": PLANNED}.items():
        with meter.phase(f"{what}, read once"), ThreadPoolExecutor(2) as pool:
            list(pool.map(read, sorted((arrays[name] for name in names), key=lambda path: -path.stat().st_size)))
    return {}


PLANNED = (
    "patch_is_sample",
    "patch_has_candidate",
    "patch_clip",
    "patch_t",
    "clip_first",
    "clip_lineage",
    "clip_block",
)
"""Arrays that a first batch can't do without, all of them or most of it."""


def measure_open(shards: Path, meter: Meter) -> dict[str, object]:
    """Open the set, and list its anchors."""
    from dynaclr_wds.shardset import ShardSet

    private = read_status("RssAnon")
    with meter.phase("ShardSet.open"):
        opened = ShardSet.open(shards, cache_dir=shards / "cache")
    with meter.phase("plan_index"):
        index = opened.plan_index(opened.experiments, opened.manifest.tau_range_hours)
    return {"private bytes for each sample": (read_status("RssAnon") - private) / len(index.row)}


def measure_first_batch(shards: Path, meter: Meter, *, focus: bool, streaming: bool) -> dict[str, object]:
    """Make a DataModule, and take its first batch."""
    from dynaclr_wds.datamodule import MultiExperimentDataModule
    from dynaclr_wds.errors import WindowError

    private = read_status("RssAnon")
    more: dict[str, Any] = {"leaky": 0.1, "temporal_enrichment": True} if focus else {}
    more |= {"window_bytes": WINDOW} if streaming else {}
    name = f"first batch{', streaming' * streaming}{' with leak and focus' * focus}"
    with suppress(WindowError), meter.phase(name):
        data = MultiExperimentDataModule(
            str(shards), batch_size=256, verify_reads=False, cache_dir=str(shards / "cache"), **more
        )
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert len(batch["anchor"]) == 256
    if name not in meter.phases:
        return {"no window for": name}
    return {"private bytes for each sample": (read_status("RssAnon") - private) / len(data.train_sampler.index.row)}


WINDOW = "30%"
"""Of streaming; in eight streams. A set of one or two experiments can't be streamed with focus so."""
