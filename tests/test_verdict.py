"""The verdict on a plan counts what is there, finds a batch size that holds, and is the same wherever it is said."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from lightning.pytorch import Trainer
from torch import nn

from dynaclr_wds import MultiExperimentDataModule
from dynaclr_wds import __main__ as command
from dynaclr_wds.plan.audit.batch_size import count_lineages, find_batch_size
from dynaclr_wds.plan.audit.ledger import Ledger
from dynaclr_wds.plan.audit.quality import measure_quality
from dynaclr_wds.plan.audit.report_text import summarize
from dynaclr_wds.plan.audit.verdict import judge, plan_verdict
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.channels import list_choices
from dynaclr_wds.plan.config import SamplingConfig
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.train.epoch_ledger import EpochLedger
from dynaclr_wds.train.plan_verdict import PlanVerdict, format_verdict
from tests.synthetic import Synthetic, make_index

FEW = make_index(Synthetic(experiments=2, lineages=(40, 12)))
MANY = make_index(Synthetic(experiments=2, lineages=(120, 120)))


def sampler(index: PlanIndex, window_bytes: int | None = None, **options: object) -> FlexibleBatchSampler:
    streams = None if window_bytes is None else 1
    return FlexibleBatchSampler(index, SamplingConfig(**options), window_bytes=window_bytes, num_streams=streams)


def shared(index: PlanIndex, plan: BatchPlan) -> int:
    """Samples of a batch whose lineage an earlier one has, counted one by one."""
    lineages = index.columns.clip_lineage[index.columns.patch_clip[plan.anchor]].tolist()
    return sum(one in lineages[:place] for place, one in enumerate(lineages))


def test_clumps_shared_lineages_and_missed_quotas_are_called_by_name():
    index = make_index(Synthetic(experiments=1, lineages=(60, 60)))
    config = SamplingConfig(batch_size=8)
    # one lineage's eight anchors: one FOV, one lineage, one condition
    rows = index.row[index.lineage(np.arange(len(index.row))) == 0][:8].astype(np.int64)
    plan = BatchPlan(number=0, anchor=rows, positive=None)
    ledger = Ledger(index, config)
    ledger.add(plan)
    notes = judge(sampler(index, batch_size=8), ledger.report(), measure_quality(index, config, [plan]), whole=False)
    assert [note.level for note in notes] == ["bad", "bad", "fair"]
    assert notes[0].text.startswith(
        "Samples of one field of view (FOV) meet in a batch 3."
    )  # 4 FOVs of about a quarter each
    assert notes[1].text.startswith("7 of 8 samples (87.5%) have the lineage of another sample in the batch, so they c")
    assert notes[2].text == (
        "The share of condition mock is higher than asked, by more than one sample, in 1 of 1 batch, and 1 other share "
        "is off in fewer."
    )


def test_lineages_are_counted_per_stratum():
    assert count_lineages(FEW).tolist() == [40, 12, 40, 12]


def test_a_batch_of_too_few_lineages_is_told_with_the_size_that_would_do():
    of = sampler(FEW, batch_size=32)
    verdict = plan_verdict(of)
    total = sum(shared(FEW, of.plan(number)) for number in range(58))
    assert (verdict.batches, verdict.planned) == (58, 58)
    texts = [note.text for note in verdict.troubles]
    assert texts == [
        f"{total} of 1,856 samples ({total / 18.56:.1f}%) have the lineage of another sample in the batch, so they "
        "count as negatives of each other although they are positives. Give batch_size: 22 to avoid this; it is the "
        "largest that was found to do so. With batch_size: 24 it concerns less than 1% of the samples.",
        "Too few lineages for this batch_size: e0/infected has 12, but a batch takes 16 samples of it; e1/infected has "
        "12, but a batch takes 16 samples of it.",
    ]


@pytest.mark.parametrize("window", [None, 4_000_000])
def test_the_size_that_is_found_has_no_shared_lineage_and_the_next_one_has(window):
    of = sampler(FEW, window, batch_size=40)
    found = find_batch_size(of)
    for size, clean in ((found, True), (found + 1, False)):
        other = sampler(FEW, window, batch_size=size)
        plans = [other.plan(number) for number in range(other.global_batches)]
        assert (sum(shared(FEW, plan) for plan in plans) == 0) is clean


def test_what_is_tolerated_is_held():
    found = find_batch_size(sampler(FEW, batch_size=48), 0.05)
    for size, held in ((found, True), (found + 1, False)):
        other = sampler(FEW, batch_size=size)
        total = sum(shared(FEW, other.plan(number)) for number in range(other.global_batches))
        assert (total <= 0.05 * size * other.global_batches) is held


def test_no_size_would_do_where_all_is_one_lineage():
    index = make_index(Synthetic(experiments=1, lineages=(1, 0), mother=60, daughter=60, frames=200))
    verdict = plan_verdict(sampler(index, batch_size=16))
    assert "No batch_size above 1 avoids this." in verdict.troubles[0].text


def test_a_focal_window_that_holds_too_few_lineages_has_another_cure():
    (note,) = plan_verdict(sampler(MANY, batch_size=128, temporal_enrichment=True)).troubles
    assert "It also helps to give a larger temporal_window_hours or temporal_global_fraction." in note.text


def test_anchors_drawn_often_are_told_whether_all_is_planned_or_not():
    index = make_index(Synthetic(experiments=1, lineages=(200, 50)))
    of = sampler(index, batch_size=16)  # half of each batch from a fifth of the anchors: 2.5 draws of each
    (note,) = plan_verdict(of).troubles
    often = int((np.bincount(np.concatenate([of.plan(n).anchor for n in range(of.global_batches)])) > 2).sum())
    share = f"{100 * often / len(index.row):.1f}%"
    assert note.text == (
        f"{often:,} of 4,500 anchors ({share}) are drawn more than twice an epoch; those of e0/infected 2.5 times on "
        "average, one of them 3 times."
    )
    ledger = Ledger(index, of.config)
    for number in of.sample_batches(100):
        ledger.add(of.plan(int(number)))
    (guess,) = [note for note in judge(of, ledger.report(), None, whole=False) if note.level == "fair"]
    assert guess.text.startswith("About ")
    assert guess.text.endswith("those of e0/infected 2.5 times on average.")


@pytest.mark.parametrize(("channels", "noun"), [(None, "cell"), (1, "sample")])
def test_strata_without_an_anchor_are_named(channels, noun):
    """A cell has a sample for each of its channels where they are drawn one by one."""
    columns = make_index(Synthetic(experiments=2, lineages=(60, 60)))
    (lost, *_), kept = columns.strata, columns.strata[1:]
    begin = int(columns.first[1])
    index = dataclasses.replace(
        columns,
        strata=kept,
        row=columns.row[begin:],
        first=columns.first[1:] - begin,
        group_of=columns.group_of[1:],
        base_of=columns.base_of[1:] - 1,
        value_of=columns.value_of[1:],
        without_positive=columns.without_positive[1:],
        barren=((lost, 1200),),
        choices=None if channels is None else list_choices(["e0", "e1"], [["GFP"]] * 2, [["GFP"]] * 2, 1, [True] * 2),
        choice=None if channels is None else np.zeros(len(columns.row) - begin, np.uint8),
    )
    texts = [note.text for note in plan_verdict(sampler(index, batch_size=8)).troubles]
    assert (
        f"Never drawn, because no {noun} has a positive in the τ range: e0/mock (1,200 {noun}s). Widen tau_range, or "
        "leave them out."
    ) in texts


@pytest.mark.parametrize("window", [None, 3_300_000])
def test_a_sample_of_an_epoch_is_whole_rounds_of_all_groups(window):
    of = sampler(MANY, window, batch_size=8)
    assert of.sample_batches(5_000).tolist() == list(range(of.global_batches))
    some = of.sample_batches(200)
    assert 64 <= len(some) <= 200
    assert (np.diff(some) > 0).all()
    assert 0 <= some[0] < of.global_batches / 4
    assert of.global_batches * 3 / 4 < some[-1] < of.global_batches
    assert {of.plan(int(number)).group for number in some} == {"e0", "e1"}


def test_when_all_is_well_one_line_says_so():
    told = format_verdict(plan_verdict(sampler(MANY, batch_size=16)), 16, 0.31)
    assert told == (
        "plan of an epoch: 540 batches of 16, judged in 0.3 s. All is well: Samples of one field of view (FOV) "
        "meet in a batch no more often than by chance (0.99 times). No two samples of a batch share a "
        "lineage. Every batch holds the shares that were asked for, to within one sample."
    )


def test_an_epoch_is_summed_up_in_a_line():
    assert summarize(sampler(MANY, batch_size=16).report()) == (
        "100.0% of the anchors seen, 0 repeated draws, no lineage twice in a batch, every batch as asked"
    )
    report = sampler(FEW, batch_size=32, temporal_enrichment=True).report()
    missed = next(c.missed for c in report.composition if c.name == "focal window")
    repeated, relaxed = sum(c.repeated for c in report.coverage), report.relaxed["lineage"]
    assert missed > 0
    assert summarize(report) == (
        f"{report.seen:.1%} of the anchors seen, {repeated:,} repeated draws, {relaxed:,} samples with the "
        f"lineage of another in the batch, samples near one time (temporal_enrichment) off by more than one "
        f"in {missed} of {report.batches} batches"
    )


@pytest.mark.parametrize("batch_size", [4, 32])
def test_training_says_before_the_first_step_what_shuffle_says(shards, tmp_path, capsys, batch_size):
    options = ["--batch_size", str(batch_size), "--val_experiments", "e2", "e3", "--tau_range", "0.5", "1.5", "--json"]
    assert command.main(["shuffle", str(shards), *options]) == 0
    notes = json.loads(capsys.readouterr().out)["modes"]["exact"]["notes"]
    data = MultiExperimentDataModule(
        shards=str(shards), batch_size=batch_size, val_experiments=["e2", "e3"], tau_range=(0.5, 1.5), num_workers=0
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        use_distributed_sampler=False, callbacks=[PlanVerdict(), EpochLedger(folder=str(tmp_path))],
    )  # fmt: skip
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 16 * 16, 4))
    trainer.fit(ContrastiveModule(encoder, log_pairs=0), data)
    told = " ".join(capsys.readouterr().out.split())
    assert 0 == told.index("plan of an epoch: ") < told.index("summary of epoch 1 of 1: ")
    well = all(note["level"] == "good" for note in notes)
    assert well is (batch_size == 4) is ("All is well" in told)
    assert [note["text"].rstrip(".") in told for note in notes] == [well or note["level"] != "good" for note in notes]
