"""Holds the checked values of experiments.yaml: plates, tracks, labels, and how to cut.

Frozen, and checked by pydantic when made; nothing is opened. `etl.source.experiments` makes them from the YAML.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from dynaclr_wds.contract import FORMAT_VERSION, ROW_NAMES, SHARD_BY
from dynaclr_wds.storage.options import StorageOptions
from dynaclr_wds.tau import tau_range_frames
from etl.source.fields import (
    FOV,
    WELL,
    As,
    Bytes,
    ClipLength,
    ColumnMap,
    Hours,
    Labels,
    Lengths,
    Minutes,
    NotNegative,
    Number,
    PixelSize,
    ReferenceSize,
    Slices,
    Text,
    WellImages,
    WellLabels,
    choice,
    refuse,
    texts,
    well_groups,
    whole,
)
from etl.source.patch_grid import PatchGrid, find_limits, find_scale
from etl.source.z_options import Reduction, Reductions, ZFocus, choose_reductions

Dtype = Literal["source", "float16", "float32"]
Codec = Literal["none", "gzip"]
OnBlank = Literal["drop", "keep"]
OnNan = Literal["error", "drop", "zero"]
OnBadFov = Literal["error", "skip"]
OnNoAnchor = Literal["error", "keep"]
Border = Literal["shift", "pad", "drop"]
TracksUnit = Literal["pixel", "um"]
TracksFormat = Literal["table", "ultrack", "ctc", "trackmate", "btrack", "geff"]

TRACK_COLUMNS = ("track_id", "t", "y", "x")
"""Columns that a track table must have."""
MORE_TRACK_COLUMNS = ("z", "id", "parent_track_id", "parent_id")
"""Columns that a track table may have."""
FOV_COLUMN = "fov_name"
"""Column that says which FOV (`row/col/fov`) a row is of, in a track table of a whole experiment."""

INDEX_COLUMNS = (
    *("observation", "experiment", "fov_name", "well", "condition", "global_track_id", "lineage_id"),
    *("track_id", "t", "z", "y", "x", "id", "parent_track_id", "parent_id", "y_clamp", "x_clamp", "hpi"),
    *("experiment_index", "fov_index", "partition_index", "track_index", "lineage_index"),
    *("has_candidate", "is_candidate"),
)
"""Columns of the index that are no labels of the user's."""

_UNRECORDED = ("written", "storage")

RESERVED = tuple(dict.fromkeys((*INDEX_COLUMNS, "z_start", "z_focus", *ROW_NAMES)))
"""Names that a label may not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """One entry of `experiments:`."""

    name: Text
    data_path: Text
    """Plate: an absolute path, or a URL."""
    wells: Annotated[Mapping[str, tuple[str, ...]] | None, As(WellImages | None)] = None
    """Where `data_path` is no plate: well (`row/col`) → paths of its images below `data_path`."""
    level: Text | None = None
    """Path of the array to read of each image; None is the first level, of full resolution."""
    tracks_path: Text
    """Folder with the tracks of each FOV at `<row>/<col>/<fov>/`: an absolute path, or a URL. Or it says where those of
    each are, with {row}, {col} and {fov}; or is one table, in which a column says the FOV."""
    source_channel: Annotated[tuple[str, ...], As(texts())]
    """Channels to store, in the order of the C axis of a patch."""
    condition_wells: Annotated[Mapping[str, tuple[str, ...]], As(well_groups("condition", "infected"))]
    """Condition → wells (`row/col`), in YAML order."""
    channel_names: Annotated[tuple[str, ...], As(texts(least=0))] = ()
    """All channels of the plate, in the plate's order; empty is what the plate says."""
    interval_minutes: Minutes | None = None
    """Minutes between frames, 0 for one frame; None is what the plate says (see `etl.source.scales`)."""
    pixel_size_um: Annotated[tuple[float, ...] | None, As(PixelSize | None)] = None
    """Size of a pixel in micrometres, `[y, x]` or `[z, y, x]`; None is what the plate says, if it says so."""
    start_hpi: Number = 0.0
    """Hours post infection at t = 0."""
    labels: Labels = field(default_factory=dict)
    """Label → value of all observations; holds `organelle`, `date` and `moi` (multiplicity of infection) too."""
    well_labels: Annotated[Mapping[str, Mapping[str, tuple[str, ...]]], As(WellLabels)] = field(default_factory=dict)
    """Label → value → wells (`row/col`); wells that are not listed have no value."""
    label_columns: Annotated[tuple[str, ...], As(texts(example="cell_type", least=0))] = ()
    """Columns of the track files that are labels."""
    columns: ColumnMap = field(default_factory=dict)
    """Column of the track files as it stands there → our name for it; other columns keep their names."""
    tracks_format: Annotated[TracksFormat | None, As(choice(TracksFormat, "Leave it out to have it found.") | None)] = (
        None
    )
    """What the tracks are, a key of `etl.source.track_sources.formats.FORMATS`; None is what is there."""
    tracks_unit: Annotated[TracksUnit, As(choice(TracksUnit, "Leave it out for pixels."))] = "pixel"
    """Unit of z, y and x in the track files; `um` is converted by `pixel_size_um`."""
    annotations: Text | None = None
    """Table of labels, keyed by fov_name, track_id and, if it is there, t: an absolute path, or a URL."""
    annotation_columns: ColumnMap = field(default_factory=dict)
    """Column of `annotations` as it stands there → our name for it, which may be a label."""
    channel_markers: Mapping[str, Text] = field(default_factory=dict)
    """Channel → what it shows; a channel that is not named shows itself."""
    include_wells: Annotated[tuple[str, ...] | None, As(texts(*WELL) | None)] = None
    """Only these wells (`row/col`) of `condition_wells`; None is all."""
    exclude_fovs: Annotated[tuple[str, ...], As(texts(*FOV, least=0))] = ()
    """Leave these FOVs (`row/col/fov`) out."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Key → value as written: paths with `${VAR}` not expanded, and null for what the plate says. The manifest's
    `config` and its hash hold these."""
    storage: Annotated[StorageOptions, As(Any)] = field(default_factory=StorageOptions, compare=False, repr=False)
    """How requests to object storage are made; in no record, as it may hold keys."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """Condition names, in YAML order."""
        return tuple(self.condition_wells)

    @property
    def well_conditions(self) -> dict[str, str]:
        """Well → condition."""
        return {well: condition for condition, wells in self.condition_wells.items() for well in wells}

    @property
    def minutes(self) -> float:
        """Minutes between frames, where they are given or were read from the plate."""
        assert self.interval_minutes is not None, "etl.source.scales reads it from the plate"
        return self.interval_minutes

    @property
    def has_time(self) -> bool:
        """Whether there is more than one frame, and so hours, τ and temporal positives."""
        return self.minutes > 0

    @property
    def label_names(self) -> tuple[str, ...]:
        """Labels that the YAML names; the columns of `annotations` come on top."""
        return (*self.labels, *self.well_labels, *self.label_columns)

    @property
    def channel_indices(self) -> tuple[int, ...]:
        """Position of each source channel on the plate's C axis."""
        return tuple(self.channel_names.index(name) for name in self.source_channel)

    @model_validator(mode="after")
    def _check_channels(self) -> ExperimentConfig:
        for channel in self.source_channel:
            if self.channel_names and channel not in self.channel_names:
                rule = f"one of channel_names {list(self.channel_names)}"
                raise refuse(channel, rule, "Correct either list.", "source_channel")
        for channel in self.channel_markers:
            if channel not in self.source_channel:
                rule = f"one of source_channel {list(self.source_channel)}"
                raise refuse(channel, rule, "Correct it.", "channel_markers", channel, "[key]")
        return self

    @model_validator(mode="after")
    def _check_places(self) -> ExperimentConfig:
        for well in self.include_wells or ():
            if well not in self.well_conditions:
                rule = f"one of the wells {sorted(self.well_conditions)} of condition_wells"
                raise refuse(well, rule, "Correct it.", "include_wells")
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> ExperimentConfig:
        """Check that maps of columns lead to names that are known, each to another one."""
        known = (*TRACK_COLUMNS, *MORE_TRACK_COLUMNS, FOV_COLUMN, *self.label_columns)
        for theirs, ours in self.columns.items():
            if ours not in known:
                advice = "Correct it; a label must stand in label_columns too."
                raise refuse(ours, f"one of {list(known)}", advice, "columns", theirs)
        if self.annotation_columns and self.annotations is None:
            raise refuse(
                dict(self.annotation_columns), "given with annotations only", "Remove it.", "annotation_columns"
            )
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> ExperimentConfig:
        """Check that no label has the name of a column of the index, and that each has one source."""
        seen: dict[str, str] = {}
        for source in ("labels", "well_labels", "label_columns"):
            for name in getattr(self, source):
                if name in RESERVED:
                    raise refuse(name, f"none of the index's own columns {list(RESERVED)}", "Rename it.", source)
                if name in seen:
                    raise refuse(name, f"given once, but {seen[name]} has it too", "Remove one of the two.", source)
                seen[name] = source
        return self

    def as_record(self) -> dict[str, Any]:
        """What the stored bytes depend on, as JSON types; paths as written."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _UNRECORDED}
        record |= self.written
        # a list of pairs, because the order of conditions matters and JSON objects are sorted
        record["condition_wells"] = [[name, list(wells)] for name, wells in self.condition_wells.items()]
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The options under `shards:`."""

    z_range: Annotated[tuple[int, int] | None, As(Slices | None)] = None
    """First slice and one past the last; None is the whole stack."""
    z_focus: ZFocus | None = None
    """Take slices around the focus instead."""
    z_reduction: Annotated[Mapping[str, Reduction] | None, As(Reductions | None)] = None
    """Reduce each channel's slices to one: channel or kind of channel → how; None keeps them."""
    yx_patch_size: Annotated[tuple[int, int], As(Lengths)] = (256, 256)
    """Height and width of a patch in pixels."""
    reference_pixel_size_um: Annotated[tuple[float, ...] | None, As(ReferenceSize | None)] = None
    """Pixel size of the stored patches in micrometres, `[y, x]` or `[z, y, x]`; None keeps that of each plate."""
    tau_range_hours: Annotated[tuple[float, float], As(Hours)] = (0.5, 2.0)
    """Hours between anchor and positive, both ends included."""
    clip_anchors: Annotated[int | None, As(ClipLength)] = None
    """Anchors per clip; None is eight times τ_max in frames, at least 8."""
    shard_by: Annotated[tuple[str, ...], As(texts(example="experiment, condition"))] = SHARD_BY
    """Labels that shards are partitioned by: constant in a lineage."""
    shard_bytes: Annotated[int, As(Bytes)] = 512 * 2**20
    """Most bytes of a shard: a number, or a size such as `512M`."""
    block_bytes: Annotated[int, As(Bytes)] = 8 * 2**20
    """About the bytes of a block, the unit of streaming: a number, or a size such as `512K`."""
    group_bytes: Annotated[int, As(Bytes)] = 2**28
    """About the bytes of the patches of a group: FOVs that are built together, into shards of their own."""
    segment_frames: Annotated[int | None, As(whole(1) | None)] = None
    """Frames of a segment of a movie, which is built apart from the others, so that a plate may grow; None is all."""
    dtype: Annotated[Dtype, As(choice(Dtype, "Use `source` to keep the plate's."))] = "source"
    """Dtype of the stored patches; `source` keeps the plate's."""
    codec: Annotated[Codec, As(choice(Codec, "Leave it out to store patches as they are."))] = "none"
    """How patches are stored: as they are, or each channel compressed by gzip."""
    include_wells: Annotated[tuple[str, ...] | None, As(texts(*WELL) | None)] = None
    """Only these wells (`row/col`) of any experiment; None is all in `condition_wells`. An experiment may narrow it."""
    exclude_fovs: Annotated[tuple[str, ...], As(texts(*FOV, least=0))] = ()
    """Leave these FOVs (`row/col/fov`) out of every experiment."""
    border: Annotated[Border, As(choice(Border, "Leave it out to shift patches into the image."))] = "shift"
    """What becomes of a patch that reaches beyond the image: it moves inside, is padded with the nearest pixels, or is
    left out."""
    max_border_shift_px: NotNegative | None = None
    """With `border: shift`, leave out cells whose patch would move by more stored pixels than this along an axis; None
    is a quarter of the larger side of the patch, as in the reference implementation."""
    on_blank: Annotated[OnBlank, As(choice(OnBlank, "Leave it out to drop blank patches."))] = "drop"
    """What becomes of an observation with a channel that is entirely fill value: it is left out, or it stays."""
    on_nan: Annotated[OnNan, As(choice(OnNan, "Leave it out to stop at NaN."))] = "error"
    """What becomes of NaN and infinite pixels: the build stops, the observation is left out, or they become zero."""
    on_bad_fov: Annotated[OnBadFov, As(choice(OnBadFov, "Leave it out to stop at a field of view that is bad."))] = (
        "error"
    )
    """What becomes of a FOV whose chunks, metadata or tracks can't be read: the build stops, or leaves it out."""
    on_no_anchor: Annotated[OnNoAnchor, As(choice(OnNoAnchor, "Leave it out to stop where there is no anchor."))] = (
        "error"
    )
    """What becomes of a set in which no cell has a temporal positive: the build stops, or makes it all the same."""
    workers: Annotated[int, As(whole(1))] = 1
    """Parallel workers; changes no byte."""
    memory_limit: Annotated[int, As(Bytes)] = 4 * 2**30
    """Most bytes of memory that a build takes: a number, or a size such as `8G`; changes no byte."""
    seed: Annotated[int, As(whole(0))] = 0
    """Another seed gives another order of the clips."""


CHANGES_NO_BYTE = ("workers", "memory_limit", "on_bad_fov", "where")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig(BuildOptions):
    """Experiments and build options: all that a build depends on."""

    experiments: tuple[ExperimentConfig, ...]
    where: str = field(default="experiments.yaml", compare=False)
    """The YAML, as errors name it."""

    @property
    def token(self) -> str:
        """Hash (sha256, hex) of everything that changes the bytes of a build, and the format version."""
        text = json.dumps([FORMAT_VERSION, self.as_record()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def as_record(self) -> dict[str, Any]:
        """What the stored bytes depend on, as JSON types: for the manifest and the hash."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in CHANGES_NO_BYTE}
        record["experiments"] = [experiment.as_record() for experiment in self.experiments]
        record["max_border_shift_px"] = list(self.border_shifts_px) if self.border == "shift" else None
        parsed: dict[str, Any] = json.loads(json.dumps(record, default=dataclasses.asdict))
        return parsed

    @property
    def border_shifts_px(self) -> tuple[float, float]:
        """Most stored pixels that a patch may move to lie inside the image: to larger and to smaller y or x."""
        return find_limits(self.yx_patch_size, self.max_border_shift_px) if self.border == "shift" else (0.0, 0.0)

    def tau_frames(self, experiment: ExperimentConfig) -> tuple[int, int]:
        """τ range in frames of an experiment, both ends included."""
        return tau_range_frames(self.tau_range_hours, experiment.minutes)

    def clip_anchors_for(self, experiment: ExperimentConfig) -> int:
        """Anchors per clip for an experiment."""
        return self.clip_anchors or max(8, 8 * self.tau_frames(experiment)[1])

    def wells_of(self, experiment: ExperimentConfig) -> tuple[str, ...]:
        """Wells of an experiment that are built, in YAML order: those of `condition_wells` in every `include_wells`."""
        lists = [wells for wells in (self.include_wells, experiment.include_wells) if wells is not None]
        return tuple(well for well in experiment.well_conditions if all(well in wells for wells in lists))

    def z_slices(self, depth: int) -> slice:
        """Slices of a stack of `depth` that are stored."""
        return slice(0, depth) if self.z_range is None else slice(*self.z_range)

    def scale_for(self, experiment: ExperimentConfig) -> tuple[float, float, float]:
        """Pixels of the plate per stored pixel along z, y and x."""
        return find_scale(self.reference_pixel_size_um, experiment.pixel_size_um)

    def reductions_for(self, experiment: ExperimentConfig) -> tuple[Reduction, ...]:
        """How each stored channel of an experiment is reduced to one slice: all of them are, or none."""
        return choose_reductions(self.z_reduction, experiment.source_channel, experiment.channel_markers)

    def grids_for(self, experiment: ExperimentConfig) -> tuple[PatchGrid, PatchGrid]:
        """Return where the pixels of an experiment's patches lie along y and x."""
        y, x = zip(self.yx_patch_size, self.scale_for(experiment)[1:], strict=True)
        return PatchGrid(size=y[0], scale=y[1]), PatchGrid(size=x[0], scale=x[1])
