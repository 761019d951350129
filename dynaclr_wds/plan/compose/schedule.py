"""Sizes to quotas: which experiment each batch of an epoch is about, and how many samples each stratum gives.

Whole-epoch arithmetic on counts; no anchor is named here. A *group* is what the main part of a batch
is drawn from: one experiment, or everything when `experiment_aware` is off. The batches of a group
are planned together in *rounds*, and `queue_start` says where in each stratum's queue a round's draws begin: so
any round can be planned without the ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from dynaclr_wds.plan.compose.quotas import largest_remainder, spread
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import Stratum


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the main part of a batch is drawn from."""

    name: str
    strata: Int64[np.ndarray, " g"]
    """Strata it draws from."""
    share: Float64[np.ndarray, " g"]
    """Of its samples, per stratum; adds up to 1."""
    partner: Int64[np.ndarray, " s"]
    """Of every stratum of the set, the place in `strata` of the one that shares its condition, else −1.
    Where it is set, a leaked sample counts towards that condition; all −1 when nothing is balanced."""


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


def plan_groups(strata: Sequence[Stratum], sizes: Int64[np.ndarray, " s"], config: SamplingConfig) -> tuple[Group, ...]:
    """Say what the main part of a batch may be drawn from, and in which shares.

    Raises
    ------
    ValueError
        `experiment_weights` or `condition_ratio` names what isn't there, or leaves nothing to draw.
    """
    experiments = list(dict.fromkeys(s.experiment for s in strata))
    conditions = list(dict.fromkeys(s.condition for s in strata))
    _check_names("experiment_weights", config.experiment_weights, experiments)
    _check_names("condition_ratio", config.condition_ratio, conditions)
    groups = []
    for name in experiments if config.experiment_aware else [""]:
        members = np.array([i for i, s in enumerate(strata) if name in ("", s.experiment)], np.int64)
        share = _shares([strata[i].condition for i in members], sizes[members], config)
        if share.sum() > 0:
            members, share = members[share > 0], share[share > 0]
            own = [strata[i].condition for i in members] if config.condition_balanced else []
            partner = np.array([own.index(s.condition) if s.condition in own else -1 for s in strata], np.int64)
            groups.append(Group(name=name, strata=members, share=share / share.sum(), partner=partner))
    if not groups:
        raise ValueError(
            f"condition_ratio={dict(config.condition_ratio or {})!r} leaves nothing to draw; "
            f"conditions are {conditions}."
        )
    return tuple(groups)


def plan_batch_counts(
    groups: Sequence[Group], sizes: Int64[np.ndarray, " s"], config: SamplingConfig
) -> Int64[np.ndarray, " g"]:
    """Batches of each group in an epoch.

    By default as many full batches as its anchors make, and one (with repeats) where they make none; with
    `experiment_weights`, the batches that all anchors make, split by largest remainder.
    """
    own = np.array([sizes[g.strata].sum() for g in groups])
    if config.experiment_weights is None or not config.experiment_aware:
        return np.maximum(own // config.batch_size, 1)
    weight = np.array([config.experiment_weights.get(g.name, 0.0) for g in groups])
    if not weight.any():
        raise ValueError(
            f"experiment_weights={dict(config.experiment_weights)!r} leaves nothing to draw; "
            f"experiments are {[g.name for g in groups]}."
        )
    return largest_remainder(max(int(own.sum()) // config.batch_size, 1), weight)


def plan_schedule(
    groups: tuple[Group, ...],
    order: Int64[np.ndarray, " n"],
    leaks: Sequence[Int64[np.ndarray, "_ s"]],
    config: SamplingConfig,
    round_batches: int,
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
    round_batches
        Batches that are planned together.
    """
    quotas = tuple(_plan_group(g, leak, config, round_batches) for g, leak in zip(groups, leaks, strict=True))
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


def _check_names(field: str, shares: object, names: Sequence[str]) -> None:
    unknown = sorted(set(shares or ()) - set(names))  # type: ignore[call-overload]
    if unknown:
        raise ValueError(f"{field} names {unknown}, which are not in the training set. Known: {list(names)}.")


def _shares(
    conditions: Sequence[str], sizes: Int64[np.ndarray, " g"], config: SamplingConfig
) -> Float64[np.ndarray, " g"]:
    if not config.condition_balanced:
        return sizes / sizes.sum()
    ratio = config.condition_ratio
    out = np.zeros(len(sizes))
    for condition in dict.fromkeys(conditions):
        at = np.array([c == condition for c in conditions])
        out[at] = (1.0 if ratio is None else ratio.get(condition, 0.0)) * sizes[at] / sizes[at].sum()
    return out


def _plan_group(
    group: Group, leak: Int64[np.ndarray, "m s"], config: SamplingConfig, round_batches: int
) -> GroupQuotas:
    """Fill up each batch of a group from its own strata, so that its shares hold with the leak counted in."""
    m, rounds = len(leak), -(-len(leak) // round_batches)
    leaked = np.zeros((m, len(group.strata)), np.int64)
    for stratum in np.flatnonzero(group.partner >= 0):
        leaked[:, group.partner[stratum]] += leak[:, stratum]
    own = spread(config.batch_size - leak.sum(1) + leaked.sum(1), group.share) - leaked
    for row in np.flatnonzero((own < 0).any(1)):
        # more leak of a condition than the whole batch may hold: the batch stays full, the ledger shows it
        short = -int(own[row][own[row] < 0].sum())
        own[row] = np.maximum(own[row], 0)
        own[row] -= np.minimum(largest_remainder(short, own[row]), own[row])
    main = np.zeros_like(leak)
    main[:, group.strata] = own
    return GroupQuotas(main=main, leak=leak, round_first=np.arange(rounds + 1) * m // rounds)
