"""The on-disk contract: what the ETL writes and the loader reads, and nothing else.

The one module that both halves share, so it imports numpy and the standard library only. It names
the files, the columns that are memory-mapped, and the manifest; it opens nothing. `docs/FORMAT.md`
says the same for readers in other languages.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import DTypeLike

from dynaclr_wds.errors import FormatError

FORMAT_NAME = "dynaclr-wds"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
OBSERVATIONS = "index/observations.parquet"
PATCHES = "index/patches.parquet"
STATS = "index/stats.parquet"
ARRAYS_DIR = "index/arrays"

STATISTICS = ("mean", "std", "median", "iqr", "p1", "p99", "min", "max")
"""Last axis of the `stats_*` arrays, in this order."""

LEVELS = ("timepoint", "fov", "dataset")
"""Where a statistic is taken: one frame of a FOV, all frames of a FOV, all FOVs of an experiment."""

NO_ID = -1
"""Stands for "no parent" and "no id" in integer columns."""

ARRAYS: dict[str, str] = {
    # one row per observation, ordered by (experiment, fov, track_id, t)
    "obs_fov": "<i4",  # row of Manifest.fovs
    "obs_track": "<i4",  # dense number of the track over the whole set
    "obs_lineage": "<i4",  # dense number of the lineage over the whole set
    "obs_track_id": "<i8",  # as in the track table
    "obs_parent_track_id": "<i8",  # as in the track table, NO_ID without parent
    "obs_id": "<i8",  # as in the track table, NO_ID without one
    "obs_parent_id": "<i8",  # as in the track table, NO_ID without one
    "obs_t": "<i4",  # frame
    "obs_z": "<f4",  # centroid in pixels as tracked; NaN where the table has no z
    "obs_y": "<f4",
    "obs_x": "<f4",
    "obs_patch": "<i8",  # first patch row that stores this observation
    # one row per stored patch, in stored order: by (stratum, shard, clip), inside a clip by (t, track)
    "patch_obs": "<i4",
    "patch_clip": "<i4",
    "patch_t": "<i4",
    "patch_offset": "<i8",  # byte offset of the array's data in its shard, npy header excluded
    "patch_is_anchor": "|b1",  # True in exactly one clip for every anchor
    # one row per clip, in stored order
    "clip_first": "<i8",  # CSR, n_clips + 1: first patch row
    "clip_lineage": "<i4",
    "clip_block": "<i4",
    # one row per block, in stored order
    "block_first": "<i4",  # CSR, n_blocks + 1: first clip
    "block_shard": "<i4",  # row of Manifest.shards
    "block_begin": "<i8",  # byte range in the shard: whole tar members
    "block_end": "<i8",
    # statistics; last axes (channel, STATISTICS)
    "fov_first_frame": "<i8",  # CSR, n_fovs + 1: row of stats_timepoint for (fov, t) is first + t
    "stats_timepoint": "<f4",  # NaN for frames that were dropped or not read
    "stats_fov": "<f4",
    "stats_dataset": "<f4",
}
"""Name → dtype of every `index/arrays/<name>.npy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """One experiment as it was stored."""

    name: str
    dtype: str
    """Of the stored patches, e.g. `<u2`."""
    channel_names: tuple[str, ...]
    """Of the plate."""
    source_channel: tuple[str, ...]
    """Stored channels, in stored order: the C axis of a patch."""
    conditions: tuple[str, ...]
    interval_minutes: float
    start_hpi: float
    tau_frames: tuple[int, int]
    """τ range that every clip can serve, in frames, both ends included."""
    organelle: str = ""
    date: str = ""
    moi: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FovRecord:
    """One field of view that has observations."""

    experiment: str
    fov_name: str
    """`row/col/fov`."""
    well: str
    """`row/col`."""
    condition: str
    frames: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumRecord:
    """One (experiment, condition), with what is stored of it."""

    experiment: str
    condition: str
    observations: int
    anchors: int
    lineages: int
    clips: int
    patches: int
    shards: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One tar."""

    path: str
    """Relative to the manifest, `/` as separator."""
    stratum: int
    """Row of `Manifest.strata`."""
    bytes: int
    sha256: str
    clips: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One index file."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of a shard set without opening a shard; written last."""

    format: str = FORMAT_NAME
    version: int = FORMAT_VERSION
    config_hash: str
    """Hash of the build config and the format version; a build with another hash is another set."""
    config: Mapping[str, Any]
    """The experiments and build options as parsed."""
    patch_shape: tuple[int, int, int, int]
    """(C, Z, Y, X) of every stored patch."""
    tau_range_hours: tuple[float, float]
    experiments: tuple[ExperimentRecord, ...]
    fovs: tuple[FovRecord, ...]
    strata: tuple[StratumRecord, ...]
    shards: tuple[ShardRecord, ...]
    files: tuple[FileRecord, ...]
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Experiment → reason → observations (or candidates, for `candidates_dropped`) left out."""

    def to_json(self) -> str:
        """Serialise, the same bytes for the same content."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


def parse_manifest(text: str, where: str = MANIFEST) -> Manifest:
    """Parse a manifest.

    Parameters
    ----------
    text
        Content of `manifest.json`.
    where
        Named in errors.

    Raises
    ------
    FormatError
        Not JSON, another format, another version, or a missing key.
    """
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}: is not JSON ({error}). Build the shards again.") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT_NAME:
        raise FormatError(f"{where}: is not the manifest of a {FORMAT_NAME} shard set.")
    if raw.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{where}: version={raw.get('version')!r}, but this release reads version {FORMAT_VERSION}. "
            "Build the shards again."
        )
    try:
        return Manifest(
            config_hash=raw["config_hash"],
            config=raw["config"],
            patch_shape=tuple(raw["patch_shape"]),
            tau_range_hours=tuple(raw["tau_range_hours"]),
            experiments=tuple(ExperimentRecord(**_tuples(e)) for e in raw["experiments"]),
            fovs=tuple(FovRecord(**f) for f in raw["fovs"]),
            strata=tuple(StratumRecord(**s) for s in raw["strata"]),
            shards=tuple(ShardRecord(**s) for s in raw["shards"]),
            files=tuple(FileRecord(**f) for f in raw["files"]),
            dropped=raw["dropped"],
        )
    except (KeyError, TypeError) as error:
        raise FormatError(f"{where}: incomplete or damaged ({error!r}). Build the shards again.") from error


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """Return the `.npy` header (version 1.0) of a C-ordered array: the bytes before its data."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def quote_name(name: str) -> str:
    """Make a name safe as one path component and as a WebDataset key: letters, digits, `_`, `-`."""
    return quote(name, safe="").replace(".", "%2E").replace("~", "%7E")


def shard_path(experiment: str, condition: str, number: int) -> str:
    """Path of a shard, relative to the manifest."""
    return f"{quote_name(experiment)}/{quote_name(condition)}-{number:06d}.tar"
