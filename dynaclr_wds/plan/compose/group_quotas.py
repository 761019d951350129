"""Shares to quotas: says how many samples each stratum gives to each batch of one group.

Where a group has few strata, the epoch is a table of batches and strata. Where it has many, most of them give less
than one sample to a batch, and such a table would hold zeros: then the epoch is counted by value, each value's draws
are laid out evenly over the rounds, and a round deals its draws to its batches, in an order of values that is new each
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64, Integer

from dynaclr_wds.plan.compose.lineages import separate
from dynaclr_wds.plan.compose.quotas import (
    count_numbers,
    largest_remainder,
    merge_evenly,
    sample_counts,
    sample_nested_counts,
    space_out,
    spread,
)
from dynaclr_wds.plan.rng import sort_small

MANY = 128
"""Strata up to which quotas are a table."""
_FREQUENT = 0.5  # samples a batch from which a value has a column of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the main part of a batch is drawn from."""

    name: str
    strata: Int64[np.ndarray, " g"]
    """Strata it draws from, ascending."""
    share: Float64[np.ndarray, " g"]
    """Of its samples, per stratum; adds up to 1."""
    value: Int64[np.ndarray, " g"]
    """Per stratum, number of its stratify value within the group; all 0 when nothing is balanced."""
    codes: Int64[np.ndarray, " v"]
    """Of the group's values, their codes in the set; empty when nothing is balanced."""

    def number(self, codes: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Find values by their codes in the set; −1 where the group lacks one, or nothing is balanced."""
        if not len(self.codes):
            return np.full(len(codes), -1)
        order = np.argsort(self.codes)
        found = order[np.searchsorted(self.codes, codes, sorter=order).clip(max=len(order) - 1)]
        return np.where(self.codes[found] == codes, found, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Samples that the batches of a group take from other groups, one batch after another."""

    stratum: Integer[np.ndarray, " n"]
    first: Int64[np.ndarray, " m1"]
    """CSR: those of batch i are `first[i]:first[i + 1]`."""

    @property
    def batch(self) -> Int64[np.ndarray, " n"]:
        """Batch of each."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDraws:
    """What a round draws from the queues."""

    strata: Integer[np.ndarray, " k"]
    """Ascending."""
    count: Integer[np.ndarray, " k"]
    """Draws from each, all > 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupQuotas:
    """How many samples the m batches of a group take of what."""

    group: Group
    own: Integer[np.ndarray, "m c"]
    """From the group's own strata, by column."""
    column: Int64[np.ndarray, " g"]
    """Of each of the group's strata: one of its own, or, where there are many, that of its value; rare values share the
    last one."""
    leak: Leak
    value_of: Int64[np.ndarray, " s"]
    """Code of each stratum's value, for all strata of the schedule."""
    round_first: Int64[np.ndarray, " r1"]
    """CSR: batches of the group's round ρ are `round_first[ρ]:round_first[ρ + 1]`."""

    def of_round(self, rng: np.random.Generator, ordinal: int, draws: RoundDraws) -> Int64[np.ndarray, "r k"]:
        """Samples of each of the round's strata in each of its batches."""
        begin, end = self.round_first[ordinal : ordinal + 2].tolist()
        own = self.own[begin:end].astype(np.int64)
        out = np.zeros((end - begin, len(draws.strata)), np.int64)
        leaked = slice(self.leak.first[begin], self.leak.first[end])
        stratum = self.leak.stratum[leaked]
        batch = np.repeat(np.arange(end - begin), np.diff(self.leak.first[begin : end + 1]))
        np.add.at(out, (batch, np.searchsorted(draws.strata, stratum)), 1)
        if len(self.group.strata) <= MANY:
            given = np.flatnonzero(own.any(0))
            out[:, np.searchsorted(draws.strata, self.group.strata[given])] = own[:, given]
            return out
        np.add.at(out, self._deal(rng, own, draws, (batch, self.value_of[stratum])), 1)
        return out

    def _deal(
        self,
        rng: np.random.Generator,
        own: Int64[np.ndarray, "r c"],
        draws: RoundDraws,
        leaked: tuple[Int64[np.ndarray, " l"], Int64[np.ndarray, " l"]],
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Deal the round's draws to its batches; `leaked` is batch and value of what leaks into them.

        Returns
        -------
        Batch and place in `draws` of each.
        """
        group = self.group
        at = np.searchsorted(group.strata, draws.strata).clip(max=len(group.strata) - 1)
        mine = np.flatnonzero(group.strata[at] == draws.strata)
        pick = np.repeat(mine, draws.count[mine])
        value = group.value[at[pick]]
        column = self.column[at[pick]]
        # value by value, in random order: so in turns over the batches a value meets others each time
        order = sort_small(rng.permutation(int(group.value.max()) + 1)[value])
        order = order[sort_small(column[order])]
        pick, value, column = pick[order], value[order], column[order]
        of, batch = np.nonzero(own.T)
        size = own[batch, of]
        turn = np.arange(len(pick)) - np.repeat(np.cumsum(size) - size, size)
        of, batch = np.repeat(of, size), np.repeat(batch, size)
        place = of * (int(turn.max(initial=0)) + 1) + turn
        batch = batch[sort_small(place * len(own) + rng.permutation(len(own))[batch])]
        rare = column == self.own.shape[1] - 1
        number = group.number(leaked[1])
        known = number >= 0
        # a value of less than one sample a batch is there once, leaked ones counted in; these stay where they are
        others = np.arange(np.count_nonzero(known)) + 1
        batch[rare] = separate(
            rng,
            np.concatenate([batch[rare], leaked[0][known]]),
            np.concatenate([np.zeros(np.count_nonzero(rare), np.int64), others]),
            np.concatenate([value[rare], number[known]]),
        )[: np.count_nonzero(rare)]
        return batch, pick


def plan_group_quotas(
    rng: np.random.Generator,
    group: Group,
    leak: Leak,
    value_of: Int64[np.ndarray, " s"],
    batch_size: int,
    round_first: Int64[np.ndarray, " r1"],
) -> tuple[GroupQuotas, list[RoundDraws]]:
    """Fill up each batch of a group from its own strata, so that its shares hold with the leak counted in.

    First the values get their parts of the batch, then the strata of each value theirs of it: so a batch is within one
    sample of every value's quota, however many strata have it.

    Parameters
    ----------
    value_of
        Code of each stratum's value.
    round_first
        CSR: the batches of each round.

    Returns
    -------
    The quotas, and what each round draws.
    """
    rounds = len(round_first) - 1
    if len(group.strata) <= MANY:
        if _leaks_too_much(group, leak, value_of, batch_size):
            leak = _part_values(leak, value_of, round_first)
        own, column = _fill_table(group, leak, value_of, batch_size), np.arange(len(group.strata))
        most = np.iinfo(np.uint16).max
        by_round = np.add.reduceat(own, round_first[:-1]) if len(own) else np.zeros((0, len(column)), np.int64)
        of, at = np.nonzero(by_round)
        draws = _count_rounds(leak, round_first, of, group.strata[at], by_round[of, at])
        own = own.astype(np.uint16) if own.max(initial=0) <= most else own
    else:
        leak = _part_values(leak, value_of, round_first)
        own, column, stratum, of_draw = _fill_many(rng, group, leak, value_of, batch_size, round_first)
        edge = np.searchsorted(of_draw, np.arange(rounds + 1)).tolist()
        found = [np.unique(stratum[a:b], return_counts=True) for a, b in pairwise(edge)]
        nothing = np.zeros(0, np.int64)
        drawn, count = (np.concatenate([nothing, *(pair[k] for pair in found)]) for k in range(2))
        of = np.repeat(np.arange(rounds), [len(pair[0]) for pair in found])
        draws = _count_rounds(leak, round_first, of, group.strata[drawn], count)
    return GroupQuotas(
        group=group, own=own, column=column, leak=leak, value_of=value_of, round_first=round_first
    ), draws


def _count_rounds(
    leak: Leak,
    round_first: Int64[np.ndarray, " r1"],
    rounds: Int64[np.ndarray, " n"],
    strata: Int64[np.ndarray, " n"],
    count: Int64[np.ndarray, " n"],
) -> list[RoundDraws]:
    """Put together what each round draws from the group's own strata and from others.

    Parameters
    ----------
    rounds, strata, count
        What each round draws from the group's own strata, each pair of round and stratum once.
    """
    total = len(round_first) - 1
    span = 1 + max(int(strata.max(initial=0)), int(leak.stratum.max(initial=0)))
    leaked = np.repeat(np.arange(total), np.diff(leak.first[round_first])) * span + leak.stratum
    others, leaks = count_numbers(leaked)
    key = np.concatenate([rounds * span + strata, others])
    order = np.argsort(key, kind="stable")
    number, stratum = np.divmod(key[order], span)
    stratum, each = stratum.astype(np.int32), np.concatenate([count, leaks])[order].astype(np.int32)
    edges = np.searchsorted(number, np.arange(total + 1)).tolist()
    return [RoundDraws(strata=stratum[a:b], count=each[a:b]) for a, b in pairwise(edges)]


def _fill_table(
    group: Group, leak: Leak, value_of: Int64[np.ndarray, " s"], batch_size: int
) -> Int64[np.ndarray, "m g"]:
    """Samples of each of a group's strata in each batch."""
    share = np.bincount(group.value, group.share)
    own = _fill_columns(leak, group.number(value_of[leak.stratum]), share, batch_size)
    main = np.zeros((len(own), len(group.strata)), np.int64)
    for value in range(len(share)):
        at = np.flatnonzero(group.value == value)
        main[:, at] = spread(own[:, value], group.share[at])
    return main


def _fill_columns(
    leak: Leak, column: Int64[np.ndarray, " n"], share: Float64[np.ndarray, " c"], batch_size: int
) -> Int64[np.ndarray, "m c"]:
    """Own samples of each column in each batch; a leaked sample counts towards its column, −1 is none."""
    wanted = np.diff(leak.first)
    leaked = np.zeros((len(wanted), len(share)), np.int64)
    known = column >= 0
    np.add.at(leaked, (leak.batch[known], column[known]), 1)
    own = spread(batch_size - wanted + leaked.sum(1), share) - leaked
    rows = np.flatnonzero((own < 0).any(1))
    asked = (own[rows] + leaked[rows]).sum(1, keepdims=True) * (share / share.sum())
    own[rows] = np.maximum(own[rows], 0)
    while len(rows):  # more leaks of a column than it is to have: the others, which have most of their share, give way
        over = own[rows].sum(1) + wanted[rows] - batch_size
        rows, asked = rows[over > 0], asked[over > 0]
        above = np.where(own[rows] > 0, own[rows] + leaked[rows] - asked, -np.inf)
        own[rows, above.argmax(1)] -= 1
    return own


def _fill_many(
    rng: np.random.Generator,
    group: Group,
    leak: Leak,
    value_of: Int64[np.ndarray, " s"],
    batch_size: int,
    round_first: Int64[np.ndarray, " r1"],
) -> tuple[Integer[np.ndarray, "m c"], Int64[np.ndarray, " g"], Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
    """Count an epoch of many strata.

    Returns
    -------
    Samples of each column in each batch, column of each stratum, and, by round, stratum and round of each draw.
    """
    share = np.bincount(group.value, group.share)
    often = share * batch_size >= _FREQUENT
    last = int(often.sum())
    column = np.where(often, np.cumsum(often) - 1, last)
    number = group.number(value_of[leak.stratum])
    shares = np.append(share[often], share[~often].sum())
    own = _fill_columns(leak, np.where(number < 0, -1, column[number]), shares, batch_size)
    draws = np.zeros(len(share), np.int64)
    draws[often] = own[:, :last].sum(0)
    if last < len(share):
        leaked = np.bincount(number[number >= 0], minlength=len(share))[~often]
        draws[~often] = _count_rare(rng, int(own[:, last].sum()), leaked, share[~often])
    by_value = np.lexsort((group.strata, group.value))
    count = sample_nested_counts(rng, draws, group.value[by_value], group.share[by_value])
    stratum = by_value[space_out(rng, count, group.value[by_value])].astype(np.int32)
    # draws stand value by value; each value's are cut into rounds, and rare ones are merged first
    value = np.repeat(np.arange(len(share)), draws)
    by_round = np.add.reduceat(own, round_first[:-1]) if len(own) else np.zeros((0, last + 1), np.int64)
    numbers = np.arange(len(by_round), dtype=np.int32)
    merged = stratum[~often[value]][merge_evenly(rng, draws[~often])]
    stratum = np.concatenate([stratum[often[value]], merged])
    rounds = np.concatenate(
        [np.repeat(np.tile(numbers, last), by_round[:, :last].T.ravel()), np.repeat(numbers, by_round[:, last])]
    )
    order = np.argsort(rounds.astype(np.min_scalar_type(len(by_round))), kind="stable")
    kind = np.min_scalar_type(int(own.max(initial=0)))
    return own.astype(kind), column[group.value], stratum[order], rounds[order]


def _count_rare(
    rng: np.random.Generator, total: int, leaked: Int64[np.ndarray, " v"], share: Float64[np.ndarray, " v"]
) -> Int64[np.ndarray, " v"]:
    """Own draws of each rare value over the epoch: its share of all, less those that leak in."""
    own = np.maximum(sample_counts(rng, total + int(leaked.sum()), share) - leaked, 0)
    above = int(own.sum()) - total
    return own - largest_remainder(above, own) if above else own


def _leaks_too_much(group: Group, leak: Leak, value_of: Int64[np.ndarray, " s"], batch_size: int) -> bool:
    """Whether more leaks into a batch of a value than its share, rounded up."""
    number = group.number(value_of[leak.stratum])
    known = number >= 0
    share = np.bincount(group.value, group.share)
    pair, count = count_numbers(leak.batch[known] * len(share) + number[known])
    return bool((count > np.ceil(share[pair % len(share)] * batch_size)).any())


def _part_values(leak: Leak, value_of: Int64[np.ndarray, " s"], round_first: Int64[np.ndarray, " r1"]) -> Leak:
    """Deal the leak of each round to its batches in turn, value by value, so that those of a value part."""
    batch = leak.batch
    rounds = np.searchsorted(round_first, batch, "right")
    turn = np.arange(len(batch)) - leak.first[batch]
    slots = np.lexsort((batch, turn, rounds))
    stratum = np.empty_like(leak.stratum)
    stratum[slots] = leak.stratum[np.lexsort((value_of[leak.stratum], rounds))]
    return Leak(stratum=stratum, first=leak.first)
