"""Laws of the encoder from timm: its stem, the names of its weights, and what it says when timm is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.train import ContrastiveModule, TimmEncoder
from dynaclr_wds.train.timm_encoder import StackStem, TimmBackbone
from tests.stand_ins import hide, use_timm


@pytest.fixture(autouse=True)
def _timm(monkeypatch: pytest.MonkeyPatch) -> None:
    use_timm(monkeypatch)


SMALL = {"backbone": "test_convnext", "stem_kernel_size": (1, 4, 4), "stem_stride": (1, 4, 4), "projection_dim": 6}


def test_weights_of_convnext_tiny_have_the_names_and_shapes_of_viscy():
    with torch.device("meta"):  # shapes without the work
        encoder = TimmEncoder("convnext_tiny", 1, 32, (4, 4, 4), (4, 4, 4), 768, 32, drop_path_rate=0.1)
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert (
        shapes.items()
        >= {
            "stem.conv.weight": (12, 1, 4, 4, 4),  # 96 channels of 8 planes
            "stem.conv.bias": (12,),
            "encoder.stem.1.weight": (96,),
            "encoder.stages.0.blocks.0.conv_dw.weight": (96, 1, 7, 7),
            "encoder.stages.0.blocks.2.mlp.fc1.weight": (384, 96),
            "encoder.stages.1.downsample.0.weight": (96,),
            "encoder.stages.1.downsample.1.weight": (192, 96, 2, 2),
            "encoder.stages.2.blocks.8.norm.bias": (384,),
            "encoder.stages.3.blocks.2.gamma": (768,),
            "encoder.stages.3.blocks.2.mlp.fc2.weight": (768, 3072),
            "encoder.head.norm.weight": (768,),
            "projection.0.weight": (768, 768),
            "projection.0.bias": (768,),
            "projection.1.running_mean": (768,),
            "projection.3.weight": (32, 768),
            "projection.4.num_batches_tracked": (),
        }.items()
    )
    assert len(shapes) == 194
    assert encoder.num_features == 768
    with torch.device("meta"):
        features, projections = encoder(torch.rand(2, 1, 32, 64, 64))
    assert (features.shape, projections.shape) == ((2, 768), (2, 32))


def test_stem_lays_the_planes_of_each_channel_side_by_side():
    stem = StackStem(1, 5, 4, (3, 2, 2), (2, 2, 2))
    x = torch.rand(2, 1, 5, 4, 4)
    y = stem(x)
    assert y.shape == (2, 4, 2, 2)  # 2 channels of 2 planes
    for channel in range(2):
        for plane, first in enumerate((0, 2)):
            patch = x[:, 0, first : first + 3, :2, 2:4]
            by_hand = (patch * stem.conv.weight[channel, 0]).sum((1, 2, 3)) + stem.conv.bias[channel]
            torch.testing.assert_close(y[:, 2 * channel + plane, 0, 1], by_hand)


@pytest.mark.parametrize(("depth", "planes"), [(3, 0), (25, 5)])
def test_a_stem_that_leaves_planes_which_do_not_fit_is_refused(depth, planes):
    says = rf"in_stack_depth={depth} with stem_kernel_size=\(5, 4, 4\).*leaves {planes} planes.*divide the 24 channels"
    with pytest.raises(ConfigError, match=says):
        TimmEncoder("test_convnext", 1, depth)


def test_encoder_gives_features_of_the_network_and_projections_of_any_head():
    encoder = TimmEncoder(**SMALL, in_channels=2)
    features, projections = encoder(torch.rand(3, 2, 1, 32, 32))
    assert (features.shape, projections.shape) == ((3, 64), (3, 6))
    assert [encoder.projection[place].weight.shape for place in (0, 3)] == [(64, 64), (6, 64)]
    narrow = TimmEncoder(**SMALL, embedding_dim=16)
    assert [narrow.projection[place].weight.shape for place in (0, 3)] == [(16, 64), (6, 16)]
    features, projections = TimmEncoder(**SMALL, projection=nn.Identity())(torch.rand(3, 1, 1, 32, 32))
    assert features is projections


def test_patches_of_another_shape_are_refused():
    with pytest.raises(
        ConfigError, match=r"\(channels, planes\) = \(2, 3\), but in_channels, in_stack_depth = \(1, 1\)"
    ):
        TimmEncoder(**SMALL)(torch.rand(2, 2, 3, 32, 32))


def test_patches_that_are_too_small_are_refused():
    with pytest.raises(ConfigError, match=r"\(Z, Y, X\) = \(1, 16, 16\) are too small.*\(1, 4, 4\) stem"):
        TimmEncoder(**SMALL)(torch.rand(2, 1, 1, 16, 16))


def test_backbone_of_timm_is_taken_as_it_is():
    backbone = TimmBackbone("test_convnext", {"drop_path_rate": 0.0})
    assert backbone.num_features == 64
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 64)


def test_another_process_can_make_the_encoder_of_its_description():
    torch.manual_seed(0)
    module = ContrastiveModule(TimmEncoder(**SMALL, drop_path_rate=0.2))
    described = module.hparams["encoder"]
    assert described["class_path"] == "dynaclr_wds.train.timm_encoder.TimmEncoder"
    assert described["init_args"] == {
        "backbone": "test_convnext", "in_channels": 1, "in_stack_depth": 1, "stem_kernel_size": [1, 4, 4],
        "stem_stride": [1, 4, 4], "embedding_dim": None, "projection_dim": 6, "drop_path_rate": 0.2, "projection": None,
    }  # fmt: skip
    again = ContrastiveModule(described)
    again.load_state_dict(module.state_dict())
    x = torch.rand(2, 1, 1, 32, 32)
    assert torch.equal(again.eval()(x)[1], module.eval()(x)[1])


def test_a_network_that_timm_does_not_know_is_named():
    with pytest.raises(ConfigError, match=r"timm .* can't make 'convnext_wee' with drop_path_rate=0.0 \(Unknown model"):
        TimmEncoder("convnext_wee")


def test_a_network_without_a_first_convolution_is_refused(monkeypatch):
    class Mixer(nn.Module):
        default_cfg = {"first_conv": None}  # noqa: RUF012

    monkeypatch.setattr("dynaclr_wds.train.timm_encoder.make_timm", lambda *_, **__: Mixer())
    with pytest.raises(ConfigError, match=r"backbone='mixer' does not begin with one convolution.*convnext_tiny"):
        TimmEncoder("mixer")


# without timm


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    hide(monkeypatch, "timm")
    with pytest.raises(ConfigError, match=r"'convnext_tiny' needs timm.*pip install 'dynaclr-wds\[timm\]'$"):
        TimmEncoder("convnext_tiny")


def test_beside_a_torchvision_of_another_torch_the_error_says_what_to_install(monkeypatch, tmp_path: Path):
    monkeypatch.delitem(sys.modules, "timm")
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    says = r"can't be imported \(operator torchvision::nms does not exist\).*pip install --upgrade torch torchvision"
    with pytest.raises(ConfigError, match=says):
        TimmEncoder("convnext_tiny")
