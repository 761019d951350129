"""Translates collection files of the reference implementation (`viscy_data.collection`) to what experiments.yaml holds.

Their schema, key by key, is in docs/FORMAT.md, with what becomes of it. Channels that are valid in some wells only
split an experiment: one for every set of channels, named after what they show. Keys `shards:` and `storage_options:`
may stand in the file too, which that program would not mind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, TypeGuard

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from dynaclr_wds.errors import ConfigError
from etl.source.fields import (
    FOV,
    WELL,
    As,
    Label,
    Micrometres,
    Minutes,
    NotNegative,
    Number,
    Text,
    explain,
    parse_table,
    texts,
    value_error,
    well_groups,
)

_TOP = ("name", "description", "datasets_root", "provenance", "experiments", "fov_records", "shards", "storage_options")
_OURS = ("condition_wells", "source_channel")
_THEIRS = ("perturbation_wells", "channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channel:
    name: Text
    marker: Text
    wells: Annotated[tuple[str, ...], As(texts(*WELL, least=0))] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One experiment, as `viscy_data.collection.ExperimentEntry` has it."""

    name: Text
    data_path: Text
    tracks_path: Text
    perturbation_wells: Annotated[Mapping[str, tuple[str, ...]], As(well_groups("perturbation", "infected"))]
    channels: tuple[_Channel, ...] = ()
    channel_names: Annotated[tuple[str, ...], As(texts(least=0))] = ()
    interval_minutes: Minutes | None = None
    start_hpi: Number = 0.0
    marker: Label = None
    organelle: Label = None
    microscope: Label = None
    pixel_size_xy_um: Micrometres | None = None
    pixel_size_z_um: Micrometres | None = None
    date: Label = None
    moi: NotNegative = 0.0
    exclude_fovs: Annotated[tuple[str, ...], As(texts(*FOV, least=0))] = field(default=())


_KEYS = tuple(_Entry.__dataclass_fields__)
_REQUIRED = ("name", "data_path", "tracks_path", "perturbation_wells")


def is_collection(raw: object) -> TypeGuard[Mapping[str, Any]]:
    """Say whether a file is a collection: an experiment has one of its keys, and none of ours."""
    entries = raw.get("experiments") if isinstance(raw, Mapping) else None
    found = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    keys = {key for entry in found for key in entry}
    return not keys.isdisjoint(_THEIRS) and keys.isdisjoint(_OURS)


def translate_collection(raw: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Translate a collection.

    Returns
    -------
    tuple
        What an experiments.yaml would hold, and the variables that stand in its paths: `datasets_root`.

    Raises
    ------
    ConfigError
        A key that can't be translated, or a value that is not what their schema says; named by its YAML path.
    """
    table = parse_table(raw, f"{where}: top level", _TOP)
    root = table.get("datasets_root")
    if root is not None and not (isinstance(root, str) and root.strip()):
        raise value_error(f"{where}: datasets_root", root, "a path", "Correct it, or leave it out.")
    experiments: list[dict[str, Any]] = []
    for number, entry in enumerate(table["experiments"]):
        experiments += _translate(entry, f"{where}: experiments[{number}]")
    variables = {} if root is None else {"datasets_root": root.rstrip("/") or "/"}
    ours: dict[str, Any] = {key: table[key] for key in ("shards", "storage_options") if key in table}
    return {"experiments": experiments, **ours}, variables


def _translate(raw: object, where: str) -> list[dict[str, Any]]:
    """Translate one experiment to one, or to one for each set of channels that are valid together."""
    table = {key: value for key, value in parse_table(raw, where, _KEYS).items() if value is not None}
    for key in _REQUIRED:
        if key not in table:
            needed = ", ".join(_REQUIRED)
            raise ConfigError(f"{where}.{key} is missing. Every experiment of a collection needs {needed}.")
    try:
        entry = _Entry(**table)
    except ValidationError as error:
        raise explain(error, where) from error
    channels = entry.channels or tuple(_Channel(name=name, marker=name) for name in entry.channel_names)
    if not channels:
        raise value_error(f"{where}.channels", [], "a list of at least one channel", "Write {name: GFP, marker: ER}.")
    groups = _group_wells(entry, channels, where)
    split = len(groups) > 1
    return [_make_experiment(entry, group, wells, split=split, where=where) for group, wells in groups.items()]


def _group_wells(
    entry: _Entry, channels: tuple[_Channel, ...], where: str
) -> dict[tuple[_Channel, ...], dict[str, list[str]]]:
    """Put the wells in which the same channels are valid together: channels → perturbation → wells.

    Wells without a valid channel have no cells in a collection.
    """
    groups: dict[tuple[_Channel, ...], dict[str, list[str]]] = {}
    for perturbation, wells in entry.perturbation_wells.items():
        for well in wells:
            valid = tuple(channel for channel in channels if not channel.wells or well in channel.wells)
            names = [channel.name for channel in valid]
            if twice := [name for name in names if names.count(name) > 1]:
                rule = f"listed once for well {well}, with one marker"
                raise value_error(f"{where}.channels", twice[0], rule, "Correct `wells` of one of the two.")
            if valid:
                groups.setdefault(valid, {}).setdefault(perturbation, []).append(well)
    if not groups:
        named = sorted(well for channel in channels for well in channel.wells)
        raise value_error(f"{where}.channels", named, "valid in a well of perturbation_wells", "Correct either.")
    return groups


def _make_experiment(
    entry: _Entry, channels: tuple[_Channel, ...], wells: dict[str, list[str]], *, split: bool, where: str
) -> dict[str, Any]:
    names = [channel.name for channel in channels]
    listed = {well for group in wells.values() for well in group}
    experiment: dict[str, Any] = {
        "name": "_".join([entry.name, *(channel.marker for channel in channels)]) if split else entry.name,
        "data_path": entry.data_path,
        "tracks_path": entry.tracks_path,
        "source_channel": names,
        "channel_markers": {channel.name: channel.marker for channel in channels},
        "condition_wells": wells,
        "start_hpi": entry.start_hpi,
        "exclude_fovs": [fov for fov in entry.exclude_fovs if fov.rpartition("/")[0] in listed],
        "pixel_size_um": _pixel_size(entry, where),
        "interval_minutes": entry.interval_minutes,
        "organelle": entry.organelle,
        "date": entry.date,
        "labels": {} if entry.microscope is None else {"microscope": entry.microscope},
    }
    return experiment | ({"moi": entry.moi} if entry.moi else {})


def _pixel_size(entry: _Entry, where: str) -> list[float] | None:
    if entry.pixel_size_xy_um is None:
        if entry.pixel_size_z_um is not None:
            rule = "given together with pixel_size_xy_um"
            raise value_error(f"{where}.pixel_size_z_um", entry.pixel_size_z_um, rule, "Give both, or leave both out.")
        return None
    z = [] if entry.pixel_size_z_um is None else [entry.pixel_size_z_um]
    return [*z, entry.pixel_size_xy_um, entry.pixel_size_xy_um]
