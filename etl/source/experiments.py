"""Parses experiments.yaml to a frozen config.

Everything that can be wrong without opening a plate is an error here, and every error names the
YAML path of the value, what is allowed, and what to do. What needs the plates is checked in
`etl.source.preflight`. Relative paths are relative to the YAML, which may be a URL; `${VAR}` in a path is expanded.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from dynaclr_wds.contract import OWN_LABELS
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Location, Place, is_url, parse_place
from dynaclr_wds.storage.options import StorageOptions, parse_options
from dynaclr_wds.tau import reaches_a_frame
from etl.run.executors import usable_cpus, usable_memory
from etl.source.collection import is_collection, translate_collection
from etl.source.config import BuildConfig, BuildOptions, ExperimentConfig
from etl.source.fields import Label, NotNegative, explain, parse_table, value_error
from etl.source.yaml_values import expand_variables, read_yaml
from etl.source.z_options import REDUCTION_KEYS

__all__ = ["BuildConfig", "ExperimentConfig", "check_shard_by", "check_tau_reaches_a_frame", "parse_build_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shorthands:
    """Labels that are keys of an experiment themselves."""

    organelle: Label = None
    date: Label = None
    moi: NotNegative | None = None

    def as_labels(self) -> dict[str, str]:
        """Label → value of those that are given."""
        values = {"organelle": self.organelle, "date": self.date, "moi": None if self.moi is None else f"{self.moi:g}"}
        return {name: value for name, value in values.items() if value is not None}


_PATHS = ("data_path", "tracks_path", "annotations")
_SHORTHANDS = tuple(f.name for f in dataclasses.fields(Shorthands))
_AS_TEXT = ("wells", "level", "labels", "well_labels", "organelle", "date", "columns", "annotation_columns")
_MAY_BE_EMPTY = (
    *("labels", "well_labels", "label_columns", "channel_markers", "columns", "annotation_columns"),
    *("interval_minutes", "pixel_size_um", "exclude_fovs", "channel_names", "tracks_format", "wells", "level"),
)


def parse_build_config(
    path: str | Place,
    overrides: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> BuildConfig:
    """Parse experiments.yaml.

    Parameters
    ----------
    path
        The YAML, a path or a URL: a list `experiments:` and optional mappings `shards:` with build options and
        `storage_options:`. Or a collection file of the reference implementation, see `etl.source.collection`.
    overrides
        Build options that win over `shards:`, e.g. from the command line. None values are ignored.
    storage_options
        How requests to object storage are made: for the YAML itself, and for plates and tables where it says nothing.

    Raises
    ------
    ConfigError
        Anything wrong that needs no plate to see, named by its YAML path.
    StorageError
        The YAML cannot be read.
    """
    place = parse_place(path, "experiments_yaml")
    where = str(place)
    content, variables = read_yaml(place, _AS_TEXT, parse_options(storage_options)), dict[str, str]()
    if is_collection(content):
        content, variables = translate_collection(content, where)
    raw = parse_table(content, f"{where}: top level", ("experiments", "shards", "storage_options"))
    entries = raw.get("experiments")
    if not isinstance(entries, list) or not entries:
        raise value_error(f"{where}: experiments", entries, "a list of at least one experiment", "Add `- name: ...`.")
    given_for_all = raw.get("storage_options", storage_options) or {}
    parse_options(given_for_all, f"{where}: storage_options")
    places = _Places(root=_parent(place), variables=variables, storage_options=given_for_all)
    experiments = tuple(
        _parse_experiment(entry, f"{where}: experiments[{number}]", places) for number, entry in enumerate(entries)
    )
    options: dict[str, Any] = {"workers": usable_cpus(), "memory_limit": usable_memory() // 2}
    options |= _parse_options({} if raw.get("shards") is None else raw["shards"], f"{where}: shards")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    options |= _parse_options(given, "build options")
    config = BuildConfig(experiments=experiments, where=where, **options)
    _check_together(config)
    return config


def _check_together(config: BuildConfig) -> None:
    """Check what no single value shows."""
    seen: dict[str, int] = {}
    for number, experiment in enumerate(config.experiments):
        where = f"{config.where}: experiments[{number}]"
        if experiment.name in seen:
            taken = f"unique, but experiments[{seen[experiment.name]}] has it too"
            raise value_error(f"{where}.name", experiment.name, taken, "Rename one.")
        seen[experiment.name] = number
        if experiment.interval_minutes is not None and experiment.has_time:
            check_tau_reaches_a_frame(config, experiment)
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
    if config.border != "shift" and config.max_border_shift_px is not None:
        where = f"{config.where}: shards.max_border_shift_px"
        rule = f"left out with border={config.border!r}: it limits how far a patch is shifted"
        raise value_error(where, config.max_border_shift_px, rule, "Remove one of the two.")
    _check_z(config)
    _check_shard_by(config)


def _check_z(config: BuildConfig) -> None:
    """Check that options about z go together, and fit the channels."""
    if config.z_focus is not None and config.z_range is not None:
        where, rule = f"{config.where}: shards.z_range", "left out with z_focus, which says how many slices to take"
        raise value_error(where, list(config.z_range), rule, "Remove one of the two.")
    names = {name for e in config.experiments for name in (*e.source_channel, *e.channel_markers.values())}
    for key in config.z_reduction or ():
        if key not in REDUCTION_KEYS and key not in names:
            rule = f"one of {list(REDUCTION_KEYS)}, or of the stored channels and their markers, {sorted(names)}"
            raise value_error(f"{config.where}: shards.z_reduction key", key, rule, "Correct it.")
    for number, experiment in enumerate(config.experiments):
        found = dict(zip(experiment.source_channel, config.reductions_for(experiment), strict=True))
        if len({how == "none" for how in found.values()}) > 1:
            raise value_error(
                f"{config.where}: shards.z_reduction", dict(config.z_reduction or {}),
                f"`none` for all channels of an experiment or for no one, but experiments[{number}] has {found}",
                "Channels of a patch have the same number of slices: reduce all, or leave the reduction to training.",
            )  # fmt: skip


def check_tau_reaches_a_frame(config: BuildConfig, experiment: ExperimentConfig) -> None:
    """Check that the τ range holds a frame of an experiment.

    Raises
    ------
    ConfigError
        It ends before the first one.
    """
    where = f"{config.where}: shards.tau_range_hours"
    try:
        frames = config.tau_frames(experiment)
    except ValueError as error:
        raise ConfigError(f"{where}={list(config.tau_range_hours)}, experiment {experiment.name}: {error}") from error
    if not reaches_a_frame(frames):
        raise value_error(
            where,
            list(config.tau_range_hours),
            f"at least one frame of {experiment.name} ({experiment.minutes} min)",
            "Raise its upper end.",
        )


def _check_shard_by(config: BuildConfig) -> None:
    """Check that `shard_by` names labels; with annotations, whose columns are not known yet, the index checks it."""
    if any(experiment.annotations for experiment in config.experiments):
        return
    named = dict.fromkeys((*OWN_LABELS, *(name for e in config.experiments for name in e.label_names)))
    check_shard_by(config, tuple(named))


def check_shard_by(config: BuildConfig, labels: tuple[str, ...]) -> None:
    """Check that each of `shard_by` is one of these labels.

    Raises
    ------
    ConfigError
        It is not; the message lists the labels.
    """
    for number, name in enumerate(config.shard_by):
        if name not in labels:
            raise value_error(
                f"{config.where}: shards.shard_by[{number}]", name, f"one of the labels {list(labels)}", "Correct it."
            )


_Section = TypeVar("_Section")


def _make(kind: type[_Section], raw: Mapping[str, Any], where: str) -> _Section:
    try:
        return kind(**raw)
    except ValidationError as error:
        raise explain(error, where) from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """What paths of the YAML are relative to."""

    root: Place
    variables: Mapping[str, str]
    """Variable → value, of those that the file defines itself."""
    storage_options: Mapping[str, Any] = dataclasses.field(repr=False)
    """As given for all experiments."""


def _parse_experiment(raw: object, where: str, places: _Places) -> ExperimentConfig:
    fields = dataclasses.fields(ExperimentConfig)
    names = {f.name for f in fields} - {"written", "storage"}
    entry = dict(parse_table(raw, where, names | {*_SHORTHANDS, "storage_options"}))
    storage = _parse_storage(entry.pop("storage_options", None), f"{where}.storage_options", places)
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    for name in required:
        if entry.get(name) is None:
            raise ConfigError(f"{where}.{name} is missing. Every experiment needs {', '.join(required)}.")
    for name in _MAY_BE_EMPTY:
        if name in entry and entry[name] is None:
            del entry[name]  # the key stands there without a value
    shorthands = {name: entry.pop(name) for name in _SHORTHANDS if name in entry}
    more = _make(Shorthands, shorthands, where).as_labels()
    experiment = _make(ExperimentConfig, entry, where)
    if twice := [name for name in more if name in experiment.label_names]:
        raise value_error(
            f"{where}.{twice[0]}", more[twice[0]], "given once, but it is a label elsewhere too", "Remove one."
        )
    paths = {name: entry[name] for name in _PATHS if entry.get(name) is not None}
    found: dict[str, Any] = {name: _find(path, f"{where}.{name}", places) for name, path in paths.items()}
    written: dict[str, Any] = {name: _tidy(path) for name, path in paths.items()}
    found |= {"labels": {**more, **experiment.labels}, "written": written, "storage": storage}
    return dataclasses.replace(experiment, **found)


def _parse_storage(raw: object, where: str, places: _Places) -> StorageOptions:
    """Parse the options of an experiment, which come on top of those for all."""
    if raw is not None and not isinstance(raw, Mapping):
        parse_options(raw, where)
    return parse_options({**places.storage_options, **(raw or {})}, where)  # type: ignore[dict-item]


def _parent(place: Place) -> Place:
    if isinstance(place, Path):
        return place.absolute().parent
    return Location(place.scheme, place.bucket, place.key.rpartition("/")[0])


def _find(path: str, where: str, places: _Places) -> str:
    """Make a path absolute; one of a YAML in object storage is a URL then, and so is one that is written so."""
    expanded, root = expand_variables(path, where, places.variables), places.root
    if is_url(expanded):
        return str(parse_place(expanded, where))
    if isinstance(root, Path) or expanded.startswith("/"):
        return os.path.normpath(expanded if isinstance(root, Location) else root / expanded)
    key = posixpath.normpath(posixpath.join(root.key, expanded))
    if key.startswith(".."):
        raise value_error(where, path, f"inside of {root.scheme}://{root.bucket}", "Correct it, or write a URL.")
    return str(Location(root.scheme, root.bucket) / key)


def _tidy(path: str) -> str:
    """Write a path without `.` and `..`, so that two spellings of one path are one config."""
    return path if is_url(path) or "${" in path else posixpath.normpath(path)


def _parse_options(raw: object, where: str) -> dict[str, Any]:
    """Parse those options that are given."""
    table = dict(parse_table(raw, where, {f.name for f in dataclasses.fields(BuildOptions)}))
    if "exclude_fovs" in table and table["exclude_fovs"] is None:
        del table["exclude_fovs"]  # the key stands there without a value
    options = _make(BuildOptions, table, where)
    return {name: getattr(options, name) for name in table}
