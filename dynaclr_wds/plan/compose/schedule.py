"""Sizes to quotas: says which group each batch of an epoch is about, and how many samples each stratum gives.

Whole-epoch arithmetic on counts; no anchor is named here. The batches of a group are planned together in *rounds*, and
`queue_start` says where in each stratum's queue a round's draws begin. So any round can be planned without the ones
before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.compose.quotas import largest_remainder, spread
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex, Stratum


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the main part of a batch is drawn from."""

    name: str
    strata: Int64[np.ndarray, " g"]
    """Strata it draws from."""
    share: Float64[np.ndarray, " g"]
    """Of its samples, per stratum; adds up to 1."""
    value: Int64[np.ndarray, " g"]
    """Per stratum, number of its stratify value within the group; all 0 when nothing is balanced."""
    partner: Int64[np.ndarray, " s"]
    """Of every stratum of the set, the number of its stratify value within the group, else −1. A leaked sample counts
    towards that value; all −1 when nothing is balanced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupQuotas:
    """How many samples each stratum gives to each of the m batches of a group."""

    main: Int64[np.ndarray, "m s"]
    leak: Int64[np.ndarray, "m s"]
    round_first: Int64[np.ndarray, " r1"]
    """CSR: batches of the group's round ρ are `round_first[ρ]:round_first[ρ + 1]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One epoch of one stream."""

    groups: tuple[Group, ...]
    order: Int64[np.ndarray, " n"]
    """Group of every batch, in order."""
    occurrence: Int64[np.ndarray, " n"]
    """Which of its group's batches each batch is."""
    quotas: tuple[GroupQuotas, ...]
    round_id: tuple[int, ...]
    """Id of each group's first round; ids count the rounds of all groups."""
    queue_start: Int64[np.ndarray, "rounds s"]
    """By round id: draws from each stratum's queue before the round."""
    queue_stop: Int64[np.ndarray, "rounds s"]
    """By round id: draws from each stratum's queue up to its end."""
    round_span: Int64[np.ndarray, "rounds 2"]
    """By round id: first and last batch, in the order."""
    draws: Int64[np.ndarray, " s"]
    """Draws from each stratum over the epoch."""

    def locate(self, batch: int) -> tuple[int, int, int]:
        """Group, round of the group, and place in the round of a batch."""
        group, occurrence = int(self.order[batch]), int(self.occurrence[batch])
        first = self.quotas[group].round_first
        ordinal = int(np.searchsorted(first, occurrence, side="right")) - 1
        return group, ordinal, occurrence - int(first[ordinal])


def may_be_drawn(strata: Sequence[Stratum], config: SamplingConfig) -> Bool[np.ndarray, " s"]:
    """Say which strata may be drawn from at all: a group or value with weight 0 never is, whatever else is asked."""
    weights, ratio = config.experiment_weights, config.condition_ratio
    group = [weights is None or weights.get(s.group_name, 0.0) > 0 for s in strata]
    value = [ratio is None or ratio.get(s.value_name, 0.0) > 0 for s in strata]
    return np.array(group, bool) & np.array(value, bool)


def plan_groups(index: PlanIndex, sizes: Int64[np.ndarray, " s"], config: SamplingConfig) -> tuple[Group, ...]:
    """Say what the main part of a batch may be drawn from, and in which shares.

    Parameters
    ----------
    index
        Gives the strata.
    sizes
        Anchors per stratum, of the index or of a stream's part of it.

    Raises
    ------
    ConfigError
        `experiment_weights` or `condition_ratio` names what isn't there, or leaves nothing to draw.
    """
    strata = index.strata
    _check_names("experiment_weights", config.experiment_weights, [s.group_name for s in strata])
    _check_names("condition_ratio", config.condition_ratio, [s.value_name for s in strata])
    drawn = may_be_drawn(strata, config)
    groups = []
    for name in dict.fromkeys(s.group_name for s in strata) if config.experiment_aware else [None]:
        members = np.array([i for i, s in enumerate(strata) if drawn[i] and name in (None, s.group_name)], np.int64)
        if len(members):
            groups.append(_make_group(name or "", members, strata, sizes, config))
    if not groups:
        raise ConfigError(
            f"experiment_weights={_plain(config.experiment_weights)} and condition_ratio="
            f"{_plain(config.condition_ratio)} leave nothing to draw; there are {[s.name for s in strata]}. "
            "Give one of them a weight and a share above 0."
        )
    return tuple(groups)


def _make_group(
    name: str,
    members: Int64[np.ndarray, " g"],
    strata: Sequence[Stratum],
    sizes: Int64[np.ndarray, " s"],
    config: SamplingConfig,
) -> Group:
    """Share out a group: first between its values, then inside each by size."""
    ratio, size = config.condition_ratio, sizes[members].astype(np.float64)
    values = [strata[i].value_name if config.condition_balanced else "" for i in members]
    known = {v: number for number, v in enumerate(dict.fromkeys(values))}
    value = np.array([known[v] for v in values], np.int64)
    weight = np.array([1.0 if ratio is None or not config.condition_balanced else ratio[v] for v in known])
    share = weight[value] * size / np.bincount(value, size)[value]
    partner = [known.get(s.value_name, -1) if config.condition_balanced else -1 for s in strata]
    return Group(name=name, strata=members, share=share / share.sum(), value=value, partner=np.array(partner, np.int64))


def plan_batch_counts(
    groups: Sequence[Group], sizes: Int64[np.ndarray, " s"], config: SamplingConfig
) -> Int64[np.ndarray, " g"]:
    """Count the batches of each group in an epoch.

    By default a group has as many full batches as its anchors make, and one (with repeats) where they make none. With
    `experiment_weights`, the batches that all anchors make are split by largest remainder.
    """
    own = np.array([sizes[g.strata].sum() for g in groups])
    if config.experiment_weights is None or not config.experiment_aware:
        return np.maximum(own // config.batch_size, 1)
    return split_by_weight(max(int(own.sum()) // config.batch_size, 1), groups, config)


def split_by_weight(total: int, groups: Sequence[Group], config: SamplingConfig) -> Int64[np.ndarray, " g"]:
    """Split batches between the groups by `experiment_weights`."""
    weights = config.experiment_weights or {}
    return largest_remainder(total, np.array([weights[g.name] for g in groups]))


def plan_schedule(
    groups: tuple[Group, ...],
    order: Int64[np.ndarray, " n"],
    leaks: Sequence[Int64[np.ndarray, "_ s"]],
    config: SamplingConfig,
    batches_per_round: int,
) -> Schedule:
    """Plan the quotas of an epoch.

    Parameters
    ----------
    groups
        From `plan_groups`.
    order
        Group of every batch.
    leaks
        Of each group, the samples that each of its batches takes from each stratum of others.
    config
        What is asked of a batch.
    batches_per_round
        Batches that are planned together, at most.
    """
    quotas = tuple(_plan_group(g, leak, config, batches_per_round) for g, leak in zip(groups, leaks, strict=True))
    occurrence = np.empty(len(order), np.int64)
    spans = []  # (first batch, last batch) of every round, by round id
    for g, quota in enumerate(quotas):
        at = np.flatnonzero(order == g)
        occurrence[at] = np.arange(len(at))
        spans += [(at[a], at[b - 1]) for a, b in zip(quota.round_first[:-1], quota.round_first[1:], strict=True)]
    span = np.array(spans, np.int64).reshape(-1, 2)
    round_id = np.cumsum([0] + [len(q.round_first) - 1 for q in quotas])
    totals = np.zeros((len(span), leaks[0].shape[1]), np.int64)
    for g, quota in enumerate(quotas):
        if len(quota.main):
            totals[round_id[g] : round_id[g + 1]] = np.add.reduceat(quota.main + quota.leak, quota.round_first[:-1])
    in_order = np.argsort(span[:, 0], kind="stable")  # queues are laid out in the order of need
    queue_start = np.zeros_like(totals)
    queue_start[in_order[1:]] = np.cumsum(totals[in_order[:-1]], axis=0)
    return Schedule(
        groups=groups,
        order=order,
        occurrence=occurrence,
        quotas=quotas,
        round_id=tuple(int(i) for i in round_id[:-1]),
        round_span=span,
        queue_start=queue_start,
        queue_stop=queue_start + totals,
        draws=totals.sum(0),
    )


def _plain(shares: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if shares is None else dict(shares)


def _check_names(field: str, shares: Mapping[str, float] | None, names: Sequence[str]) -> None:
    known = list(dict.fromkeys(names))
    if unknown := sorted(set(shares or ()) - set(known)):
        raise ConfigError(f"{field} names {unknown}, which are not in the training set. Known: {known}.")


def _plan_group(
    group: Group, leak: Int64[np.ndarray, "m s"], config: SamplingConfig, batches_per_round: int
) -> GroupQuotas:
    """Fill up each batch of a group from its own strata, so that its shares hold with the leak counted in.

    First the values get their parts of the batch, then the strata of each value theirs of it: so a batch is within one
    sample of every value's quota, however many strata have it.
    """
    m, rounds = len(leak), -(-len(leak) // batches_per_round)
    share = np.bincount(group.value, group.share)
    leaked = np.zeros((m, len(share)), np.int64)
    for stratum in np.flatnonzero(group.partner >= 0):
        leaked[:, group.partner[stratum]] += leak[:, stratum]
    own = spread(config.batch_size - leak.sum(1) + leaked.sum(1), share) - leaked
    for row in np.flatnonzero((own < 0).any(1)):
        # more leak of a value than the whole batch may hold: the batch stays full, the ledger shows it
        short = -int(own[row][own[row] < 0].sum())
        own[row] = np.maximum(own[row], 0)
        own[row] -= np.minimum(largest_remainder(short, own[row]), own[row])
    main = np.zeros_like(leak)
    for value in range(len(share)):
        at = np.flatnonzero(group.value == value)
        main[:, group.strata[at]] = spread(own[:, value], group.share[at])
    return GroupQuotas(main=main, leak=leak, round_first=np.arange(rounds + 1) * m // rounds)
