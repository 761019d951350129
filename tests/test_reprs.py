"""What a user prints says what is inside, in words and one line."""

import re

from dynaclr_wds import ChannelDropout, Crop, FlexibleBatchSampler, MultiExperimentDataModule, NTXentHCL, SamplingConfig
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train import EpochLedger, PlanVerdict
from tests.synthetic import Synthetic, make_index

INDEX = make_index(Synthetic(experiments=2, lineages=(60, 15)))


def test_plans():
    assert repr(INDEX) == "PlanIndex(2,700 anchors of 2 experiments, in 4 combinations of experiment and condition)"
    exact = FlexibleBatchSampler(INDEX, SamplingConfig(batch_size=16))
    assert repr(exact) == "FlexibleBatchSampler(exact, 2 experiments, 2,700 samples, 168 batches of 16)"
    streaming = FlexibleBatchSampler(INDEX, SamplingConfig(batch_size=16), window_bytes=10_000_000, num_streams=2)
    assert repr(streaming) == (
        "FlexibleBatchSampler(streaming in 10,000,000 bytes and 2 streams, 2 experiments, 2,700 samples, "
        "168 batches of 16)"
    )


def test_one_of_a_kind_is_singular():
    one = make_index(Synthetic(experiments=1, lineages=(60, 15)))
    assert repr(one) == "PlanIndex(1,350 anchors of 1 experiment, in 2 combinations of experiment and condition)"
    sampler = FlexibleBatchSampler(one, SamplingConfig(batch_size=16), window_bytes=10_000_000, num_streams=1)
    assert "(streaming in 10,000,000 bytes and 1 stream, 1 experiment, 1,350 samples, " in repr(sampler)


def test_a_report_prints_a_few_lines_that_need_no_glossary():
    report = FlexibleBatchSampler(INDEX, SamplingConfig(batch_size=16)).report()
    lines = str(report).splitlines()
    assert lines[:3] == [
        "168 batches of 16 samples",
        f"coverage: {report.seen:.1%} of the anchors seen, {sum(c.repeated for c in report.coverage):,} repeated draws",
        "lineages: no lineage twice in a batch",
    ]
    assert lines[3:5] == ["batches by experiment: e0 50%, e1 50%", "asked of a batch: every batch as asked"]
    assert lines[5].startswith("time from anchor to positive (τ): 0.5 h ")
    assert len(lines) <= 8
    assert max(map(len, lines)) < 130
    assert repr(report).startswith("Report(168 batches of 16; ")
    assert not re.search("stratum|strata|quota|focal|candidate|ledger", f"{report} {report!r}")


def test_parts_of_a_training():
    assert repr(ChannelDropout([1], 0.5)) == "ChannelDropout(channels=[1], p=0.5)"
    assert repr(Crop(z=slice(None), yx=(8, 8))) == "Crop(z=slice(None, None, None), yx=(8, 8))"
    assert repr(NTXentHCL(0.07, 0.5)).startswith("NTXentHCL(\n  temperature=0.07, beta=0.5\n")
    assert repr(EpochLedger("a")) == "EpochLedger(folder='a', enabled=True)"
    assert repr(PlanVerdict()) == "PlanVerdict(enabled=True)"


def test_data(shards, monkeypatch):
    monkeypatch.setattr(ShardSet, "__repr__", lambda _: "ShardSet(…)")  # tests/test_read.py has it written out
    data = MultiExperimentDataModule(
        shards="here", tau_range=(0.5, 1.5), batch_size=8, val_experiments=["e3"], window_bytes=1 << 27, num_streams=1
    )
    told = "streaming in 134,217,728 bytes, batches of 8"
    assert repr(data) == f"MultiExperimentDataModule('here', {told}, 1 experiment for validation)"
    data.shards = str(shards)
    data.setup("fit")
    train, held_out = len(data.train_sampler.index.row), len(data.val_dataset)
    assert repr(data) == (
        f"MultiExperimentDataModule(ShardSet(…), {train} anchors for training, {told}, {held_out} anchors of 1 "
        "experiment for validation)"
    )
    assert repr(data.train_dataset) == "MultiExperimentTripletDataset(streaming, verify_reads=True, ShardSet(…))"
    assert repr(data.train_dataloader()) == (
        "ThreadDataLoader(MultiExperimentTripletDataset(streaming, verify_reads=True, ShardSet(…)), "
        f"{data.train_sampler.global_batches} batches, planned, 2 threads)"
    )
