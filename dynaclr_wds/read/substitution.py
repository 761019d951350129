"""Samples that can't be read to their stand-ins: finds out which can't, walks the plan's row of others, and counts.

It decides nothing: which samples may take a place, and in which order, is in the plan (`plan/compose/stand_ins.py`).
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.compose.stand_ins import StandIns
from dynaclr_wds.read.patches import PatchReader, Unreadable
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.words import count_of

PARTS = ("anchor", "positive", "negative")
_COLUMNS = (*PARTS, *(f"{name}_choice" for name in PARTS))


@runtime_checkable
class PlansStandIns(Protocol):
    """What says who may take a place."""

    epoch: int

    def stand_ins(self, plan: BatchPlan, place: int, taken: Collection[int]) -> StandIns:
        """List stand-ins for a sample of a batch."""
        ...


class Substitution:
    """What could not be read in an epoch, and who took its place.

    Parameters
    ----------
    shards
        The set.
    planner
        Says who may take a place.
    most
        Samples of an epoch that may be replaced; more are an error.
    """

    def __init__(self, shards: ShardSet, planner: PlansStandIns, most: float) -> None:
        self.most = most
        self.replaced: Counter[int] = Counter()
        """Shard → samples that were replaced since the epoch was (re)started."""
        self._shards = shards
        self._planner = planner
        self._bad_blocks: dict[int, Exception] = {}
        self._warned: set[int] = set()
        self._epoch = planner.epoch
        self._lock = threading.Lock()

    @property
    def replaced_by_name(self) -> dict[str, int]:
        """Shard → samples that were replaced, by the name of the shard."""
        return {self._shards.manifest.shards[shard].path: count for shard, count in sorted(self.replaced.items())}

    def begin(self) -> None:
        """Count anew."""
        with self._lock:
            self.replaced.clear()
            self._bad_blocks.clear()
            self._epoch = self._planner.epoch

    def note_block(self, block: int, error: Exception | None) -> None:
        """Note that a block that was fetched is as it should be, or why it isn't."""
        if error is None:
            self._bad_blocks.pop(block, None)
        else:
            self._bad_blocks[block] = error

    def settle(self, plan: BatchPlan, reader: PatchReader, *, probe: bool) -> BatchPlan:
        """Put stand-ins in the place of samples that are in bad blocks, or, with `probe`, that can't be read.

        Raises
        ------
        FormatError, StorageError
            Too many were replaced, or nothing in the stratum can be read.
        """
        if self._epoch != self._planner.epoch:
            self.begin()
        bad = self._find_known(plan)
        if probe:
            others = np.setdiff1d(np.arange(len(plan)), np.array(list(bad), np.int64))
            found = reader.find_unreadable(_take(plan, others))
            bad |= {int(others[place]): why for place, why in found.items()}
        if not bad:
            return plan
        columns: dict[str, Any] = {name: getattr(plan, name) for name in _COLUMNS}
        columns = {name: None if values is None else values.copy() for name, values in columns.items()}
        lineage = self._lineages(plan.anchor)
        for place in sorted(bad):
            others = np.delete(lineage, place)
            lineage[place] = self._fill(plan, place, columns, others.tolist(), reader, bad[place])
        return dataclasses.replace(plan, **columns)

    def _fill(
        self,
        plan: BatchPlan,
        place: int,
        columns: dict[str, Any],
        taken: list[int],
        reader: PatchReader,
        why: Unreadable,
    ) -> int:
        """Write the first stand-in that can be read into the columns of a batch; return its lineage."""
        self._count(why)
        found = self._planner.stand_ins(plan, place, taken)
        row = {
            "anchor": found.anchor,
            "anchor_choice": found.anchor_choice,
            "positive": found.positive.row,
            "positive_choice": found.positive.choice,
            "negative": found.negative,
            "negative_choice": found.negative_choice,
        }
        for number in range(len(found.anchor)):
            own = slice(number, number + 1)
            one: dict[str, Any] = {name: None if values is None else values[own] for name, values in row.items()}
            sample = dataclasses.replace(plan, **one)
            if self._find_known(sample) or reader.find_unreadable(sample):
                continue
            for name, values in one.items():
                if values is not None:
                    columns[name][place] = values[0]
            return int(found.lineage[number])
        why.error.add_note("and none of the samples that could take its place can be read either")
        raise why.error

    def _find_known(self, plan: BatchPlan) -> dict[int, Unreadable]:
        """Find the samples of a batch that are in blocks known to be bad."""
        if not self._bad_blocks:
            return {}
        out: dict[int, Unreadable] = {}
        known = dict(self._bad_blocks)
        for name in PARTS:
            rows = getattr(plan, name)
            for place, block in enumerate([] if rows is None else self._blocks(rows).tolist()):
                if block in known:
                    out.setdefault(place, Unreadable(int(rows[place]), known[block]))
        return out

    def _count(self, why: Unreadable) -> None:
        shard = int(self._shards.arrays["block_shard"][self._blocks(np.array([why.row]))[0]])
        with self._lock:
            self.replaced[shard] += 1
            new, total = shard not in self._warned, sum(self.replaced.values())
            self._warned.add(shard)
        if new:
            warnings.warn(
                f"on_shard_error=substitute: samples of {self._name(shard)} are replaced by others of their stratum, "
                f"because they can't be read: {why.error}",
                stacklevel=2,
            )
        if total > self.most:
            names = ", ".join(self._name(number) for number in sorted(self.replaced))
            raise FormatError(
                f"{count_of(total, 'sample')} of this epoch could not be read and had to be replaced, more than "
                f"max_bad_fraction allows ({self.most:g}). They are of {names}. Restore what is damaged "
                "(`dynaclr-wds verify` lists it), or allow more."
            ) from why.error

    def _name(self, shard: int) -> str:
        return str(self._shards.root / self._shards.manifest.shards[shard].path)

    def _blocks(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        a = self._shards.arrays
        return a["clip_block"][a["patch_clip"][rows]].astype(np.int64)

    def _lineages(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        a = self._shards.arrays
        return a["clip_lineage"][a["patch_clip"][rows]].astype(np.int64)


def check_on_shard_error(action: str, max_bad_fraction: float) -> None:
    """Check the options.

    Raises
    ------
    ConfigError
        Another action, or a fraction outside [0, 1].
    """
    if action not in ("raise", "substitute"):
        raise ConfigError(f"on_shard_error={action!r} must be raise or substitute. Correct it.")
    if not 0 <= max_bad_fraction <= 1:
        raise ConfigError(f"max_bad_fraction={max_bad_fraction} must be a share, from 0 to 1. Correct it.")


def _take(plan: BatchPlan, places: Int64[np.ndarray, " n"]) -> BatchPlan:
    columns: dict[str, Any] = {name: getattr(plan, name) for name in _COLUMNS}
    taken: dict[str, Any] = {name: None if values is None else values[places] for name, values in columns.items()}
    return dataclasses.replace(plan, **taken)
