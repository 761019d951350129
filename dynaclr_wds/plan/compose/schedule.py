"""Sizes to quotas: says which group each batch of an epoch is about, and how many samples each stratum gives.

Whole-epoch arithmetic on counts; no anchor is named here. The batches of a group are planned together in *rounds*, and
`queue_start` says where in each stratum's queue a round's draws begin. So any round can be planned without the ones
before it. Only strata that a round draws from are listed, as there may be many more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int64, Integer

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.compose.group_quotas import Group, GroupQuotas, Leak, RoundDraws, plan_group_quotas
from dynaclr_wds.plan.compose.quotas import largest_remainder
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex

_LISTED = 20


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
    round_draws: tuple[RoundDraws, ...]
    """By round id: what the round draws from the queues."""
    queue_start: tuple[Integer[np.ndarray, " _"], ...]
    """By round id: draws from the queue of each of its strata before the round."""
    round_span: Int64[np.ndarray, "rounds 2"]
    """By round id: first and last batch, in the order."""
    draws: Int64[np.ndarray, " s"]
    """Draws from each stratum over the epoch."""
    strata: Int64[np.ndarray, " d"]
    """Those that any group draws from, ascending."""

    def locate(self, batch: int) -> tuple[int, int, int]:
        """Group, round of the group, and place in the round of a batch."""
        group, occurrence = int(self.order[batch]), int(self.occurrence[batch])
        first = self.quotas[group].round_first
        ordinal = int(np.searchsorted(first, occurrence, side="right")) - 1
        return group, ordinal, occurrence - int(first[ordinal])


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumRounds:
    """The rounds that draw from one stratum, in the order of their first batch."""

    span: Int64[np.ndarray, "r 2"]
    start: Int64[np.ndarray, " r"]
    """Draws from its queue before each."""
    stop: Int64[np.ndarray, " r"]


def list_rounds(schedule: Schedule) -> list[StratumRounds]:
    """List the rounds of every stratum."""
    order = np.argsort(schedule.round_span[:, 0], kind="stable")
    rounds = [schedule.round_draws[r] for r in order.tolist()]
    stratum = np.concatenate([r.strata for r in rounds])
    by_stratum = np.argsort(stratum, kind="stable")
    count = np.concatenate([r.count for r in rounds]).astype(np.int64)[by_stratum]
    start = np.concatenate([schedule.queue_start[r] for r in order.tolist()]).astype(np.int64)[by_stratum]
    span = schedule.round_span[np.repeat(order, [len(r.strata) for r in rounds])[by_stratum]]
    edges = np.searchsorted(stratum[by_stratum], np.arange(len(schedule.draws) + 1)).tolist()
    return [StratumRounds(span=span[a:b], start=start[a:b], stop=(start + count)[a:b]) for a, b in pairwise(edges)]


def may_be_drawn(index: PlanIndex, config: SamplingConfig) -> Bool[np.ndarray, " s"]:
    """Say which strata may be drawn from at all: a group or value with weight 0 never is, whatever else is asked."""
    weights, ratio = config.weights, config.ratio
    group = [weights is None or weights.get(name, 0.0) > 0 for name in index.group_names]
    value = [ratio is None or ratio.get(name, 0.0) > 0 for name in index.value_names]
    return np.array(group, bool)[index.group_of] & np.array(value, bool)[index.value_of]


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
        `group_weights` or `stratify_ratio` names what isn't there, or leaves nothing to draw.
    """
    _check_names(config.weights_name, config.weights, index.group_names, "batch_group_by")
    _check_names(config.ratio_name, config.ratio, index.value_names, "stratify_by")
    drawn = np.flatnonzero(may_be_drawn(index, config))
    if not len(drawn):
        raise ConfigError(
            f"{config.weights_name}={_plain(config.weights)} and {config.ratio_name}="
            f"{_plain(config.ratio)} leave nothing to draw; there are "
            f"{[s.name for s in index.strata[:_LISTED]]}. Give one of them a weight and a share above 0."
        )
    if not config.experiment_aware:
        return (_make_group("", drawn, index, sizes, config),)
    drawn = drawn[np.argsort(index.group_of[drawn], kind="stable")]
    number, first = np.unique(index.group_of[drawn], return_index=True)
    parts, names = np.split(drawn, first[1:]), index.group_names
    return tuple(
        _make_group(names[g], members, index, sizes, config) for g, members in zip(number.tolist(), parts, strict=True)
    )


def _make_group(
    name: str,
    members: Int64[np.ndarray, " g"],
    index: PlanIndex,
    sizes: Int64[np.ndarray, " s"],
    config: SamplingConfig,
) -> Group:
    """Share out a group: first between its values, then inside each by size."""
    ratio, size = config.ratio, sizes[members].astype(np.float64)
    if not config.condition_balanced:
        nothing = np.zeros(len(members), np.int64)
        return Group(name=name, strata=members, share=size / size.sum(), value=nothing, codes=nothing[:0])
    known, first, number = np.unique(index.value_of[members], return_index=True, return_inverse=True)
    order = np.argsort(first)  # values are numbered in the order of their first place
    codes, value = known[order], np.argsort(order)[number]
    names = index.value_names
    weight = np.array([1.0 if ratio is None else ratio[names[c]] for c in codes.tolist()])
    share = weight[value] * size / np.bincount(value, size)[value]
    return Group(name=name, strata=members, share=share / share.sum(), value=value, codes=codes)


def plan_batch_counts(
    groups: Sequence[Group], sizes: Int64[np.ndarray, " s"], config: SamplingConfig
) -> Int64[np.ndarray, " g"]:
    """Count the batches of each group in an epoch.

    By default a group has as many full batches as its anchors make, and one (with repeats) where they make none. With
    `group_weights`, the batches that all anchors make are split by largest remainder.
    """
    own = np.array([sizes[g.strata].sum() for g in groups])
    if config.weights is None or not config.experiment_aware:
        return np.maximum(own // config.batch_size, 1)
    return _split_by_weight(max(int(own.sum()) // config.batch_size, 1), groups, config)


def fit_batches(
    groups: Sequence[Group], sizes: Int64[np.ndarray, " s"], total: int, config: SamplingConfig
) -> Int64[np.ndarray, " g"]:
    """Make the batches of the groups add up to `total`: by weight, or with least repeats."""
    if config.weights is not None and config.experiment_aware:
        return _split_by_weight(total, groups, config)
    if len(groups) == 1:
        return np.array([total])
    out = plan_batch_counts(groups, sizes, config)
    own = np.array([sizes[g.strata].sum() for g in groups])
    while out.sum() != total:
        step = 1 if out.sum() < total else -1
        left = own - (out + (step > 0)) * config.batch_size
        if step > 0:
            out[int(left.argmax())] += 1
        else:
            out[int(np.where(out > 1, out, 0).argmax())] -= 1
    return out


def _split_by_weight(total: int, groups: Sequence[Group], config: SamplingConfig) -> Int64[np.ndarray, " g"]:
    """Split batches between the groups by `group_weights`."""
    weights = config.weights or {}
    return largest_remainder(total, np.array([weights[g.name] for g in groups]))


def plan_schedule(
    rng: np.random.Generator,
    groups: tuple[Group, ...],
    order: Int64[np.ndarray, " n"],
    leaks: Sequence[Leak],
    value_of: Int64[np.ndarray, " s"],
    batch_size: int,
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
        Of each group, what its batches take from others.
    value_of
        Code of the value of every stratum that there is.
    batches_per_round
        Batches that are planned together, at most.
    """
    occurrence = np.empty(len(order), np.int64)
    quotas: list[GroupQuotas] = []
    draws: list[RoundDraws] = []
    spans, round_id = [], []  # (first batch, last batch) of every round, by round id; first round of each group
    for g, (group, leak) in enumerate(zip(groups, leaks, strict=True)):
        at = np.flatnonzero(order == g)
        occurrence[at] = np.arange(len(at))
        rounds = -(-len(at) // batches_per_round)
        round_first = np.arange(rounds + 1) * len(at) // max(rounds, 1)
        quota, drawn = plan_group_quotas(rng, group, leak, value_of, batch_size, round_first)
        spans += [(at[a], at[b - 1]) for a, b in pairwise(round_first.tolist())]
        round_id.append(len(draws))
        quotas.append(quota)
        draws += drawn
    span = np.array(spans, np.int64).reshape(-1, 2)
    before = np.zeros(len(value_of), np.int64)
    start: list[Integer[np.ndarray, " _"]] = [before[:0]] * len(span)
    for r in np.argsort(span[:, 0], kind="stable").tolist():  # queues are laid out in the order of need
        strata = draws[r].strata
        start[r] = before[strata].astype(np.int32 if before.max(initial=0) < 1 << 31 else np.int64)
        before[strata] += draws[r].count
    return Schedule(
        groups=groups,
        order=order,
        occurrence=occurrence,
        quotas=tuple(quotas),
        round_id=tuple(round_id),
        round_draws=tuple(draws),
        queue_start=tuple(start),
        round_span=span,
        draws=before,
        strata=np.unique(np.concatenate([g.strata for g in groups])),
    )


def _plain(shares: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if shares is None else dict(shares)


def _check_names(field: str, shares: Mapping[str, float] | None, known: Sequence[str], labels: str) -> None:
    if shares is not None and not any(known):
        raise ConfigError(
            f"{field}={dict(shares)!r:.200}, but {labels} names no label to tell apart. Leave {field} out."
        )
    if unknown := sorted(set(shares or ()) - set(known)):
        more = f", … ({len(known):,} in all)" if len(known) > _LISTED else ""
        raise ConfigError(
            f"{field} names {unknown[:_LISTED]}, which are not in the training set. Known: "
            f"{list(known[:_LISTED])}{more}."
        )
