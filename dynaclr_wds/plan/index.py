"""Index arrays to anchors: lists what the plan may draw from a shard set, by stratum.

The columns are memory-mapped and in stored order; beside them there is one compact list of anchors, grouped by
stratum. Everything else about an anchor is gathered when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, Integer

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.plan.channels import CHANNEL_LABELS, ChannelChoices
from dynaclr_wds.plan.columns import CodeBook, ExperimentClock, PatchRow, PlanColumns, SampleIndex
from dynaclr_wds.plan.config import TEMPORAL, PositiveRule
from dynaclr_wds.plan.matches import find_matched, number_matches
from dynaclr_wds.plan.strata import (
    StratumSamples,
    find_strata,
    follows_from_partitions,
    has_candidate,
    split_by_channels,
)
from dynaclr_wds.tau import check_tau_range, tau_range_frames
from dynaclr_wds.words import count_of

_MANY = 64
"""Strata up to which each is looked through by itself."""


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
    lineages_meet: bool = False
    """Whether any lineage has anchors in two strata, as it may where labels change along a track."""
    barren: tuple[tuple[Stratum, int], ...] = ()
    """Strata that have samples but no anchor, with the number of samples."""
    chosen_by: str = "all cells"
    """What the anchors were chosen by, for messages."""
    _clock: Float64[np.ndarray, "s 2"] = field(init=False, compare=False)
    """Hours of frame 0 and hours per frame, of each stratum."""
    _tau: Int64[np.ndarray, "s 2"] = field(init=False, compare=False)
    _place: list[Integer[SampleIndex, "p most"]] = field(init=False, compare=False, default_factory=list)
    """Place in `row` of every patch row with every choice of channels; made when it is first needed."""

    def __post_init__(self) -> None:
        """Gather what is looked up for every batch."""
        clock = [(s.start_hpi, s.interval_minutes / 60) for s in self.strata]
        object.__setattr__(self, "_clock", np.array(clock, np.float64).reshape(-1, 2))
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
        own = self.row[self.first[stratum] : self.first[stratum + 1]]
        patch = self.columns.clip_first[self.columns.block_first]
        return np.flatnonzero(np.diff(np.searchsorted(own, patch.astype(own.dtype))))

    @property
    def block_stratum(self) -> Int64[np.ndarray, " b"]:
        """Last stratum that has anchors in each block, −1 without any; streaming needs that there is only one."""
        out = np.full(len(self.columns.block_bytes), -1)
        if len(self.strata) > _MANY:  # of equal blocks, the last assignment stays
            out[self.block(cast(SampleIndex, np.arange(len(self.row))))] = np.repeat(
                np.arange(len(self.strata)), self.sizes
            )
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
        start, hours = self._clock.T
        stratum = self.stratum(anchors)
        return start[stratum] + self.columns.patch_t[self.row[anchors]] * hours[stratum]

    def tau_frames(self, anchors: Integer[SampleIndex, "*n"]) -> tuple[Int[np.ndarray, "*n"], Int[np.ndarray, "*n"]]:
        """Smallest and largest τ of each anchor, in frames."""
        low, high = self._tau.T
        if (self._tau == self._tau[:1]).all():  # strata need not be looked up
            return np.full(anchors.shape, low[0]), np.full(anchors.shape, high[0])
        stratum = self.stratum(anchors)
        return low[stratum], high[stratum]


def plan_index(
    columns: PlanColumns,
    codes: CodeBook,
    tau_range_hours: tuple[float, float],
    *,
    batch_group_by: tuple[str, ...] = ("experiment",),
    stratify_by: tuple[str, ...] = ("condition",),
    keep_experiment: Sequence[bool] | None = None,
    keep_fov: Bool[np.ndarray, " f"] | None = None,
    positives: PositiveRule = TEMPORAL,
) -> PlanIndex:
    """List the anchors that may be drawn, by stratum.

    Parameters
    ----------
    columns, codes
        The index in stored order, and what its codes stand for.
    tau_range_hours
        τ range of the draws, within the one that the shards were built for.
    batch_group_by, stratify_by
        Labels that make groups and stratify values.
    keep_experiment, keep_fov
        Whether each may be drawn from; all of them when None.
    positives
        What may be a positive, and so which samples are anchors. `tau_range_hours` matters for temporal ones only.

    Raises
    ------
    ConfigError
        A label that the set doesn't have.
    ValueError
        A τ range that the shards were not built for.
    """
    asked = {
        "batch_group_by": batch_group_by,
        "stratify_by": stratify_by,
        "positive_match_columns": positives.match_columns,
    }
    _check_labels(codes, asked)
    keep = [True] * len(codes.experiments) if keep_experiment is None else list(keep_experiment)
    temporal = positives.kind == "temporal"
    tau = [
        _tau_frames(e, tau_range_hours) if k and temporal else (0, 0)
        for e, k in zip(codes.experiments, keep, strict=True)
    ]
    labels = tuple(dict.fromkeys((*batch_group_by, *stratify_by)))
    strata, samples = [], []
    for found in _list_samples(columns, codes, labels, keep, keep_fov, tau, positives):
        clock = codes.experiments[found.experiment]
        strata.append(_make_stratum(clock, tau[found.experiment], found.labels, batch_group_by, stratify_by))
        samples.append(found)
    rows = [s.row for s in samples]
    choices = [s.choice for s in samples if s.choice is not None]
    matches: list[Integer[np.ndarray, " _"]] = []
    if positives.kind == "columns":
        matches = number_matches(columns, codes, positives, rows, choices)
        kept = find_matched(columns, rows, matches)
        rows, choices, matches = ([a[k] for a, k in zip(of, kept, strict=False)] for of in (rows, choices, matches))
    has = [s for s, row in enumerate(rows) if len(row)]
    base = np.maximum.accumulate([s if of.first_of_patches else -1 for s, of in enumerate(samples)] or [0])
    by_channel = codes.choices is not None and not set(labels).isdisjoint(CHANNEL_LABELS)
    follows = follows_from_partitions(codes, tuple(n for n in labels if n not in CHANNEL_LABELS))
    return PlanIndex(
        columns=columns,
        batch_group_by=batch_group_by,
        stratify_by=stratify_by,
        strata=tuple(strata[s] for s in has),
        group_of=_number([strata[s].group_name for s in has]),
        value_of=_number([strata[s].value_name for s in has]),
        row=cast(PatchRow, _join([rows[s] for s in has])),
        first=np.cumsum([0, *(len(rows[s]) for s in has)]),
        without_positive=tuple(samples[s].samples - len(rows[s]) for s in has),
        base_of=_number_bases(base[has]),
        positives=positives,
        choices=codes.choices,
        choice=_join([choices[s] for s in has]) if codes.choices is not None else None,
        match=_join([matches[s] for s in has]) if matches else None,
        lineages_meet=(by_channel or not follows) and _lineages_meet(columns, [rows[s] for s in has]),
        barren=tuple(
            (strata[s], samples[s].samples) for s, row in enumerate(rows) if not len(row) and samples[s].samples
        ),
    )


def _list_samples(
    columns: PlanColumns,
    codes: CodeBook,
    labels: tuple[str, ...],
    keep: Sequence[bool],
    keep_fov: Bool[np.ndarray, " f"] | None,
    tau: Sequence[tuple[int, int]],
    positives: PositiveRule,
) -> Iterator[StratumSamples]:
    """List the samples of each stratum that have a temporal candidate if they need one, with their channels."""
    own = tuple(n for n in labels if codes.choices is None or n not in CHANNEL_LABELS)
    of_channels = [n for n in labels if n not in own]
    behind = positives.tau_direction == "both"
    every = behind or positives.kind != "temporal"
    for found in find_strata(columns, codes, own, keep, keep_fov, every=every):
        span = tau[found.experiment]
        if positives.kind == "temporal" and (every or span != tuple(codes.experiments[found.experiment].tau_frames)):
            row = found.row[has_candidate(columns, found.row, span, behind=behind)]
            found = replace(found, row=row)
        yield from [found] if codes.choices is None else split_by_channels(found, codes.choices, of_channels)


def _make_stratum(
    clock: ExperimentClock,
    tau_frames: tuple[int, int],
    labels: Mapping[str, str | None],
    batch_group_by: tuple[str, ...],
    stratify_by: tuple[str, ...],
) -> Stratum:
    return Stratum(
        experiment=clock.name,
        group=tuple(labels[name] for name in batch_group_by),
        value=tuple(labels[name] for name in stratify_by),
        interval_minutes=clock.interval_minutes,
        start_hpi=clock.start_hpi,
        tau_frames=tau_frames,
    )


def _join(parts: Sequence[Integer[np.ndarray, " _"]]) -> Integer[np.ndarray, " n"]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def _number_bases(base: Int64[np.ndarray, " s"]) -> Int64[np.ndarray, " s"]:
    """Turn the bases of the strata that are left into places among them."""
    _, first, number = np.unique(base, return_index=True, return_inverse=True)
    return first[number].astype(np.int64)


def _number(names: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Number names in the order of their first place."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def _lineages_meet(columns: PlanColumns, rows: Sequence[Integer[np.ndarray, " _"]]) -> bool:
    """Whether a lineage has anchors in two strata; labels that shards are partitioned by never differ in a lineage."""
    if not rows:
        return False
    owner = np.full(int(columns.clip_lineage.max(initial=-1)) + 1, -1, np.int32)
    lineage = columns.clip_lineage[columns.patch_clip[np.concatenate(rows)]]
    stratum = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
    owner[lineage] = stratum
    return bool((owner[lineage] != stratum).any())


def _check_labels(codes: CodeBook, asked: Mapping[str, Sequence[str]]) -> None:
    """Check that the set has the labels that each setting names."""
    known = {*codes.values, *(CHANNEL_LABELS if codes.choices is not None else ())}
    unknown = {setting: [name for name in names if name not in known] for setting, names in asked.items()}
    if any(unknown.values()):
        wrong = " and ".join(f"{setting} names {names}" for setting, names in unknown.items() if names)
        raise ConfigError(
            f"{wrong}, which the shards don't have as a label. Their labels are {sorted(known)}. Name one of "
            "these; to add one, give it in experiments.yaml (labels, well_labels or label_columns) and build again."
        )


def _tau_frames(clock: ExperimentClock, tau_range_hours: tuple[float, float]) -> tuple[int, int]:
    frames = tau_range_frames(tau_range_hours, clock.interval_minutes)
    check_tau_range("tau_range", clock.name, frames, clock.tau_frames, clock.interval_minutes)
    return frames
