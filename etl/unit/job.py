"""All that a unit of a build is given: the rows of a group of FOVs, and what is to be made of them.

A unit depends on nothing else, so its digest says whether its result is there already: it covers what the stored bytes
are made of, the pixels by their fingerprints, and nothing that they don't depend on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dynaclr_wds.contract import FORMAT_VERSION, ExperimentRecord, SourceRecord, part_path
from etl.index import Index
from etl.layout.segments import WHOLE, Segment
from etl.source.config import BuildConfig
from etl.source.fingerprints import take_pixels
from etl.source.frame_metadata import describe_frames
from etl.source.plates import Fov
from etl.source.stored import plan_stack

_NOT_STORED = ("channel_names", "markers", "start_hpi", "pixel_size_um")
"""Of an experiment's record: what stands in the manifest only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitJob:
    """One group of FOVs."""

    config: BuildConfig
    """With the group's experiment only."""
    experiment: ExperimentRecord
    fovs: tuple[Fov, ...]
    """In the order of the index."""
    segment: Segment
    """Frames of them."""
    index: Index
    """Of the group alone; see `StoredIndex.take` and `etl.index.take_segment`."""
    digest: str
    """Of all that the unit is made of."""
    staged: Path
    """Folder for new files of the set."""
    scratch: Path
    """Folder for what does not fit into memory."""
    in_place: Mapping[str, str]
    """Path → checksum of the group's shards that an earlier build put in place, and that are whole."""
    memory_bytes: int
    """What the unit may hold, beside what its process holds anyhow."""
    retry: bool = True
    """Try FOVs again that an earlier run could not read."""

    @property
    def part(self) -> str:
        """Path of the unit's part, relative to the set."""
        return part_path(self.digest)


def digest_group(
    config: BuildConfig,
    experiment: ExperimentRecord,
    fovs: Sequence[Fov],
    index: Index,
    sources: Mapping[tuple[str, str], SourceRecord],
    segment: Segment = WHOLE,
) -> str:
    """Return the digest of a group (BLAKE2b, 32 hex digits).

    Parameters
    ----------
    config
        With the group's experiment only.
    """
    (entry,) = config.experiments
    stored = {name: value for name, value in dataclasses.asdict(experiment).items() if name not in _NOT_STORED}
    records = [sources[experiment.name, fov.name] for fov in fovs]
    if segment.is_whole:
        of_fovs = _describe_movies(config, fovs, index, records)
    else:
        of_fovs = _describe_segment(config, fovs, index, records, segment)
    text = {
        "version": FORMAT_VERSION,
        "experiment": stored,
        "channels": entry.channel_indices,
        "clip_anchors": config.clip_anchors_for(entry),
        "options": {name: getattr(config, name) for name in _OPTIONS},
        "partitions": [dict(partition) for partition in index.partitions],
        **of_fovs,
    }
    digest = hashlib.blake2b(json.dumps(text, sort_keys=True).encode(), digest_size=16)
    for table in (index.observations, index.tracks):
        for name in table.column_names:
            _add_column(digest, name, table[name].combine_chunks())
    return digest.hexdigest()


_OPTIONS = ("shard_by", "shard_bytes", "block_bytes", "codec", "on_blank", "on_nan", "seed")


def _describe_movies(
    config: BuildConfig, fovs: Sequence[Fov], index: Index, records: Sequence[SourceRecord]
) -> dict[str, Any]:
    """Say what whole movies are made of."""
    (entry,) = config.experiments
    return {
        "fovs": [dataclasses.asdict(record) for record in index.fovs],
        "sources": [[record.metadata, record.pixels] for record in records],
        "arrays": [[fov.array.shape, fov.array.dtype.str] for fov in fovs],
        "stacks": [repr(plan_stack(config, entry, fov)) for fov in fovs],
    }


def _describe_segment(
    config: BuildConfig, fovs: Sequence[Fov], index: Index, records: Sequence[SourceRecord], segment: Segment
) -> dict[str, Any]:
    """Say what the frames of a segment are made of: nothing that frames behind those that are read would change."""
    (entry,) = config.experiments
    stacks, read = [plan_stack(config, entry, fov) for fov in fovs], [segment.read(fov.shape[0]) for fov in fovs]
    cut = [None if s.focus is None else s.focus[t.start : t.stop] for s, t in zip(stacks, read, strict=True)]
    own = [segment.own(fov.shape[0]) for fov in fovs]
    return {
        "segment": [segment.first, segment.last, segment.reach],
        "fovs": [dataclasses.asdict(dataclasses.replace(record, frames=0)) for record in index.fovs],
        "frames": [[t.start, len(samples), len(t)] for samples, t in zip(own, read, strict=True)],
        "sources": [take_pixels(record, segment) for record in records],
        "metadata": [describe_frames(fov, entry.source_channel, t) for fov, t in zip(fovs, read, strict=True)],
        "stacks": [repr(dataclasses.replace(s, focus=focus)) for s, focus in zip(stacks, cut, strict=True)],
    }


def _add_column(digest: hashlib.blake2b, name: str, column: pa.Array) -> None:
    """Hash a column by its values; a dictionary holds those that are there, in order."""
    digest.update(f"{name}\0{column.type}\0{len(column)}\0".encode())
    if pa.types.is_dictionary(column.type):
        if name != "global_track_id":  # says what track_id says
            digest.update(json.dumps(column.dictionary.to_pylist()).encode())
        column = column.indices.fill_null(-1)
    digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).tobytes())
