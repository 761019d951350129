"""The ledger counts what batches hold, holds it to what was asked, and agrees with plain counting."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from dynaclr_wds.commands.tables import format_report
from dynaclr_wds.plan.audit.bytes_read import account_bytes
from dynaclr_wds.plan.audit.ledger import Ledger
from dynaclr_wds.plan.audit.report import Composition, Report
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.plan.streaming.planner import BlockSchedule
from tests.synthetic import Synthetic, make_index

COLLECTION = make_index(Synthetic(experiments=3, lineages=(120, 30)))
CONFIG = SamplingConfig(
    batch_size=32, leaky=0.1, temporal_enrichment=True, condition_ratio={"mock": 2.0, "infected": 1.0}
)


def own_anchors(index: PlanIndex, stratum: int, count: int) -> np.ndarray:
    """The first anchors of a stratum, as patch rows, each of another lineage."""
    at = np.arange(index.first[stratum], index.first[stratum + 1])
    first = np.sort(np.unique(index.lineage(at), return_index=True)[1])[:count]
    return index.row[at[first]].astype(np.int64)


def batch(*rows: np.ndarray, group: str = "e0", **fields) -> BatchPlan:
    return BatchPlan(number=0, anchor=np.concatenate(rows), positive=None, group=group, **fields)


def count(index: PlanIndex, config: SamplingConfig, *plans: BatchPlan) -> Report:
    ledger = Ledger(index, config)
    for plan in plans:
        ledger.add(plan)
    return ledger.report()


def quota(report: Report, name: str) -> Composition:
    (found,) = [c for c in report.composition if c.name == name]
    return found


# --- against plain counting ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted() -> tuple[Report, pd.DataFrame]:
    """An epoch as the ledger counts it, and as a table with one row per sample."""
    # experiments of different frame intervals: τ in frames and in hours differ
    intervals = {"e0": 30.0, "e1": 30.0, "e2": 15.0}
    strata = [dataclasses.replace(s, interval_minutes=intervals[s.experiment]) for s in COLLECTION.strata]
    index = dataclasses.replace(COLLECTION, strata=tuple(strata))
    columns, sampler = index.columns, FlexibleBatchSampler(index, CONFIG)
    parts = []
    for plan in sampler:
        clip, obs = columns.patch_clip[plan.anchor], columns.patch_obs[plan.anchor]
        names = [strata[s] for s in index.block_stratum[columns.clip_block[clip]]]
        minutes = np.array([s.interval_minutes for s in names])
        part = {
            "batch": plan.number,
            "group": plan.group,
            "row": plan.anchor,
            "experiment": [s.experiment for s in names],
            "condition": [s.value_name for s in names],
            "lineage": columns.clip_lineage[clip],
            "track": columns.obs_track[obs],
            "frames": columns.patch_t[plan.positive] - columns.patch_t[plan.anchor],
            "minutes": minutes,
            "focal": np.abs(columns.patch_t[plan.anchor] * minutes / 60 - plan.focal_hpi) <= 2.0,
        }
        parts.append(pd.DataFrame(part))
    return sampler.report(), pd.concat(parts, ignore_index=True)


def test_coverage_agrees_with_plain_counting(counted):
    report, table = counted
    for stratum in report.coverage:
        own = table[(table.experiment == stratum.experiment) & (table.condition == stratum.value)]
        draws = own.row.value_counts()
        assert stratum.anchors == (2160 if stratum.value == "mock" else 540)  # lineages x 18 anchors
        assert stratum.unique == len(draws)
        assert stratum.never_seen == stratum.anchors - len(draws)
        assert stratum.repeated == len(own) - len(draws)
        assert stratum.most_repeats == draws.max()
    assert report.seen == pytest.approx(table.row.nunique() / 8100)


def test_relaxations_agree_with_plain_counting(counted):
    report, table = counted
    names = {"lineage": "lineage", "track": "track", "observation": "row"}
    assert report.relaxed == {name: int(table.duplicated(["batch", column]).sum()) for name, column in names.items()}


def test_tau_agrees_with_plain_counting_in_frames_and_hours(counted):
    report, table = counted
    assert report.tau_frames == table.frames.value_counts().to_dict()
    assert report.tau_hours == (table.frames * table.minutes / 60).value_counts().to_dict()
    assert min(report.tau_hours) == 0.25


def test_composition_agrees_with_plain_counting(counted):
    report, table = counted
    by_batch = table.groupby("batch")
    leak = by_batch.apply(lambda b: (b.experiment != b.group).mean(), include_groups=False)
    assert quota(report, "leak").asked == pytest.approx(0.1)
    assert quota(report, "leak").mean == pytest.approx(leak.mean())
    focal = by_batch.focal.mean()
    found = quota(report, "focal window")
    assert found.asked == pytest.approx(0.7)
    assert found.mean == pytest.approx(focal.mean())
    assert found.worst == pytest.approx(focal[(focal - 0.7).abs().idxmax()])
    assert found.missed == int(((focal - 0.7).abs() * 32 > 1 + 1e-6).sum())
    for name, group in table.groupby("group"):
        mock = group.groupby("batch").condition.apply(lambda c: (c == "mock").mean())
        found = quota(report, f"condition mock in {name}")
        assert found.asked == pytest.approx(2 / 3)
        assert found.mean == pytest.approx(mock.mean())
        assert found.batches == len(mock)


def test_batches_per_experiment_agree_with_plain_counting(counted):
    report, table = counted
    batches = table.groupby("group").batch.nunique()
    assert {e.group: e.batches for e in report.groups} == batches.to_dict()
    assert [e.asked for e in report.groups] == pytest.approx([1 / 3] * 3)
    assert [e.achieved for e in report.groups] == pytest.approx((batches / batches.sum()).tolist())


# --- asked is what the user asked --------------------------------------------------------------------------------


def test_a_leak_that_there_is_no_other_experiment_for_is_a_shortfall():
    alone = make_index(Synthetic(experiments=1, lineages=(60, 60)))
    report = FlexibleBatchSampler(alone, SamplingConfig(batch_size=16, leaky=0.25)).report()
    found = quota(report, "leak")
    assert (found.asked, found.mean, found.missed) == (0.25, 0.0, found.batches)


def test_a_leak_that_was_not_asked_for_is_seen():
    plan = batch(own_anchors(COLLECTION, 0, 4), own_anchors(COLLECTION, 1, 2), own_anchors(COLLECTION, 2, 2))
    found = quota(count(COLLECTION, SamplingConfig(batch_size=8), plan), "leak")
    assert (found.asked, found.mean, found.missed) == (0.0, 0.25, 1)


def test_each_batch_is_held_to_its_own_target_where_leaked_conditions_differ():
    # e0 has both conditions, e1 only "mock": an infected sample that leaks into e1 counts for none of its conditions
    index = make_index(Synthetic(experiments=2, lineages=(20, 20)), e1=(20, 0))
    mock0, infected0, mock1 = (own_anchors(index, s, 8) for s in range(3))
    config = SamplingConfig(batch_size=8, leaky=0.25)
    plans = [batch(mock1[:6], infected0[:2], group="e1"), batch(mock1[:6], mock0[:2], group="e1")]
    found = quota(count(index, config, *plans), "condition mock in e1")
    assert (found.asked, found.mean, found.missed) == (0.875, 0.875, 0)  # 6 of 6 and 8 of 8


def test_the_worst_batch_and_the_missed_ones_are_named():
    mock, infected = own_anchors(COLLECTION, 0, 8), own_anchors(COLLECTION, 1, 8)
    plans = [batch(mock[:4], infected[:4]), batch(mock[:5], infected[:3]), batch(mock[:7], infected[:1])]
    found = quota(count(COLLECTION, SamplingConfig(batch_size=8), *plans), "condition mock in e0")
    assert found == Composition(
        name="condition mock in e0", asked=0.5, mean=2 / 3, worst=0.875, batches=3, missed=1
    )  # one sample off is rounding, three are not


def test_experiment_weights_are_what_is_asked():
    config = SamplingConfig(batch_size=8, experiment_weights={"e0": 3.0, "e1": 1.0})
    report = count(COLLECTION, config, batch(own_anchors(COLLECTION, 0, 8)))
    assert [(e.group, e.asked, e.achieved) for e in report.groups] == [
        ("e0", 0.75, 1.0),
        ("e1", 0.25, 0.0),
        ("e2", 0.0, 0.0),
    ]


def test_without_experiments_no_leak_and_no_share_is_asked():
    config = SamplingConfig(batch_size=8, experiment_aware=False)
    report = count(COLLECTION, config, batch(own_anchors(COLLECTION, 0, 8), group=""))
    assert report.groups == ()
    assert [c.name for c in report.composition] == ["condition mock", "condition infected"]


# --- counting ------------------------------------------------------------------------------------------------------


def test_an_anchor_may_be_drawn_more_often_than_16_bits_count():
    row = own_anchors(COLLECTION, 0, 1)
    report = count(COLLECTION, SamplingConfig(batch_size=70_000), batch(np.repeat(row, 70_000)))
    assert report.coverage[0].most_repeats == 70_000
    assert report.coverage[0].repeated == 69_999
    assert report.relaxed == {"lineage": 69_999, "track": 69_999, "observation": 69_999}


def test_a_batch_of_another_index_is_refused():
    stray = np.flatnonzero(~COLLECTION.columns.patch_has_candidate)[:1]
    with pytest.raises(ValueError, match=rf"Batch 0 has patch row {stray[0]} as an anchor.*8,100 anchors"):
        count(COLLECTION, CONFIG, batch(stray))


def test_bytes_used_are_those_of_the_patches_drawn_each_counted_once():
    rows = own_anchors(COLLECTION, 0, 8)
    once = count(COLLECTION, SamplingConfig(batch_size=8), batch(rows))
    again = count(COLLECTION, SamplingConfig(batch_size=8), batch(rows), batch(rows[::-1]))
    assert (once.bytes_used, again.bytes_used) == (8000, 8000)  # 1000 bytes a patch


def test_a_report_is_plain_json_and_prints(tmp_path):
    report = FlexibleBatchSampler(COLLECTION, CONFIG).report(20)
    report.write(tmp_path / "ledger.json")
    read = json.loads((tmp_path / "ledger.json").read_text())
    assert read["batches"] == 20
    assert read["composition"][0]["name"] == "leak"
    text = format_report(report)
    assert "20 batches of 32" in text
    assert "samples near one time (temporal_enrichment)" in text
    assert max(map(len, text.splitlines())) <= 110


# --- bytes ---------------------------------------------------------------------------------------------------------


def test_traffic_adds_up_streams_that_run_in_step():
    index = make_index(Synthetic(experiments=2, conditions=("c",), lineages=(32,), daughter=0))
    (a, b), (c, _) = (index.blocks_of(s).tolist() for s in (0, 1))
    assert index.columns.block_bytes.tolist() == [128_000] * 4

    def schedule(block, fetch, admit, retire) -> BlockSchedule:
        one = [np.array(v, np.int64) for v in (block, fetch, admit, retire)]
        size = np.asarray(index.columns.block_bytes[one[0]], np.int64)
        return BlockSchedule(block=one[0], fetch=one[1], admit=one[2], retire=one[3], bytes=size, peak_bytes=0)

    # stream 0: a before the first batch, b while batch 1 runs, a once more; stream 1: c from the start to the end
    first = schedule([a, b, a], [-1, 1, 2], [0, 2, 3], [1, 2, 3])
    second = schedule([c], [-1], [0], [3])
    found = account_bytes(index, [first, second], 4)
    assert found["bytes_read"] == 4 * 128_000
    assert found["bytes_stored"] == 4 * 128_000
    assert found["amplification"] == 1.0
    assert found["bytes_repeated"] == 128_000
    # a and b overlap while b is fetched in batch 1, b and the second visit of a in batch 2; c throughout
    assert found["planned_peak_bytes"] == 3 * 128_000
    assert found["fill_bytes"] == 2 * 128_000
    assert found["burst"] == 1.0  # 128,000 of one step, over 512,000 in 4 steps
    assert found["groups"] == 1.0
