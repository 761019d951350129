"""What a user prints says what is inside, in words and one line."""

from dynaclr_wds import ChannelDropout, Crop, FlexibleBatchSampler, MultiExperimentDataModule, NTXentHCL, SamplingConfig
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train import EpochLedger, PlanVerdict
from tests.synthetic import Synthetic, make_index

INDEX = make_index(Synthetic(experiments=2, lineages=(60, 15)))


def test_plans():
    assert repr(INDEX) == "PlanIndex(2,700 anchors in 4 strata of 2 experiments, by experiment, condition)"
    exact = FlexibleBatchSampler(INDEX, SamplingConfig(batch_size=16))
    assert repr(exact) == "FlexibleBatchSampler(exact, 2 experiments, 2,700 samples, 168 batches of 16)"
    streaming = FlexibleBatchSampler(INDEX, SamplingConfig(batch_size=16), window_bytes=10_000_000, num_streams=2)
    assert repr(streaming) == (
        "FlexibleBatchSampler(streaming in 10,000,000 bytes and 2 streams, 2 experiments, 2,700 samples, "
        "168 batches of 16)"
    )


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
