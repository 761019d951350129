"""Stacks become single planes: the maximum for some channels, the centre for others, as the rule says of each."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dynaclr_wds.contract import ExperimentRecord
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.fov_names import keep_experiments
from dynaclr_wds.read.crop import plan_crop
from dynaclr_wds.read.dataset import MultiExperimentTripletDataset, list_observations
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.transforms import BatchTransform, apply_z_reduction, plan_z_reduction
from dynaclr_wds.transforms.batch import shown_shape
from dynaclr_wds.transforms.z_reduction import table_labelfree


def experiment(*channels: str, markers: tuple[str, ...] = ()) -> ExperimentRecord:
    return ExperimentRecord(
        name="e",
        dtype="<u2",
        shape=(len(channels), 5, 8, 8),
        channel_names=channels,
        source_channel=channels,
        markers=markers or channels,
        interval_minutes=30.0,
        start_hpi=0.0,
        pixel_size_um=(None, None, None),
        tau_frames=(1, 3),
        scale=(1.0, 1.0, 1.0),
        z_reduction=("none",) * len(channels),
    )


TWO = (experiment("Phase3D", "raw GFP EX488 EM525-45"), experiment("mCherry", markers=("TOMM20",)))


def test_the_most_particular_name_of_the_rule_decides():
    assert plan_z_reduction({}, TWO).tolist() == [[False, False], [False, False]]
    assert plan_z_reduction({"default": "mip"}, TWO).tolist() == [[True, True], [True, False]]
    assert plan_z_reduction({"fluorescence": "mip"}, TWO).tolist() == [[False, True], [True, False]]
    assert plan_z_reduction({"labelfree": "mip"}, TWO).tolist() == [[True, False], [False, False]]
    rule = {"default": "mip", "fluorescence": "mip", "TOMM20": "center", "labelfree": "center"}
    assert plan_z_reduction(rule, TWO).tolist() == [[False, True], [False, False]]
    assert plan_z_reduction({"mCherry": "mip", "TOMM20": "center"}, TWO).tolist() == [[False, False], [True, False]]


def test_a_marker_can_be_labelfree_too():
    assert table_labelfree([experiment("State0", markers=("Phase3D",))]).tolist() == [[True]]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"GFP": "mip"}, r"z_reduction: 'GFP' is no channel, marker or kind .* TOMM20, mCherry, raw GFP.*; default\)"),
        ({"default": "mean"}, r"z_reduction: default: 'mean' must be mip or center"),
    ],
)
def test_a_rule_that_cannot_be_is_named(rule, message):
    with pytest.raises(ValueError, match=message):
        plan_z_reduction(rule, TWO)


def test_each_sample_and_channel_is_reduced_as_its_flag_says():
    x = torch.tensor([4.0, 1.0, 2.0, 3.0]).reshape(1, 1, 4, 1, 1).repeat(2, 2, 1, 3, 3)
    mip = torch.tensor([[True, False], [False, True]])
    reduced = apply_z_reduction(x, mip)
    assert reduced.shape == (2, 2, 1, 3, 3)
    assert reduced[..., 0, 0, 0].tolist() == [[4.0, 2.0], [2.0, 4.0]]
    assert torch.equal(apply_z_reduction(x[:, :, :1], mip), x[:, :, :1])
    assert apply_z_reduction(x.to("meta"), mip.to("meta")).shape == (2, 2, 1, 3, 3)


def test_the_last_crop_comes_before_the_reduction():
    x = torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0]).reshape(1, 1, 5, 1, 1).repeat(1, 1, 1, 4, 4)
    batch = {"anchor": x, "anchor_channel_meta": {"mip": torch.tensor([[True]])}}
    result = BatchTransform(final_size=(3, 2, 2), reduce_z=True)(batch, training=False)
    assert set(result) == {"anchor"}
    assert torch.equal(result["anchor"], torch.full((1, 1, 1, 2, 2), 3.0))
    with pytest.raises(ValueError, match=re.escape("The batch has no anchor_channel_meta['mip']")):
        BatchTransform(reduce_z=True)({"anchor": x}, training=False)


def test_flags_follow_the_experiment_of_each_sample(shard_set: ShardSet):
    table = np.array([[True, False], [False, True], [True, True], [False, False]])
    keep = keep_experiments(shard_set.manifest.fovs, shard_set.experiments)
    rows = list_observations(shard_set, keep)
    plan = SimpleNamespace(rows=rows.anchor[:: len(rows.anchor) // 16])
    dataset = MultiExperimentTripletDataset(
        shard_set, plan_crop(shard_set, None, None), table=rows, channel_flags={"mip": table}
    )
    numbers = np.flatnonzero(np.isin(rows.anchor, plan.rows)).tolist()
    batch = dataset.__getitems__(numbers)
    names = list(shard_set.experiments)
    expected = [table[names.index(meta["experiment"])].tolist() for meta in batch["index"]]
    assert len({meta["experiment"] for meta in batch["index"]}) == 4
    assert batch["anchor_channel_meta"]["mip"].tolist() == expected
    plain = MultiExperimentTripletDataset(shard_set, plan_crop(shard_set, None, None), table=rows)
    assert "anchor_channel_meta" not in plain.__getitems__([0])


@pytest.mark.parametrize("training", [True, False])
def test_the_datamodule_shows_the_network_one_plane(shards, training):
    options = {"tau_range": (0.5, 1.5), "batch_size": 8, "val_experiments": ["e3"], "channel_dropout_channels": ()}
    data = MultiExperimentDataModule(str(shards), z_reduction={"default": "center", "GFP": "mip"}, **options)
    data.setup("fit")
    read = next(iter(data.train_dataloader() if training else data.val_dataloader()))
    data.trainer = SimpleNamespace(training=training)
    shown = data.on_after_batch_transfer(read, 0)
    for key in ("anchor", "positive"):
        x = read[key].float()
        assert shown[key].shape == (len(x), 2, 1, 16, 16)
        assert torch.equal(shown[key][:, 0, 0], x[:, 0, 1])
        assert torch.equal(shown[key][:, 1, 0], x[:, 1].amax(1))
    assert not [key for key in shown if key.endswith("_channel_meta")]
    assert shown_shape((2, 3, 16, 16), data) == (2, 1, 16, 16)


def test_the_datamodule_crops_z_to_final_z(shards):
    options = {"tau_range": (0.5, 1.5), "batch_size": 8, "val_experiments": ["e3"]}
    data = MultiExperimentDataModule(str(shards), final_z=1, final_yx_patch_size=(12, 10), **options)
    data.setup("validate")
    read = next(iter(data.val_dataloader()))
    shown = data.on_after_batch_transfer(read, 0)
    assert torch.equal(shown["anchor"], read["anchor"].float()[:, :, 1:2, 2:14, 3:13])
    assert shown_shape((2, 3, 16, 16), data) == (2, 1, 12, 10)
    with pytest.raises(ValueError, match=r"final_z=4 is larger than the 3 slices that are read"):
        MultiExperimentDataModule(str(shards), final_z=4, **options).setup("fit")
    with pytest.raises(ValueError, match=r"'DAPI' is no channel"):
        MultiExperimentDataModule(str(shards), z_reduction={"DAPI": "mip"}, **options).setup("fit")


def test_each_sample_of_a_bag_of_channels_is_reduced_as_its_own_channel(shards):
    options = {"tau_range": (0.5, 1.5), "batch_size": 16, "val_experiments": ["e3"], "channel_dropout_channels": ()}
    rule = {"default": "center", "GFP": "mip"}
    data = MultiExperimentDataModule(str(shards), z_reduction=rule, channels_per_sample=1, **options)
    data.setup("fit")
    data.trainer = None
    read = next(iter(data.train_dataloader()))
    drawn = [meta["channel"] for meta in read["positive_meta"]]
    x = read["positive"].float()
    expected = torch.stack([p.amax(1) if channel == "GFP" else p[:, 1] for p, channel in zip(x, drawn, strict=True)])
    assert set(drawn) == {"Phase", "GFP"}
    assert torch.equal(data.on_after_batch_transfer(read, 0)["positive"][:, :, 0], expected)
    assert shown_shape((2, 3, 16, 16), data, data.channels_per_sample) == (1, 1, 16, 16)
