"""Block schedules to an account of bytes: adds up what streaming will read, waste and hold, before a byte is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.streaming.planner import BlockSchedule


def account_bytes(index: PlanIndex, schedules: Sequence[BlockSchedule], batches: int) -> dict[str, float]:
    """Add up an epoch of all streams, which run in step.

    Parameters
    ----------
    schedules
        Block schedule of each stream.
    batches
        Number of batches of each stream.

    Returns
    -------
    `bytes_stored` (blocks that hold anchors of the index, once each), `bytes_read`, `amplification` (read over
    stored), `bytes_repeated` (read again), `planned_peak_bytes` (most that the plan has fetched and not yet retired),
    `fill_bytes` (read before the first batch), `burst` (most bytes of one step over the mean), `groups` (most that one
    stream has within reach at a time).
    """
    stored = index.stored_bytes
    block = np.concatenate([s.block for s in schedules])
    fetch = np.concatenate([s.fetch for s in schedules])
    size = np.concatenate([s.bytes for s in schedules]).astype(np.float64)
    read = size.sum()
    steps = np.bincount(fetch[fetch >= 0], size[fetch >= 0], minlength=1)
    return {
        "bytes_stored": float(stored),
        "bytes_read": float(read),
        "amplification": float(read / max(stored, 1)),
        "bytes_repeated": float(read - index.columns.block_bytes[np.unique(block)].sum()),
        "planned_peak_bytes": float(_most_resident(schedules, batches)),
        "fill_bytes": float(size[fetch < 0].sum()),
        "burst": float(steps.max() * batches / max(read, 1)),
        "groups": float(max(_most_groups(index, s, batches) for s in schedules)),
    }


def _most_resident(schedules: Sequence[BlockSchedule], batches: int) -> int:
    change = np.zeros(batches + 2, np.int64)
    for s in schedules:
        np.add.at(change, s.fetch + 1, s.bytes)
        np.add.at(change, s.retire + 2, -s.bytes)
    return int(np.cumsum(change).max(initial=0))


def _most_groups(index: PlanIndex, schedule: BlockSchedule, batches: int) -> int:
    """Count the groups of which at least one block is within reach, at the batch where they are most."""
    group: Int64[np.ndarray, " v"] = index.group_of[index.block_stratum[schedule.block]]
    change = np.zeros((batches + 1, len(index.group_names)), np.int64)
    np.add.at(change, (schedule.admit, group), 1)
    np.add.at(change, (schedule.retire + 1, group), -1)
    return int((np.cumsum(change, axis=0) > 0).sum(1).max(initial=0))
