"""Index to queues: orders the anchors of each stratum as they come up, when everything is within reach.

A queue is an order of a stratum's anchors that is passed through again and again; draws `a … b` of an epoch
are places `a … b` of it. The anchors of a clip are laid out evenly over a pass. So the stretch of the queue that a
round gets holds each lineage about in proportion, which lets the round keep lineages distinct. Where strata are many,
`hashed_order` says where each draw falls, and no order is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, Integer, UInt64

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.draws import FirstTable, FirstTables
from dynaclr_wds.plan.compose.group_quotas import MANY
from dynaclr_wds.plan.compose.hashed_order import find_places
from dynaclr_wds.plan.compose.hpi_table import HpiTable
from dynaclr_wds.plan.compose.positives import Partners
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, hash_parts, make_generator, sort_places

_CHUNK = 1 << 20  # anchors of small strata that are ordered together


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
        """Make the passes that are not at hand, many small strata at a time."""
        new = np.flatnonzero(self._number[number % 2, strata] != number)
        size = self._sizes[strata[new]]
        for part in np.split(new, np.flatnonzero(np.diff(np.cumsum(size) // _CHUNK)) + 1):
            stratum, odd = strata[part], number[part] % 2
            length = self._sizes[stratum]
            at = odd * len(self.index.row) + self.index.first[stratum]
            place = np.arange(int(length.sum())) + np.repeat(at - (np.cumsum(length) - length), length)
            self._order.reshape(-1)[place] = self._make(stratum, number[part])
            self._number[odd, stratum] = number[part]

    def _make(self, strata: Integer[np.ndarray, " k"], number: Int64[np.ndarray, " k"]) -> Integer[np.ndarray, " n"]:
        """Order the anchors of some strata for one pass each, as places in the stratum."""
        tag, seed, epoch = self._key
        size = self._sizes[strata]
        begin = np.cumsum(size) - size
        local = np.arange(int(size.sum()), dtype=np.int32) - np.repeat(begin, size).astype(np.int32)
        clip = self.index.clip(cast(SampleIndex, local + np.repeat(self.index.first[strata], size)))
        of = np.repeat(np.arange(len(strata), dtype=np.min_scalar_type(len(strata))), size)
        first = np.flatnonzero((np.diff(clip, prepend=-1) != 0) | (local == 0))
        rng = make_generator(tag, seed, epoch)
        bits = [hash_parts(rng, strata[of[first]], number[of[first]], clip[first], kind) for kind in range(3)]
        order = sort_places(_place_clips(first, len(clip), *bits))
        if len(strata) > 1:
            order = order[np.argsort(of[order], kind="stable")]
        return local[order]


def sample_places(rng: np.random.Generator, clip: Integer[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Place each anchor in [0, 1) so that those of a clip lie evenly, from a random start, in random order.

    Parameters
    ----------
    clip
        Of each anchor, ascending.
    """
    first = np.flatnonzero(np.diff(clip, prepend=-1))
    bits = rng.integers(0, 1 << 63, (3, len(first))).astype(np.uint64)
    return _place_clips(first, len(clip), *bits)


def _place_clips(
    first: Int64[np.ndarray, " c"],
    total: int,
    some: UInt64[np.ndarray, " c"],
    other: UInt64[np.ndarray, " c"],
    third: UInt64[np.ndarray, " c"],
) -> Float[np.ndarray, " n"]:
    """Place the anchors of clips that begin at `first`, by three random words for each clip."""
    count = np.diff(first, append=total)
    # j → (a j + b) mod n is a permutation when a and n are coprime: shuffles every clip without a sort
    wide = count.astype(np.uint64)
    factor = (1 + some % np.maximum(wide - 1, 1)).astype(np.int64)
    factor[np.gcd(factor, count) != 1] = 1
    offset = (other % np.maximum(wide, 1)).astype(np.int64)
    phase = (third >> np.uint64(40)).astype(np.float64) * 2.0**-24
    kind = np.int32 if total < 1 << 31 and count.max(initial=0) < 1 << 15 else np.int64  # products have to fit
    start, factor, offset, each = (np.repeat(a.astype(kind), count) for a in (first, factor, offset, count))
    rank = ((np.arange(total, dtype=kind) - start) * factor + offset) % each  # type: ignore[operator]
    return ((rank + np.repeat(phase, count)) / each).astype(np.float32)
