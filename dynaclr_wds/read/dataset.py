"""Plan to batch: copies the patches that a plan names into one buffer, and says who they are."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch.utils.data import Dataset

from dynaclr_wds.errors import FormatError, StorageError
from dynaclr_wds.plan.batch import BatchPlan, BlockReads
from dynaclr_wds.plan.channels import ChannelChoices
from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.read.buffers import BufferPool
from dynaclr_wds.read.crop import Crop
from dynaclr_wds.read.metadata import RowDicts
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.patches import PatchRead, PatchReader, is_unreadable, level_statistics
from dynaclr_wds.read.prefetch import BlockWindow
from dynaclr_wds.read.substitution import Substitution
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import BlockStore, RemoteStore
from dynaclr_wds.track_names import keep_tracks
from dynaclr_wds.words import count_of

Rows: TypeAlias = Int64[np.ndarray, " b"]
"""A number for each sample of a batch."""


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
    verify_reads
        Check what is read for the first time against its checksum: blocks in streaming, else the channels of patches.
        What comes over a network is always checked.
    meta_names
        More names for what `anchor_meta`, … hold: name → label or key.
    store
        Where the bytes are, decoded if the set has a codec (see `DecodingStore`); None = where the set is.
    channel_flags
        What is true of which stored channel of each experiment (E, C); comes with every batch, for its samples.
    choices
        Which channels samples may hold; None = all.

    Notes
    -----
    A batch is a dict: `anchor`, `positive` (and `negative`): (B, C, Z, Y, X) tensors in the stored dtype (float32 if
    the experiments of a batch differ); `anchor_meta`, …: one dict per sample, made when looked at; `anchor_norm_meta`,
    …: level → float32 (B, C, 8), the last axis as `contract.STATISTICS`; with `channel_flags`, `anchor_channel_meta`,
    …: name → bool (B, C). For prediction: `anchor`, `anchor_norm_meta`, `index`.
    """

    def __init__(
        self,
        shards: ShardSet,
        crop: Crop,
        *,
        table: BatchPlan | None = None,
        pinned: bool = False,
        streaming: bool = False,
        verify_reads: bool = False,
        meta_names: Mapping[str, str] | None = None,
        store: BlockStore | None = None,
        channel_flags: Mapping[str, Bool[np.ndarray, "e c"]] | None = None,
        choices: ChannelChoices | None = None,
    ) -> None:
        self.shards = shards
        self.channel_flags = dict(channel_flags or {})
        self.meta_names = dict(meta_names or {})
        self.table = table
        self.pinned = pinned
        self.streaming = streaming
        store = open_store(shards, ask=not streaming) if store is None else store
        self.choices = choices
        verify_reads = verify_reads or isinstance(store, RemoteStore)
        self._reader = PatchReader(shards, crop, store, verify=verify_reads, choices=choices)
        self.window: BlockWindow | None = None
        self.held_peak_bytes = 0
        """Most bytes of blocks that were held at a time, in the epoch at hand or the last one; streaming only."""
        self.substitution: Substitution | None = None
        """Who takes the place of samples that can't be read; None = that is an error."""
        self._buffers = BufferPool(pinned=pinned)
        self._gaps = 0

    def __len__(self) -> int:
        """Count the samples of the table, and the gaps that keep batches apart (see `share`)."""
        if self.table is None:
            raise TypeError("This dataset is read by plan, not by number; iterate over its batch sampler.")
        return len(self.table)

    def __repr__(self) -> str:
        what = "streaming" if self.streaming else "by plan"
        if self.table is not None:
            what = f"{count_of(len(self.table) - self._gaps, 'sample')} in sequence"
        return f"MultiExperimentTripletDataset({what}, verify_reads={self._reader.verify}, {self.shards!r})"

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, plan: BatchPlan | Sequence[int]) -> dict[str, Any]:
        """Read one batch: a plan, or numbers of the table's samples."""
        if not isinstance(plan, BatchPlan):
            plan = self._select(plan)
        if plan.positive is None:
            batch = self._read({"anchor": (plan.anchor, plan.anchor_choice)})
            batch["index"] = batch.pop("anchor_meta").without_names()
            return batch
        window = self.window
        if window is not None:
            window.wait(plan)
        batch = self._read_planned(plan)
        if "positive" not in batch:
            own = {key: value for key, value in batch.items() if key.startswith("anchor")}
            batch |= {key.replace("anchor", "positive"): value for key, value in own.items()}
        if window is not None:
            window.finish(plan)
            self.held_peak_bytes = window.peak_bytes
        return batch

    def _read_planned(self, plan: BatchPlan) -> dict[str, Any]:
        """Read a batch, with stand-ins in the place of samples that can't be read where that is asked for."""
        if self.substitution is None:
            return self._read(_list_parts(plan))
        plan = self.substitution.settle(plan, self._reader, probe=False)
        try:
            return self._read(_list_parts(plan))
        except (FormatError, StorageError) as error:
            if not is_unreadable(error, remote=self._reader.remote):
                raise
        return self._read(_list_parts(self.substitution.settle(plan, self._reader, probe=True)))

    def open_window(self, reads: BlockReads) -> None:
        """Begin to read the blocks that an epoch needs, in the order that the plan says."""
        self.held_peak_bytes = 0
        note = None
        if self.substitution is not None:
            self.substitution.begin()
            note = self.substitution.note_block
        self.window = BlockWindow(reads, self._reader, note)

    def let_go(self, threads: Collection[threading.Thread]) -> None:
        """Have threads that read for a loader which was closed end soon, whatever the server does."""
        self.close_window()
        self._reader.give_up(threads)

    def close_window(self) -> None:
        """Stop reading blocks; batches that wait for one go on without."""
        if self.window is not None:
            self.window.close()
            self.held_peak_bytes = self.window.peak_bytes
            self.window = None

    def share(self, rank: int, size: int, batch_size: int) -> MultiExperimentTripletDataset:
        """Return the part of the table that one of `size` ranks reads: its batches `rank`, `rank + size`, … .

        A batch is a run of `batch_size` samples of the table, as a sequential loader takes them. Where patches differ
        in shape between experiments, a run is split by shape, and gaps fill up the parts to `batch_size` numbers; such
        batches are smaller.
        """
        if self.table is None:
            return self
        _, kind = np.unique(self._reader.shape_of(self.table.anchor), axis=0, return_inverse=True)
        places = keep_apart(kind.reshape(-1).astype(np.int64), batch_size)
        numbers = np.arange(len(places))
        own = places[numbers // batch_size % size == rank]
        other = copy.copy(self)
        other.table = _take(self.table, own)
        other._gaps = int((own < 0).sum())
        return other

    def warm(self, index: PlanIndex, most_bytes: int) -> int:
        """Read the blocks that hold these anchors, front to back, as far as `most_bytes` go; return the bytes read."""
        total = 0
        size = self.shards.arrays["block_end"] - self.shards.arrays["block_begin"]
        for block in np.unique(index.block(cast(SampleIndex, np.arange(len(index.row))))).tolist():
            if total + int(size[block]) > most_bytes:
                break
            self._reader.load(block)
            total += int(size[block])
        return total

    def _select(self, numbers: Sequence[int]) -> BatchPlan:
        if self.table is None:
            raise TypeError(
                f"There is no table of samples to take numbers {list(numbers)[:4]}… from; pass a BatchPlan."
            )
        chosen = _take(self.table, np.asarray(numbers, np.int64))
        return _take(chosen, np.flatnonzero(chosen.anchor >= 0))

    def _read(self, parts: Mapping[str, tuple[Rows, Rows | None]]) -> dict[str, Any]:
        """Read anchors, positives and negatives: name → patch rows and choices of channels."""
        reads, batch = [], {}
        for name, (rows, choice) in parts.items():
            shape, dtype = self._reader.layout(rows)
            array, batch[name] = self._buffers.take((len(rows), *shape), dtype)
            reads.append(PatchRead(rows, array, choice))
        self._reader.read_together(reads)
        for name, (rows, choice) in parts.items():
            batch |= self._describe(name, rows, choice, channels=batch[name].shape[1])
        return batch

    def _describe(self, name: str, rows: Rows, choice: Rows | None, *, channels: int) -> dict[str, Any]:
        """Say who the patches of a part are, and how bright."""
        observations = self.shards.arrays["patch_obs"][rows].astype(np.int64)
        chosen = None
        experiment = self.shards.fov_experiment[self.shards.arrays["obs_fov"][observations]]
        if self.choices is not None:
            chosen = self.choices.table[experiment, choice]
        statistics = level_statistics(self.shards, observations, chosen)
        part: dict[str, Any] = {
            f"{name}_meta": RowDicts(self.shards, observations, self.meta_names, self.choices, choice),
            f"{name}_norm_meta": {level: torch.from_numpy(values) for level, values in statistics.items()},
        }
        if self.channel_flags:
            columns = np.arange(channels) if chosen is None else chosen
            flags = {flag: table[experiment[:, None], columns] for flag, table in self.channel_flags.items()}
            part[f"{name}_channel_meta"] = {flag: torch.from_numpy(values) for flag, values in flags.items()}
        return part


def _list_parts(plan: BatchPlan) -> dict[str, tuple[Rows, Rows | None]]:
    """List what is read of a batch: name → patch rows and choices of channels."""
    parts: dict[str, tuple[Rows, Rows | None]] = {"anchor": (plan.anchor, plan.anchor_choice)}
    if plan.positive is not None and not _is_itself(plan):  # else read once, shown twice
        parts["positive"] = (plan.positive, plan.positive_choice)
    if plan.negative is not None:
        parts["negative"] = (plan.negative, plan.negative_choice)
    return parts


def _is_itself(plan: BatchPlan) -> bool:
    """Whether the positives of a batch are its anchors, with the same channels."""
    if plan.positive is None or not np.array_equal(plan.anchor, plan.positive):
        return False
    choices = plan.anchor_choice, plan.positive_choice
    return choices[0] is None or choices[1] is None or np.array_equal(choices[0], choices[1])


def keep_apart(kind: Int64[np.ndarray, " n"], batch_size: int) -> Int64[np.ndarray, " m"]:
    """Order samples so that no run of `batch_size` mixes kinds; −1 stands for a gap.

    Every run of `batch_size` samples is split by kind, in the order in which the kinds first occur; each part is filled
    up with gaps. Samples of a run that holds one kind stay as they are, and so does the end of the table.
    """
    parts: list[Int64[np.ndarray, " p"]] = []
    for begin in range(0, len(kind), batch_size):
        run = kind[begin : begin + batch_size]
        found, first = np.unique(run, return_index=True)
        for value in found[np.argsort(first)].tolist():
            own = begin + np.flatnonzero(run == value)
            parts.append(np.concatenate([own, np.full(batch_size - len(own), -1)]))
    if not parts:
        return np.zeros(0, np.int64)
    places = np.concatenate(parts)
    return places[: int(np.flatnonzero(places >= 0)[-1]) + 1].astype(np.int64)


def _take(table: BatchPlan, numbers: Int64[np.ndarray, " n"]) -> BatchPlan:
    """Take samples of a table; −1 for a gap, which becomes row −1."""

    def column(values: Int64[np.ndarray, " t"] | None) -> Any:
        if values is None or not len(values):
            return values
        return np.where(numbers < 0, -1, values[numbers])

    return BatchPlan(
        number=0,
        anchor=column(table.anchor),
        positive=column(table.positive),
        negative=column(table.negative),
        anchor_choice=column(table.anchor_choice),
        positive_choice=column(table.positive_choice),
        negative_choice=column(table.negative_choice),
    )


def list_observations(
    shards: ShardSet,
    keep_fov: Bool[np.ndarray, " f"],
    limit: int | None = None,
    choices: ChannelChoices | None = None,
    tracks: Sequence[str] | None = None,
) -> BatchPlan:
    """List every observation of some FOVs once (the first `limit` of them), in the order of the index.

    Where channels are chosen, it stands there once for each choice. Where tracks are named, only theirs are listed.
    """
    keep = keep_fov[shards.arrays["obs_fov"]]
    if tracks is not None:
        of = (shards.arrays[name].astype(np.int64) for name in ("obs_fov", "obs_track_id"))
        keep = keep & keep_tracks(tracks, shards.manifest.fovs, *of)
    wanted = np.flatnonzero(keep)[:limit]
    choice = None
    if choices is not None:
        count = choices.count[shards.fov_experiment[shards.arrays["obs_fov"][wanted]]]
        choice = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        wanted = np.repeat(wanted, count)
    rows = cast(PatchRow, shards.arrays["obs_patch"][wanted].astype(np.int64))
    return BatchPlan(number=0, anchor=rows, positive=None, anchor_choice=choice)
