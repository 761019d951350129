"""Defines the on-disk contract: what the ETL writes and the loader reads, and nothing else.

Both halves share this module, so it imports numpy, xxhash and the standard library only. It names the files, the
arrays that are memory-mapped, and what a manifest holds (with `suspicions.py`); it opens nothing. `docs/FORMAT.md` says
the same for readers in other languages.
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
import xxhash
from numpy.typing import DTypeLike

from dynaclr_wds.suspicions import FactsRecord, SuspicionRecord

FORMAT_NAME = "dynaclr-wds"
FORMAT_VERSION = 2

MANIFEST = "manifest.json"
VERSIONS_DIR = "versions"
INDEX_DIR = "index"
PARTS_DIR = "index/parts"
OBSERVATIONS = "observations.parquet"
PATCHES = "patches.parquet"
STATS = "stats.parquet"
"""Tables of the index; `Manifest.index_file` says where they are."""

STATISTICS = ("mean", "std", "median", "iqr", "p1", "p99", "min", "max")
"""Last axis of the `stats_*` arrays, in this order."""

LEVELS = ("timepoint", "fov", "dataset")
"""Where a statistic is taken: one frame of a FOV, all frames of a FOV, all FOVs of an experiment."""

CLIP_LEVELS = ("timepoint", "fov")
"""Levels that stand in a clip: those that no other group of FOVs has a part in."""

NO_ID = -1
"""Stands for "no parent", "no id" and "no label" in integer columns."""

OWN_LABELS = ("experiment", "condition", "well")
"""Labels that every observation has; others are as the experiments.yaml gives them."""

ROW_NAMES = ("name", "lineage", "observation", "labels", "features", "projections")
"""Columns of a batch's rows and of an embeddings table that the index lacks; no label may have such a name."""

SHARD_BY = ("experiment", "condition")
"""Labels that shards are partitioned by unless the build is told otherwise."""

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
    "obs_z_start": "<f4",  # slice of the plate that the first stored slice lies at
    "obs_z_focus": "<f4",  # slice of the plate that is in focus; NaN where the build did not ask
    "obs_patch": "<i8",  # patch row where this observation is a sample
    # one row per stored patch, in stored order: by (group, partition, shard, clip), inside a clip by (t, track)
    "patch_obs": "<i4",
    "patch_clip": "<i4",
    "patch_t": "<i4",
    "patch_offset": "<i8",  # byte offset of the array's data in its shard, npy header excluded
    "patch_is_sample": "|b1",  # True in exactly one clip for every observation
    "patch_has_candidate": "|b1",  # a sample with a temporal candidate in the τ range of the build, in its clip
    "patch_xxh3": "<u4",  # (patches, C): `channel_checksum` of each stored channel; 0 where an experiment has fewer
    # one row per clip, in stored order
    "clip_first": "<i8",  # CSR, n_clips + 1: first patch row
    "clip_lineage": "<i4",
    "clip_block": "<i4",
    # one row per block, in stored order
    "block_first": "<i4",  # CSR, n_blocks + 1: first clip
    "block_shard": "<i4",  # row of Manifest.shards
    "block_begin": "<i8",  # byte range in the shard: whole tar members
    "block_end": "<i8",
    "block_xxh3": "<u8",  # checksum of those bytes
    # statistics; last axes (channel, STATISTICS), channels filled up with NaN to the most that an experiment has
    "fov_first_frame": "<i8",  # CSR, n_fovs + 1: row of stats_timepoint for (fov, t) is first + t
    "stats_timepoint": "<f4",  # NaN for frames that were dropped or not read
    "stats_fov": "<f4",
    "stats_dataset": "<f4",
}
"""Name → dtype of every array of the index but the labels."""

CODEC_ARRAYS: dict[str, str] = {
    "patch_stored": "<u4",  # (patches, C): bytes of each channel as it is stored; 0 where an experiment has fewer
    "block_decoded": "<i8",  # bytes that the block would have without the codec: what a window counts
}
"""The same for what only sets with a codec have."""

NO_CODEC, GZIP = "none", "gzip"

SUFFIXES = {NO_CODEC: ".npy", GZIP: ".npy.gz"}
"""Codec → how the names of patches end in a shard."""

MEMBER_HEADER = 512
"""Bytes of a tar member before its data."""

LABEL_DTYPE = "<i4"
"""Dtype of the array `label_<name>`; a row is an observation's place in the label's values, NO_ID for null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """One experiment as it was stored."""

    name: str
    dtype: str
    """Numpy code of the stored patches, e.g. `<u2`."""
    shape: tuple[int, int, int, int]
    """(C, Z, Y, X) of the stored patches."""
    channel_names: tuple[str, ...]
    """All channels of the plate."""
    source_channel: tuple[str, ...]
    """Stored channels, in stored order: the C axis of a patch."""
    markers: tuple[str, ...]
    """What each stored channel shows; its name unless the YAML says otherwise."""
    interval_minutes: float
    start_hpi: float
    pixel_size_um: tuple[float | None, float | None, float | None]
    """Micrometres per stored pixel along z, y and x; None where it is not known."""
    scale: tuple[float, float, float]
    """Pixels of the plate per stored pixel along z, y and x; 1 along an axis that was not resampled."""
    z_reduction: tuple[str, ...]
    """How the slices of each stored channel became one: `center`, `mip`, or `none` where they did not."""
    tau_frames: tuple[int, int]
    """τ range that every clip can serve, in frames, both ends included."""

    @property
    def patch_bytes(self) -> int:
        """Bytes of a patch's data."""
        size: int = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        return size

    @property
    def channel_bytes(self) -> int:
        """Bytes of one channel of a patch."""
        return self.patch_bytes // self.shape[0]

    @property
    def member_bytes(self) -> int:
        """Bytes of a patch's tar member without a codec, from its header to the next one's."""
        data = len(npy_header(self.dtype, self.shape)) + self.patch_bytes
        return MEMBER_HEADER + -(-data // MEMBER_HEADER) * MEMBER_HEADER


@dataclass(frozen=True, slots=True, kw_only=True)
class FovRecord:
    """One field of view that has observations."""

    experiment: str
    fov_name: str
    """`row/col/fov`."""
    well: str
    """`row/col`."""
    frames: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRecord:
    """One label column of the observations."""

    name: str
    values: tuple[str, ...]
    """A code k in the label's array stands for `values[k]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRecord:
    """One value of the `shard_by` labels, with what is stored of it."""

    labels: Mapping[str, str | None]
    """Label → value, of each of `Manifest.shard_by`."""
    observations: int
    with_candidate: int
    """Observations with a temporal candidate in the τ range of the build."""
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
    partition: int
    """Row of `Manifest.partitions`."""
    bytes: int
    xxh3: str
    """Checksum of the file."""
    clips: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One index file."""

    path: str
    bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """Fingerprint of what one FOV was made of, when it was read."""

    experiment: str
    fov_name: str
    tracks: str
    """Checksum of the track file's bytes, and of the annotation table's where there is one."""
    metadata: str
    """Checksum of the array's and the image's metadata."""
    pixels: str
    """Checksum of the names, sizes and times of the chunk files, or of their ETags; with `segment_frames` one for each
    segment, of the chunks that it reads, with spaces between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRecord:
    """A field of view that was asked for and left out, because it can't be used."""

    experiment: str
    fov_name: str
    reason: str
    """One line for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of a shard set without opening a shard; written last."""

    format: str = FORMAT_NAME
    version: int = FORMAT_VERSION
    """Of the format."""
    set_version: int = 1
    """Of the set: 1, 2, …; a build that changes anything adds one."""
    config_hash: str
    """Hash of the build config and the format version; a build with another hash is another set."""
    config: Mapping[str, Any]
    """The experiments and build options as parsed."""
    tau_range_hours: tuple[float, float]
    experiments: tuple[ExperimentRecord, ...]
    fovs: tuple[FovRecord, ...]
    labels: tuple[LabelRecord, ...]
    shard_by: tuple[str, ...]
    """Labels that shards are partitioned by."""
    partitions: tuple[PartitionRecord, ...]
    shards: tuple[ShardRecord, ...]
    index: str
    """Folder of the index, named by a hash of what is in it: another version of the set has another one."""
    files: tuple[FileRecord, ...]
    sources: tuple[SourceRecord, ...]
    codec: str = NO_CODEC
    """How the patches are stored: a key of `SUFFIXES`."""
    skipped: tuple[SkippedRecord, ...] = ()
    """FOVs that were asked for and left out, because they can't be used, in order of experiment and name."""
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Experiment → reason → observations (or candidates, for `candidates_dropped`) left out."""
    facts: tuple[FactsRecord, ...] = ()
    """One per experiment."""
    suspicious: tuple[SuspicionRecord, ...] = ()
    """What looks wrong, in order of experiment; empty when all is well."""

    def index_file(self, name: str) -> str:
        """Path of a file of the index, such as `OBSERVATIONS` or `array_path(name)`, relative to the manifest."""
        return f"{self.index}/{name}"

    def to_json(self) -> str:
        """Serialise, the same bytes for the same content; the last key is the checksum of the others."""
        record = dataclasses.asdict(self)
        return _dump_manifest(record | {"xxh3": manifest_checksum(record)})


def _dump_manifest(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def manifest_checksum(record: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest's content: all keys but the one that holds it."""
    content = json.dumps({k: v for k, v in record.items() if k != "xxh3"}, sort_keys=True, separators=(",", ":"))
    return format_checksum(checksum(content.encode()))


def checksum(data: Any) -> int:
    """Return the XXH3 (64 bits) of bytes, or of anything with a buffer; releases the GIL."""
    return xxhash.xxh3_64_intdigest(data)


def channel_checksum(data: Any) -> int:
    """Return the low 32 bits of the XXH3 of a channel of a patch: its Z·Y·X numbers as they are stored."""
    return xxhash.xxh3_64_intdigest(data) & 0xFFFF_FFFF


def format_checksum(value: int) -> str:
    """Write a checksum as 16 hexadecimal digits."""
    return f"{value:016x}"


def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """Return the `.npy` header (version 1.0) of a C-ordered array: the bytes before its data."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def most_stored(size: int) -> int:
    """Return how many bytes a gzip member takes at most, of so many that can't be compressed."""
    return size + (size >> 10) + 64


def least_stored(size: int) -> int:
    """Return how many bytes a gzip member of so many takes at least: deflate makes 1,032 bytes of one at most."""
    return max(20, size // 1032)


def array_dtypes(manifest: Manifest) -> dict[str, str]:
    """Return name → dtype of every array that a set must have."""
    stored = ARRAYS if manifest.codec == NO_CODEC else ARRAYS | CODEC_ARRAYS
    return stored | {label_array(label.name): LABEL_DTYPE for label in manifest.labels}


def array_path(name: str) -> str:
    """Path of an array, relative to the folder of the index."""
    return f"arrays/{name}.npy"


def version_path(number: int) -> str:
    """Path of the manifest of an earlier version of a set, relative to the newest one's."""
    return f"{VERSIONS_DIR}/{number}.json"


def index_folder(checksums: Mapping[str, str]) -> str:
    """Return the folder of an index: of its files, name → checksum."""
    text = json.dumps(checksums, sort_keys=True, separators=(",", ":"))
    return f"{INDEX_DIR}/{format_checksum(checksum(text.encode()))}"


def label_array(name: str) -> str:
    """Return the name of a label's array."""
    return f"label_{quote_name(name)}"


_MOST_NAME = 100
_SHARD_DIGITS = 12
_BAD = "-bad"


def quote_name(name: str) -> str:
    """Make a name safe as one path component and as a WebDataset key: letters, digits, `_`, `-` and `%`.

    A name that would be longer than a file system allows is cut, and told apart by its checksum.
    """
    quoted = quote(name, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(quoted) <= _MOST_NAME:
        return quoted
    return f"{quoted[: _MOST_NAME - 17]}-{format_checksum(checksum(name.encode()))}"


def part_path(digest: str) -> str:
    """Path of what a build notes of a group of FOVs, relative to the manifest."""
    return f"{PARTS_DIR}/{digest}.npz"


def bad_part_path(digest: str) -> str:
    """Path of what a build notes of a group that it can't make, because FOVs of it can't be read; no set has it."""
    return part_path(f"{digest}{_BAD}")


def parse_part_path(path: str) -> str | None:
    """Return the digest of the group that a part is about, as its path says it; None for another file."""
    name = path.removeprefix(f"{PARTS_DIR}/").removesuffix(".npz")
    return name.removesuffix(_BAD) if path == part_path(name) else None


def shard_path(values: tuple[str | None, ...], digest: str, number: int) -> str:
    """Path of a shard, relative to the manifest: a folder per label but the last; `~` stands for null.

    Parameters
    ----------
    digest
        Of the group that the shard is made of: one path never stands for two contents.
    """
    names = [quote_name(value) if value is not None else "~" for value in values] or ["all"]
    return f"{'/'.join(names)}-{digest[:_SHARD_DIGITS]}-{number:06d}.tar"


def group_of(path: str) -> str:
    """Return the digits of a group's digest that stand in the path of each of its shards."""
    return path.rpartition("-")[0][-_SHARD_DIGITS:]
