"""Checks manifests: makes a `Manifest` from JSON, and refuses one that is damaged, of another format, or hostile.

Every value must have the type that its record says, records must refer to records that are there, and no path may leave
the folder. What a manifest holds is said in `dynaclr_wds.contract`. Opens nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dynaclr_wds.contract import (
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    OWN_LABELS,
    SUFFIXES,
    ExperimentRecord,
    Manifest,
    array_dtypes,
    array_path,
    manifest_checksum,
)
from dynaclr_wds.errors import ChecksumError, FormatError
from dynaclr_wds.npy_files import NUMBERS
from dynaclr_wds.strict_json import parse_json
from dynaclr_wds.suspicions import SUSPICIONS
from dynaclr_wds.tau import tau_range_frames


def parse_manifest(text: str | bytes, where: str = MANIFEST) -> Manifest:
    """Parse a manifest, checking all of it.

    Parameters
    ----------
    text
        Content of `manifest.json`.
    where
        Named in errors.

    Raises
    ------
    FormatError
        Not JSON, another format, another version, a key that is missing or of another type, or a path that leaves
        the folder of the manifest.
    ChecksumError
        The manifest was changed after it was written.
    """
    raw, found = _read_json(text, where)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT_NAME:
        raise FormatError(f"{where}: is not the manifest of a {FORMAT_NAME} shard set.")
    if raw.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{where}: version={raw.get('version')!r}, but this release reads version {FORMAT_VERSION}. "
            "Build the shards again."
        )
    if raw.get("xxh3") != found:
        raise ChecksumError(
            f"{where}: was changed after it was written, or is damaged: its checksum is not that of its content. "
            "Build the shards again."
        )
    del raw["xxh3"]
    manifest = _parse_record(Manifest, raw, where)
    _check_manifest(manifest, where)
    return manifest


def _read_json(text: str | bytes, where: str) -> tuple[Any, str | None]:
    """Read JSON, and the checksum of its content."""
    try:
        raw = parse_json(text)
        return raw, manifest_checksum(raw) if isinstance(raw, dict) else None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: is not JSON ({error}). Build the shards again.") from error


_Record = TypeVar("_Record")


def _parse_record(kind: type[_Record], raw: Any, where: str) -> _Record:
    """Make a record from JSON; every value must have the type that the record's field says."""
    hints = _find_hints(kind)  # type: ignore[arg-type]
    if not isinstance(raw, dict) or set(raw) != set(hints):
        found = sorted(raw) if isinstance(raw, dict) else raw
        raise FormatError(f"{where}: {kind.__name__} must have the keys {sorted(hints)}, not {found!r}.")
    return kind(**{key: _parse_value(hints[key], raw[key], f"{where}: {key}") for key in hints})


@functools.cache
def _find_hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _parse_value(hint: Any, raw: Any, where: str) -> Any:
    """Check one value against a type: records, tuples (from lists), mappings, and plain JSON types."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return raw
    if dataclasses.is_dataclass(hint):
        return _parse_record(typing.cast(type, hint), raw, where)
    if origin in (typing.Union, types.UnionType):
        return None if raw is None else _parse_value(next(a for a in args if a is not type(None)), raw, where)
    if origin is tuple and isinstance(raw, list) and (args[-1] is Ellipsis or len(raw) == len(args)):
        kinds = [args[0]] * len(raw) if args[-1] is Ellipsis else args
        return tuple(_parse_value(k, v, f"{where}[{n}]") for n, (k, v) in enumerate(zip(kinds, raw, strict=True)))
    if origin is Mapping and isinstance(raw, dict):
        return {key: _parse_value(args[1], value, f"{where}.{key}") for key, value in raw.items()}
    wanted: tuple[type, ...] = (float, int) if hint is float else (hint,) if isinstance(hint, type) else ()
    if not isinstance(raw, wanted) or isinstance(raw, bool) != (hint is bool):
        raise FormatError(f"{where}={raw!r:.100} is not of type {getattr(hint, '__name__', hint)}.")
    if isinstance(raw, int | float) and not abs(raw) < _ABOVE_ALL:  # NaN isn't below anything
        raise FormatError(f"{where}={raw!r:.100} must be a number below 2**63. Build the shards again.")
    return float(raw) if hint is float and isinstance(raw, int) else raw


_ABOVE_ALL = 1 << 63
"""Above every number of a manifest: all fit into 64 bits."""


def _check_manifest(manifest: Manifest, where: str) -> None:
    """Check what no single value shows: paths, and that records refer to records that are there."""
    if manifest.codec not in SUFFIXES:
        raise FormatError(
            f"{where}: codec={manifest.codec!r:.50}, but this release reads {' and '.join(SUFFIXES)}. "
            "Build the shards again."
        )
    check_relative_path(manifest.index, where)
    if manifest.set_version < 1:
        raise FormatError(f"{where}: set_version={manifest.set_version} must be >= 1. Build the shards again.")
    sizes = [(s.path, s.bytes) for s in manifest.shards] + [(f.path, f.bytes) for f in manifest.files]
    for path, _ in sizes:
        check_relative_path(path, where)
    _check_counts(manifest, where)
    names = {experiment.name for experiment in manifest.experiments}
    named: dict[str, Sequence[Any]] = {
        "experiments": [experiment.name for experiment in manifest.experiments],
        "facts": [record.experiment for record in manifest.facts],
        "FOVs": [(fov.experiment, fov.fov_name) for fov in manifest.fovs],
        "labels": [label.name for label in manifest.labels],
        "partitions": [tuple(sorted(partition.labels.items())) for partition in manifest.partitions],
        "files": [path for path, _ in sizes],
        **{f"values of {label.name!r}": label.values for label in manifest.labels},
    }
    for what, values in named.items():
        _check_distinct(values, what, where)
    for experiment in manifest.experiments:
        _check_experiment(experiment, where)
    _check_times(manifest, where)
    if stray := sorted({fov.experiment for fov in manifest.fovs} - names):
        raise FormatError(f"{where}: FOVs of {stray}, which are none of the experiments {sorted(names)}.")
    _check_partitions(manifest, where)
    _check_report(manifest, names, where)
    _check_skipped(manifest, where)
    missing = {manifest.index_file(array_path(name)) for name in array_dtypes(manifest)} - {
        file.path for file in manifest.files
    }
    if missing:
        raise FormatError(f"{where}: lists no {sorted(missing)[0]}. Build the shards again.")
    _check_config(manifest.config, names, where)


_COUNTS = {
    "partitions": ("observations", "with_candidate", "lineages", "clips", "patches", "shards", "bytes"),
    "shards": ("bytes", "clips", "blocks"),
    "files": ("bytes",),
    "fovs": ("frames", "height", "width"),
}


def _check_counts(manifest: Manifest, where: str) -> None:
    """Check that no count is below 0; otherwise sums of them would agree with files that they don't describe."""
    for kind, fields in _COUNTS.items():
        for number, record in enumerate(getattr(manifest, kind)):
            for name in fields:
                if getattr(record, name) < 0:
                    raise FormatError(
                        f"{where}: {kind}[{number}]: {name}={getattr(record, name)} must be >= 0. Build the set again."
                    )


def _check_config(config: Mapping[str, Any], names: set[str], where: str) -> None:
    """Check what is read of the config: slices, border, and where each experiment's plate was."""
    z_range = config.get("z_range")
    if z_range is not None and not (
        isinstance(z_range, list)
        and [type(z) for z in z_range] == [int, int]
        and 0 <= z_range[0] < z_range[1] < 1 << 31
    ):
        raise FormatError(
            f"{where}: config.z_range={z_range!r:.100} must be null or two integers, 0 <= first < second."
        )
    if not isinstance(config.get("border"), str):
        raise FormatError(f"{where}: config.border={config.get('border')!r:.100} must be a text.")
    entries = config.get("experiments")
    good = isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "data_path"))
        for entry in entries
    )
    if not good or not names <= {entry["name"] for entry in entries}:  # type: ignore[union-attr]
        raise FormatError(
            f"{where}: config.experiments must give name and data_path of each of {sorted(names)}. Build the shards "
            "again."
        )


def _check_partitions(manifest: Manifest, where: str) -> None:
    """Check that labels and partitions are there, and each shard is of a partition."""
    values = {label.name: set(label.values) for label in manifest.labels}
    if not set(OWN_LABELS) | set(manifest.shard_by) <= set(values):
        raise FormatError(f"{where}: labels {sorted(values)} must hold {sorted({*OWN_LABELS, *manifest.shard_by})}.")
    for partition in manifest.partitions:
        if set(partition.labels) != set(manifest.shard_by) or any(
            value is not None and value not in values[name] for name, value in partition.labels.items()
        ):
            raise FormatError(
                f"{where}: the partition {dict(partition.labels)} must give a value that is there to each of "
                f"{sorted(manifest.shard_by)}. Build the shards again."
            )
    if stray := [shard.path for shard in manifest.shards if not 0 <= shard.partition < len(manifest.partitions)]:
        raise FormatError(f"{where}: {stray[0]} is of a partition that is not there.")


def _check_report(manifest: Manifest, names: set[str], where: str) -> None:
    """Check facts and suspicions: known codes and experiments, no number below 0, and texts of one plain line."""
    found = [record.experiment for record in manifest.facts]
    found += [record.experiment for record in manifest.suspicious if record.experiment is not None]
    if stray := sorted(set(found) - names):
        raise FormatError(
            f"{where}: facts or suspicions of {stray}, which are none of the experiments {sorted(names)}."
        )
    for fact in manifest.facts:
        numbers = (value for value in dataclasses.astuple(fact) if not isinstance(value, str))
        if min(numbers) < 0:
            raise FormatError(f"{where}: the facts {fact} must be numbers >= 0. Build the shards again.")
    for record in manifest.suspicious:
        if record.code not in SUSPICIONS or record.count < 0 or not (record.text and record.text.isprintable()):
            raise FormatError(
                f"{where}: {record!r:.200} must have a code of {sorted(SUSPICIONS)}, a count >= 0 and a text of one "
                "printable line. Build the shards again."
            )


def _check_skipped(manifest: Manifest, where: str) -> None:
    """Check that what was left out is not there, and that reasons are one plain line."""
    there = {(fov.experiment, fov.fov_name) for fov in manifest.fovs}
    _check_distinct([(record.experiment, record.fov_name) for record in manifest.skipped], "skipped", where)
    for record in manifest.skipped:
        if (record.experiment, record.fov_name) in there:
            raise FormatError(f"{where}: {record!r:.200} is skipped, but among the FOVs. Build the shards again.")
        if not (record.reason and record.reason.isprintable()):
            raise FormatError(f"{where}: {record!r:.200} must have a reason of one printable line. Build again.")


def _check_distinct(values: Sequence[Any], what: str, where: str) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise FormatError(
                f"{where}: {what} must differ, but {value!r:.200} is there twice. Build the shards again."
            )
        seen.add(value)


def _check_times(manifest: Manifest, where: str) -> None:
    """Check that τ ranges are those of the intervals, and that there is one frame where there is no interval."""
    if not 0 <= manifest.tau_range_hours[0] <= manifest.tau_range_hours[1]:
        raise FormatError(f"{where}: tau_range_hours={manifest.tau_range_hours} must ascend from 0 or more.")
    interval = {experiment.name: experiment.interval_minutes for experiment in manifest.experiments}
    for experiment in manifest.experiments:
        try:
            expected = tau_range_frames(manifest.tau_range_hours, experiment.interval_minutes)
        except ValueError:
            expected = None  # more frames than there can be
        if experiment.tau_frames != expected:
            raise FormatError(
                f"{where}: tau_frames={experiment.tau_frames} of {experiment.name!r} are not the frames of "
                f"tau_range_hours={manifest.tau_range_hours}. Build the shards again."
            )
    for fov in manifest.fovs:
        if fov.frames > 1 and interval.get(fov.experiment) == 0:
            raise FormatError(
                f"{where}: interval_minutes=0 of {fov.experiment!r}, but {fov.fov_name!r} has {fov.frames} frames. "
                "Build the shards again."
            )


def _check_experiment(experiment: ExperimentRecord, where: str) -> None:
    if experiment.dtype not in NUMBERS or min(experiment.shape) < 1:  # numpy would parse a dtype as Python
        raise FormatError(
            f"{where}: {experiment.name!r} has patches of dtype {experiment.dtype!r:.50}, shape "
            f"{experiment.shape}; allowed are little-endian numbers and lengths above 0."
        )
    if math.prod(experiment.shape) >= _MOST_PIXELS:
        raise FormatError(
            f"{where}: {experiment.name!r} has patches of shape {experiment.shape}; a tar member holds less than 8 GiB."
        )
    per_channel = (experiment.source_channel, experiment.markers, experiment.z_reduction)
    if any(len(names) != experiment.shape[0] for names in per_channel):
        raise FormatError(f"{where}: {experiment.name!r} names other channels than its patches have.")
    if not all(size is None or size > 0 for size in experiment.pixel_size_um):
        raise FormatError(f"{where}: pixel_size_um={experiment.pixel_size_um!r} of {experiment.name!r} must be > 0.")
    if not all(scale > 0 for scale in experiment.scale):
        raise FormatError(f"{where}: scale={experiment.scale!r} of {experiment.name!r} must be > 0.")
    if experiment.interval_minutes < 0:
        raise FormatError(f"{where}: interval_minutes={experiment.interval_minutes!r} of {experiment.name!r}.")


_MOST_PIXELS = 1 << 33


def check_relative_path(path: str, where: str) -> None:
    """Check that a path of a manifest stays in the manifest's folder.

    Raises
    ------
    FormatError
        It is absolute, climbs out, or is no plain path.
    """
    parts = path.split("/")
    plain = path.isascii() and path.isprintable() and len(path) < 1024 and max(map(len, parts)) < 256
    if not plain or "\\" in path or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise FormatError(
            f"{where}: the path {path!r:.300} leaves the folder or is no plain path. Do not trust this set."
        )
