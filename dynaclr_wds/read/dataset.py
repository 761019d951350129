"""Plan to batch: copies the patches that a plan names into one buffer, and says who they are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.read.buffers import BufferPool
from dynaclr_wds.read.metadata import RowDicts
from dynaclr_wds.read.patches import Crop, PatchReader, level_statistics
from dynaclr_wds.read.prefetch import BlockWindow
from dynaclr_wds.shardset import ShardSet


class MultiExperimentTripletDataset(Dataset[dict[str, Any]]):
    """Executes batch plans; decides nothing.

    Parameters
    ----------
    shards
        The set to read from.
    crop
        What is wanted of each stored patch.
    table
        Samples for sequential reading by number: validation (anchor and positive) or prediction (anchor only).
    pinned
        Put batches into page-locked memory.
    streaming
        Blocks are fetched before they are read; see `BlockWindow`.

    Notes
    -----
    A batch is a dict: `anchor`, `positive` (and `negative`): (B, C, Z, Y, X) tensors in the stored dtype (float32 if
    experiments differ); `anchor_meta`, …: one dict per sample, made when looked at; `anchor_norm_meta`, …: level →
    float32 (B, C, 8), the last axis as `contract.STATISTICS`. For prediction: `anchor`, `anchor_norm_meta`, `index`.
    """

    def __init__(
        self,
        shards: ShardSet,
        crop: Crop,
        *,
        table: BatchPlan | None = None,
        pinned: bool = False,
        streaming: bool = False,
    ) -> None:
        self.shards = shards
        self.table = table
        self.pinned = pinned
        self._reader = PatchReader(shards, crop, ahead=streaming)
        self.window: BlockWindow | None = None
        self._buffers = BufferPool(pinned=pinned)

    def __len__(self) -> int:
        """Count the samples of the table."""
        if self.table is None:
            raise TypeError("This dataset is read by plan, not by number; iterate over its batch sampler.")
        return len(self.table)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, plan: BatchPlan | Sequence[int]) -> dict[str, Any]:
        """Read one batch: a plan, or numbers of the table's samples."""
        if not isinstance(plan, BatchPlan):
            plan = self._select(plan)
        if plan.positive is None:
            batch = self._read("anchor", plan.anchor)
            batch["index"] = batch.pop("anchor_meta")
            return batch
        window = self.window
        if window is not None:
            window.wait(plan)
        batch = self._read("anchor", plan.anchor) | self._read("positive", plan.positive)
        if plan.negative is not None:
            batch |= self._read("negative", plan.negative)
        if window is not None:
            window.finish(plan)
        return batch

    def open_window(self, sampler: FlexibleBatchSampler) -> None:
        """Begin to read the blocks that an epoch needs, from where the sampler stands; nothing in exact mode."""
        if sampler.window is not None:
            self.window = BlockWindow(sampler, self._reader, sampler.window // sampler.world_size)

    def close_window(self) -> None:
        """Stop reading blocks; batches that wait for one go on without."""
        if self.window is not None:
            self.window.close()
            self.window = None

    def share(self, rank: int, size: int) -> MultiExperimentTripletDataset:
        """Return the part of the table that one of `size` ranks reads: its samples `rank`, `rank + size`, … ."""
        if size == 1 or self.table is None:
            return self
        other = copy.copy(self)
        other.table = self._select(range(rank, len(self.table), size))
        return other

    def warm(self, index: PlanIndex, most_bytes: int) -> int:
        """Read the shards that hold these anchors, front to back, until `most_bytes` are read; say how many were."""
        wanted = np.unique(self.shards.arrays["block_shard"][np.unique(index.block(np.arange(len(index.row))))])
        total = 0
        for shard in wanted.tolist():
            with (self.shards.root / self.shards.manifest.shards[shard].path).open("rb", buffering=0) as file:
                while total < most_bytes and (part := len(file.read(min(1 << 24, most_bytes - total)))):
                    total += part
        return total

    def _select(self, numbers: Sequence[int]) -> BatchPlan:
        if self.table is None:
            raise TypeError(
                f"There is no table of samples to take numbers {list(numbers)[:4]}… from; pass a BatchPlan."
            )
        at = np.asarray(numbers, np.int64)
        positive = None if self.table.positive is None else self.table.positive[at]
        negative = None if self.table.negative is None else self.table.negative[at]
        return BatchPlan(number=0, anchor=self.table.anchor[at], positive=positive, negative=negative)

    def _read(self, name: str, rows: Int64[np.ndarray, " b"]) -> dict[str, Any]:
        shape, dtype = self._reader.layout(rows)
        array, tensor = self._buffers.take((len(rows), *shape), dtype)
        self._reader.read(rows, array)
        observations = self.shards.arrays["patch_obs"][rows].astype(np.int64)
        statistics = level_statistics(self.shards, observations)
        return {
            name: tensor,
            f"{name}_meta": RowDicts(self.shards, observations),
            f"{name}_norm_meta": {level: torch.from_numpy(values) for level, values in statistics.items()},
        }


def list_observations(shards: ShardSet, experiments: Sequence[str], keep_fov: Any = None) -> BatchPlan:
    """List every observation of some experiments once, in the order of the index, for prediction."""
    names = [f.experiment in set(experiments) for f in shards.manifest.fovs]
    keep = np.array(names) if keep_fov is None else np.array(names) & keep_fov
    wanted = np.flatnonzero(keep[shards.arrays["obs_fov"]])
    return BatchPlan(number=0, anchor=shards.arrays["obs_patch"][wanted].astype(np.int64), positive=None)
