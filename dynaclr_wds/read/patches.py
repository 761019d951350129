"""Patch rows to pixels: finds each patch in the shards, and copies what is wanted of it into a batch."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from dynaclr_wds import contract
from dynaclr_wds.errors import ChecksumError, FormatError, StorageError
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.channels import ChannelChoices
from dynaclr_wds.read.channel_ranges import locate_channels, name_member
from dynaclr_wds.read.crop import Crop, Shape
from dynaclr_wds.read.files import OutsideError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.store import BlockStore, RemoteStore, RowFailure

_AHEAD = 8
_CAST_BYTES = 1 << 19  # bytes of patches that are cast at a time: they stay in the processor's cache


class PatchRead(NamedTuple):
    """Patches that are read together."""

    rows: Int64[np.ndarray, " b"]
    """Patch rows."""
    out: Shaped[np.ndarray, "b c z y x"]
    """Where to, C-contiguous; cast on the way if it has another dtype."""
    choice: Int64[np.ndarray, " b"] | None
    """Choice of channels of each patch; None where all are read."""


class Unreadable(NamedTuple):
    """A patch that can't be read, and why."""

    row: int
    error: Exception


class PatchReader:
    """Copies patches out of the shards of a set.

    Parameters
    ----------
    shards
        The set.
    crop
        What is wanted of each patch.
    store
        Where the bytes are.
    verify
        Check what is read for the first time: the blocks that a window fetches, as it does; of patches that lie in
        none of these, the channels. What comes over a network is always checked, whenever it comes.
    choices
        Which channels a sample may hold; None = all are read.
    """

    def __init__(
        self,
        shards: ShardSet,
        crop: Crop,
        store: BlockStore,
        *,
        verify: bool = False,
        choices: ChannelChoices | None = None,
    ) -> None:
        self.verify = verify
        self._remote = store if isinstance(store, RemoteStore) else None
        self.ahead = self._remote.ahead if self._remote is not None else _AHEAD if verify else 0
        """Blocks that may be on their way while an earlier one is checked."""
        self._shards = shards
        self._store = store
        self._experiments = shards.manifest.experiments
        self._dtypes = [np.dtype(e.dtype) for e in self._experiments]
        self._choices = choices
        # where channels are chosen, each is read as a patch of one channel
        read = [e.shape if choices is None else (1, *e.shape[1:]) for e in self._experiments]
        self._shapes = [crop.shape(shape) for shape in read]
        self._runs = [crop.runs(shape, e.dtype) for shape, e in zip(read, self._experiments, strict=True)]
        self._channel_bytes = np.array([e.patch_bytes // e.shape[0] for e in self._experiments], np.int64)
        self._whole_bytes = [
            math.prod(shape) * np.dtype(e.dtype).itemsize for shape, e in zip(read, self._experiments, strict=True)
        ]
        stored = [(e.shape, self._dtypes[n]) for n, e in enumerate(self._experiments)]
        self._alike = np.array([stored.index(s) for s in stored], np.int64)
        """Of each experiment, the first one whose patches are stored alike: they are copied together."""
        self._verified = np.zeros(len(shards.arrays["block_shard"]), bool)
        self._checked = np.zeros(shards.arrays["patch_xxh3"].shape if verify and self._remote is None else 0, bool)
        """Of each patch, the channel that reads of it begin with: whether what follows was checked."""
        self._scratch = threading.local()

    @property
    def remote(self) -> bool:
        """Whether patches come over a network."""
        return self._remote is not None

    def shape_of(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, "b 4"]:
        """Return the shape of each patch as it is read, (C, Z, Y, X)."""
        shapes = np.array(self._shapes, np.int64)
        if self._choices is not None:
            shapes[:, 0] = self._choices.per_sample
        return shapes[self._experiment(rows)]

    def layout(self, rows: Int64[np.ndarray, " b"]) -> tuple[Shape, np.dtype[Any]]:
        """Return the shape of each patch of a batch and its dtype: the stored one if all agree, else float32.

        Raises
        ------
        FormatError
            The batch mixes experiments whose patches differ in shape.
        """
        numbers = np.unique(self._experiment(rows)).tolist()
        shapes = {self._experiments[n].name: self._shapes[n] for n in numbers}
        if len(set(shapes.values())) > 1:
            raise FormatError(
                f"{self._shards.root}: a batch holds patches of different shapes: {shapes}. Draw batches from one "
                "experiment (experiment_aware=True, leaky=0), or build the experiments with the same channels."
            )
        kinds = {self._dtypes[n] for n in numbers}
        channels, *rest = next(iter(shapes.values()))
        if self._choices is not None:
            channels = self._choices.per_sample
        return (channels, *rest), kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)

    def read(
        self,
        rows: Int64[np.ndarray, " b"],
        out: Shaped[np.ndarray, "b c z y x"],
        choice: Int64[np.ndarray, " b"] | None = None,
    ) -> None:
        """Copy patches into a batch; see `PatchRead`, and `read_together` for errors."""
        self.read_together([PatchRead(rows, out, choice)])

    def read_together(self, reads: Sequence[PatchRead]) -> None:
        """Copy all patches of a batch: its anchors, positives, negatives.

        Raises
        ------
        FormatError, StorageError
            A shard can't be read; a note says which member.
        ChecksumError
            A block, or a patch that came over a network, isn't what was written.
        """
        with self._at_hand(reads) if self._remote is not None else nullcontext():
            for rows, out, choice in reads:
                self._read(rows, out, choice)

    def find_unreadable(self, plan: BatchPlan) -> dict[int, Unreadable]:
        """Find the samples of a batch that can't be read: place → why.

        Raises
        ------
        FormatError, StorageError
            What concerns more than the sample: the server, or the index.
        """
        reads = []
        for name in ("anchor", "positive", "negative"):
            rows = getattr(plan, name)
            if rows is not None and len(rows):
                shape, dtype = self.layout(rows)
                out = np.empty((len(rows), *shape), dtype)
                reads.append(PatchRead(rows, out, getattr(plan, f"{name}_choice")))
        if not reads:
            return {}
        with self._at_hand(reads) if self._remote is not None else nullcontext():
            failed = [place for place in range(len(plan)) if self._why(reads, place) is not None]
        # what came together with damage is asked for by itself
        each = [(place, self._why([_take_one(read, place) for read in reads], 0, alone=True)) for place in failed]
        return {place: found for place, found in each if found is not None}

    def _why(self, reads: Sequence[PatchRead], place: int, *, alone: bool = False) -> Unreadable | None:
        """Read one sample; return what is wrong with it."""
        one = [_take_one(read, place) for read in reads]
        try:
            with self._at_hand(one) if alone and self._remote is not None else nullcontext():
                for rows, out, choice in one:
                    self._read(rows, out, choice)
        except (FormatError, StorageError) as error:
            if not is_unreadable(error, remote=self.remote):
                raise
            return Unreadable(int(rows[0]), error)
        return None

    def _at_hand(self, reads: Sequence[PatchRead]) -> AbstractContextManager[None]:
        """Have what is read asked for at once, where it has to come over a network."""
        assert self._remote is not None
        ranges = locate_channels(self._shards, [self._choose(read.rows, read.choice) for read in reads])
        return self._remote.gather(ranges.shard, ranges.begin, ranges.end, ranges.checker(self._shards))

    def _choose(
        self, rows: Int64[np.ndarray, " b"], choice: Int64[np.ndarray, " b"] | None
    ) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"] | None]:
        """Return a row for each channel that is chosen, and the bytes before that channel; rows as they are for all."""
        if choice is None or self._choices is None:
            return rows, None
        numbers = self._experiment(rows)
        skip = (self._choices.table[numbers, choice] * self._channel_bytes[numbers, None]).ravel()
        return np.repeat(rows, self._choices.per_sample), skip

    def _read(
        self,
        rows: Int64[np.ndarray, " b"],
        out: Shaped[np.ndarray, "b c z y x"],
        choice: Int64[np.ndarray, " b"] | None,
    ) -> None:
        rows, skip = self._choose(rows, choice)
        if skip is not None:
            out = out.reshape(len(rows), 1, *out.shape[2:])
        experiment = self._alike[self._experiment(rows)]
        for e in np.unique(experiment).tolist():
            places = np.flatnonzero(experiment == e)
            if self._dtypes[e] == out.dtype and len(places) == len(rows):
                self._copy(rows, skip, e, out)
            else:
                self._cast(rows, skip, e, places, out)

    def fetch(self, block: int) -> None:
        """Have a block brought near; returns before it is there."""
        self._store.fetch(*self._span(block))

    def forget(self, block: int) -> None:
        """Let go of a block; what comes over a network is checked again when it comes again."""
        if self._remote is not None:
            self._verified[block] = False
        self._store.forget(*self._span(block))

    def give_up(self, threads: Collection[threading.Thread]) -> None:
        """Let threads wait no longer for a server; see `RemoteStore.give_up`."""
        if self._remote is not None:
            self._remote.give_up(threads)

    def load(self, block: int) -> None:
        """Read a block from front to back, and check it."""
        shard, begin, end = self._span(block)
        found, expected = self._store.checksum(shard, begin, end), int(self._shards.arrays["block_xxh3"][block])
        if found != expected and self._remote is not None:  # a byte may have been changed on its way
            self._remote.fetch_again(shard, begin, end, found)
            found = self._store.checksum(shard, begin, end)
        if found != expected:
            path, a = self._shards.manifest.shards[shard].path, self._shards.arrays
            begin, end = int(a["block_begin"][block]), int(a["block_end"][block])
            raise ChecksumError(
                f"{self._shards.root / path}: block {block}, bytes {begin:,} to {end:,}, is not what was "
                f"written: its checksum is {contract.format_checksum(found)}, the index says "
                f"{contract.format_checksum(expected)}. Run `dynaclr-wds verify {self._shards.root}` to see all that "
                "is damaged, and restore the shard or build it again."
            )
        self._verified[block] = True

    def verify_blocks(self, blocks: Shaped[np.ndarray, " b"]) -> None:
        """Check the blocks that this process has not checked yet.

        Raises
        ------
        ChecksumError
            A block isn't what was written; names shard, block and byte range.
        """
        new = np.unique(blocks[~self._verified[blocks]]).tolist()
        if len(new) > 1:
            for block in new:  # all are asked for before the first is waited for
                self.fetch(block)
        for block in new:
            if not self._verified[block]:  # another thread may have done so meanwhile
                self.load(block)

    def _block(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        return self._shards.arrays["clip_block"][self._shards.arrays["patch_clip"][rows]].astype(np.int64)

    def _experiment(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        return self._shards.clip_experiment[self._shards.arrays["patch_clip"][rows]]

    def _copy(
        self,
        rows: Int64[np.ndarray, " b"],
        skip: Int64[np.ndarray, " b"] | None,
        experiment: int,
        out: Shaped[np.ndarray, "b ..."],
    ) -> None:
        """Copy patches that are stored as those of an experiment are, cropped; each from so many bytes on."""
        assert out.flags.c_contiguous
        a = self._shards.arrays
        shard = a["block_shard"][a["clip_block"][a["patch_clip"][rows]]].astype(np.int64)
        offset, run_bytes = self._runs[experiment]
        target = out.reshape(-1).view(np.uint8).reshape(len(rows), len(offset), run_bytes)
        begin = self._shards.addresses.patches(rows)
        self._read_bytes(rows, shard, begin if skip is None else begin + skip, offset, target)
        if self._checked.size:
            is_whole = len(offset) == 1 and run_bytes == self._whole_bytes[experiment]
            self._check(rows, skip, target[:, 0] if is_whole else None)

    def _read_bytes(
        self,
        rows: Int64[np.ndarray, " b"],
        shard: Int64[np.ndarray, " b"],
        begin: Int64[np.ndarray, " b"],
        offset: Int64[np.ndarray, " k"],
        out: UInt8[np.ndarray, "b k bytes"],
    ) -> None:
        """Have the store copy; an error says which patch it is about."""
        try:
            self._store.read(shard, begin, offset, out)
        except RowFailure as failure:
            if not isinstance(failure.error, ChecksumError):  # that one names the patch, of those that came together
                failure.error.add_note(f"while reading {name_member(self._shards, int(rows[failure.row]))}")
            raise failure.error from failure.error.__cause__

    def _check(
        self,
        rows: Int64[np.ndarray, " b"],
        skip: Int64[np.ndarray, " b"] | None,
        copied: UInt8[np.ndarray, "b bytes"] | None,
    ) -> None:
        """Check the copies of patches that were not checked yet; None = they are cropped, so whole ones are read.

        Raises
        ------
        ChecksumError
            A patch isn't what was written.
        """
        channel = 0 if skip is None else skip // self._channel_bytes[self._experiment(rows)]
        new = np.flatnonzero(~(self._checked[rows, channel] | self._verified[self._block(rows)]))
        if not len(new):
            return
        ranges = locate_channels(self._shards, [(rows[new], None if skip is None else skip[new])])
        check, size = ranges.checker(self._shards), int(ranges.end[0] - ranges.begin[0])
        whole = np.empty((1, 1, 0 if copied is not None else size), np.uint8)
        for place, number in enumerate(new.tolist()):
            if copied is None:
                one, start = slice(place, place + 1), np.zeros(1, np.int64)
                self._read_bytes(ranges.row[one], ranges.shard[one], ranges.begin[one], start, whole)
            if (error := check(place, whole[0, 0] if copied is None else copied[number])) is not None:
                raise error
        self._checked[ranges.row, ranges.channel] = True

    def _cast(
        self,
        rows: Int64[np.ndarray, " b"],
        skip: Int64[np.ndarray, " b"] | None,
        experiment: int,
        places: Int64[np.ndarray, " p"],
        out: Shaped[np.ndarray, "b c z y x"],
    ) -> None:
        """Copy patches of one experiment to their places in a batch that also holds others, or is of another dtype."""
        shape, dtype = self._shapes[experiment], self._dtypes[experiment]
        patch_bytes = math.prod(shape) * dtype.itemsize
        step = max(1, _CAST_BYTES // patch_bytes)
        scratch = self._take_scratch(step * patch_bytes)
        for first in range(0, len(places), step):
            part = places[first : first + step]
            patches = scratch[: len(part) * patch_bytes].view(dtype).reshape(len(part), *shape)
            self._copy(rows[part], None if skip is None else skip[part], experiment, patches)
            out[part] = patches

    def _take_scratch(self, size: int) -> UInt8[np.ndarray, " n"]:
        """Return this thread's memory for what is cast."""
        found: UInt8[np.ndarray, " m"] | None = getattr(self._scratch, "buffer", None)
        if found is None or len(found) < size:
            found = self._scratch.buffer = np.empty(size, np.uint8)
        return found

    def _span(self, block: int) -> tuple[int, int, int]:
        """Say where a block is: shard, first byte, end."""
        return self._shards.addresses.block(block)


def is_unreadable(error: Exception, *, remote: bool) -> bool:
    """Whether an error is about what one shard holds, so that another sample may be read in place of this one.

    A server that fails, and an index that is wrong, concern all samples.
    """
    if isinstance(error, OutsideError):
        return False
    return isinstance(error, FormatError) or (isinstance(error, StorageError) and not remote)


def _take_one(read: PatchRead, place: int) -> PatchRead:
    one = slice(place, place + 1)
    return PatchRead(read.rows[one], read.out[one], None if read.choice is None else read.choice[one])


def level_statistics(
    shards: ShardSet, observations: Int64[np.ndarray, " b"], channels: Int64[np.ndarray, "b c"] | None = None
) -> dict[str, Float32[np.ndarray, "b c k"]]:
    """Look up intensity statistics: level → (B, C, len(contract.STATISTICS)), of some channels of each or of all.

    Raises
    ------
    FormatError
        A statistic is not a number, so nothing that is normalised by it would be one.
    """
    a = shards.arrays
    fov = a["obs_fov"][observations]
    rows = {
        "timepoint": a["fov_first_frame"][fov] + a["obs_t"][observations],
        "fov": fov,
        "dataset": shards.fov_experiment[fov],
    }
    if channels is None:
        counts = {shards.manifest.experiments[e].shape[0] for e in np.unique(rows["dataset"]).tolist()}
        assert len(counts) == 1, "a batch holds patches of one shape"
        count = counts.pop()
        channels = np.broadcast_to(np.arange(count), (len(observations), count))
    statistics = {level: a[f"stats_{level}"][rows[level][:, None], channels] for level in contract.LEVELS}
    for level, values in statistics.items():
        if np.isnan(values).any():
            place, channel, which = (int(axis[0]) for axis in np.nonzero(np.isnan(values)))
            channel = int(channels[place, channel])
            record, t = shards.manifest.fovs[int(fov[place])], int(a["obs_t"][observations[place]])
            raise FormatError(
                f"{shards.root}: {contract.STATISTICS[which]} of level {level!r} is not a number in experiment "
                f"{record.experiment!r}, {record.fov_name}, t={t}, channel {channel}; every stored cell needs its "
                "statistics. Mend the plate (its pixels there, or its `normalization`), or leave the field of view "
                "out with exclude_fovs, and build the shards again."
            )
    return statistics
