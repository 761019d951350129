"""What the plan hands to whoever reads: batches as row numbers, and the blocks that they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Which patches make up one batch; all an executor needs."""

    number: int
    """Place in the global sequence of the epoch, over all ranks."""
    anchor: Int64[np.ndarray, " b"]
    """Patch rows."""
    positive: Int64[np.ndarray, " b"] | None
    """Patch rows; None where only the cells themselves are asked for (prediction)."""
    negative: Int64[np.ndarray, " b"] | None = None
    """Patch rows; None unless asked for."""
    group: str = ""
    """Experiment that the batch is about; empty when it is about all."""
    focal_hpi: float = float("nan")
    """Centre of the focal window in hours; NaN without temporal enrichment."""

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.anchor)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReads:
    """The blocks that a rank reads from where the epoch was (re)started, in the order of reading."""

    stream: Int64[np.ndarray, " v"]
    block: Int64[np.ndarray, " v"]
    admit: Int64[np.ndarray, " v"]
    """First batch of the stream that needs each."""
    retire: Int64[np.ndarray, " v"]
    """Last batch of the stream that needs each."""
    bytes: Int64[np.ndarray, " v"]
    first: Mapping[int, int]
    """Stream → its first batch; the streams that the rank runs."""
    num_streams: int
    """Of all ranks: batch number n of the epoch is batch n // num_streams of stream n % num_streams."""
    limit_bytes: int
    """Most bytes that this rank may hold at a time."""


@runtime_checkable
class PlannedBatches(Protocol):
    """A batch sampler that keeps a position and says which blocks its batches need."""

    @property
    def steps_before(self) -> int:
        """Batches that each rank had delivered before the epoch was restarted."""
        ...

    def __iter__(self) -> Iterator[BatchPlan]:
        """Yield this rank's batches, from where the epoch was (re)started."""
        ...

    def __len__(self) -> int:
        """Count them."""
        ...

    def deliver(self, steps: int) -> None:
        """Note that `steps` batches have reached the training loop since the (re)start."""
        ...

    def block_reads(self) -> BlockReads | None:
        """List the blocks that the batches need; None when everything is within reach."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Say where the epoch stands."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...
