"""Anchors to positives: draws them when a batch is planned, by the rule that the index was made with.

*Temporal*: clips store their patches by frame, so the candidates of an anchor are the rows of its clip whose frame lies
in the τ range: no list of links is needed. *Self*: the anchor's own patch. *Columns*: a partner from a table of the
anchors within reach, sorted by what they have to agree in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Int64, Integer

from dynaclr_wds.plan.columns import PatchRow, SampleIndex
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.matches import find_kinds
from dynaclr_wds.plan.relatives import list_rows, on_one_line
from dynaclr_wds.tau import least_tau, tau_weights

_TRIES = 16  # blind draws of a partner before all that are left are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Positives:
    """Positives of some anchors."""

    row: Int64[PatchRow, " n"]
    choice: Int64[np.ndarray, " n"] | None
    """Choice of channels of each; None where there is none to make."""


def draw_positives(
    rng: np.random.Generator,
    index: PlanIndex,
    anchors: Int64[SampleIndex, " n"],
    decay_rate: float,
    partners: Partners | None,
) -> Positives:
    """Draw a positive for each anchor.

    Parameters
    ----------
    decay_rate
        Of P(τ), for temporal ones; 0 draws τ uniformly.
    partners
        What positives by columns are drawn from; None for other kinds.
    """
    if partners is not None:
        chosen = partners.draw(rng, anchors)
        return Positives(row=cast(PatchRow, index.row[chosen].astype(np.int64)), choice=index.choice_of(chosen))
    if index.positives.kind == "self":
        row = cast(PatchRow, index.row[anchors].astype(np.int64))
    else:
        row = sample_temporal(rng, index, anchors, decay_rate)
    return Positives(row=row, choice=_draw_choice(rng, index, anchors))


def _draw_choice(
    rng: np.random.Generator, index: PlanIndex, anchors: Int64[SampleIndex, " n"]
) -> Int64[np.ndarray, " n"] | None:
    """Choose the channels of positives that are of their anchor's experiment: its own, or any."""
    if index.choices is None or index.positives.channel == "same":
        return index.choice_of(anchors)
    return rng.integers(0, index.choices.count[index.columns.fov_experiment[index.fov(anchors)]])


def sample_temporal(
    rng: np.random.Generator, index: PlanIndex, anchors: Int64[SampleIndex, " n"], decay_rate: float
) -> Int64[PatchRow, " n"]:
    """Draw a patch of the lineage at t + τ, or at t − τ for anchors that may look behind and have nothing ahead.

    τ is drawn with `tau.tau_weights` among the τ that have a candidate, then uniformly one of the candidates at that τ.

    Parameters
    ----------
    decay_rate
        0 draws τ uniformly.
    """
    columns = index.columns
    own = index.row[anchors].astype(np.int64)
    low, high = index.tau_frames(anchors)
    clip = columns.patch_clip[own]
    everyone = np.arange(len(own))
    # clips are stored by frame, so later frames come after the anchor
    owner, row = list_rows(everyone, own + 1, columns.clip_first[clip + 1])
    owner, row, tau = _keep_in_range(index, own, owner, row, least_tau(low), high)
    if index.positives.tau_direction == "both":
        last = np.setdiff1d(everyone, owner)
        back = list_rows(last, columns.clip_first[clip[last]].astype(np.int64), own[last])
        parts = zip((owner, row, tau), _keep_in_range(index, own, *back, least_tau(low), high), strict=True)
        owner, row, tau = (np.concatenate(pair) for pair in parts)
        order = np.argsort(owner, kind="stable")
        owner, row, tau = owner[order], row[order], tau[order]
    # runs of equal (anchor, τ)
    edge = np.flatnonzero(np.diff(owner) | np.diff(tau)) + 1
    run = np.concatenate([[0], edge]).astype(np.int64)
    length = np.diff(np.concatenate([run, [len(row)]]))
    total = np.cumsum(tau_weights(tau[run], low[owner[run]], high[owner[run]], decay_rate))
    # where each anchor's runs end in `total`; every anchor has at least one
    last = np.searchsorted(owner[run], everyone, "right") - 1
    before = np.concatenate([[0.0], total[last[:-1]]])
    at = np.searchsorted(total, before + rng.random(len(anchors)) * (total[last] - before), "right")
    at = np.clip(at, np.concatenate([[0], last[:-1] + 1]), last)
    return cast(PatchRow, row[run[at] + rng.integers(0, length[at])].astype(np.int64))


def _keep_in_range(
    index: PlanIndex,
    own: Int64[np.ndarray, " n"],
    owner: Int64[np.ndarray, " m"],
    row: Int64[np.ndarray, " m"],
    low: Integer[np.ndarray, " n"],
    high: Integer[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Keep the rows that are as many frames away as their owner allows, and related as asked; with that number."""
    t = index.columns.patch_t
    tau = np.abs(t[row] - t[own][owner])
    least, most = (of[0] if len(of) and (of == of[0]).all() else of[owner] for of in (low, high))
    keep = np.flatnonzero((tau >= least) & (tau <= most))
    owner, row, tau = owner[keep], row[keep], tau[keep].astype(np.int64)
    if index.parents is None:
        return owner, row, tau
    related = on_one_line(index.columns, index.parents, own[owner], row)
    return owner[related], row[related], tau[related]


class Partners:
    """Anchors that positives by columns are drawn from.

    Parameters
    ----------
    index
        Has `match`.
    among
        Anchors within reach.
    """

    def __init__(self, index: PlanIndex, among: Integer[SampleIndex, " m"]) -> None:
        assert index.match is not None
        self._index = index
        number, count = index.match[among], int(index.match.max(initial=-1)) + 1
        order = np.argsort(number, kind="stable")
        self._member = among[order]
        self._first = np.searchsorted(number[order], np.arange(count + 1))
        kinds: list[Callable[[Any], Integer[np.ndarray, " _"]]] = [index.lineage, self._observation]
        self._kinds = [(kind, *find_kinds(number, kind(among), count)) for kind in kinds]

    def draw(self, rng: np.random.Generator, anchors: Int64[SampleIndex, " n"]) -> Int64[SampleIndex, " n"]:
        """Draw a partner for each anchor, uniformly from those of other lineages.

        Where there is none within reach it is another observation of the lineage, and where there is none either, the
        anchor itself.
        """
        index, out = self._index, anchors.copy()
        assert index.match is not None
        number = index.match[anchors]
        left = np.arange(len(anchors))
        for kind, one, several in self._kinds:
            own = kind(anchors[left])
            found = several[number[left]] | ((one[number[left]] >= 0) & (one[number[left]] != own))
            at, left = left[found], left[~found]
            for _ in range(_TRIES):
                if not len(at):
                    break
                out[at] = self._member[rng.integers(self._first[number[at]], self._first[number[at] + 1])]
                at = at[kind(out[at]) == kind(anchors[at])]
            for place in at.tolist():
                members = self._member[self._first[number[place]] : self._first[number[place] + 1]]
                others = members[kind(members) != kind(anchors[[place]])]
                out[place] = others[rng.integers(len(others))]
        return out

    def _observation(self, anchors: Integer[SampleIndex, " n"]) -> Integer[np.ndarray, " n"]:
        return self._index.columns.patch_obs[self._index.row[anchors]]


def make_partners(index: PlanIndex, strata: Integer[np.ndarray, " d"]) -> Partners | None:
    """Make the table of all anchors of some strata; None unless positives are drawn by columns."""
    if index.match is None:
        return None
    kind = np.int32 if len(index.row) < 1 << 31 else np.int64
    parts = [np.arange(index.first[s], index.first[s + 1], dtype=kind) for s in np.sort(strata).tolist()]
    return Partners(index, cast(SampleIndex, np.concatenate(parts)))
