"""Random small sets for the laws of the plan: lineages that divide, labels with long tails, channels; no pixels.

Hypothesis draws a `Shape` and what is asked of it; the set follows from its seed. `list_samples` says the same as the
index, by joins of tables.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from hypothesis import reject
from hypothesis import strategies as st

from dynaclr_wds.errors import WindowError
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.channels import list_choices
from dynaclr_wds.plan.columns import CodeBook, ExperimentClock, PlanColumns
from dynaclr_wds.plan.compose.schedule import Schedule
from dynaclr_wds.plan.config import PositiveRule, SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.listing import plan_index
from dynaclr_wds.plan.sampler import FlexibleBatchSampler

STORED = (("Phase", "GFP"), ("Phase", "RFP", "GFP"), ("Phase",))
MARKERS = (("Phase", "ER"), ("Phase", "MITO", "ER"), ("Phase",))
"""Of the channels of each experiment; so what GFP shows is the second or the third channel."""
CONDITIONS, STAGES = ("mock", "infected", "zika"), ("early", "late")
FOVS = 2
"""Per experiment."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What Hypothesis draws of a set."""

    experiments: int
    lineages: int
    """Per experiment."""
    genes: int
    nulls: bool
    by_gene: bool
    """Whether shards are partitioned by gene too, beside experiment and condition."""
    clip_anchors: int
    clips_per_block: int
    tau_max: int
    seed: int

    @property
    def shard_by(self) -> tuple[str, ...]:
        return ("experiment", "condition", "gene") if self.by_gene else ("experiment", "condition")


def grow(rng: np.random.Generator, first_track: int) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Grow a lineage: (t, track) of each of its cells, and the mother of each daughter."""
    cells: list[tuple[int, int]] = []
    mother: dict[int, int] = {}
    waiting, track = [(int(rng.integers(0, 12)), -1, 0)], first_track
    while waiting:
        t, parent, depth = waiting.pop()
        length = int(rng.integers(1, 7))
        cells += [(frame, track) for frame in range(t, t + length)]
        if parent >= 0:
            mother[track] = parent
        if depth < 2 and rng.random() < 0.35:
            waiting += [(t + length, track, depth + 1)] * 2
        track += 1
    return sorted(cells), mother


def is_below(track: int, ancestor: int, mother: dict[int, int]) -> bool:
    """Whether a track is another one or descends from it."""
    while track != ancestor and track in mother:
        track = mother[track]
    return track == ancestor


@functools.lru_cache(maxsize=4)
def make_set(shape: Shape) -> tuple[PlanColumns, CodeBook]:
    """Make the columns of a set, and what their codes stand for."""
    rng = np.random.default_rng([1, shape.seed])
    cells: list[dict[str, int]] = []
    clips: list[dict] = []
    tracks = 0
    for lineage in range(shape.experiments * shape.lineages):
        experiment = lineage // shape.lineages
        own, mother = grow(rng, tracks)
        tracks = max(track for _, track in own) + 1
        same = {
            "experiment": experiment,
            "fov": FOVS * experiment + int(rng.integers(FOVS)),
            "condition": draw_code(rng, len(CONDITIONS), shape.nulls),
            "gene": draw_code(rng, shape.genes, shape.nulls),
        }
        first = len(cells)
        cells += [
            same | {"track": k, "mother": mother.get(k, -1), "t": t, "stage": draw_code(rng, len(STAGES), shape.nulls)}
            for t, k in own
        ]
        for begin in range(0, len(own), shape.clip_anchors):
            anchors = range(begin, min(begin + shape.clip_anchors, len(own)))
            kept = [
                other
                for other, (t, track) in enumerate(own)
                if other in anchors
                or any(0 < t - own[a][0] <= shape.tau_max and is_below(track, own[a][1], mother) for a in anchors)
            ]
            key = tuple(same[name] for name in shape.shard_by)
            rows = [(first + k, own[k][0], k in anchors) for k in kept]
            clips.append({"lineage": lineage, "key": key, "place": rng.random(), "rows": rows})
    clips.sort(key=lambda clip: (clip["key"], clip["place"]))
    return lay_out(shape, pd.DataFrame(cells), clips)


def draw_code(rng: np.random.Generator, count: int, nulls: bool) -> int:
    """Draw one of so many codes, the first ones most often, or −1 for null."""
    if nulls and rng.random() < 0.1:
        return -1
    return int(count * rng.random() ** 2)


def lay_out(shape: Shape, cells: pd.DataFrame, clips: Sequence[dict]) -> tuple[PlanColumns, CodeBook]:
    """Lay sorted clips out in blocks, each of one partition."""
    keys = sorted({clip["key"] for clip in clips})
    block_of, blocks = [], []
    for clip in clips:
        if not blocks or blocks[-1][0] != clip["key"] or blocks[-1][1] == shape.clips_per_block:
            blocks.append([clip["key"], 0])
        blocks[-1][1] += 1
        block_of.append(len(blocks) - 1)
    rows = [row for clip in clips for row in clip["rows"]]
    clip = np.repeat(np.arange(len(clips)), [len(c["rows"]) for c in clips])
    t, sample = (np.array([row[k] for row in rows]) for k in (1, 2))
    ahead = np.array(
        [any(0 < s - u <= shape.tau_max for _, s, _ in clips[c]["rows"]) for c, u in zip(clip, t, strict=True)]
    )
    first = np.concatenate([[0], np.cumsum([len(c["rows"]) for c in clips])])
    block_first = np.concatenate([[0], np.cumsum([count for _, count in blocks])])
    values = {
        "experiment": tuple(f"e{k}" for k in range(shape.experiments)),
        "condition": CONDITIONS,
        "gene": tuple(f"g{k}" for k in range(shape.genes)),
        "stage": STAGES,
    }
    columns = PlanColumns(
        patch_obs=np.array([row[0] for row in rows], np.int32),
        patch_clip=clip.astype(np.int32),
        patch_t=t.astype(np.int32),
        patch_is_sample=sample.astype(bool),
        patch_has_candidate=sample & ahead,
        clip_first=first,
        clip_lineage=np.array([c["lineage"] for c in clips], np.int32),
        clip_block=np.array(block_of, np.int32),
        block_first=block_first.astype(np.int32),
        block_bytes=1000 * np.diff(first[block_first]),
        block_partition=np.array([keys.index(key) for key, _ in blocks], np.int32),
        obs_track=cells["track"].to_numpy(np.int32),
        obs_track_id=cells["track"].to_numpy(np.int32),
        obs_parent_track_id=cells["mother"].to_numpy(np.int32),
        obs_fov=cells["fov"].to_numpy(np.int32),
        fov_experiment=np.repeat(np.arange(shape.experiments, dtype=np.int32), FOVS),
        labels={name: cells[name].to_numpy(np.int32) for name in values},
    )
    named = [
        {name: None if code < 0 else values[name][code] for name, code in zip(shape.shard_by, key, strict=True)}
        for key in keys
    ]
    clocks = [
        ExperimentClock(name=name, interval_minutes=30.0, start_hpi=float(k), tau_frames=(1, shape.tau_max))
        for k, name in enumerate(values["experiment"])
    ]
    return columns, CodeBook(values=values, partitions=named, experiments=clocks)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A set and what is asked of it."""

    shape: Shape
    group_by: tuple[str, ...]
    stratify_by: tuple[str, ...]
    positives: PositiveRule
    channels: int | tuple[str, ...] | None
    plain: SamplingConfig
    """Without weights, for which the names have to be known."""
    weights: tuple[float, ...] | None
    ratio: tuple[float, ...] | None
    """Shares of the first groups and values, and of those that follow."""
    streams: int = 0
    """0: exact mode."""
    window: float = 0.0
    """Share of the bytes, from which on a window is looked for that does."""

    @functools.cached_property
    def config(self) -> SamplingConfig:
        """What is asked, with shares that leave something to draw."""
        anchors = self.samples[self.samples["anchor"]]
        if not len(anchors):
            reject()
        kept = anchors.iloc[self.shape.seed % len(anchors)]
        weights = give_shares(self.weights if self.group_by else None, anchors["group"], kept["group"])
        ratio = give_shares(self.ratio if self.stratify_by else None, anchors["value"], kept["value"])
        return dataclasses.replace(self.plain, group_weights=weights, stratify_ratio=ratio)

    @functools.cached_property
    def codes(self) -> CodeBook:
        codes, n = make_set(self.shape)[1], self.shape.experiments
        if self.channels is None:
            return codes
        names = [f"e{k}" for k in range(n)]
        choices = list_choices(names, STORED[:n], MARKERS[:n], self.channels, [True] * n)
        return dataclasses.replace(codes, choices=choices)

    @functools.cached_property
    def index(self) -> PlanIndex:
        return plan_index(
            make_set(self.shape)[0],
            self.codes,
            (0.5, self.shape.tau_max / 2),
            batch_group_by=self.group_by,
            stratify_by=self.stratify_by,
            positives=self.positives,
        )

    @functools.cached_property
    def window_bytes(self) -> int | None:
        """The first of ever larger windows that is accepted."""
        share = self.window
        while self.streams:
            window = int(share * self.index.stored_bytes) + 1
            try:
                found = FlexibleBatchSampler(self.index, self.config, window_bytes=window, num_streams=self.streams)
                for stream in range(self.streams):
                    found.blocks(stream)
                return window
            except WindowError:
                share *= 1.5
        return None

    def sampler(self, rank: int = 0, world_size: int = 1) -> FlexibleBatchSampler:
        return FlexibleBatchSampler(
            self.index,
            self.config,
            rank=rank,
            world_size=world_size,
            window_bytes=self.window_bytes,
            num_streams=self.streams or None,
        )

    @functools.cached_property
    def plans(self) -> list[BatchPlan]:
        """The batches of an epoch."""
        return list(self.whole)

    @functools.cached_property
    def whole(self) -> FlexibleBatchSampler:
        """The sampler of one process that has the whole epoch."""
        return self.sampler()

    @functools.cached_property
    def schedules(self) -> list[Schedule]:
        """Of every stream."""
        return [planner.epoch(0).schedule for planner in self.whole._planners]

    @property
    def segments(self) -> int:
        """Most segments that a group of a stream has: quotas are whole numbers in each."""
        names = [Counter(group.name for group in schedule.groups) for schedule in self.schedules]
        return max(max(count.values()) for count in names)

    @functools.cached_property
    def drawn(self) -> pd.DataFrame:
        """One row per anchor of the epoch: what it is, and in which batch, round, … it was drawn."""
        place = {key: n for n, key in enumerate(zip(self.samples["row"], self.samples["choice"], strict=True))}
        parts = []
        for plan in self.plans:
            choices = [plan.anchor_choice, plan.positive_choice]
            anchor, positive = (np.zeros(len(plan), int) if choice is None else choice for choice in choices)
            keys = zip(plan.anchor.tolist(), anchor.tolist(), strict=True)
            stream = plan.number % len(self.schedules)
            dealt = (
                plan.number,
                stream,
                self.schedules[stream].locate(plan.number // len(self.schedules))[:2],
                plan.group,
            )
            columns = zip(plan.positive.tolist(), positive.tolist(), keys, strict=True)
            parts += [(place[key], to, choice, *dealt) for to, choice, key in columns]
        names = ["sample", "to", "to_choice", "batch", "stream", "round", "about"]
        return pd.DataFrame(parts, columns=names).join(self.samples, on="sample")

    @functools.cached_property
    def pool(self) -> pd.DataFrame:
        """The samples that may be drawn: anchors of groups and values whose share is not 0."""
        may = self.samples["anchor"].copy()
        for column, shares in (("group", self.config.weights), ("value", self.config.ratio)):
            if shares is not None:
                may &= self.samples[column].map(lambda name, shares=shares: shares.get(name, 0.0) > 0)
        return self.samples[may]

    @functools.cached_property
    def samples(self) -> pd.DataFrame:
        return list_samples(self)


def list_samples(case: Case) -> pd.DataFrame:
    """One row per sample, in no order of the index: what it is, its labels, and whether it may be an anchor."""
    columns, codes = make_set(case.shape)
    rows = np.flatnonzero(columns.patch_is_sample)
    table = pd.DataFrame({"row": rows, "observation": columns.patch_obs[rows], "clip": columns.patch_clip[rows]})
    table["t"], table["lineage"] = columns.patch_t[rows], columns.clip_lineage[table["clip"]]
    table["track"] = columns.obs_track[table["observation"]]
    for name, code in columns.labels.items():
        value = np.array([*codes.values[name], None], object)  # −1: the last
        table[name] = value[code[table["observation"]]]
    table["choice"] = [list(range(count_choices(case, int(e[1:])))) for e in table["experiment"]]
    table = table.explode("choice", ignore_index=True)
    if case.channels is not None:
        shown = [show(case, int(e[1:]), c) for e, c in zip(table["experiment"], table["choice"], strict=True)]
        table["channel"], table["marker"] = zip(*shown, strict=True)
    for name, by in (("group", case.group_by), ("value", case.stratify_by)):
        parts = [table[label].fillna("~") for label in by]
        table[name] = functools.reduce(lambda a, b: a + "/" + b, parts) if parts else ""
    table["hpi"] = table["experiment"].str[1:].astype(float) + table["t"] / 2
    table["anchor"] = may_be_anchor(case, table)
    return table


def count_choices(case: Case, experiment: int) -> int:
    """Number of the sets of channels that a sample may hold."""
    return (
        1
        if not isinstance(case.channels, int)
        else {1: len(STORED[experiment]), 2: 3 if experiment == 1 else 1}[case.channels]
    )


def show(case: Case, experiment: int, choice: int) -> tuple[str, str]:
    """Names and markers of the channels of a choice."""
    stored, markers = STORED[experiment], MARKERS[experiment]
    if not isinstance(case.channels, int):
        at = [markers.index(name) if name in markers else stored.index(name) for name in case.channels or ()]
    else:
        sets = {1: [[0], [1], [2]], 2: [[0, 1], [0, 2], [1, 2]]}
        at = sets[case.channels][choice]
    return "+".join(stored[c] for c in at), "+".join(markers[c] for c in at)


def list_frames(case: Case) -> pd.DataFrame:
    """One row per stored patch."""
    columns = make_set(case.shape)[0]
    clip = pd.Series(columns.patch_clip.astype(np.int64))
    return pd.DataFrame({"to": np.arange(len(clip)), "clip": clip, "to_t": columns.patch_t})


def may_be_anchor(case: Case, table: pd.DataFrame) -> pd.Series:
    """Say which samples have a positive."""
    rule = case.positives
    if rule.kind == "self":
        return pd.Series(True, table.index)
    if rule.kind == "columns":
        by = match_columns(case)
        others = table.dropna(subset=by).groupby(by)["observation"].nunique()
        found = table.set_index(by).index.map(others) if len(by) > 1 else table[by[0]].map(others)
        return pd.Series(np.asarray(pd.Series(found).fillna(0)) > 1, table.index)
    return table["row"].isin(list_temporal(case, table)["row"])


def match_columns(case: Case) -> list[str]:
    """What a positive by columns agrees in."""
    by = list(case.positives.match_columns)
    bag = case.channels is not None and case.positives.channel == "same"
    return [*by, "marker"] if bag and not {"channel", "marker"} & set(by) else by


def list_temporal(case: Case, table: pd.DataFrame) -> pd.DataFrame:
    """Pairs (row, to) of patches that a temporal rule allows."""
    pairs = table[["row", "clip", "t"]].drop_duplicates().merge(list_frames(case), on="clip")
    tau = pairs["to_t"] - pairs["t"]
    ahead = pairs[tau.between(1, case.shape.tau_max)]
    if case.positives.tau_direction == "forward":
        return ahead
    behind = pairs[tau.between(-case.shape.tau_max, -1)]
    return pd.concat([ahead, behind[~behind["row"].isin(ahead["row"])]])


SHAPES = st.builds(
    Shape,
    experiments=st.integers(1, 3),
    lineages=st.sampled_from([12, 30, 60]),
    genes=st.sampled_from([1, 3, 12, 300]),
    nulls=st.booleans(),
    by_gene=st.booleans(),
    clip_anchors=st.integers(2, 12),
    clips_per_block=st.integers(1, 8),
    tau_max=st.integers(1, 4),
    seed=st.integers(0, 2**20),
)
RULES = (
    PositiveRule(),
    PositiveRule(tau_direction="both"),
    PositiveRule(tau_direction="both", channel="any"),
    PositiveRule(kind="self"),
    PositiveRule(kind="self", channel="any"),
    PositiveRule(kind="columns", match_columns=("condition",)),
    PositiveRule(kind="columns", match_columns=("gene", "condition")),
    PositiveRule(kind="columns", match_columns=("stage",), channel="any"),
)


SHARES = st.sampled_from([None, None, (1.0, 1.0, 0.5, 0.0), (3.0, 1.0)])


@st.composite
def cases(draw) -> Case:
    """Draw a set and something to ask of it that it can give."""
    shape, streaming = draw(SHAPES), draw(st.booleans())
    labels = [*shape.shard_by] if streaming else ["experiment", "condition", "gene", "stage"]
    channels = draw(st.sampled_from([None, None, 1, ("Phase",)] + [2, ("ER", "Phase")] * (shape.experiments < 3)))
    labels += ["marker"] * (channels is not None)
    by = st.lists(st.sampled_from(labels), max_size=2, unique=True).map(tuple)
    config = SamplingConfig(
        batch_size=draw(st.integers(4, 24)),
        seed=draw(st.integers(0, 99)),
        leaky=draw(st.sampled_from([0.0, 0.0, 0.1, 0.4])),
        experiment_aware=draw(st.sampled_from([True, True, False])),
        condition_balanced=draw(st.sampled_from([True, True, False])),
        temporal_enrichment=draw(st.sampled_from([False, False, True])),
        temporal_window_hours=draw(st.sampled_from([0.5, 2.0])),
        relax_lineages=draw(st.booleans()),
    )
    return Case(
        shape=shape,
        group_by=draw(by),
        stratify_by=draw(by),
        positives=draw(st.sampled_from(RULES)),
        channels=channels,
        plain=config,
        weights=draw(SHARES),
        ratio=draw(SHARES),
        streams=draw(st.sampled_from([1, 2, 4])) if streaming else 0,
        window=draw(st.sampled_from([0.3, 0.7, 1.1])),
    )


def give_shares(pattern: tuple[float, ...] | None, names: pd.Series, kept: str) -> dict[str, float] | None:
    """Give names shares after a pattern, one of them 1."""
    if pattern is None:
        return None
    return {name: pattern[k % len(pattern)] for k, name in enumerate(sorted(set(names)))} | {kept: 1.0}
