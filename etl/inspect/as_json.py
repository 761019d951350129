"""An inspection as JSON: the same keys before and after a build."""

from __future__ import annotations

import dataclasses
from typing import Any

from etl.inspect.collection import name_stratum
from etl.inspect.looking import Frames, Inspection
from etl.inspect.pixels import ChannelFacts
from etl.inspect.tally import Count, ExperimentCount, quantile_of

VERSION = 2
"""Rises when a key goes or changes its meaning."""


def to_json(found: Inspection) -> dict[str, Any]:
    """Return all counts as what JSON has; docs/INSPECT.md says what each key means."""
    collection, tally = found.collection, found.tally
    sizes = found.sizes
    return {
        "version": VERSION,
        "what": collection.what,
        "kind": "shards" if collection.is_built else "plates",
        "cells": sum(count.cells for count in tally.experiments),
        "fovs": len(collection.fovs),
        "bytes": sizes.total,
        "bytes_are_estimated": sizes.is_estimate,
        "bytes_between": [sizes.total - sizes.spread, sizes.total + sizes.spread] if sizes.compressed else None,
        "index_bytes": sizes.index_bytes,
        "seconds": None if collection.is_built or not found.seconds else round(found.seconds, 3),
        "workers": found.workers,
        "tau_range_hours": list(collection.tau_range_hours),
        "experiments": [_list_experiment(found, number) for number in range(len(collection.experiments))],
        "strata": [
            {"name": name_stratum(labels), "labels": dict(labels), **_list_count(count)}
            for labels, count in zip(collection.strata, tally.strata, strict=True)
        ],
        "labels": {
            label.name: [
                {"value": value, **_list_count(count)}
                for value, count in zip((*label.values, None), tally.labels[label.name], strict=True)
                if count.cells
            ]
            for label in collection.labels
        },
        "skipped": [dataclasses.asdict(one) for one in collection.skipped],
        "hpi": {"edges": list(tally.hours), "cells": tally.hpi.tolist()},
        "warnings": [
            {"level": one.level, "code": one.code, "experiment": one.experiment, "text": one.text}
            for one in found.findings
        ],
    }


def _list_experiment(found: Inspection, number: int) -> dict[str, Any]:
    record, count = found.collection.experiments[number], found.tally.experiments[number]
    return {
        "name": record.name,
        "channels": list(record.source_channel),
        "patch": list(record.shape),
        "dtype": record.dtype,
        "interval_minutes": record.interval_minutes,
        "start_hpi": record.start_hpi,
        "tau_frames": list(record.tau_frames),
        **_list_count(count),
        "divisions": count.divisions,
        "tracks_with_gaps": count.tracks_with_gaps,
        "cells_per_track": summarise_lengths(count),
        "tau": [
            {"frames": frames, "hours": round(frames * record.interval_minutes / 60, 6), "cells": cells}
            for frames, cells in count.tau.items()
        ],
        "dropped": dict(found.collection.dropped.get(record.name, {})),
        "bytes": found.sizes.bytes[number],
        "pixels": _list_pixels(found.frames[number], is_sample=not found.collection.is_built),
    }


def _list_count(count: Count) -> dict[str, int]:
    return {name: getattr(count, name) for name in Count.__slots__}


def summarise_lengths(count: ExperimentCount) -> dict[str, float | int]:
    """Return quantiles and mean of the cells of a track."""
    tracks = sum(count.lengths.values())
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    found: dict[str, float | int] = {name: quantile_of(count.lengths, share) for name, share in shares.items()}
    return found | {"mean": round(count.cells / tracks, 3) if tracks else 0.0}


def _list_pixels(frames: Frames, *, is_sample: bool) -> dict[str, Any]:
    return {
        "is_sample": is_sample,
        "frames": frames.all,
        "frames_looked_at": frames.seen,
        "read_mb_per_second": round(frames.rate / 1e6, 3) if frames.rate else None,
        "channels": [_list_channel(channel) for channel in frames.channels],
    }


def _list_channel(channel: ChannelFacts) -> dict[str, Any]:
    return {
        "name": channel.name,
        "frames_blank": channel.blank,
        "frames_constant": channel.constant,
        "frames_not_finite": channel.nonfinite,
        "pixels_not_finite": channel.nonfinite_pixels,
        "places": list(channel.places),
        **channel.statistics,
    }
