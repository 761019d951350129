"""Describes what the plan hands to a loader: batches as row numbers, block reads, and what may be asked of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.plan.columns import PatchRow


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Which patches make up one batch; all an executor needs."""

    number: int
    """Place in the global sequence of the epoch, over all ranks."""
    anchor: Int64[PatchRow, " b"]
    positive: Int64[PatchRow, " b"] | None
    """None where only the cells themselves are asked for (prediction)."""
    negative: Int64[PatchRow, " b"] | None = None
    """None unless asked for."""
    anchor_choice: Int64[np.ndarray, " b"] | None = None
    """Choice of channels of each, of those of its experiment; None where all channels are read."""
    positive_choice: Int64[np.ndarray, " b"] | None = None
    negative_choice: Int64[np.ndarray, " b"] | None = None
    group: str = ""
    """Group that the batch is about; empty when it is about all."""
    focal_hpi: float = float("nan")
    """Centre of the focal window in hours; NaN without temporal enrichment."""

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.anchor)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReads:
    """The blocks that a rank reads from where its epoch (re)starts, in the order of reading.

    Batch `number` of the global sequence is batch `number // num_streams` of stream `number % num_streams`.
    """

    stream: Int64[np.ndarray, " v"]
    block: Int64[np.ndarray, " v"]
    """Row of the index's blocks; one that is read twice stands here twice."""
    admit: Int64[np.ndarray, " v"]
    """First batch of the stream that needs each."""
    retire: Int64[np.ndarray, " v"]
    """Last batch of the stream that needs each."""
    bytes: Int64[np.ndarray, " v"]
    first: Mapping[int, int]
    """Stream → its first batch, for each stream that the rank runs."""
    num_streams: int
    """Logical streams of all ranks."""
    limit_bytes: int
    """Most bytes of blocks that the rank may hold at a time: its share of the window."""


@runtime_checkable
class PlannedBatches(Protocol):
    """What a loader may ask of its batch sampler."""

    steps_before: int
    """Steps of the epoch that were made before it was restarted."""

    def __iter__(self) -> Iterator[BatchPlan]:
        """Yield this rank's batches from where the epoch was (re)started to its end."""
        ...

    def __len__(self) -> int:
        """Count them."""
        ...

    def deliver(self, steps: int) -> None:
        """Note that `steps` batches have reached the training loop since the (re)start."""
        ...

    def block_reads(self) -> BlockReads | None:
        """Blocks to read for them; None when patches are read one by one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`."""
        ...
