"""Laws of descriptions: what was made in Python is made again from its checkpoint, or the checkpoint says why not."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from dynaclr_wds import ContrastiveModule, MultiExperimentDataModule
from dynaclr_wds.describe import Described, NotDescribedError, describe, make_module
from dynaclr_wds.errors import CheckpointError, ConfigError
from dynaclr_wds.train import MonaiEncoder, NTXentHCL, ProjectedEncoder
from dynaclr_wds.transforms import NormalizeSampled, RandomNoise

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


class Plain(nn.Module):
    """Takes no arguments, so its class is all there is to say."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * 8 * 8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


class Forgetful(Plain):
    """Takes an argument that it doesn't keep."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale


class Wide(ProjectedEncoder):
    """A subclass of ours, with arguments of its own."""

    def __init__(self, width: int, *, backbone: nn.Module | None = None, **options: Any) -> None:
        super().__init__(backbone or Plain(), embedding_dim=6, projection_dim=width, **options)


RESNET = {
    "class_path": "monai.networks.nets.ResNet",
    "init_args": {
        "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [2, 2, 2, 2], "spatial_dims": 2,
        "n_input_channels": 2, "num_classes": 6,
    },
}  # fmt: skip


def save(module: ContrastiveModule, folder: Path) -> Path:
    """Train a step in Python, without the command line; return the checkpoint."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, log_every_n_steps=1, num_sanity_val_steps=0,
    )  # fmt: skip
    x = torch.rand(4, 2, 1, 8, 8)
    loader = DataLoader([{"anchor": x, "positive": x + 0.1}], batch_size=None)
    trainer.fit(module, loader, loader)
    trainer.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plain(),
        lambda: ProjectedEncoder(Plain(), embedding_dim=6, projection_dim=4),
        lambda: ProjectedEncoder(RESNET, embedding_dim=6, projection_dim=4),
        lambda: Wide(3, spatial_dims=2),
        lambda: {"class_path": f"{__name__}.Wide", "init_args": {"width": 5}},
        lambda: {"class_path": f"{__name__}.Forgetful", "init_args": {"scale": 2.0}},
    ],
    ids=["no arguments", "ours", "a backbone of others", "a subclass", "a description", "a description of a stranger"],
)
def test_module_made_in_python_is_loaded_from_its_checkpoint_alone(tmp_path, make, recwarn):
    module = ContrastiveModule(make(), loss=NTXentHCL(0.25, beta=1.0), lr=np.float64(0.02))
    path = save(module, tmp_path)
    loaded = ContrastiveModule.load_from_checkpoint(path)
    assert not [w for w in recwarn if "The checkpoints will not say" in str(w.message)]
    assert (loaded.lr, loaded.loss.temperature, loaded.loss.beta) == (0.02, 0.25, 1.0)
    assert type(loaded.encoder) is type(module.encoder)
    x = torch.rand(4, 2, 1, 8, 8)
    torch.testing.assert_close(loaded.eval()(x), module.eval()(x))
    again = save(loaded, tmp_path)  # what was loaded can be trained on, saved, and loaded
    assert ContrastiveModule.load_from_checkpoint(again).hparams == module.hparams


def test_default_encoder_is_written_out():
    assert ContrastiveModule().hparams["encoder"] == {
        "class_path": "dynaclr_wds.train.encoder.MonaiEncoder",
        "init_args": {
            "backbone": "resnet18", "spatial_dims": 2, "in_channels": 2, "in_stack_depth": 1, "embedding_dim": 512,
            "projection_dim": 128, "projection": None,
        },
    }  # fmt: skip


def test_what_cannot_be_described_is_told_when_training_starts_and_named_when_loading(tmp_path):
    module = ContrastiveModule(Forgetful(2.0), loss=nn.MSELoss())
    module.loss = NTXentHCL()
    with pytest.warns(
        UserWarning, match=r"will not say how to make encoder \(tests\.test_describe\.Forgetful\), loss \("
    ) as w:
        path = save(module, tmp_path)
    assert len([one for one in w if "The checkpoints will not say" in str(one.message)]) == 1
    with pytest.raises(
        ConfigError, match=r"encoder: .* how to make tests\.test_describe\.Forgetful.*\(path, encoder=…\)"
    ):
        ContrastiveModule.load_from_checkpoint(path)
    with pytest.raises(
        ConfigError, match=r"loss: .* how to make torch\.nn\..*MSELoss.*load_from_checkpoint\(path, loss=…"
    ):
        ContrastiveModule.load_from_checkpoint(path, encoder=Forgetful(2.0))
    loaded = ContrastiveModule.load_from_checkpoint(path, encoder=Forgetful(2.0), loss=None)
    torch.testing.assert_close(loaded.encoder.linear.weight, module.encoder.linear.weight)


def test_weights_of_another_network_are_refused(tmp_path):
    path = save(ContrastiveModule(Wide(3)), tmp_path)
    with pytest.raises(CheckpointError, match=r"weights of the checkpoint are not .* is \(3, 6\), not \(4, 6\)"):
        ContrastiveModule.load_from_checkpoint(path, encoder=Wide(4))


def test_classes_that_another_process_cannot_import_are_not_described(monkeypatch):
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()

    class LocalDescribed(Described, nn.Module):
        pass

    for value in (Local(), LocalDescribed(), Wide(3, backbone=Forgetful(1.0)), object()):
        with pytest.raises(NotDescribedError):
            describe(value)
    monkeypatch.setattr(Plain, "__module__", "__main__")
    with pytest.raises(NotDescribedError, match="__main__"):
        describe(Plain())


def test_values_become_plain_data():
    values = {"a": (1, np.int64(2)), "path": Path("x/y"), "f": np.float32(0.5), "none": None, "module": Plain()}
    assert describe(values) == {
        "a": [1, 2],
        "path": "x/y",
        "f": 0.5,
        "none": None,
        "module": {"class_path": "tests.test_describe.Plain", "init_args": {}},
    }


def test_copies_and_pickles_keep_their_description():
    module = NormalizeSampled("dataset", channels=(0,))
    wanted = {
        "class_path": "dynaclr_wds.transforms.normalize.NormalizeSampled",
        "init_args": {"level": "dataset", "subtrahend": "mean", "divisor": "std", "channels": [0], "eps": 1e-8},
    }
    assert describe(module) == wanted
    assert describe(copy.deepcopy(module)) == describe(pickle.loads(pickle.dumps(module))) == wanted
    assert describe(copy.deepcopy(Wide(3)))["init_args"] == {"width": 3, "backbone": None}


def test_wrong_arguments_are_the_error_of_the_class():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'width'"):
        Wide()
    with pytest.raises(ConfigError, match=r"encoder: 'dynaclr_wds\.train\.MonaiEncoder' can't be made of \{'bckbone'"):
        make_module({"class_path": "dynaclr_wds.train.MonaiEncoder", "init_args": {"bckbone": "x"}}, "encoder")
    with pytest.raises(ConfigError, match=r"encoder: 'gone\.Network' can't be made .* must be importable"):
        make_module({"class_path": "gone.Network", "init_args": {}}, "encoder")
    with pytest.raises(ConfigError, match=r"'pathlib\.Path' can't be made"):
        make_module({"class_path": "pathlib.Path"}, "encoder")


def test_data_module_made_in_python_is_plain_data():
    data = MultiExperimentDataModule(Path("x"), normalizations=[NormalizeSampled()], augmentations=[RandomNoise()])
    assert data.hparams["shards"] == "x"
    assert data.hparams["normalizations"] == [describe(NormalizeSampled())]
    assert data.hparams["augmentations"] == {"undescribed": "dynaclr_wds.transforms.intensity.RandomNoise"}
    with pytest.raises(ConfigError, match=r"augmentations: .* load_from_checkpoint\(path, augmentations=…\)"):
        MultiExperimentDataModule(**data.hparams)
    again = MultiExperimentDataModule(**data.hparams | {"augmentations": None})
    assert [type(module) for module in again.normalizations] == [NormalizeSampled]


def test_monai_encoder_is_made_again_of_its_description():
    made = make_module(describe(MonaiEncoder("resnet10", in_channels=1, embedding_dim=8)), "encoder")
    assert isinstance(made, MonaiEncoder)
    assert (made.in_channels, made.embedding_dim) == (1, 8)
