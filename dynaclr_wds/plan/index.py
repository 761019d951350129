"""Holds the anchors that the plan may draw, by stratum, and looks up what is asked of them. `listing` makes it.

The columns are memory-mapped and in stored order; beside them there is one compact list of anchors, grouped by
stratum. Everything else about an anchor is gathered when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from jaxtyping import Float64, Int, Int64, Integer

from dynaclr_wds.plan.channels import ChannelChoices
from dynaclr_wds.plan.columns import PatchRow, PlanColumns, SampleIndex
from dynaclr_wds.plan.config import TEMPORAL, PositiveRule
from dynaclr_wds.words import count_of

_MANY = 64
"""Strata up to which each is looked through by itself."""
_LOOK_UPS = 8
"""Anchors of which the blocks are found while the edge of one block is looked up among them."""


def join_values(values: Sequence[str | None]) -> str:
    """Name label values in one string, `/` between them and `~` for null; how users name groups and values."""
    return "/".join("~" if v is None else v for v in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """One value of (experiment, group labels, stratify labels), with the clock of its experiment."""

    experiment: str
    group: tuple[str | None, ...]
    """Values of the `batch_group_by` labels."""
    value: tuple[str | None, ...]
    """Values of the `stratify_by` labels."""
    interval_minutes: float
    start_hpi: float
    tau_frames: tuple[int, int]
    """τ range of the draws in frames, both ends included."""

    @property
    def group_name(self) -> str:
        """Group as one string."""
        return join_values(self.group)

    @property
    def value_name(self) -> str:
        """Stratify value as one string."""
        return join_values(self.value)

    @property
    def name(self) -> str:
        """Experiment, group and value in one string; the group is left out where it is the experiment."""
        group = () if self.group == (self.experiment,) else self.group
        return join_values((self.experiment, *group, *self.value))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanIndex:
    """The anchors that may be drawn, grouped by stratum.

    An anchor is a sample that has a positive, by the rule asked for. It is named by its place in `row`, 0 … n − 1 (a
    `SampleIndex`); a patch is named by its row in the index (a `PatchRow`).
    """

    columns: PlanColumns
    batch_group_by: tuple[str, ...]
    """Labels that make a group."""
    stratify_by: tuple[str, ...]
    """Labels that make a stratify value."""
    strata: tuple[Stratum, ...]
    """Those that have anchors, ordered by experiment, group and value."""
    group_of: Int64[np.ndarray, " s"]
    """Number of each stratum's group, in the order of their first stratum."""
    value_of: Int64[np.ndarray, " s"]
    """Number of each stratum's value, likewise."""
    row: Integer[PatchRow, " n"]
    """Patch row of each anchor: by stratum, and ascending inside each; once for each choice of channels."""
    first: Int64[np.ndarray, " s1"]
    """CSR: anchors of stratum s are `first[s]:first[s + 1]`."""
    without_positive: tuple[int, ...]
    """Samples of each stratum that have no positive by the rule asked for; not in `row`."""
    base_of: Int64[np.ndarray, " s"]
    """Of each stratum, the first one with the same patches: itself, unless strata differ in channels only."""
    positives: PositiveRule = TEMPORAL
    """What may be a positive."""
    choices: ChannelChoices | None = None
    """Which channels samples may hold; None = all."""
    choice: Integer[np.ndarray, " n"] | None = None
    """Choice of channels of each anchor; None where there is none to make."""
    match: Integer[np.ndarray, " n"] | None = None
    """Number of each anchor's values in the match columns; None unless positives are drawn by columns."""
    parents: Int64[np.ndarray, " tracks"] | None = None
    """Number of each track's parent, −1 without one; None unless positives are of the anchor's own line of descent."""
    lineages_meet: bool = False
    """Whether any lineage has anchors in two strata, as it may where labels change along a track."""
    barren: tuple[tuple[Stratum, int], ...] = ()
    """Strata that have samples but no anchor, with the number of samples."""
    chosen_by: str = "all cells"
    """What the anchors were chosen by, for messages."""
    clock: Float64[np.ndarray, "s 2"] = field(init=False, compare=False)
    """Hours of frame 0 and hours per frame, of each stratum."""
    _tau: Int64[np.ndarray, "s 2"] = field(init=False, compare=False)
    _place: list[Integer[SampleIndex, "p most"]] = field(init=False, compare=False, default_factory=list)
    """Place in `row` of every patch row with every choice of channels; made when it is first needed."""

    def __post_init__(self) -> None:
        """Gather what is looked up for every batch."""
        clock = [(s.start_hpi, s.interval_minutes / 60) for s in self.strata]
        object.__setattr__(self, "clock", np.array(clock, np.float64).reshape(-1, 2))
        object.__setattr__(self, "_tau", np.array([s.tau_frames for s in self.strata], np.int64).reshape(-1, 2))

    def __repr__(self) -> str:
        """Say how much there is, in one line."""
        experiments = len({s.experiment for s in self.strata})
        by = " and ".join(dict.fromkeys((*self.batch_group_by, *self.stratify_by)))
        strata = count_of(len(self.strata), "combination")
        anchors = count_of(len(self.row), "anchor")
        return f"PlanIndex({anchors} of {count_of(experiments, 'experiment')}, in {strata} of {by})"

    @property
    def group_label(self) -> str:
        """Name of the labels that make a group, for messages and reports."""
        return join_values(self.batch_group_by)

    @property
    def value_label(self) -> str:
        """Name of the labels that make a stratify value, for messages and reports."""
        return join_values(self.stratify_by)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Name of each group, by number."""
        return tuple(self.strata[s].group_name for s in np.unique(self.group_of, return_index=True)[1].tolist())

    @property
    def value_names(self) -> tuple[str, ...]:
        """Name of each stratify value, by number."""
        return tuple(self.strata[s].value_name for s in np.unique(self.value_of, return_index=True)[1].tolist())

    @property
    def sizes(self) -> Int64[np.ndarray, " s"]:
        """Anchors per stratum."""
        return np.diff(self.first)

    def blocks_of(self, stratum: int) -> Int64[np.ndarray, " k"]:
        """Blocks that hold anchors of a stratum, ascending."""
        columns, own = self.columns, self.row[self.first[stratum] : self.first[stratum + 1]]
        low, high = columns.clip_block[columns.patch_clip[own[[0, -1]]]].tolist()
        patch = columns.clip_first[columns.block_first[low : high + 2]]
        return low + np.flatnonzero(np.diff(np.searchsorted(own, patch.astype(own.dtype))))

    @property
    def block_stratum(self) -> Int64[np.ndarray, " b"]:
        """Last stratum that has anchors in each block, −1 without any; streaming needs that there is only one."""
        out, columns = np.full(len(self.columns.block_bytes), -1), self.columns
        ends = columns.clip_block[columns.patch_clip[self.row[np.stack([self.first[:-1], self.first[1:] - 1])]]]
        if (np.diff(ends, axis=0) + 1).sum() * _LOOK_UPS > len(self.row):  # strata lie spread over the set
            of_anchor = columns.clip_block[columns.patch_clip[self.row]]
            out[of_anchor] = np.repeat(np.arange(len(self.strata)), self.sizes)  # the last assignment stays
            return out
        for s in range(len(self.strata)):
            out[self.blocks_of(s)] = s
        return out

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blocks that hold anchors."""
        return int(self.columns.block_bytes[self.block_stratum >= 0].sum(dtype=np.int64))

    def find(
        self, rows: Integer[PatchRow, " n"], choice: Integer[np.ndarray, " n"] | None = None
    ) -> Int64[np.ndarray, " n"]:
        """Place of each patch row with its choice of channels (a `SampleIndex`), −1 where it is no anchor."""
        out = np.full(len(rows), -1)
        if not len(rows):
            return out
        if len(self.strata) > _MANY:
            return self._find_all(rows, choice)
        wanted = rows.astype(self.row.dtype)  # in the dtype of the rows: numpy would copy all of them to another
        low, high = self.row[self.first[:-1]], self.row[self.first[1:] - 1]
        for s in np.flatnonzero((low <= wanted.max()) & (high >= wanted.min())).tolist():
            here = np.flatnonzero((wanted >= low[s]) & (wanted <= high[s]))
            place = self.first[s] + np.searchsorted(self.row[self.first[s] : self.first[s + 1]], wanted[here])
            for _ in range(1 if self.choices is None else int(self.choices.count.max())):  # a row's choices are a run
                hit = self.row[place] == wanted[here]
                if choice is not None and self.choice is not None:
                    hit &= self.choice[place] == choice[here]
                out[here[hit]] = place[hit]
                place = np.minimum(place + 1, self.first[s + 1] - 1)
        return out

    def _find_all(
        self, rows: Integer[PatchRow, " n"], choice: Integer[np.ndarray, " n"] | None
    ) -> Int64[np.ndarray, " n"]:
        """Find samples in a table of all patches: strata are too many to look through one after another."""
        own = np.zeros(1, np.int64) if self.choice is None else self.choice
        if not self._place:
            shape = (len(self.columns.patch_clip), int(own.max(initial=0)) + 1)
            place = np.full(shape, -1, np.int32 if len(self.row) < 1 << 31 else np.int64)
            place[self.row, own] = np.arange(len(self.row))
            self._place.append(cast(SampleIndex, place))
        found = self._place[0][rows].astype(np.int64)
        return found.max(1) if choice is None else found[np.arange(len(rows)), choice]

    def clip(self, anchors: Integer[SampleIndex, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Clip of each anchor."""
        return self.columns.patch_clip[self.row[anchors]]

    def lineage(self, anchors: Integer[SampleIndex, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Lineage of each anchor."""
        return self.columns.clip_lineage[self.clip(anchors)]

    def track(self, anchors: Integer[SampleIndex, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Track of each anchor."""
        return self.columns.obs_track[self.columns.patch_obs[self.row[anchors]]]

    def fov(self, anchors: Integer[SampleIndex, "*n"]) -> Integer[np.ndarray, "*n"]:
        """FOV of each anchor."""
        return self.columns.obs_fov[self.columns.patch_obs[self.row[anchors]]]

    def block(self, anchors: Integer[SampleIndex, "*n"]) -> Integer[np.ndarray, "*n"]:
        """Block of each anchor."""
        return self.columns.clip_block[self.clip(anchors)]

    def stratum(self, anchors: Integer[SampleIndex, "*n"]) -> Int64[np.ndarray, "*n"]:
        """Stratum of each anchor."""
        return np.searchsorted(self.first, anchors, side="right") - 1

    def choice_of(self, anchors: Integer[SampleIndex, " n"]) -> Int64[np.ndarray, " n"] | None:
        """Choice of channels of each anchor; None where there is none to make."""
        return None if self.choice is None else self.choice[anchors].astype(np.int64)

    def hpi(self, anchors: Integer[SampleIndex, "*n"]) -> Float64[np.ndarray, "*n"]:
        """Hours post infection of each anchor."""
        start, hours = self.clock.T
        stratum = self.stratum(anchors)
        return start[stratum] + self.columns.patch_t[self.row[anchors]] * hours[stratum]

    def tau_frames(self, anchors: Integer[SampleIndex, "*n"]) -> tuple[Int[np.ndarray, "*n"], Int[np.ndarray, "*n"]]:
        """Smallest and largest τ of each anchor, in frames."""
        low, high = self._tau.T
        if (self._tau == self._tau[:1]).all():  # strata need not be looked up
            return np.full(anchors.shape, low[0]), np.full(anchors.shape, high[0])
        stratum = self.stratum(anchors)
        return low[stratum], high[stratum]
