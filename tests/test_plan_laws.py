"""The laws of the plan on random sets, exact and streaming, each against a count that knows nothing of the plan."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings

from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.read.loader import ThreadDataLoader
from tests.random_sets import Case, cases, count_choices, list_temporal, make_set, match_columns

STRATUM = ["experiment", "group", "value"]


def for_cases(most: int):
    """State a law for so many random cases."""
    # the same cases in every run: one that fails, fails for everybody
    few = settings(max_examples=most, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    return lambda law: few(given(case=cases())(law))


def is_grouped(case: Case) -> bool:
    return bool(case.group_by) and case.config.experiment_aware


def is_balanced(case: Case) -> bool:
    return bool(case.stratify_by) and case.config.condition_balanced


@for_cases(15)
def test_batches_are_full_pure_and_leak_exactly(case):
    names, size = set(case.pool["group"]), case.config.batch_size
    assert set(case.drawn["sample"]) <= set(case.pool.index)
    assert set(case.drawn["batch"].value_counts()) == {size}
    if not is_grouped(case):
        assert set(case.drawn["about"]) == {""}
        return
    assert set(case.drawn["about"]) <= names
    leaky = case.config.leaky if len(names) > 1 else 0.0
    leaked = (case.drawn["group"] != case.drawn["about"]).groupby(case.drawn["batch"]).sum()
    # a group that has more than a lane of a narrow window is alone within reach for a while; where less than a sample
    # leaks into a batch, one without may be that or not
    less = leaky * size < 1
    alone = (leaked == 0) & (case.segments > 1) & (not less)
    assert (((leaked - leaky * size).abs() < 1) | alone).all()
    batches = case.drawn.drop_duplicates("batch").set_index("batch")[~alone]
    for _, own in batches.groupby(["stream", "about"]):
        off = leaked[own.index].sum() - leaky * size * len(own)
        assert off < case.segments + 1e-6
        assert off > -case.segments - 1e-6 or (less and case.segments > 1)


@for_cases(15)
def test_groups_have_the_batches_that_their_weights_or_sizes_say(case):
    if not is_grouped(case):
        return
    batches = case.drawn.drop_duplicates("batch")
    size = case.pool["group"].value_counts()
    for _, own in batches.groupby("stream"):
        count = own["about"].value_counts().reindex(size.index, fill_value=0)
        if case.config.weights is not None:
            weight = pd.Series(case.config.weights)[size.index]
            assert ((count - len(own) * weight / weight.sum()).abs() < 1).all()
        elif not case.streams:
            assert (count == (size // case.config.batch_size).clip(lower=1)).all()


@for_cases(15)
def test_values_have_their_quotas_in_every_batch_and_over_the_epoch(case):
    if not is_balanced(case):
        return
    for about, drawn in case.drawn.groupby("about"):
        own = case.pool if about == "" else case.pool[case.pool["group"] == about]
        values = sorted(set(own["value"]))
        ratio = case.config.ratio or dict.fromkeys(values, 1.0)
        share = np.array([ratio[v] for v in values]) / sum(ratio[v] for v in values)
        missed = np.zeros(len(values))
        for _, batches in drawn.groupby(["stream", "round"]):
            found, leaked = (
                pd.crosstab(rows["batch"], rows["value"])
                .reindex(batches["batch"].unique(), columns=values, fill_value=0)
                .to_numpy(int)
                for rows in (batches, batches[(batches["group"] != about) & (about != "")])
            )
            asked = found.sum(1, keepdims=True) * share
            room = np.maximum(leaked, np.floor(asked + 1e-9)).sum(1) <= found.sum(1)
            # a batch is as near to its quotas as what leaks into it allows; no more of a value leaks than has to
            flood = ((leaked >= asked + 1) & (leaked.mean(0) > asked)).any(1)
            off = found - asked
            assert (np.abs(off[room & ~flood]) < 1 + 1e-6).all(), (off, leaked)
            missed = missed + (off.sum(0) if (room & ~flood).all() else np.nan)
        assert not (np.abs(missed) >= case.segments * max(case.streams, 1) + 1e-6).any(), missed


def fewest_shared(sizes: np.ndarray, lineages: np.ndarray) -> int:
    """Fewest draws that share their lineage with another of their batch, however they are dealt (Gale-Ryser)."""
    largest = np.sort(sizes)[::-1]
    return max(int(largest[:k].sum() - np.minimum(lineages, k).sum()) for k in range(len(sizes) + 1))


@for_cases(15)
def test_lineages_are_distinct_as_far_as_the_draws_of_a_round_allow(case):
    if case.config.temporal_enrichment:
        return
    if (case.pool.groupby("lineage")[STRATUM].nunique() > 1).any(axis=None):
        return  # a lineage that meets itself from two strata is for the next law
    by = ["stream", "round", *STRATUM]
    for coarse, fine in ((by, "lineage"), ([*by, "lineage"], "track"), ([*by, "track"], "sample")):
        meet = case.drawn.duplicated([*coarse, "batch", fine]).groupby([case.drawn[k] for k in coarse]).transform("any")
        for _, part in case.drawn[meet].groupby(coarse):
            table = pd.crosstab(part["batch"], part[fine]).to_numpy()
            assert (table - 1).clip(min=0).sum() == fewest_shared(table.sum(1), table.sum(0))


@for_cases(15)
def test_no_exchange_within_a_stratum_would_part_draws_that_share_a_lineage(case):
    if case.config.temporal_enrichment:
        return
    drawn = case.drawn.assign(stratum=case.drawn[STRATUM].agg("|".join, axis=1))
    for _, part in drawn.groupby(["stream", "round"]):
        batch, lineage, stratum = (pd.factorize(part[k])[0] for k in ("batch", "lineage", "stratum"))
        held = np.zeros((batch.max() + 1, lineage.max() + 1), int)
        np.add.at(held, (batch, lineage), 1)
        for i in np.flatnonzero(held[batch, lineage] > 1):
            gained = 1 + (held[batch, lineage] > 1)
            lost = (held[batch, lineage[i]] > 0).astype(int) + (held[batch[i], lineage] > 0)
            other = (lineage != lineage[i]) & (batch != batch[i]) & (stratum == stratum[i])
            assert not (other & (lost < gained)).any()


@for_cases(15)
def test_anchors_of_a_stratum_come_up_equally_often(case):
    if case.config.temporal_enrichment:
        return
    draws = case.drawn["sample"].value_counts().reindex(case.pool.index, fill_value=0)
    if not case.streams:
        for _, own in case.pool.groupby(STRATUM):
            assert np.ptp(draws[own.index]) <= 1
    for k in range(case.streams):
        assert all(len(part.anchors) for part in case.whole._planners[k].source._mixer.parts(0)[k])
    if case.streams:
        dealt = [part.anchors for own in case.whole._planners[0].source._mixer.parts(0) for part in own]
        assert (np.unique(np.concatenate(dealt)) == np.arange(len(case.index.row))).all()
    if case.streams and case.segments == 1:
        for k, planner in enumerate(case.whole._planners):
            drawn = case.drawn[case.drawn["stream"] == k].groupby(["row", "choice"]).size()
            for part in planner.source._mixer.parts(0)[k]:  # what the stream owns of each stratum
                choice = case.index.choice_of(part.anchors)
                own = zip(
                    case.index.row[part.anchors], [0] * len(part.anchors) if choice is None else choice, strict=True
                )
                assert np.ptp(drawn.reindex(pd.MultiIndex.from_tuples(own), fill_value=0)) <= 1
    if case.streams or is_balanced(case) or case.config.leaky or case.config.weights:
        return
    for _, own in case.pool.groupby("group" if is_grouped(case) else "anchor"):
        if len(own) >= case.config.batch_size:
            assert draws[own.index].max() == 1
            assert (draws[own.index] == 0).sum() < case.config.batch_size


@for_cases(15)
def test_positives_are_those_that_joins_of_tables_allow(case):
    drawn, rule = case.drawn, case.positives
    if rule.kind != "columns":
        pairs = drawn[["row", "to"]].drop_duplicates()
        if rule.kind == "self":
            assert (pairs["row"] == pairs["to"]).all()
        else:
            allowed = list_temporal(case, case.samples)
            assert set(zip(pairs["row"], pairs["to"], strict=True)) <= set(
                zip(allowed["row"], allowed["to"], strict=True)
            )
        if rule.channel == "same":
            assert (drawn["to_choice"] == drawn["choice"]).all()
        else:
            most = drawn["experiment"].map(lambda e: count_choices(case, int(e[1:])))
            assert (drawn["to_choice"] < most).all()
        return
    by = match_columns(case)
    pool = case.pool.rename(columns={"row": "to", "choice": "to_choice"})
    partner = drawn[["to", "to_choice"]].merge(pool, on=["to", "to_choice"], how="left")
    assert (partner[by].to_numpy() == drawn[by].to_numpy()).all()
    alone = partner["lineage"].to_numpy() == drawn["lineage"].to_numpy()
    # within reach is all that may be drawn; in streaming at least what is drawn in the same round
    within, by = (drawn, [*by, "stream", "round"]) if case.streams else (case.pool, by)
    several = within.groupby(by)["lineage"].nunique() > 1
    for row in drawn.loc[alone].drop_duplicates(by)[by].itertuples(index=False, name=None):
        assert not several[row if len(by) > 1 else row[0]]


@for_cases(15)
def test_streamed_anchors_and_partners_are_resident(case):
    if not case.streams:
        return
    columns = make_set(case.shape)[0]
    sampler = case.sampler()
    blocks = [sampler.blocks(k) for k in range(case.streams)]
    for plan in case.plans:
        own, at = blocks[plan.number % case.streams], plan.number // case.streams
        here = set(own.block[(own.admit <= at) & (own.retire >= at)].tolist())
        for rows in (plan.anchor, plan.positive):
            assert set(columns.clip_block[columns.patch_clip[rows]].tolist()) <= here
    assert sampler.report(0).streaming["planned_peak_bytes"] <= case.window_bytes


def key(plan: BatchPlan) -> tuple:
    parts = (plan.anchor, plan.positive, plan.anchor_choice, plan.positive_choice)
    return (plan.number, plan.group, str(plan.focal_hpi), *(None if p is None else tuple(p.tolist()) for p in parts))


class Echo:
    """Data that are the plans by which they are asked for."""

    def __getitems__(self, plan):
        return plan

    def __len__(self):
        return 1

    def open_window(self, reads):
        assert reads.limit_bytes > 0

    def close_window(self):
        pass


@for_cases(8)
def test_ranks_are_equal_and_resume_is_exact_whatever_the_threads(case):
    whole = [key(p) for p in case.plans]
    worlds = [world for world in (1, 2, 3, 4) if (case.streams or world) % world == 0]
    for world in worlds:
        ranks = [case.sampler(r, world) for r in range(world)]
        assert {len(r) for r in ranks} == {len(whole) // world}
        steps = zip(*ranks, strict=True)
        assert [key(p) for step in steps for p in step] == whole[: len(whole) // world * world]
    world = worlds[case.config.seed % len(worlds)]
    stopped = case.sampler(world_size=world)
    stopped.deliver(len(stopped) * (case.config.seed % 7) // 7)
    resumed = case.sampler()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    loader = ThreadDataLoader(Echo(), batch_sampler=resumed, num_workers=case.config.seed % 4)
    assert [key(p) for p in loader] == whole[stopped.position :]


@for_cases(15)
def test_the_ledger_counts_what_a_slow_count_finds(case):
    report = case.sampler().report()
    by_batch = case.drawn.groupby("batch")
    assert report.relaxed == {
        "lineage": int((case.config.batch_size - by_batch["lineage"].nunique()).sum()),
        "track": int((case.config.batch_size - by_batch["track"].nunique()).sum()),
        "observation": int((case.config.batch_size - by_batch["sample"].nunique()).sum()),
    }
    draws = case.drawn["sample"].value_counts()
    assert sum(c.unique for c in report.coverage) == len(draws)
    assert sum(c.repeated for c in report.coverage) == len(case.drawn) - len(draws)
