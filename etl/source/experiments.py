"""experiments.yaml to frozen configs: which plates, which tracks, which wells, cut how.

Everything that can be wrong without opening a plate is an error here, and every error names the
YAML path of the value, what was allowed, and what to do. What needs the plates is checked in
`etl.source.preflight`. Relative paths are relative to the YAML; `${VAR}` in a path is expanded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dynaclr_wds.contract import FORMAT_VERSION, SHARD_BY
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.tau import tau_range_frames
from etl.source.yaml_values import (
    parse_integer,
    parse_label,
    parse_number,
    parse_pair,
    parse_path,
    parse_table,
    parse_text,
    parse_texts,
    read_yaml,
    value_error,
)

__all__ = ["BuildConfig", "ExperimentConfig", "parse_build_config"]

Dtype = Literal["source", "float16", "float32"]
OnBlank = Literal["drop", "keep"]
OnNan = Literal["error", "drop", "zero"]

_WELL = (r"[^/\s]+/[^/\s]+", "A/1")
_FOV = (r"[^/\s]+/[^/\s]+/[^/\s]+", "A/1/0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """One entry of `experiments:`."""

    name: str
    data_path: str
    """Plate: an absolute path, or a URL as written."""
    tracks_path: str
    """Folder with one track file per FOV at `<row>/<col>/<fov>/`."""
    channel_names: tuple[str, ...]
    """All channels of the plate, in the plate's order."""
    source_channel: tuple[str, ...]
    """Channels to store, in the order of the C axis of a patch."""
    condition_wells: Mapping[str, tuple[str, ...]]
    """Condition → wells (`row/col`), in YAML order."""
    interval_minutes: float = 30.0
    """Minutes between frames."""
    start_hpi: float = 0.0
    """Hours post infection at t = 0."""
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Label → value of all observations; `organelle`, `date` and `moi` (multiplicity of infection) stand here too."""
    channel_markers: Mapping[str, str] = field(default_factory=dict)
    """Channel → what it shows; a channel that is not named shows itself."""
    data_path_written: str = ""
    """`data_path` before it was made absolute; what the config's hash sees."""
    tracks_path_written: str = ""
    """`tracks_path` before it was made absolute; what the config's hash sees."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """Condition names, in YAML order."""
        return tuple(self.condition_wells)

    @property
    def well_conditions(self) -> dict[str, str]:
        """Well → condition."""
        return {well: condition for condition, wells in self.condition_wells.items() for well in wells}

    @property
    def channel_indices(self) -> tuple[int, ...]:
        """Position of each source channel on the plate's C axis."""
        return tuple(self.channel_names.index(name) for name in self.source_channel)

    def as_record(self) -> dict[str, Any]:
        """What the stored bytes depend on, as JSON types; paths as written."""
        record = dataclasses.asdict(self)
        record["data_path"] = record.pop("data_path_written") or self.data_path
        record["tracks_path"] = record.pop("tracks_path_written") or self.tracks_path
        # a list of pairs, because the order of conditions matters and JSON objects are sorted
        record["condition_wells"] = [[name, list(wells)] for name, wells in self.condition_wells.items()]
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Experiments and build options: all that a build depends on."""

    experiments: tuple[ExperimentConfig, ...]
    z_range: tuple[int, int] | None = None
    """First slice and one past the last; None is the whole stack."""
    yx_patch_size: tuple[int, int] = (256, 256)
    """Height and width of a patch in pixels."""
    tau_range_hours: tuple[float, float] = (0.5, 2.0)
    """Hours between anchor and positive, both ends included."""
    clip_anchors: int | None = None
    """Anchors per clip; None is eight times τ_max in frames, at least 8."""
    shard_by: tuple[str, ...] = SHARD_BY
    """Labels that shards are partitioned by: constant in a lineage."""
    shard_bytes: int = 512 * 2**20
    block_bytes: int = 8 * 2**20
    dtype: Dtype = "source"
    """Of the stored patches; `source` keeps the plate's."""
    include_wells: tuple[str, ...] | None = None
    """Only these wells (`row/col`) of any experiment; None is all in `condition_wells`."""
    exclude_fovs: tuple[str, ...] = ()
    """Leave these FOVs (`row/col/fov`) out of every experiment."""
    max_border_shift_px: float | None = None
    """Drop cells whose patch centre would move further than this along an axis; None keeps all."""
    on_blank: OnBlank = "drop"
    """What becomes of an observation whose patch has a channel that is entirely fill value: it goes, or stays."""
    on_nan: OnNan = "error"
    """What becomes of NaN and infinite pixels: the build stops, the observation goes, or they become zero."""
    workers: int = 1
    """Parallel workers; changes no byte."""
    seed: int = 0
    where: str = field(default="experiments.yaml", compare=False)
    """The YAML, as errors name it."""

    @property
    def token(self) -> str:
        """Hash (sha256, hex) of everything that changes the bytes of a build, and the format version."""
        text = json.dumps([FORMAT_VERSION, self.as_record()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def as_record(self) -> dict[str, Any]:
        """What the stored bytes depend on, as JSON types: for the manifest and the hash."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("workers", "where")}
        record["experiments"] = [experiment.as_record() for experiment in self.experiments]
        parsed: dict[str, Any] = json.loads(json.dumps(record))
        return parsed

    def tau_frames(self, experiment: ExperimentConfig) -> tuple[int, int]:
        """τ range in frames of an experiment, both ends included."""
        return tau_range_frames(self.tau_range_hours, experiment.interval_minutes)

    def clip_anchors_for(self, experiment: ExperimentConfig) -> int:
        """Anchors per clip for an experiment."""
        return self.clip_anchors or max(8, 8 * self.tau_frames(experiment)[1])

    def z_slices(self, depth: int) -> slice:
        """Slices of a stack of `depth` that are stored."""
        return slice(0, depth) if self.z_range is None else slice(*self.z_range)


def parse_build_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> BuildConfig:
    """Parse experiments.yaml.

    Parameters
    ----------
    path
        The YAML: a list `experiments:` and an optional mapping `shards:` with build options.
    overrides
        Build options that win over `shards:`, e.g. from the command line. None values are ignored.

    Raises
    ------
    ConfigError
        Anything wrong that needs no plate to see, named by its YAML path.
    """
    path = Path(path)
    where = str(path)
    raw = parse_table(read_yaml(path), f"{where}: top level", ("experiments", "shards"))
    entries = raw.get("experiments")
    if not isinstance(entries, list) or not entries:
        raise value_error(f"{where}: experiments", entries, "a list of at least one experiment", "Add `- name: ...`.")
    root = path.absolute().parent
    experiments = tuple(
        _parse_experiment(entry, f"{where}: experiments[{number}]", root) for number, entry in enumerate(entries)
    )
    options: dict[str, Any] = {"workers": _usable_cpus()}
    options |= _parse_options({} if raw.get("shards") is None else raw["shards"], f"{where}: shards")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    options |= _parse_options(given, "build options")
    config = BuildConfig(experiments=experiments, where=where, **options)
    _check_together(config)
    return config


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_together(config: BuildConfig) -> None:
    """Check what no single value shows."""
    seen: dict[str, int] = {}
    for number, experiment in enumerate(config.experiments):
        where = f"{config.where}: experiments[{number}]"
        if experiment.name in seen:
            taken = f"unique, but experiments[{seen[experiment.name]}] has it too"
            raise value_error(f"{where}.name", experiment.name, taken, "Rename one.")
        seen[experiment.name] = number
        if config.tau_frames(experiment)[1] < 1:
            raise value_error(
                f"{config.where}: shards.tau_range_hours",
                list(config.tau_range_hours),
                f"at least one frame of {experiment.name} ({experiment.interval_minutes} min)",
                "Raise its upper end.",
            )
    wells = {well for experiment in config.experiments for well in experiment.well_conditions}
    for well in config.include_wells or ():
        if well not in wells:
            raise value_error(
                f"{config.where}: shards.include_wells", well, f"one of the wells {sorted(wells)}", "Correct it."
            )
    if config.block_bytes > config.shard_bytes:
        raise value_error(
            f"{config.where}: shards.block_bytes",
            config.block_bytes,
            f"at most shard_bytes={config.shard_bytes}",
            "Lower it: a shard is a run of blocks.",
        )


def _parse_experiment(raw: object, where: str, root: Path) -> ExperimentConfig:
    fields = {f.name for f in dataclasses.fields(ExperimentConfig)} - {"data_path_written", "tracks_path_written"}
    entry = parse_table(raw, where, fields | {"organelle", "date", "moi"})
    required = ("name", "data_path", "tracks_path", "channel_names", "source_channel", "condition_wells")
    for name in required:
        if entry.get(name) is None:
            raise ConfigError(f"{where}.{name} is missing. Every experiment needs {', '.join(required)}.")
    values: dict[str, Any] = {}
    for name in ("data_path", "tracks_path"):
        written = parse_path(entry[name], f"{where}.{name}")
        url = "://" in written
        values[f"{name}_written"] = written if url else posixpath.normpath(written)
        values[name] = written if url else os.path.normpath(root / written)
    channels = parse_texts(entry["channel_names"], f"{where}.channel_names")
    source = parse_texts(entry["source_channel"], f"{where}.source_channel")
    for channel in source:
        if channel not in channels:
            raise value_error(
                f"{where}.source_channel", channel, f"one of channel_names {list(channels)}", "Correct either list."
            )
    return ExperimentConfig(
        name=parse_text(entry["name"], f"{where}.name"),
        channel_names=channels,
        source_channel=source,
        condition_wells=_parse_conditions(entry["condition_wells"], f"{where}.condition_wells"),
        interval_minutes=_interval(entry.get("interval_minutes", 30.0), f"{where}.interval_minutes"),
        start_hpi=parse_number(entry.get("start_hpi", 0.0), f"{where}.start_hpi"),
        labels=_parse_labels(entry, where),
        channel_markers=_parse_markers(entry.get("channel_markers"), f"{where}.channel_markers", source),
        **values,
    )


def _parse_labels(entry: Mapping[str, Any], where: str) -> dict[str, str | None]:
    labels = {name: parse_label(entry.get(name), f"{where}.{name}") or None for name in ("organelle", "date")}
    moi = entry.get("moi")
    labels["moi"] = None if moi is None else f"{parse_number(moi, f'{where}.moi', low=0.0):g}"
    given = entry.get("labels") or {}
    if not isinstance(given, dict):
        raise value_error(f"{where}.labels", given, "a mapping of label to value", "Write {marker: TOMM20}.")
    for name, value in given.items():
        labels[parse_text(name, f"{where}.labels key")] = parse_label(value, f"{where}.labels.{name}") or None
    return labels


def _parse_markers(raw: object, where: str, channels: tuple[str, ...]) -> dict[str, str]:
    if raw is None:
        return {}
    table = parse_table(raw, where, channels)
    return {name: parse_text(value, f"{where}.{name}") for name, value in table.items()}


def _parse_conditions(raw: object, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(raw, dict) or not raw:
        raise value_error(where, raw, "a mapping of condition to wells", "Write {infected: [A/1, A/2]}.")
    conditions: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for key, wells in raw.items():
        condition = parse_text(key, f"{where} key")
        conditions[condition] = parse_texts(wells, f"{where}.{condition}", *_WELL)
        for well in conditions[condition]:
            if well in owner:
                only = f"in one condition only, but {owner[well]!r} has it too"
                raise value_error(f"{where}.{condition}", well, only, "Remove it from one.")
            owner[well] = condition
    return conditions


def _parse_options(raw: object, where: str) -> dict[str, Any]:
    parsers: dict[str, Callable[[object, str], Any]] = {
        "z_range": lambda v, w: None if v is None else _z_range(v, w),
        "yx_patch_size": _yx,
        "tau_range_hours": _tau,
        "clip_anchors": lambda v, w: None if v in (None, "auto") else parse_integer(v, w, low=1),
        "shard_by": parse_texts,
        "shard_bytes": lambda v, w: parse_integer(v, w, low=1),
        "block_bytes": lambda v, w: parse_integer(v, w, low=1),
        "dtype": lambda v, w: _choice(v, w, get_args(Dtype), "Use `source` to keep the plate's."),
        "include_wells": lambda v, w: None if v is None else parse_texts(v, w, *_WELL),
        "exclude_fovs": lambda v, w: parse_texts(v, w, *_FOV) if v else (),
        "max_border_shift_px": lambda v, w: None if v is None else parse_number(v, w, low=0.0),
        "on_blank": lambda v, w: _choice(v, w, get_args(OnBlank), "Blank patches are dropped by default."),
        "on_nan": lambda v, w: _choice(v, w, get_args(OnNan), "NaN is an error by default."),
        "workers": lambda v, w: parse_integer(v, w, low=1),
        "seed": lambda v, w: parse_integer(v, w, low=0),
    }
    table = parse_table(raw, where, parsers)
    return {name: parsers[name](value, f"{where}.{name}") for name, value in table.items()}


def _interval(raw: object, where: str) -> float:
    advice = "Give the minutes between frames."
    minutes = parse_number(raw, where, advice=advice)
    if minutes <= 0:
        raise value_error(where, raw, "> 0", advice)
    return minutes


def _z_range(raw: object, where: str) -> tuple[int, int]:
    first, last = (parse_integer(end, where, low=0) for end in parse_pair(raw, where, "[0, 5]"))
    if last <= first:
        raise value_error(where, raw, "[first, one past the last], first < last", "Write [0, 1] for one slice.")
    return first, last


def _yx(raw: object, where: str) -> tuple[int, int]:
    height, width = (raw, raw) if isinstance(raw, int) else parse_pair(raw, where, "[256, 256]")
    return parse_integer(height, where, low=1), parse_integer(width, where, low=1)


def _tau(raw: object, where: str) -> tuple[float, float]:
    low, high = (parse_number(end, where, low=0.0) for end in parse_pair(raw, where, "[0.5, 2.0]"))
    if high < low:
        raise value_error(where, raw, "[shortest, longest] in hours", "Swap the two.")
    return low, high


def _choice(raw: object, where: str, allowed: tuple[str, ...], advice: str) -> str:
    if raw not in allowed:
        raise value_error(where, raw, f"one of {list(allowed)}", advice)
    return str(raw)
