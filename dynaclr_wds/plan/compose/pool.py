"""Index to queues: orders the anchors of each stratum as they come up, when everything is within reach.

A queue is an order of a stratum's anchors that is passed through again and again; draws `a … b` of an epoch
are places `a … b` of it. The anchors of a clip are laid out evenly over a pass. So the stretch of the queue that a
round gets holds each lineage about in proportion, which lets the round keep lineages distinct. Where strata are many,
`hashed_order` says where each draw falls, and no order is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64, Integer

from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.compose.draws import FirstTable, FirstTables
from dynaclr_wds.plan.compose.group_quotas import MANY
from dynaclr_wds.plan.compose.hashed_order import find_places
from dynaclr_wds.plan.compose.hpi_table import HpiTable
from dynaclr_wds.plan.compose.positives import Partners
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.places import order_pass
from dynaclr_wds.plan.rng import Tag, make_generator

_SEVERAL = 1 << 20  # anchors from which on two strata are ordered at a time
_THREADS = 2


@runtime_checkable
class Pool(Protocol):
    """Anchors that one stream may draw from in one epoch.

    Its strata are those of the schedule; in streaming, a stratum of the set may stand there in several parts.
    """

    index: PlanIndex
    origin: Int64[np.ndarray, " s"]
    """Stratum of the set, for each of the pool's."""
    tables: FirstTables
    """What rounds write to while they keep lineages distinct."""

    def due(
        self, strata: Integer[np.ndarray, " k"], start: Integer[np.ndarray, " k"], count: Integer[np.ndarray, " k"]
    ) -> Int64[SampleIndex, " n"]:
        """Anchors that draws `start … start + count` of each stratum fall on, stratum after stratum."""
        ...

    def reach(self, round_id: int, strata: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """Count the anchors of each stratum that are within reach during a whole round."""
        ...

    def draw(
        self, rng: np.random.Generator, round_id: int, strata: Int64[np.ndarray, " k"], count: Int64[np.ndarray, " k"]
    ) -> Int64[SampleIndex, " n"]:
        """Draw so many anchors of each stratum, with replacement, from those within reach during a round."""
        ...

    def by_hpi(self, round_id: int, strata: Int64[np.ndarray, " k"]) -> tuple[HpiTable, Int64[np.ndarray, " k"]]:
        """Table by time of what is within reach during a round, of some strata at least, and their rows in it."""
        ...

    def partners(self, round_id: int, strata: Int64[np.ndarray, " d"]) -> Partners | None:
        """Table of the anchors of some strata within reach during a round; None unless positives are by columns."""
        ...


class WholePool:
    """Everything is within reach: the pool of exact mode.

    `partners` is made once for all epochs, of the strata that are drawn from; see `make_partners`. `times` makes the
    table by time, or recalls it.
    """

    def __init__(
        self,
        index: PlanIndex,
        seed: int,
        epoch: int,
        tag: Tag = Tag.QUEUE,
        partners: Partners | None = None,
        times: Callable[[], HpiTable] | None = None,
    ) -> None:
        self.index = index
        self._times = times
        self.tables = FirstTable(), FirstTable(), FirstTable()
        self.origin = np.arange(len(index.strata))
        self._sizes = index.sizes
        self._key = (tag, seed, epoch)
        self._partners = partners
        # the last even and the last odd pass through each stratum, as places in it, and their numbers
        self._order = np.empty((2, len(index.row)), np.int32)
        self._number = np.full((2, len(index.strata)), -1)

    def due(
        self, strata: Integer[np.ndarray, " k"], start: Integer[np.ndarray, " k"], count: Integer[np.ndarray, " k"]
    ) -> Int64[SampleIndex, " n"]:
        """Anchors that draws `start … start + count` of each stratum fall on, stratum after stratum."""
        if len(self.index.strata) > MANY:
            return self._find(strata, start, count)
        size, start, stop = self._sizes[strata], start.astype(np.int64), start.astype(np.int64) + count
        low = start // size
        passes = (stop - 1) // size - low + 1
        # one row for each pass through each stratum
        of = np.repeat(np.arange(len(strata)), passes)
        number = low[of] + np.arange(len(of)) - np.repeat(np.cumsum(passes) - passes, passes)
        begin = np.maximum(start[of] - number * size[of], 0)
        length = np.minimum(stop[of] - number * size[of], size[of]) - begin
        stratum, kept = strata[of], passes[of] <= 2
        self._keep(stratum[kept], number[kept])
        # where each row's order begins, in the kept orders or in those that are made for this call
        others = self._make(stratum[~kept], number[~kept])
        at = number % 2 * len(self.index.row) + self.index.first[stratum]
        at[~kept] = np.cumsum(size[of][~kept]) - size[of][~kept]
        place = np.arange(int(length.sum())) + np.repeat(at + begin - (np.cumsum(length) - length), length)
        in_kept = np.repeat(kept, length)
        out = np.empty(len(place), np.int64)
        out[in_kept] = self._order.reshape(-1)[place[in_kept]]
        out[~in_kept] = others[place[~in_kept]]
        return cast(SampleIndex, out + np.repeat(self.index.first[stratum], length))

    def _find(
        self, strata: Integer[np.ndarray, " k"], start: Integer[np.ndarray, " k"], count: Integer[np.ndarray, " k"]
    ) -> Int64[SampleIndex, " n"]:
        """Find the anchors of draws one by one, without an order that is kept."""
        before = np.cumsum(count) - count
        draw = np.arange(int(count.sum())) + np.repeat(start - before, count)
        stratum = np.repeat(strata, count)
        size = self._sizes[stratum]
        found = find_places(make_generator(*self._key), stratum, draw // size, draw % size, size)
        return cast(SampleIndex, found + self.index.first[stratum])

    def reach(self, round_id: int, strata: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """Count the anchors of each stratum; the round makes no difference."""
        del round_id
        return self._sizes[strata]

    def draw(
        self, rng: np.random.Generator, round_id: int, strata: Int64[np.ndarray, " k"], count: Int64[np.ndarray, " k"]
    ) -> Int64[SampleIndex, " n"]:
        """Draw from whole strata; the round makes no difference."""
        del round_id
        first, stop = self.index.first[strata], self.index.first[strata + 1]
        if len(strata) == 1:  # the same numbers, sooner
            return cast(SampleIndex, rng.integers(first[0], stop[0], int(count[0])))
        return cast(SampleIndex, rng.integers(np.repeat(first, count), np.repeat(stop, count)))

    def by_hpi(self, round_id: int, strata: Int64[np.ndarray, " k"]) -> tuple[HpiTable, Int64[np.ndarray, " k"]]:
        """Return the table of all anchors, whose rows are the strata; the round makes no difference."""
        del round_id
        assert self._times is not None
        return self._times(), strata

    def partners(self, round_id: int, strata: Int64[np.ndarray, " d"]) -> Partners | None:
        """Return the table of all anchors; the round makes no difference."""
        del round_id, strata
        return self._partners

    def _keep(self, strata: Integer[np.ndarray, " k"], number: Int64[np.ndarray, " k"]) -> None:
        """Make the passes that are not at hand; where these are many anchors, two strata at a time."""
        new = np.flatnonzero(self._number[number % 2, strata] != number)
        passes = list(zip(strata[new].tolist(), number[new].tolist(), strict=True))
        if len(new) > 1 and self._sizes[strata[new]].sum() > _SEVERAL:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="dynaclr-order") as pool:
                list(pool.map(lambda own: self._order_pass(*own), passes))
        else:
            for own in passes:
                self._order_pass(*own)

    def _order_pass(self, stratum: int, number: int) -> None:
        """Make a pass and keep it."""
        self._write(stratum, number, self._order[number % 2, slice(*self.index.first[stratum : stratum + 2])])
        self._number[number % 2, stratum] = number

    def _make(self, strata: Integer[np.ndarray, " k"], number: Int64[np.ndarray, " k"]) -> Int32[np.ndarray, " n"]:
        """Make passes that are not kept, one after another."""
        out = np.empty(int(self._sizes[strata].sum()), np.int32)
        end = np.cumsum(self._sizes[strata]).tolist()
        for stratum, own, stop in zip(strata.tolist(), number.tolist(), end, strict=True):
            self._write(stratum, own, out[stop - int(self._sizes[stratum]) : stop])
        return out

    def _write(self, stratum: int, number: int, out: Int32[np.ndarray, " n"]) -> None:
        """Order the anchors of a stratum for one pass, as places in it."""
        tag, seed, epoch = self._key
        row = cast(PatchRow, self.index.row[slice(*self.index.first[stratum : stratum + 2])])
        order_pass(make_generator(tag, seed, epoch), row, self.index.columns.patch_clip, stratum, number, out)
