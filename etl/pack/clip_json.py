"""Writes clips as JSON: who is on each patch, what may be drawn from the clip, how bright its frames are.

The text of a clip is a pure function of its shard's job. It names the cell, frame and position of every patch. A shard
may have a hundred thousand patches, so what stands in each of them is written column by column.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from dynaclr_wds.contract import STATISTICS, SUFFIXES
from dynaclr_wds.tau import candidate_span
from etl.pack.json_numbers import write_numbers
from etl.pack.shard_jobs import COLUMNS, ShardJob
from etl.pack.tar_headers import name_digits


class ClipTexts:
    """Makes the texts of a shard's clips.

    Parameters
    ----------
    job
        The shard.
    """

    def __init__(self, job: ShardJob) -> None:
        self._job = job
        experiment, most = job.experiment, int(np.diff(job.clip_first).max(initial=0))
        self._head = _inside(
            channel_names=experiment.source_channel,
            shape=experiment.shape,
            dtype=experiment.dtype,
            interval_minutes=experiment.interval_minutes,
            tau_frames=experiment.tau_frames,
        )
        self._patches = self._write_patches(most)
        widths = range(name_digits(1), name_digits(most) + 1)
        self._places = {width: [f"{place:0{width}d}" for place in range(most)] for width in widths}
        self._frames = job.frame.tolist()
        rows, place = np.unique(job.frame, return_index=True)
        t = job.columns["t"][place].tolist()
        self._timepoints = {row: f'"{t}":{job.frame_tables[row]}' for row, t in zip(rows.tolist(), t, strict=True)}
        self._codes = {name: codes.tolist() for name, codes in job.label_codes.items()}
        self._is_constant = {name: self._find_constant(codes) for name, codes in job.label_codes.items()}

    def make(self, clip: int) -> bytes:
        """Make the text of one clip, of which the number in the shard is given."""
        job = self._job
        first, stop = job.clip_first[clip : clip + 2].tolist()
        place, experiment = int(job.clip_fov[clip]), job.experiment
        fov_name = job.fovs[place].fov_name
        who = _inside(
            key=job.keys[clip], experiment=experiment.name, fov_name=fov_name, lineage_id=job.lineage_ids[clip]
        )
        labels = {
            name: job.labels[name][self._codes[name][first]] for name in job.labels if self._is_constant[name][clip]
        }
        patches = self._join_patches(clip, first, stop, f"{experiment.name}/{fov_name}")
        timepoint = ",".join([self._timepoints[row] for row in dict.fromkeys(self._frames[first:stop])])
        statistics = f'"names":{_NAMES}' + ("" if job.fov_tables is None else f',"fov":{job.fov_tables[place]}')
        return (
            f'{{{who},{self._head},"labels":{_dump(labels)},"patches":[{patches}],'
            f'"statistics":{{{statistics},"timepoint":{{{timepoint}}}}}}}'
        ).encode()

    def _find_constant(self, codes: Int[np.ndarray, " patches"]) -> list[bool]:
        """Say of which clips all patches have the same label."""
        if not codes.size:
            return []
        first = self._job.clip_first[:-1]
        same: list[bool] = (np.minimum.reduceat(codes, first) == np.maximum.reduceat(codes, first)).tolist()
        return same

    def _join_patches(self, clip: int, first: int, stop: int, fov: str) -> str:
        """Say who is on each patch of a clip, and which patches are candidates; `fov` is `experiment/fov`."""
        job = self._job
        places = self._places[name_digits(stop - first)]
        which = f'{SUFFIXES[job.codec]}","global_track_id":{_dump(f"{fov}/")[:-1]}'
        texts = self._patches[first:stop]
        varying = [name for name in job.labels if not self._is_constant[name][clip]]
        if varying:
            labels = (
                {name: job.labels[name][self._codes[name][row]] for name in varying} for row in range(first, stop)
            )
            texts = [f'{text},"labels":{_dump(of_patch)}' for text, of_patch in zip(texts, labels, strict=True)]
        return ",".join([f'{{"file":"{place}{which}{text}}}' for place, text in zip(places, texts, strict=False)])

    def _write_patches(self, most: int) -> list[str]:
        """Write what stands in each patch after `experiment/fov`; the longest clip has so many patches."""
        job = self._job
        columns = [write_numbers(job.columns[name]) for name in COLUMNS]
        pieces: list[Any] = [columns[COLUMNS.index("track_id")], '",']
        for number, (name, column) in enumerate(zip(COLUMNS, columns, strict=True)):
            pieces += [f'{"," if number else ""}"{name}":', column]
        pieces += [',"is_sample":', write_numbers(job.is_sample)]
        pieces += [',"candidates":[', pa.array(self._write_candidates(most), pa.string()), "]", ""]
        texts: list[str] = pc.binary_join_element_wise(*pieces).to_pylist()
        return texts

    def _write_candidates(self, most: int) -> list[str]:
        """Write the candidates of each sample: places in its clip, one after the other."""
        job, clip_first = self._job, self._job.clip_first
        low, high = find_candidates(job.columns["t"], clip_first, job.experiment.tau_frames)
        has_any: Bool[np.ndarray, " patches"] = job.is_sample & (high > low)
        numbers = [str(number) for number in range(most)]
        begin = np.cumsum([0, *(len(number) + 1 for number in numbers)])
        text, begins, ends = ",".join(numbers), begin[low], begin[high] - 1
        places = zip(begins.tolist(), np.where(has_any, ends, begins).tolist(), strict=True)
        return [text[first:stop] for first, stop in places]


def find_candidates(
    t: Int[np.ndarray, " patches"], clip_first: Int[np.ndarray, " clips_and_one"], tau_frames: tuple[int, int]
) -> tuple[Int[np.ndarray, " patches"], Int[np.ndarray, " patches"]]:
    """Find the candidates of each patch: places in its clip, from the first on and below the second."""
    size = np.diff(clip_first)
    apart = int(t.max(initial=0)) + 1 + sum(map(abs, tau_frames))  # so that no clip has candidates in another one
    first = np.repeat(clip_first[:-1], size)
    low, high = candidate_span(t + np.repeat(np.arange(size.size) * apart, size), tau_frames)
    return low - first, high - first


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


_NAMES = _dump(STATISTICS)


def _inside(**values: Any) -> str:
    """Write the keys and values of an object, without its braces."""
    return _dump(values)[1:-1]
