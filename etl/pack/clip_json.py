"""Writes clips as JSON: who is on each patch, what may be drawn from the clip, how bright its frames are.

The text of a clip is a pure function of its shard's job. It names the cell, frame and position of every patch. A shard
may have a hundred thousand patches, so what stands in each of them is written column by column.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Shaped

from dynaclr_wds.contract import STATISTICS, SUFFIXES
from dynaclr_wds.tau import candidate_span
from etl.pack.shard_jobs import COLUMNS, ShardJob

_NULL = "null"


class ClipTexts:
    """Makes the texts of a shard's clips.

    Parameters
    ----------
    job
        The shard.
    known
        Tables of statistics of the group that were written before; filled as new ones are needed.
    """

    def __init__(self, job: ShardJob, known: dict[tuple[str, int], str]) -> None:
        self._job, self._known = job, known
        experiment = job.experiment
        self._head = _inside(
            channel_names=experiment.source_channel,
            shape=experiment.shape,
            dtype=experiment.dtype,
            interval_minutes=experiment.interval_minutes,
            tau_frames=experiment.tau_frames,
        )
        columns = [_write_column(job.columns[name]) for name in COLUMNS]
        keys = [f'"{name}":' for name in COLUMNS]
        joined = ",".join(f"{key}%s" for key in keys)
        self._patches = [joined % values for values in zip(*columns, strict=True)]
        self._track_id = columns[COLUMNS.index("track_id")]
        self._numbers = [str(number) for number in range(int(np.diff(job.clip_first).max(initial=0)))]

    def make(self, clip: int) -> bytes:
        """Make the text of one clip, of which the number in the shard is given."""
        job = self._job
        first, stop = job.clip_first[clip : clip + 2].tolist()
        place, experiment = int(job.clip_fov[clip]), job.experiment
        fov_name = job.fovs[place].fov_name
        constant, varying = self._split_labels(first, stop)
        who = _inside(
            key=job.keys[clip], experiment=experiment.name, fov_name=fov_name, lineage_id=job.lineage_ids[clip]
        )
        patches = ",".join(self._write_patches(first, stop, f"{experiment.name}/{fov_name}", varying))
        frames = dict(zip(job.columns["t"][first:stop].tolist(), job.frame[first:stop].tolist(), strict=True))
        timepoint = ",".join(
            f'"{t}":{self._table("timepoint", row, job.frame_statistics[row])}' for t, row in frames.items()
        )
        statistics = f'"names":{_NAMES},"fov":{self._table("fov", place, job.fov_statistics[place])}'
        return (
            f'{{{who},{self._head},"labels":{_dump(constant)},"patches":[{patches}],'
            f'"statistics":{{{statistics},"timepoint":{{{timepoint}}}}}}}'
        ).encode()

    def _table(self, level: str, number: int, values: Float[np.ndarray, "channels 8"]) -> str:
        if (level, number) not in self._known:
            rows = [",".join(_write_column(channel)) for channel in values]
            self._known[level, number] = f"[{','.join(f'[{row}]' for row in rows)}]"
        return self._known[level, number]

    def _write_patches(self, first: int, stop: int, fov: str, labels: Sequence[dict[str, Any]]) -> list[str]:
        """Say who is on each patch of a clip, and which patches are candidates; `fov` is `experiment/fov`."""
        job = self._job
        low, high = candidate_span(job.columns["t"][first:stop], job.experiment.tau_frames)
        is_sample, width, prefix = job.is_sample[first:stop].tolist(), name_digits(stop - first), _dump(f"{fov}/")[:-1]
        texts, suffix = [], SUFFIXES[job.codec]
        for place, (sample, begin, end) in enumerate(zip(is_sample, low.tolist(), high.tolist(), strict=True)):
            row = first + place
            flag, candidates = ("true", ",".join(self._numbers[begin:end])) if sample else ("false", "")
            more = f',"labels":{_dump(labels[place])}' if labels[place] else ""
            texts.append(
                f'{{"file":"{place:0{width}d}{suffix}","global_track_id":{prefix}{self._track_id[row]}",'
                f'{self._patches[row]},"is_sample":{flag},"candidates":[{candidates}]{more}}}'
            )
        return texts

    def _split_labels(self, first: int, stop: int) -> tuple[dict[str, str | None], list[dict[str, str | None]]]:
        """Split the labels of a clip's patches into those that all share and, patch by patch, those that change."""
        constant: dict[str, str | None] = {}
        varying: list[dict[str, str | None]] = [{} for _ in range(first, stop)]
        for name, known in self._job.labels.items():
            codes = self._job.label_codes[name][first:stop].tolist()
            if len(set(codes)) == 1:
                constant[name] = known[codes[0]]
            else:
                for patch, code in zip(varying, codes, strict=True):
                    patch[name] = known[code]
        return constant, varying


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


_NAMES = _dump(STATISTICS)


def _inside(**values: Any) -> str:
    """Write the keys and values of an object, without its braces."""
    return _dump(values)[1:-1]


def _write_column(values: Shaped[np.ndarray, " n"]) -> list[str]:
    """Write numbers: floats as the shortest decimals that give the same float32, NaN as null."""
    if values.dtype.kind != "f":
        return list(map(str, values.tolist()))
    found = pa.array(values.astype(np.float32, copy=False), from_pandas=True)  # NaN is null
    texts = pc.cast(found, pa.string())
    whole = pc.match_substring_regex(texts, r"^-?\d+$")
    texts = pc.if_else(whole, pc.binary_join_element_wise(texts, "0", "."), texts)
    written: list[str] = pc.fill_null(texts, _NULL).to_pylist()
    return written


def name_digits(patches: int) -> int:
    """Width of the numbers in a clip's member names: sorted names are in stored order."""
    return max(3, len(str(patches - 1)))
