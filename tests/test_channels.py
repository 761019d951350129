"""Laws of reading a bag of channels: only what is drawn is copied, and all that is said of a sample is of it."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dynaclr_wds import __main__ as command
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.read.crop import Crop
from dynaclr_wds.read.dataset import MultiExperimentTripletDataset
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.patches import PatchReader, level_statistics
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.transforms.normalize import NormalizeSampled
from tests.conftest import build, write_collection
from tests.test_predict import CONFIG, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")

NAMES = ("Phase", "GFP", "RFP")


@pytest.fixture(scope="module")
def opened(mixed_channels) -> ShardSet:
    return ShardSet.open(mixed_channels)


def whole_patch(shards: ShardSet, row: int) -> np.ndarray:
    """All channels of one patch, by the reader that draws none."""
    reader = PatchReader(shards, Crop(z=slice(None)), open_store(shards))
    rows = np.array([row])
    out = np.empty((1, *reader.layout(rows)[0]), reader.layout(rows)[1])
    reader.read(rows, out)
    return out[0]


def data_of(folder, **options) -> MultiExperimentDataModule:
    options = {"batch_size": 12, "tau_range": (0.5, 1.5), "num_workers": 0, **options}
    data = MultiExperimentDataModule(str(folder), **options)
    data.setup("fit")
    return data


class CountedStore:
    """Counts the bytes that are copied."""

    def __init__(self, store) -> None:
        self.store = store
        self.copied = 0

    def __getattr__(self, name):
        return getattr(self.store, name)

    def read(self, shard, begin, offset, out) -> None:
        self.copied += out.nbytes
        self.store.read(shard, begin, offset, out)


@pytest.mark.parametrize("crop", [None, (10, 12)])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_sample_is_one_channel_of_the_stored_patch(opened, mixed_channels, crop, streaming):
    window = {"window_bytes": 10**9, "num_streams": 1} if streaming else {}
    data = data_of(
        mixed_channels, channels_per_sample=1, batch_group_by=[], experiment_aware=False, yx_patch_size=crop, **window
    )
    seen = set()
    for batch in data.train_dataloader():
        for key in ("anchor", "positive"):
            assert batch[key].shape == (12, 1, 3, *(crop or (16, 16)))
            metas = batch[f"{key}_meta"]
            for n, meta in enumerate(metas):
                row = int(opened.arrays["obs_patch"][meta["observation"]])
                stored = whole_patch(opened, row)[NAMES.index(meta["channel"])]
                top, left = (8 - crop[0] // 2, 8 - crop[1] // 2) if crop else (0, 0)
                height, width = crop or (16, 16)
                expected = stored[:, top : top + height, left : left + width]
                assert np.array_equal(batch[key][n, 0].numpy(), expected)
                assert meta["name"].endswith(f"/{meta['t']}/{meta['channel']}")
                assert meta["marker"] == meta["channel"]  # the YAML names no markers
                seen.add((meta["experiment"], meta["channel"]))
    assert seen == {(e, c) for e, count in (("e0", 2), ("e1", 1), ("e2", 3)) for c in NAMES[:count]}


def test_statistics_are_those_of_the_channel_drawn(opened, mixed_channels):
    data = data_of(mixed_channels, channels_per_sample=1, normalizations=[NormalizeSampled(level="fov")])
    batch = next(iter(data.train_dataloader()))
    raw = batch["anchor"].float().clone()
    statistics = batch["anchor_norm_meta"]["fov"].clone()
    assert statistics.shape == (12, 1, 8)
    out = data.on_after_batch_transfer(batch, 0)
    for n, meta in enumerate(batch["anchor_meta"]):
        own = level_statistics(opened, np.array([meta["observation"]]))["fov"][0, NAMES.index(meta["channel"])]
        assert np.array_equal(statistics[n, 0].numpy(), own)
        mean, std = float(own[0]), float(own[1])
        assert torch.allclose(out["anchor"][n], (raw[n] - mean) / std, rtol=1e-4, atol=1e-4)


def test_only_the_bytes_of_the_channels_drawn_are_copied(opened, mixed_channels):
    data = data_of(mixed_channels, channels_per_sample=1, val_experiments=["e0", "e1"])
    store = CountedStore(open_store(opened))
    choices = opened.list_choices(1, ["e2"])
    dataset = MultiExperimentTripletDataset(opened, Crop(z=slice(None)), store=store, choices=choices)
    plan = next(iter(data.train_sampler))
    dataset.__getitems__(plan)
    assert store.copied == 2 * 12 * 3 * 16 * 16 * 2  # anchors and positives, one channel, (3, 16, 16) of uint16


def test_a_positive_that_is_the_anchor_is_read_once(opened, mixed_channels):
    data = data_of(mixed_channels, positive="self", val_experiments=["e0", "e1"], tau_range=(40.0, 80.0))
    store = CountedStore(open_store(opened))
    dataset = MultiExperimentTripletDataset(opened, Crop(z=slice(None)), store=store)
    batch = dataset.__getitems__(next(iter(data.train_sampler)))
    assert store.copied == 12 * 3 * 3 * 16 * 16 * 2
    assert batch["positive"] is batch["anchor"]
    assert batch["positive_meta"] is batch["anchor_meta"]
    moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert moved["positive"] is moved["anchor"]


def test_views_of_the_same_patch_are_augmented_apart(mixed_channels):
    from dynaclr_wds.transforms import RandomNoise

    data = data_of(mixed_channels, positive="self", channels_per_sample=1, augmentations=[RandomNoise(std=(1.0, 1.0))])
    for transform in data.transforms.values():
        out = transform(next(iter(data.train_dataloader())), training=True)
        assert not torch.equal(out["anchor"], out["positive"])


def test_views_of_the_same_patch_differ_in_validation_and_are_those_of_every_epoch(mixed_channels):
    from dynaclr_wds.transforms import RandomNoise

    data = data_of(
        mixed_channels, positive="self", channels_per_sample=1, val_experiments=["e2"],
        augmentations=[RandomNoise(std=(1.0, 1.0))], channel_dropout_channels=[0], channel_dropout_prob=1.0,
    )  # fmt: skip
    batches = list(data.val_dataloader())
    data.trainer = SimpleNamespace(training=False, validating=True, sanity_checking=False)
    before = torch.get_rng_state()
    first, again = ([data.on_after_batch_transfer(batch, 0) for batch in batches] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first, again, strict=True):
        assert not torch.equal(a["anchor"], a["positive"])
        assert torch.equal(a["anchor"], b["anchor"])
        assert torch.equal(a["positive"], b["positive"])
        assert a["anchor"].any()  # nothing is dropped
    noise = [batch["anchor"] - raw["anchor"] for batch, raw in zip(first, batches, strict=True)]
    assert not torch.equal(noise[0], noise[1])
    data.trainer = SimpleNamespace(training=False, validating=False, sanity_checking=False)  # in prediction
    assert torch.equal(data.on_after_batch_transfer(batches[0], 0)["anchor"], batches[0]["anchor"].float())


@pytest.mark.parametrize(("asked", "order"), [(2, [0, 1]), (["GFP", "Phase"], [1, 0]), (["GFP"], [1])])
def test_several_channels_come_in_the_order_stored_or_asked(shards, shard_set, asked, order):
    for batch in data_of(shards, channels_per_sample=asked).train_dataloader():
        for n, meta in enumerate(batch["anchor_meta"]):
            row = int(shard_set.arrays["obs_patch"][meta["observation"]])
            assert np.array_equal(batch["anchor"][n].numpy(), whole_patch(shard_set, row)[order])
            assert meta["channel"] == "+".join(NAMES[c] for c in order)


def test_a_channel_that_an_experiment_lacks_is_named(mixed_channels):
    assert len(data_of(mixed_channels, channels_per_sample=["Phase"]).train_sampler)
    with pytest.raises(ValueError, match="channels_per_sample names 'GFP', which 'e1' doesn't store"):
        data_of(mixed_channels, channels_per_sample=["GFP"])


def test_prediction_embeds_every_channel_of_every_cell(opened, mixed_channels):
    data = MultiExperimentDataModule(str(mixed_channels), channels_per_sample=1, batch_size=64, num_workers=0)
    data.setup("predict")
    names = [meta["name"] for batch in data.predict_dataloader() for meta in batch["index"]]
    cells = np.bincount(opened.fov_experiment[opened.arrays["obs_fov"]])
    assert len(names) == len(set(names)) == 2 * cells[0] + cells[1] + 3 * cells[2]


def test_validation_holds_every_channel_too(mixed_channels):
    data = data_of(mixed_channels, channels_per_sample=1, val_experiments=["e2"])
    shown = [m["channel"] for batch in data.val_dataloader() for m in batch["anchor_meta"]]
    assert {name: shown.count(name) for name in NAMES} == dict.fromkeys(NAMES, len(shown) // 3)


@pytest.fixture
def trained(mixed_channels, tmp_path, monkeypatch):
    """Checkpoint of a small training on one channel at a time, of e0 and e2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dynaclr_wds"])
    encoder = {
        "class_path": "dynaclr_wds.train.encoder.ProjectedEncoder",
        "init_args": {
            "backbone": {"class_path": "tests.test_predict.Flat", "init_args": {"planes": 3}},
            "embedding_dim": 6,
            "projection_dim": 4,
        },
    }
    own = {"shards": str(mixed_channels), "val_experiments": ["e1"], "channels_per_sample": 1}
    data = CONFIG["data"] | own | {"batch_group_by": ["marker"], "stratify_by": ["experiment"]}
    return fit(tmp_path, CONFIG | {"model": {**CONFIG["model"], "encoder": encoder}, "data": data})


def test_a_training_on_bags_of_channels_embeds_every_channel(trained, opened):
    assert command.main(["predict", "--accelerator", "cpu", "--ckpt", str(trained), "--out", "cells.parquet"]) == 0
    table = pq.read_table("cells.parquet").to_pandas()
    cells = np.bincount(opened.fov_experiment[opened.arrays["obs_fov"]])
    assert table.groupby(["experiment", "channel"]).size().to_dict() == {
        (e, c): cells[n] for n, (e, count) in enumerate((("e0", 2), ("e1", 1), ("e2", 3))) for c in NAMES[:count]
    }
    assert table["name"].is_unique
    assert (table["marker"] == table["channel"]).all()


def test_a_channel_that_training_never_saw_is_refused(trained, tmp_path, capsys):
    other = build(
        write_collection(tmp_path / "other", ("uint16",), channels=1, names_of_channels=("DIC",)), tmp_path / "dic"
    )
    argv = ["predict", "--accelerator", "cpu", "--ckpt", str(trained), "--shards", str(other), "--out", "o.parquet"]
    assert command.main(argv) == 2
    assert "Channel 0 of 'e0'" in (said := capsys.readouterr().err)
    assert "is 'DIC'" in said
