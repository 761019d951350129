"""Dictionary transforms (`keys: [...]`), MONAI's and those in the form of mehta-lab/VisCy, run behind one adapter."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.describe import describe, make_module
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.transforms import BatchTransform, DictTransform


class NormalizeByMeta(MapTransform):
    """As VisCy's `NormalizeSampled`: (B,) statistics from `norm_meta`, by channel and level."""

    def __init__(self, keys: list[str], level: str = "fov_statistics") -> None:
        super().__init__(keys)
        self.level = level

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        for key in self.keys:
            found = data["norm_meta"][key][self.level]
            shape = (-1, 1, 1, 1, 1)
            data[key] = (data[key] - found["mean"].reshape(shape)) / found["std"].reshape(shape)
        return data


class BatchedRandScaled(MapTransform, RandomizableTransform):
    """As VisCy's batched transforms: draws from `self.R` once, for all keys; `factors` must be a tuple."""

    def __init__(self, keys: list[str], factors: tuple[float, float] = (0.5, 2.0), prob: float = 1.0) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not isinstance(factors, tuple):
            raise ValueError("factors must be a tuple")
        self.factors = factors

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        self.randomize(None)
        factor = self.R.uniform(*self.factors, size=len(data[self.keys[0]]))
        for key in self.key_iterator(data):
            data[key] = data[key] * torch.as_tensor(factor, dtype=data[key].dtype).reshape(-1, 1, 1, 1, 1)
        return data


class ReduceZ(MapTransform):
    """As VisCy's `BatchedChannelWiseZReductiond`."""

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        labelfree = data.pop("_is_labelfree").reshape(-1, 1, 1, 1, 1)
        for key in self.keys:
            x = data[key]
            data[key] = torch.where(labelfree, x[:, :, x.shape[2] // 2][:, :, None], x.amax(2, keepdim=True))
        return data


class CropFirst(MapTransform):
    """Crops the first of its keys only."""

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        data[self.keys[0]] = data[self.keys[0]][..., 1:]
        return data


def entry(kind: type, **settings: object) -> dict[str, object]:
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}


def scaling(*keys: str) -> dict[str, object]:
    return entry(BatchedRandScaled, keys=list(keys), factors=[0.5, 2.0])


def test_statistics_come_by_channel_and_level():
    x = torch.full((2, 2, 1, 2, 2), 300.0)
    norm = torch.zeros(2, 2, len(STATISTICS))
    norm[:, :, STATISTICS.index("mean")] = torch.tensor([[100.0, 200.0], [0.0, 300.0]])
    norm[:, :, STATISTICS.index("std")] = torch.tensor([[10.0, 20.0], [3.0, 1.0]])
    adapter = DictTransform(entry(NormalizeByMeta, keys=["Phase3D", "GFP"]), ["Phase3D", "GFP"])
    result = BatchTransform([adapter])({"anchor": x, "anchor_norm_meta": {"fov": norm}}, training=False)
    assert result["anchor"][:, :, 0, 0, 0].tolist() == [[20.0, 5.0], [100.0, 0.0]]


def test_channels_are_called_by_number_unless_named_and_share_a_draw():
    x = torch.ones(5, 2, 1, 2, 2)
    result = DictTransform(scaling("channel_0", "channel_1"))(x)
    assert torch.equal(result[:, 0], result[:, 1])
    assert len(result[:, 0, 0, 0, 0].unique()) == 5
    first_only = DictTransform(scaling("channel_0"))(x)
    assert torch.equal(first_only[:, 1], x[:, 1])


def test_draws_of_monai_transforms_follow_torchs_seed():
    transform = BatchTransform((), [DictTransform([scaling("channel_0"), scaling("channel_0")])])
    batch = {"anchor": torch.ones(4, 1, 1, 2, 2), "positive": torch.ones(4, 1, 1, 2, 2)}
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(batch, training=True))
    assert torch.equal(results[0]["anchor"], results[1]["anchor"])
    assert not torch.equal(results[0]["anchor"], results[2]["anchor"])
    assert not torch.equal(results[0]["anchor"], results[0]["positive"])


def test_labelfree_samples_are_told():
    x = torch.arange(3.0).reshape(1, 1, 3, 1, 1).expand(2, 1, 3, 2, 2)
    transform = BatchTransform((), [DictTransform(entry(ReduceZ, keys=["channel_0"]))])
    flags = {"labelfree": torch.tensor([[True], [False]])}
    result = transform({"anchor": x, "anchor_channel_meta": flags}, training=True)
    assert result["anchor"][:, 0, 0, 0, 0].tolist() == [1.0, 2.0]
    assert set(result) == {"anchor"}


def test_monai_transforms_run_sample_by_sample():
    """RandFlipd of one axis flips whole samples; given a batch it would take the samples for channels."""
    x = torch.rand(64, 2, 3, 4, 5)
    flip = {
        "class_path": "monai.transforms.RandFlipd",
        "init_args": {"keys": ["a", "b"], "prob": 0.5, "spatial_axis": 2},
    }
    flipped = DictTransform(flip, ["a", "b"], per_sample=True)(x)
    assert type(flipped) is Tensor
    turned = [torch.equal(flipped[i], x[i].flip(3)) for i in range(64)]
    stayed = [torch.equal(flipped[i], x[i]) for i in range(64)]
    assert all(a != b for a, b in zip(turned, stayed, strict=True))
    assert 16 < sum(turned) < 48  # 32 ± 4 standard deviations
    with pytest.raises(ValueError, match=r"RandFlipd of MONAI takes one sample at a time .* per_sample: true"):
        DictTransform(flip, ["a", "b"])


def test_the_adapter_can_be_described_and_made_again():
    adapter = DictTransform([scaling("GFP")], ["GFP"])
    again = make_module(describe(adapter), "normalizations")
    assert isinstance(again, DictTransform)
    assert describe(again) == describe(adapter)
    results = []
    for module in (adapter, again):
        torch.manual_seed(3)
        results.append(module(torch.ones(4, 1, 1, 2, 2)))
    assert torch.equal(*results)


def test_what_cannot_be_put_together_is_named():
    x = torch.ones(2, 2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"channel_names=\['GFP'\], but the data have 2 channels"):
        DictTransform(scaling("GFP"), ["GFP"])(x)
    with pytest.raises(ValueError, match=r"after CropFirst the channels are .*'channel_0': \(2, 1, 1, 4, 3\)"):
        DictTransform(entry(CropFirst, keys=["channel_0"]))(x)
    with pytest.raises(KeyError) as caught:
        DictTransform(scaling("Phase3D"))(x)
    notes = ["DictTransform: BatchedRandScaled was given the channels ['channel_0', 'channel_1']."]
    assert caught.value.__notes__ == notes


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class_path": "no.such.Transform"}, r"'no.such.Transform' can't be made of None"),
        ({"class_path": "monai.transforms.NoSuchd"}, r"'monai.transforms.NoSuchd' can't be made"),
        ({"init_args": {}}, r"DictTransform.transform: None can't be made"),
        (entry(BatchedRandScaled, keys=["a"], fators=[0.5, 2.0]), r"BatchedRandScaled' can't be made of .*fators"),
    ],
)
def test_a_transform_that_cannot_be_made_is_named(description, message):
    with pytest.raises(ConfigError, match=message):
        DictTransform(description)
