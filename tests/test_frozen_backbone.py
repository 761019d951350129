"""Laws of frozen networks and of heads: what is frozen stays as it is, and images are what the network knows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.train import (
    ChannelImages,
    ContrastiveModule,
    FrozenBackbone,
    MonaiEncoder,
    ProjectedEncoder,
    RGBImage,
    TransformersBackbone,
)
from dynaclr_wds.train.heads import MLP, ClassifierHead, CosineClassifier
from tests.stand_ins import hide, use_transformers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode at the start of training"),
]


class Batches(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        torch.manual_seed(5)
        batches = [{key: torch.randn(4, 1, 3, 32, 32) for key in ("anchor", "positive")} for _ in range(2)]
        return DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


def fit(module: ContrastiveModule, folder: Path) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, Batches())
    return trainer


def copy_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small DINOv2 of random weights, as save_pretrained writes it."""
    use_transformers(monkeypatch)
    import transformers

    torch.manual_seed(1)
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Dinov2Config(hidden_size=8, **small)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def make_encoder(folder: Path) -> FrozenBackbone:
    return FrozenBackbone(TransformersBackbone(str(folder)), RGBImage(28), MLP(8, 8, 4, norm="ln"))


# frozen networks


def test_backbone_stays_as_it_is_and_the_head_is_trained(folder, tmp_path):
    module = ContrastiveModule(make_encoder(folder), lr=0.01, log_pairs=0)
    before = copy_weights(module.encoder)
    trainer = fit(module, tmp_path)
    assert {name.split(".")[0] for name in changed(module.encoder, before)} == {"projection"}
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.encoder.projection.parameters()}
    module.train()
    assert not any(part.training for part in module.encoder.backbone.modules())
    assert module.encoder.projection.training


def test_checkpoint_makes_the_backbone_where_its_folder_is_gone(folder, tmp_path):
    module = ContrastiveModule(make_encoder(folder), log_pairs=0)
    fit(module, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    folder.rename(tmp_path / "gone")
    again = ContrastiveModule.load_from_checkpoint(tmp_path / "a.ckpt")
    described = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]["encoder"]["init_args"]
    assert described["backbone"]["init_args"]["config"]["hidden_size"] == 8
    x = torch.randn(2, 1, 3, 32, 32)
    assert torch.equal(again.eval()(x)[1], module.eval()(x)[1])


def test_backbone_that_is_not_frozen_is_trained(folder, tmp_path):
    encoder = FrozenBackbone(TransformersBackbone(str(folder)), RGBImage(28), freeze=False)
    module = ContrastiveModule(encoder, lr=0.01, log_pairs=0)
    before = copy_weights(encoder)
    fit(module, tmp_path)
    assert {name.split(".")[0] for name in changed(encoder, before)} == {"backbone"}
    assert encoder.backbone.training


def test_a_network_that_is_not_there_is_named(folder):
    with pytest.raises(ConfigError, match=r"can't make a network of model='[^']*nowhere'.*save_pretrained"):
        TransformersBackbone(str(folder / "nowhere"))


def test_without_transformers_the_error_says_how_to_install_it(monkeypatch):
    hide(monkeypatch, "transformers")
    with pytest.raises(
        ConfigError, match=r"'facebook/x' needs transformers.*pip install 'dynaclr-wds\[transformers\]'"
    ):
        TransformersBackbone("facebook/x")


# images


class Mean(nn.Module):
    """Features are the means of the channels of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((-2, -1))


def test_rgb_image_by_hand():
    x = torch.tensor([-9.0, 0.0, 1.5]).reshape(1, 1, 3, 1, 1).expand(1, 1, 3, 4, 4)  # planes of one channel
    image = RGBImage(2, mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 2.0))(x)
    assert image.shape == (1, 3, 2, 2)
    assert image[0, :, 0, 0].tolist() == [0.0, 0.5, 0.25]  # 0 of -3 … 3 is 0.5 of 0 … 1
    last = RGBImage(2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert last(x[:, :, :1])[0, 0, 0, 0] == 0.0  # cut at -3
    assert last(x[:, :, 2:])[0, 0, 0, 0] == 0.75


def test_rgb_image_of_two_channels_shows_the_first_again():
    x = torch.stack([torch.full((1, 4, 4), 0.0), torch.full((1, 4, 4), 3.0)])[None]
    image = RGBImage((2, 3), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(x)
    assert image.shape == (1, 3, 2, 3)
    assert image[0, :, 0, 0].tolist() == [0.5, 1.0, 0.5]
    with pytest.raises(ConfigError, match=r"patches have 4 channels, but an RGBImage has room for 3"):
        RGBImage(2)(torch.rand(1, 4, 1, 4, 4))


def test_channels_are_seen_one_at_a_time_and_their_features_averaged():
    torch.manual_seed(0)
    x = 5 + 2 * torch.randn(2, 3, 1, 8, 8)
    images = ChannelImages(8)(x)
    assert images.shape == (6, 1, 8, 8)
    torch.testing.assert_close(images.mean((-2, -1)), torch.zeros(6, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((-2, -1), correction=0), torch.ones(6, 1))
    torch.testing.assert_close(images[4, 0], (x[1, 1, 0] - x[1, 1, 0].mean()) / x[1, 1, 0].std(correction=0))

    class Corner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 0, :2].flatten(1)

    features, projections = FrozenBackbone(Corner(), ChannelImages(8))(x)
    assert features is projections
    torch.testing.assert_close(features[1], images[3:, 0, 0, :2].mean(0))


# freezing


def test_frozen_parts_of_any_encoder_stay_as_they_are(tmp_path):
    torch.manual_seed(0)
    encoder = MonaiEncoder("resnet10", in_channels=1, in_stack_depth=3, embedding_dim=8, projection_dim=4)
    module = ContrastiveModule(encoder, lr=0.01, log_pairs=0, freeze=["backbone"])
    before = copy_weights(encoder)
    trainer = fit(module, tmp_path)
    assert {name.split(".")[0] for name in changed(encoder, before)} == {"projection"}  # batch statistics too
    assert len(trainer.optimizers[0].param_groups[0]["params"]) == len(list(encoder.projection.parameters()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert ContrastiveModule.load_from_checkpoint(tmp_path / "a.ckpt").frozen == ["backbone"]


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(
        ConfigError, match=r"model.freeze='stem' is no part of ProjectedEncoder, which has backbone, proj"
    ):
        ContrastiveModule(ProjectedEncoder(Mean(), embedding_dim=4), freeze=["stem"])


def test_a_module_of_which_everything_is_frozen_is_refused(folder, tmp_path):
    module = ContrastiveModule(FrozenBackbone(TransformersBackbone(str(folder)), RGBImage(28)), log_pairs=0)
    with pytest.raises(ConfigError, match=r"all parameters are frozen.*a projection that is trained"):
        fit(module, tmp_path)


# heads


def test_mlp_has_the_layers_of_viscy():
    layers = [type(layer).__name__ for layer in MLP(6, [5, 4], 3, norm="ln", activation="gelu", dropout=0.1)]
    assert layers == [
        "Linear",
        "LayerNorm",
        "GELU",
        "Dropout",
        "Linear",
        "LayerNorm",
        "GELU",
        "Dropout",
        "Linear",
        "LayerNorm",
    ]
    assert [layer.weight.shape for layer in MLP(6, 5, 3) if isinstance(layer, nn.Linear)] == [(5, 6), (3, 5)]
    assert [type(layer).__name__ for layer in MLP(6, 5, 3)] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
    ]


@pytest.mark.parametrize("head", [nn.Linear(4, 2), nn.Identity(), MLP(4, 4, 2, norm="ln")])
def test_any_head_stands_on_any_backbone(head):
    encoder = ProjectedEncoder(Mean(), embedding_dim=4, projection=head)
    x = torch.rand(3, 2, 2, 8, 8)
    torch.testing.assert_close(encoder(x)[1], head(x.flatten(1, 2).mean((-2, -1))))


def test_head_is_described_with_its_encoder():
    module = ContrastiveModule(MonaiEncoder("resnet10", embedding_dim=8, projection=MLP(8, 8, 4, norm="ln")))
    assert module.hparams["encoder"]["init_args"]["projection"] == {
        "class_path": "dynaclr_wds.train.heads.MLP",
        "init_args": {
            "in_dims": 8, "hidden_dims": 8, "out_dims": 4, "norm": "ln", "activation": "relu", "dropout": 0.0,
        },
    }  # fmt: skip


def test_cosine_classifier_by_hand():
    head = CosineClassifier(2, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, -1.0]]))
    logits = head(torch.tensor([[3.0, 4.0]]))
    assert logits[0].tolist() == pytest.approx([20 * 0.6, 20 * 0.8, 20 * -1.4 / math.sqrt(2)])


def test_classifier_without_hidden_layers_is_one_layer():
    assert [type(layer).__name__ for layer in ClassifierHead(4, [], 3, cosine_classifier=False)] == ["Linear"]
    assert ClassifierHead(4, 5, 3)(torch.rand(2, 4)).shape == (2, 3)
