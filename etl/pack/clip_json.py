"""Writes clips as JSON: who is on each patch, what may be drawn from the clip, how bright its frames are.

The text of a clip is a pure function of its shard's job. It names the cell, frame and position of every patch.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jaxtyping import Float

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.tau import candidate_span
from etl.pack.shard_jobs import COLUMNS, ShardJob

Table = list[list[float | None]]


def make_clip_json(job: ShardJob, clip: int, known: dict[tuple[str, int], Table]) -> bytes:
    """Make the text of one clip.

    Parameters
    ----------
    clip
        Its number in the shard.
    known
        Tables of statistics that were made before; filled as new ones are needed.
    """
    first, stop = job.clip_first[clip : clip + 2].tolist()
    place, experiment = int(job.clip_fov[clip]), job.experiment
    fov_name = job.fovs[place].fov_name
    constant, varying = _split_labels(job, first, stop)
    frames = dict(zip(job.columns["t"][first:stop].tolist(), job.frame[first:stop].tolist(), strict=True))

    def table(level: str, number: int, values: Float[np.ndarray, "channels 8"]) -> Table:
        if (level, number) not in known:
            known[level, number] = [[_number(v) for v in channel] for channel in values]
        return known[level, number]

    record = {
        "key": job.keys[clip],
        "experiment": experiment.name,
        "fov_name": fov_name,
        "lineage_id": job.lineage_ids[clip],
        "channel_names": experiment.source_channel,
        "shape": experiment.shape,
        "dtype": experiment.dtype,
        "interval_minutes": experiment.interval_minutes,
        "tau_frames": experiment.tau_frames,
        "labels": constant,
        "patches": _patches_json(job, first, stop, f"{experiment.name}/{fov_name}", varying),
        "statistics": {
            "names": STATISTICS,
            "fov": table("fov", place, job.fov_statistics[place]),
            "timepoint": {str(t): table("timepoint", row, job.frame_statistics[row]) for t, row in frames.items()},
        },
    }
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def _patches_json(job: ShardJob, first: int, stop: int, fov: str, labels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say who is on each patch of a clip, and which patches are a sample's candidates; `fov` is `experiment/fov`."""
    t = job.columns["t"][first:stop]
    is_sample = job.is_sample[first:stop].tolist()
    low, high = (places.tolist() for places in candidate_span(t, job.experiment.tau_frames))
    rows = [job.columns[name][first:stop] for name in COLUMNS]
    columns = [[_number(v) if v.dtype.kind == "f" else int(v) for v in values] for values in rows]
    width = name_digits(stop - first)
    return [
        {
            "file": f"{place:0{width}d}.npy",
            "global_track_id": f"{fov}/{values[0]}",
            **dict(zip(COLUMNS, values, strict=True)),
            "is_sample": is_sample[place],
            "candidates": list(range(low[place], high[place])) if is_sample[place] else [],
            **({"labels": labels[place]} if labels[place] else {}),
        }
        for place, values in enumerate(zip(*columns, strict=True))
    ]


def _split_labels(job: ShardJob, first: int, stop: int) -> tuple[dict[str, str | None], list[dict[str, str | None]]]:
    """Split the labels of a clip's patches into those that all share and, patch by patch, those that change."""
    constant: dict[str, str | None] = {}
    varying: list[dict[str, str | None]] = [{} for _ in range(first, stop)]
    for name, known in job.labels.items():
        codes = job.label_codes[name][first:stop].tolist()
        if len(set(codes)) == 1:
            constant[name] = known[codes[0]]
        else:
            for patch, code in zip(varying, codes, strict=True):
                patch[name] = known[code]
    return constant, varying


def _number(value: np.floating[Any]) -> float | None:
    """Shortest decimal that gives the same float32; null for NaN."""
    return None if np.isnan(value) else float(str(np.float32(value)))


def name_digits(patches: int) -> int:
    """Width of the numbers in a clip's member names: sorted names are in stored order."""
    return max(3, len(str(patches - 1)))
