"""Block schedules to an account of bytes: what streaming reads, wastes and holds, before a byte is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.streaming.planner import BlockSchedule


def account_traffic(index: PlanIndex, schedules: Sequence[BlockSchedule], batches: int) -> dict[str, float]:
    """Add up an epoch of all streams, which run in step.

    Parameters
    ----------
    schedules
        Of each stream.
    batches
        Of each stream.

    Returns
    -------
    `bytes_stored` (blocks that hold anchors of the index, once each), `bytes_read`, `amplification` (read over
    stored), `bytes_repeated` (read again), `peak_bytes` (most that is fetched and not yet retired),
    `fill_bytes` (read before the first batch), `burst` (most bytes of one step over the mean), `experiments` (most that
    one stream has within reach at a time).
    """
    columns = index.columns
    block = np.concatenate([s.block for s in schedules])
    fetch = np.concatenate([s.fetch for s in schedules])
    size = np.concatenate([s.bytes for s in schedules]).astype(np.float64)
    read = size.sum()
    steps = np.bincount(fetch[fetch >= 0], size[fetch >= 0], minlength=1)
    return {
        "bytes_stored": float(index.stored_bytes),
        "bytes_read": float(read),
        "amplification": float(read / max(index.stored_bytes, 1)),
        "bytes_repeated": float(read - columns.block_bytes[np.unique(block)].sum()),
        "peak_bytes": float(_most_resident(schedules, batches)),
        "fill_bytes": float(size[fetch < 0].sum()),
        "burst": float(steps.max() * batches / max(read, 1)),
        "experiments": float(max(_most_experiments(index, s, batches) for s in schedules)),
    }


def _most_resident(schedules: Sequence[BlockSchedule], batches: int) -> int:
    change = np.zeros(batches + 2, np.int64)
    for s in schedules:
        np.add.at(change, s.fetch + 1, s.bytes)
        np.add.at(change, s.retire + 2, -s.bytes)
    return int(np.cumsum(change).max(initial=0))


def _most_experiments(index: PlanIndex, schedule: BlockSchedule, batches: int) -> int:
    """Count the experiments of which at least one block is within reach, at the batch where they are most."""
    names = [s.experiment for s in index.strata]
    numbers = np.array([names.index(n) for n in names])
    # of each block, by its first anchor: blocks of the set are numbered with strata that the index may leave out
    experiment: Int64[np.ndarray, " v"] = numbers[index.stratum(index.first_of(schedule.block))]
    change = np.zeros((batches + 1, len(names)), np.int64)
    np.add.at(change, (schedule.admit, experiment), 1)
    np.add.at(change, (schedule.retire + 1, experiment), -1)
    return int((np.cumsum(change, axis=0) > 0).sum(1).max(initial=0))
