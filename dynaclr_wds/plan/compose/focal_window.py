"""Draws to batches around a focal HPI: temporal enrichment, jointly with every other quota.

The draws of a round are shared out among its batches, each of which has its own focal HPI: first everybody's focal
part, from the draws inside its window, then the rest from those outside. Where the round's own draws
run out, the stratum's pool helps with anchors that are not due (these repeat; the ledger counts them), so
composition never suffers from coverage (law 5). The focal HPIs of a round are spread over the HPIs that its
draws have in all main strata at once, so that together the windows use up the draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex

_SLACK = 1e-6  # hours; frames at the window's very edge belong to it
_TRIES = 3
_MOST_EXTRA = 1 << 14

Draw = Callable[[int, int], Int64[np.ndarray, " n"]]
"""(pile, count) → anchors drawn from the pools of the pile's strata, with replacement, in random order."""


@dataclass(slots=True)
class Hand:
    """What one batch holds of one pile, by the three things that should not repeat."""

    anchors: list[Int64[np.ndarray, " n"]] = field(default_factory=list)
    keys: tuple[list[Int64[np.ndarray, " n"]], ...] = field(default_factory=lambda: ([], [], []))

    def take(self, cards: Cards, at: Int64[np.ndarray, " n"]) -> None:
        """Add the cards at these places."""
        self.anchors.append(cards.anchor[at])
        for held, key in zip(self.keys, (cards.lineage, cards.track, cards.anchor), strict=True):
            held.append(key[at])


@dataclass(slots=True, kw_only=True)
class Cards:
    """Draws of one pile: of one stratum, or of several that share a quota."""

    anchor: Int64[np.ndarray, " n"]
    lineage: Int64[np.ndarray, " n"]
    track: Int64[np.ndarray, " n"]
    hpi: Float64[np.ndarray, " n"]
    used: Bool[np.ndarray, " n"]

    def inside(self, focal: float, window: float) -> Bool[np.ndarray, " n"]:
        """Whether each draw is in the focal window."""
        return np.abs(self.hpi - focal) <= window + _SLACK

    def choose(self, hand: Hand, allowed: Int64[np.ndarray, " k"], need: int, level: int) -> int:
        """Move up to `need` allowed cards, in their order, to the hand; say how many.

        Level 0 keeps lineages apart, 1 tracks, 2 observations, 3 nothing.
        """
        at = allowed[~self.used[allowed]]
        if level < 3:
            held = hand.keys[level]
            before = sum(len(h) for h in held)
            first = _first_of_each(np.concatenate([*held, (self.lineage, self.track, self.anchor)[level][at]]))
            at = at[first[first >= before] - before]
        at = at[:need]
        self.used[at] = True
        hand.take(self, at)
        return len(at)


def _first_of_each(key: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " k"]:
    """Find where each value stands first, in order of standing."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    new = np.ones(len(key), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.sort(order[new])


def make_sorted_cards(index: PlanIndex, anchor: Int64[np.ndarray, " n"]) -> Cards:
    """Look up what is asked of each draw, and sort them by HPI; those of the same HPI stay in order."""
    return make_cards(index, anchor[np.argsort(index.hpi(anchor), kind="stable")])


def make_cards(index: PlanIndex, anchor: Int64[np.ndarray, " n"]) -> Cards:
    """Look up what is asked of each draw."""
    return Cards(
        anchor=anchor,
        lineage=index.lineage(anchor).astype(np.int64),
        track=index.track(anchor).astype(np.int64),
        hpi=index.hpi(anchor),
        used=np.zeros(len(anchor), bool),
    )


def sample_focal_hpi(
    rng: np.random.Generator, hpi: list[Float64[np.ndarray, " _"]], window: float, count: int
) -> Float64[np.ndarray, " count"]:
    """Draw focal HPIs evenly over the HPIs at which all strata have draws, with the whole window inside their range.

    Parameters
    ----------
    hpi
        Of the draws of each main stratum.
    window
        Half-width of the focal window in hours.
    count
        Batches in the round.
    """
    values, weight = np.unique(np.concatenate(hpi), return_counts=True)
    density = np.empty((len(hpi), len(values)))
    for s, own in enumerate(hpi):
        ordered = np.sort(own)
        high = np.searchsorted(ordered, values + window + _SLACK, "right")
        density[s] = (high - np.searchsorted(ordered, values - window - _SLACK, "left")) / max(len(own), 1)
    joint = weight * density.min(0) / density.mean(0)
    total = np.cumsum(joint if joint.any() else weight)
    even = (np.arange(count) + rng.random(count)) / count
    at = np.minimum(np.searchsorted(total, even * total[-1], "right"), len(values) - 1)
    low, high = values[0] + window, values[-1] - window
    return rng.permutation(np.clip(values[at], min(low, high), max(low, high)))


def focal_quota(
    quota: Int64[np.ndarray, "r s"], first_occurrence: int, config: SamplingConfig
) -> Int64[np.ndarray, "r s"]:
    """Split the focal part of each batch over its piles; its size is exact over the epoch.

    Parameters
    ----------
    quota
        Samples of each pile in each batch of the round.
    first_occurrence
        Which of its group's batches the first one is.
    """
    each = config.temporal_global_fraction * config.batch_size
    until = np.floor(np.arange(first_occurrence, first_occurrence + len(quota) + 1) * each + 1e-9)
    elsewhere = np.diff(until).astype(np.int64)
    return np.stack([largest_remainder(int(row.sum() - n), row) for row, n in zip(quota, elsewhere, strict=True)])


def assemble_focused(
    rng: np.random.Generator,
    cards: dict[int, Cards],
    draw: Draw,
    quota: Int64[np.ndarray, "r s"],
    focal: Int64[np.ndarray, "r s"],
    focal_hpi: Float64[np.ndarray, " r"],
    index: PlanIndex,
    window: float,
) -> Int64[np.ndarray, "r b"]:
    """Share out the draws of a round.

    Parameters
    ----------
    cards
        By pile, the round's draws, sorted by HPI and in random order where it is the same.
    draw
        Draws more for a pile.
    quota, focal
        Samples of each pile in each batch, in all and inside its window.
    focal_hpi
        Of each batch, in hours.
    window
        Half-width of the focal window in hours.
    """
    hands = {(b, s): Hand() for b in range(len(quota)) for s in cards}
    short = np.zeros_like(quota)
    reach = window + _SLACK
    # (pile, batch) → begin and end of the window among the pile's cards, which are sorted by HPI
    edge = {s: np.searchsorted(c.hpi, np.stack([focal_hpi - reach, focal_hpi + reach])).T for s, c in cards.items()}
    waiting = {s: _least_covered_first(rng, c, focal_hpi, window) for s, c in cards.items()}
    for b, s in ((b, s) for b in rng.permutation(len(quota)) for s in cards if focal[b, s]):
        begin, end = edge[s][b]
        near = begin + np.flatnonzero(~cards[s].used[begin:end])
        share = max((end - begin) / max(len(cards[s].anchor), 1), 0.02)
        extra = _Extra(draw, index, s, _window(focal_hpi[b], window, inside=True), share)
        short[b, s] = _fill(cards[s], rng.permutation(near), extra, hands[b, s], int(focal[b, s]), levels=(0, 1, 2))
    rest = quota - focal + short
    for b, s in ((b, s) for b in rng.permutation(len(quota)) for s in cards if rest[b, s]):
        begin, end = edge[s][b]
        waiting[s] = waiting[s][~cards[s].used[waiting[s]]]
        far = waiting[s][(waiting[s] < begin) | (waiting[s] >= end)]
        extra = _Extra(draw, index, s, _window(focal_hpi[b], window, inside=False), 0.5)
        left = _fill(cards[s], far, extra, hands[b, s], int(rest[b, s]), levels=(0,))
        if left:
            anywhere = _Extra(draw, index, s, _everything, 1.0)
            _fill(cards[s], waiting[s], anywhere, hands[b, s], left, levels=(0, 1, 2, 3))
    return np.stack([np.concatenate([a for s in cards for a in hands[b, s].anchors]) for b in range(len(quota))])


def _least_covered_first(
    rng: np.random.Generator, cards: Cards, focal_hpi: Float64[np.ndarray, " r"], window: float
) -> Int64[np.ndarray, " n"]:
    """Order draws by how many windows reach them: the first can best be spared for the part without a window."""
    ends = np.sort(focal_hpi)
    reach = window + _SLACK
    cover = np.searchsorted(ends, cards.hpi + reach, "right") - np.searchsorted(ends, cards.hpi - reach, "left")
    return np.lexsort((rng.random(len(cover)), cover))


def _window(focal: float, window: float, *, inside: bool) -> Callable[[Cards], Bool[np.ndarray, " n"]]:
    return lambda cards: cards.inside(focal, window) == inside


def _everything(cards: Cards) -> Bool[np.ndarray, " n"]:
    return np.ones(len(cards.anchor), bool)


@dataclass(frozen=True, slots=True)
class _Extra:
    """More for a pile, of the kind that is wanted."""

    draw: Draw
    index: PlanIndex
    pile: int
    wanted: Callable[[Cards], Bool[np.ndarray, " n"]]
    share: float

    def cards(self, need: int) -> tuple[Cards, Int64[np.ndarray, " k"]]:
        count = min(int(4 * need / self.share) + 16, _MOST_EXTRA)
        cards = make_cards(self.index, self.draw(self.pile, count))
        return cards, np.flatnonzero(self.wanted(cards))


def _fill(
    cards: Cards,
    allowed: Int64[np.ndarray, " k"],
    extra: _Extra,
    hand: Hand,
    need: int,
    levels: tuple[int, ...],
) -> int:
    """Fill a hand from the draws that are due, else from the pool, relaxing law 4 as far as `levels` says.

    Returns what is still missing.
    """
    for level in levels:
        few = 3 * need + 32  # mostly enough, and cheaper to look through
        need -= cards.choose(hand, allowed[:few], need, level)
        if need and len(allowed) > few:
            need -= cards.choose(hand, allowed[few:], need, level)
        for _ in range(_TRIES):
            if not need:
                return 0
            more, wanted = extra.cards(need)
            found = more.choose(hand, wanted, need, level)
            need -= found
            if not found:
                break
    return need
