"""What a finished unit notes for the index, beside its shards: rows of arrays whose numbers count within the group.

One npz file without pickle: arrays, and a JSON text for the rest. It is written last, so a unit whose part is there has
finished; zip's own checksums tell whether it is whole. The set keeps it, for later builds.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from dynaclr_wds.contract import FileRecord, PartitionRecord, ShardRecord, SkippedRecord
from etl.cut.intensities import Summaries
from etl.cut.statistics import Counts, Moments, Summary
from etl.run.output import writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What the index needs of one group."""

    digest: str
    """Of all that the group is made of."""
    partitions: tuple[PartitionRecord, ...]
    """What is stored of each partition."""
    shards: tuple[ShardRecord, ...]
    """Their `partition` is a row of `partitions`."""
    dropped: Mapping[str, int]
    """Reason → observations (or candidates) that were left out, as only the unit can tell."""
    lineages: int
    """Lineages that are left."""
    skipped: tuple[SkippedRecord, ...]
    """FOVs that can't be read; where there are any, nothing else is noted."""
    arrays: Mapping[str, Shaped[np.ndarray, ...]]
    """`kept` (of the observations that the unit was given) and `fov_kept`; of the observations that are left `z_start`
    and `z_focus`; statistics `timepoint` and `fov` of the FOVs that are left; and the arrays of the contract that begin
    with `patch_`, `clip_` and `block_`, but `patch_clip` and `clip_block`, which follow from others; `clip_key`. In a
    segment `timepoint` is of its own frames of all FOVs, and there is no `fov`."""
    summaries: tuple[Summaries, ...]
    """What merges into the statistics of the experiment: one of all FOVs that are left; in a segment one of each."""

    @classmethod
    def of_bad(cls, digest: str, skipped: tuple[SkippedRecord, ...]) -> Part:
        """Note of a group only which FOVs can't be read."""
        return cls(
            digest=digest,
            partitions=(),
            shards=(),
            dropped={},
            lineages=0,
            skipped=skipped,
            arrays={},
            summaries=(),
        )


def write_part(folder: Path, path: str, part: Part) -> FileRecord:
    """Write a part below a folder."""
    buffer = io.BytesIO()
    np.savez(buffer, **_to_arrays(part))  # type: ignore[arg-type] # the stub takes them for allow_pickle
    with writing(folder / path) as file:
        file.write(buffer.getbuffer())
    return FileRecord(path=path, bytes=file.bytes, xxh3=file.xxh3)


def read_part(path: Path, *, rows: bool = True) -> Part | None:
    """Read a part; None where there is none, or it is damaged.

    Parameters
    ----------
    rows
        Also read the arrays that have a row for each observation, patch, clip or block.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if rows or not name.startswith(_ROWS)}
        return _from_arrays(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


_ROWS = ("kept", "z_", "patch_", "clip_", "block_")


def _to_arrays(part: Part) -> dict[str, Shaped[np.ndarray, ...]]:
    record = {
        "digest": part.digest,
        "partitions": [dataclasses.asdict(partition) for partition in part.partitions],
        "shards": [dataclasses.asdict(shard) for shard in part.shards],
        "dropped": dict(part.dropped),
        "lineages": part.lineages,
        "skipped": [dataclasses.asdict(record) for record in part.skipped],
    }
    arrays = {"record": np.frombuffer(json.dumps(record).encode(), np.uint8), **part.arrays}
    for number, summaries in enumerate(part.summaries):
        for channel, summary in enumerate(summaries):
            arrays |= {f"{name}_{number}_{channel}": values for name, values in _list_summary(summary).items()}
    return arrays


def _list_summary(summary: Summary) -> dict[str, Shaped[np.ndarray, ...]]:
    if isinstance(summary, Counts):
        present = np.flatnonzero(summary.counts)
        size = np.array([summary.counts.size, summary.lowest])
        return {"present": present.astype(np.int32), "counts": summary.counts[present], "size": size}
    samples = np.concatenate([np.empty(0), *summary.samples])
    return {"moments": np.array(summary.moments), "samples": samples}


def _from_arrays(arrays: dict[str, Shaped[np.ndarray, ...]]) -> Part:
    record = json.loads(arrays.pop("record").tobytes())
    summaries: list[Summaries] = []
    while found := _take_summaries(arrays, len(summaries)):
        summaries.append(found)
    return Part(
        digest=record["digest"],
        partitions=tuple(PartitionRecord(**partition) for partition in record["partitions"]),
        shards=tuple(ShardRecord(**shard) for shard in record["shards"]),
        dropped=record["dropped"],
        lineages=record["lineages"],
        skipped=tuple(SkippedRecord(**skipped) for skipped in record["skipped"]),
        arrays=arrays,
        summaries=tuple(summaries),
    )


def _take_summaries(arrays: dict[str, Shaped[np.ndarray, ...]], number: int) -> Summaries:
    found: list[Summary] = []
    while any(f"{kind}_{number}_{len(found)}" in arrays for kind in ("size", "moments")):
        found.append(_take_summary(arrays, f"{number}_{len(found)}"))
    return tuple(found)


def _take_summary(arrays: dict[str, Shaped[np.ndarray, ...]], which: str) -> Summary:
    if f"moments_{which}" in arrays:
        samples = arrays.pop(f"samples_{which}")
        return Moments(moments=tuple(arrays.pop(f"moments_{which}").tolist()), samples=(samples,))
    size, lowest = arrays.pop(f"size_{which}").tolist()
    counts = np.zeros(size, np.int64)
    counts[arrays.pop(f"present_{which}")] = arrays.pop(f"counts_{which}")
    return Counts(counts=counts, lowest=lowest)
