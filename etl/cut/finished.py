"""Keeps what was found in a finished field of view beside its patches, so that a later run need not cut it again."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from dynaclr_wds.files import write_whole
from etl.cut.job import CutJob, FovCut
from etl.cut.statistics import Counts, Moments, Summary
from etl.run.output import file_size, naming_file


def write_finished(job: CutJob, cut: FovCut) -> None:
    """Say that the patches of a FOV are whole, and what was found in it."""
    table = job.spill.with_suffix(".npz")
    with naming_file(table), write_whole(table) as raw:
        np.savez(raw, **_to_arrays(job, cut))  # type: ignore[arg-type] # the stub takes them for allow_pickle


def read_finished(job: CutJob) -> FovCut | None:
    """Return what an earlier run found, if it finished this FOV and was asked the same of the same source."""
    table = job.spill.with_suffix(".npz")
    if not table.is_file() or file_size(job.spill) != job.t.size * job.patch_bytes:
        return None
    try:
        with np.load(table, allow_pickle=False) as arrays:
            return _from_arrays(job, arrays) if str(arrays["digest"]) == job.digest else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: the FOV is cut again
        return None


def _to_arrays(job: CutJob, cut: FovCut) -> dict[str, np.ndarray]:
    arrays = {"digest": np.array(job.digest), "timepoint": cut.timepoint}
    arrays |= {"blank": cut.blank, "nonfinite": cut.nonfinite, "z_focus": cut.z_focus, "z_start": cut.z_start}
    for c, summary in enumerate(cut.summaries):
        if isinstance(summary, Counts):
            arrays |= {f"counts_{c}": summary.counts, f"lowest_{c}": np.array(summary.lowest)}
        else:
            arrays |= {f"moments_{c}": summary.moments, f"sample_{c}": np.concatenate([[], *summary.samples])}
    return arrays


def _from_arrays(job: CutJob, arrays: Any) -> FovCut:
    summaries: list[Summary] = []
    for c in range(len(job.channels)):
        if f"counts_{c}" in arrays:
            summaries.append(Counts(counts=arrays[f"counts_{c}"], lowest=int(arrays[f"lowest_{c}"])))
        else:
            summaries.append(Moments(moments=arrays[f"moments_{c}"], samples=(arrays[f"sample_{c}"],)))
    return FovCut(
        timepoint=arrays["timepoint"],
        summaries=tuple(summaries),
        blank=arrays["blank"],
        nonfinite=arrays["nonfinite"],
        z_focus=arrays["z_focus"],
        z_start=arrays["z_start"],
    )
