"""Index to queues: orders the anchors of each stratum as they come up, when everything is within reach.

A queue is an order of a stratum's anchors that is passed through again and again; draws `a … b` of an epoch
are places `a … b` of it. The anchors of a clip are laid out evenly over a pass. So the stretch of the queue that a
round gets holds each lineage about in proportion, which lets the round keep lineages distinct.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, Integer

from dynaclr_wds.plan.columns import SampleIndex
from dynaclr_wds.plan.compose.positives import Partners
from dynaclr_wds.plan.index import PlanIndex, Stratum
from dynaclr_wds.plan.rng import Tag, make_generator, sort_places


@runtime_checkable
class Pool(Protocol):
    """Anchors that one stream may draw from in one epoch.

    Its strata are those of the schedule; in streaming, a stratum of the set may stand there in several parts.
    """

    index: PlanIndex
    strata: tuple[Stratum, ...]

    def due(self, stratum: int, begin: int, end: int) -> Int64[SampleIndex, " n"]:
        """Anchors that draws `begin … end` of a stratum fall on."""
        ...

    def reach(self, round_id: int, stratum: int) -> int:
        """Count the anchors of a stratum that are within reach during a whole round."""
        ...

    def draw(self, rng: np.random.Generator, round_id: int, stratum: int, count: int) -> Int64[SampleIndex, " count"]:
        """Draw anchors uniformly, with replacement, from those within reach during a round, of which there are some."""
        ...

    def partners(self, round_id: int, strata: Int64[np.ndarray, " d"]) -> Partners | None:
        """Table of the anchors of some strata within reach during a round; None unless positives are by columns."""
        ...


class WholePool:
    """Everything is within reach: the pool of exact mode.

    `partners` is made once for all epochs, of the strata that are drawn from; see `make_partners`.
    """

    def __init__(
        self,
        index: PlanIndex,
        seed: int,
        epoch: int,
        tag: Tag = Tag.QUEUE,
        partners: Partners | None = None,
    ) -> None:
        self.index = index
        self.strata = index.strata
        self._key = (seed, epoch)
        self._tag = tag
        self._partners = partners
        self._passes: OrderedDict[tuple[int, int], Integer[np.ndarray, " n"]] = OrderedDict()

    def due(self, stratum: int, begin: int, end: int) -> Int64[SampleIndex, " n"]:
        """Anchors that draws `begin … end` of a stratum fall on."""
        size = int(self.index.sizes[stratum])
        parts = [np.zeros(0, np.int64)]
        while begin < end:
            number, place = divmod(begin, size)
            stop = min(size, place + end - begin)
            parts.append(self._pass(stratum, number)[place:stop] + self.index.first[stratum])
            begin += stop - place
        return cast(SampleIndex, np.concatenate(parts))

    def reach(self, round_id: int, stratum: int) -> int:
        """Count the anchors of a stratum; the round makes no difference."""
        del round_id
        return int(self.index.sizes[stratum])

    def draw(self, rng: np.random.Generator, round_id: int, stratum: int, count: int) -> Int64[SampleIndex, " count"]:
        """Draw from the whole stratum; the round makes no difference."""
        del round_id
        return cast(SampleIndex, rng.integers(self.index.first[stratum], self.index.first[stratum + 1], count))

    def partners(self, round_id: int, strata: Int64[np.ndarray, " d"]) -> Partners | None:
        """Return the table of all anchors; the round makes no difference."""
        del round_id, strata
        return self._partners

    def _pass(self, stratum: int, number: int) -> Integer[np.ndarray, " n"]:
        """Order of one pass through a stratum; the last two of each stratum are kept."""
        key = (stratum, number)
        if key not in self._passes:
            seed, epoch = self._key
            rng = make_generator(self._tag, seed, epoch, *key)
            begin, end = self.index.first[stratum], self.index.first[stratum + 1]
            clip = self.index.columns.patch_clip[self.index.row[begin:end]]
            self._passes[key] = sort_places(sample_places(rng, clip)).astype(np.int32)
            stale = [k for k in self._passes if k[0] == stratum][:-2]
            for k in stale:
                del self._passes[k]
        return self._passes[key]


def sample_places(rng: np.random.Generator, clip: Integer[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Place each anchor in [0, 1) so that those of a clip lie evenly, from a random start, in random order.

    Parameters
    ----------
    clip
        Of each anchor, ascending.
    """
    edge = np.flatnonzero(np.diff(clip)) + 1
    start = np.concatenate([[0], edge])
    count = np.diff(np.concatenate([start, [len(clip)]]))
    # j → (a j + b) mod n is a permutation when a and n are coprime: shuffles every clip without a sort
    factor = rng.integers(1, np.maximum(count, 2))
    factor[np.gcd(factor, count) != 1] = 1
    offset = rng.integers(0, count)
    phase = rng.random(len(count))
    kind = np.int32 if len(clip) < 1 << 31 and count.max(initial=0) < 1 << 15 else np.int64  # products have to fit
    start, factor, offset, each = (np.repeat(a.astype(kind), count) for a in (start, factor, offset, count))
    rank = ((np.arange(len(clip), dtype=kind) - start) * factor + offset) % each
    return ((rank + np.repeat(phase, count)) / each).astype(np.float32)
