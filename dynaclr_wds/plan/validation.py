"""Index to validation table: lists every anchor once, ordered so that each batch is composed like a training batch.

The table is read from front to back without a batch sampler, `batch_size` samples at a time. Every such run is of one
group, its stratify values are balanced as far as their samples last, and lineages are distinct as far as possible, so
a validation loss can be compared with the training loss. Groups alternate in proportion, so the first n batches are a
fair sample of all. What is left of each group, less than a batch, comes at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.compose.negatives import Offer, make_offer, sample_negatives
from dynaclr_wds.plan.compose.pool import WholePool
from dynaclr_wds.plan.compose.positives import draw_positives, make_partners
from dynaclr_wds.plan.compose.quotas import interleave, largest_remainder, spread
from dynaclr_wds.plan.compose.rounds import assemble_dealt
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.rng import Tag, make_generator

_BATCHES_PER_ROUND = 32
_LEAST_BATCHES = 4  # least batches of a round: in fewer, lineages can hardly be kept distinct
_CHUNK = 1 << 16


def plan_validation(index: PlanIndex, config: SamplingConfig) -> BatchPlan:
    """List every anchor once, with a positive (and a negative, if asked for); a function of index and config.

    `group_weights` say how training batches are split between groups, so they play no part here, and nothing is
    left out: a value with share 0 comes when the others are used up.

    Parameters
    ----------
    config
        `batch_size`, `experiment_aware`, `condition_balanced`, `stratify_ratio`, `tau_decay_rate`, `return_negative`
        and `seed` are used.
    """
    anchors = _order_anchors(index, config)
    rng = make_generator(Tag.POSITIVE, config.seed)
    chunks = [cast(SampleIndex, anchors[a : a + _CHUNK]) for a in range(0, len(anchors), _CHUNK)]
    partners = make_partners(index, np.arange(len(index.strata)))
    positive = [draw_positives(rng, index, chunk, config.tau_decay_rate, partners) for chunk in chunks]
    choices = [p.choice for p in positive if p.choice is not None]
    negative, negative_choice = None, None
    if config.return_negative:
        found = _sample_negatives(make_generator(Tag.NEGATIVE, config.seed), index, chunks)
        negative, negative_choice = cast(PatchRow, index.row[found].astype(np.int64)), index.choice_of(found)
    return BatchPlan(
        number=0,
        anchor=cast(PatchRow, index.row[anchors].astype(np.int64)),
        positive=cast(PatchRow, np.concatenate([np.zeros(0, np.int64), *(p.row for p in positive)])),
        negative=negative,
        anchor_choice=index.choice_of(anchors),
        positive_choice=np.concatenate(choices) if choices else None,
        negative_choice=negative_choice,
    )


def _order_anchors(index: PlanIndex, config: SamplingConfig) -> Int64[SampleIndex, " n"]:
    """Order all anchors: the groups' full batches in turn, then what is left of each group."""
    number_of = index.group_of if config.experiment_aware else np.zeros_like(index.group_of)
    pool = WholePool(index, config.seed, 0, Tag.VALIDATION)
    full, left = [], [np.zeros(0, np.int64)]
    for number in range(int(number_of.max(initial=-1)) + 1):
        members = np.flatnonzero(number_of == number).tolist()
        rng = make_generator(Tag.VALIDATION, config.seed, 0, number, 1)
        batches, rest = _order_group(rng, pool, members, config)
        full.append(batches)
        left.append(rest)
    turns = interleave(np.array([len(batches) for batches in full], np.int64)) if full else np.zeros(0, np.int64)
    out = np.empty((len(turns), config.batch_size), np.int64)
    for group, batches in enumerate(full):
        out[turns == group] = batches
    return cast(SampleIndex, np.concatenate([out.ravel(), *left]))


def _order_group(
    rng: np.random.Generator, pool: WholePool, members: Sequence[int], config: SamplingConfig
) -> tuple[Int64[SampleIndex, "m b"], Int64[SampleIndex, " k"]]:
    """Make full batches of a group's anchors, and list those that are left."""
    sizes = pool.index.sizes[list(members)]
    value, share = _values(pool.index, members, config)
    quota = np.zeros((int(sizes.sum()) // config.batch_size, len(members)), np.int64)
    by_value = plan_lasting_quotas(np.bincount(value, sizes).astype(np.int64), share, config.batch_size)
    for v in range(len(share)):
        at = np.flatnonzero(value == v)
        count = by_value[:, v]
        if count.any():  # no stratum may give more than it has
            turns = interleave(largest_remainder(int(count.sum()), sizes[at]))
            np.add.at(quota, (np.repeat(np.arange(len(count)), count), at[turns]), 1)
    strata = np.array(members, np.int64)
    due = pool.due(strata, np.zeros_like(strata), sizes)
    queue_first = np.cumsum(sizes) - sizes
    stop = np.cumsum(quota, axis=0)
    batches = [np.zeros((0, config.batch_size), np.int64)]
    for begin, stop_batch in pairwise(_cut_rounds(quota)):
        part = quota[begin:stop_batch]
        start, end = stop[begin] - quota[begin], stop[stop_batch - 1]
        drawn = due[_join_slices(queue_first + start, end - start)]
        batches.append(rng.permuted(assemble_dealt(rng, pool.index, cast(SampleIndex, drawn), part), axis=1))
    taken = quota.sum(0)
    rest = due[_join_slices(queue_first + taken, sizes - taken)]
    return cast(SampleIndex, np.concatenate(batches)), cast(SampleIndex, rng.permutation(rest))


def _join_slices(begin: Int64[np.ndarray, " g"], length: Int64[np.ndarray, " g"]) -> Int64[np.ndarray, " n"]:
    """Places `begin … begin + length` of each row, one row after another."""
    return np.arange(int(length.sum())) + np.repeat(begin - (np.cumsum(length) - length), length)


def _cut_rounds(quota: Int64[np.ndarray, "m s"]) -> list[int]:
    """Cut a group's batches into rounds of batches of about the same quotas; returns the edges."""
    changes = 1 + np.flatnonzero((np.abs(np.diff(quota, axis=0)) > 1).any(1))
    edges = [0]
    for change in [*changes.tolist(), len(quota)]:
        if change - edges[-1] >= _LEAST_BATCHES or change == len(quota) > edges[-1]:
            rounds = -(-(change - edges[-1]) // _BATCHES_PER_ROUND)
            edges += [edges[-1] + (change - edges[-1]) * (r + 1) // rounds for r in range(rounds)]
    return edges


def _values(
    index: PlanIndex, members: Sequence[int], config: SamplingConfig
) -> tuple[Int64[np.ndarray, " g"], Float64[np.ndarray, " v"]]:
    """Stratify value of each of a group's strata, as a number, and the share of each value in a batch."""
    names = [index.strata[s].value_name if config.condition_balanced else "" for s in members]
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    ratio = config.ratio if config.condition_balanced else None
    share = [1.0 if ratio is None else float(ratio.get(name, 0.0)) for name in known]
    return np.array([known[name] for name in names], np.int64), np.array(share)


def plan_lasting_quotas(
    left: Int64[np.ndarray, " v"], share: Float64[np.ndarray, " v"], batch_size: int
) -> Int64[np.ndarray, "m v"]:
    """Split all full batches between values by share while their samples last, then between those that are left.

    Parameters
    ----------
    left
        Samples of each value.
    share
        Share of each value in a batch, on any scale. Values with share 0 come when all others are used up, in
        proportion to their samples.
    """
    left, parts = left.copy(), [np.zeros((0, len(left)), np.int64)]
    while left.sum() >= batch_size:
        lasts = left > 0
        weight = np.where(lasts, share if (share[lasts] > 0).any() else left, 0).astype(np.float64)
        each = weight / weight.sum() * batch_size
        used = each > 0
        batches = int(np.floor((left[used] / each[used]).min() + 1e-9))
        if batches:
            part = spread(np.full(batches, batch_size), weight)
        else:  # the batch in which a value is used up: the others fill it
            part = _fill_batch(left, weight, batch_size)[None, :]
        parts.append(part)
        left -= part.sum(0)
    return np.concatenate(parts)


def _fill_batch(
    left: Int64[np.ndarray, " v"], weight: Float64[np.ndarray, " v"], batch_size: int
) -> Int64[np.ndarray, " v"]:
    """Take a batch by weight, no more of a value than is left of it, and the rest from the others."""
    taken = np.zeros_like(left)
    while (missing := batch_size - int(taken.sum())) > 0:
        can = left > taken
        by = np.where(can, weight, 0.0)
        taken += largest_remainder(missing, by if by.any() else np.where(can, left - taken, 0))
        taken = np.minimum(taken, left)
    return taken


def _sample_negatives(
    rng: np.random.Generator, index: PlanIndex, chunks: Sequence[Int64[SampleIndex, " _"]]
) -> Int64[SampleIndex, " n"]:
    """Draw a negative for each anchor from all of its group."""

    @functools.cache
    def members(group: int) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
        own = np.flatnonzero(index.group_of == group)
        return index.first[own], np.cumsum(index.sizes[own])

    def draw(group: int, count: int) -> Offer:
        first, total = members(group)
        place = rng.integers(0, total[-1], count)
        part = np.searchsorted(total, place, "right")
        before = np.concatenate([[0], total[:-1]])
        return make_offer(index, cast(SampleIndex, first[part] + place - before[part]))

    no_window = np.full(1, np.nan)
    found = [sample_negatives(rng, index, cast(SampleIndex, c[None]), no_window, 0.0, draw)[0] for c in chunks]
    return cast(SampleIndex, np.concatenate(found) if found else np.zeros(0, np.int64))
