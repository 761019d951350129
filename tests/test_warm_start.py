"""Laws of warm starts: an encoder that begins with the weights of another training gives what that one gave."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dynaclr_wds.errors import CheckpointError
from dynaclr_wds.train import ContrastiveModule, ProjectedEncoder, TimmEncoder, WarmStart
from dynaclr_wds.train.heads import MLP
from dynaclr_wds.train.warm_start import plan_places
from tests.stand_ins import use_timm


class Flat(nn.Module):
    """A backbone of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


def make_encoder() -> ProjectedEncoder:
    return ProjectedEncoder(Flat(), embedding_dim=6, projection=MLP(6, 5, 3, norm="ln"))


KEYS = [
    "backbone.linear.weight", "backbone.linear.bias", "projection.0.weight", "projection.0.bias", "projection.1.weight",
    "projection.1.bias", "projection.3.weight", "projection.3.bias", "projection.4.weight", "projection.4.bias",
]  # fmt: skip
"""Of `make_encoder()`."""


def save(path: Path, weights: dict[str, torch.Tensor]) -> str:
    torch.save({"state_dict": weights, "epoch": 3, "global_step": 9, "loops": {}}, path)
    return str(path)


def randomise(network: nn.Module) -> dict[str, torch.Tensor]:
    """Give every weight and statistic a value of its own."""
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 1)
    return network.state_dict()


def test_encoder_of_viscy_gives_the_same_here(tmp_path, monkeypatch):
    use_timm(monkeypatch)
    settings = {"backbone": "test_convnext", "stem_kernel_size": (2, 4, 4), "stem_stride": (2, 4, 4)}
    encoder = TimmEncoder(**settings, in_stack_depth=4, projection_dim=6)
    weights = {f"model.{name}": value for name, value in randomise(encoder).items()}
    # as ContrastiveModule of mehta-lab/VisCy saves ContrastiveEncoder
    assert weights.keys() >= {
        "model.stem.conv.weight", "model.encoder.stem.1.weight", "model.encoder.stages.0.blocks.0.conv_dw.weight",
        "model.encoder.head.norm.bias", "model.projection.0.weight", "model.projection.4.running_var",
    }  # fmt: skip
    path = save(tmp_path / "theirs.ckpt", weights)
    started = ContrastiveModule(
        TimmEncoder(**settings, in_stack_depth=4, projection_dim=6),
        init_from=WarmStart(path=path, map={"encoder.": "model."}),
    )
    x = torch.rand(3, 1, 4, 32, 32)
    features, projections = encoder.eval()(x)
    found = started.eval()(x)
    assert torch.equal(found[0], features)
    assert torch.equal(found[1], projections)


def test_checkpoint_of_ours_needs_no_map_and_plain_data_will_do(tmp_path):
    encoder = make_encoder()
    path = save(tmp_path / "ours.ckpt", {f"encoder.{name}": value for name, value in randomise(encoder).items()})
    started = ContrastiveModule(make_encoder(), init_from={"path": path})
    assert all(torch.equal(value, started.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_file_of_weights_alone_is_taken(tmp_path):
    encoder = make_encoder()
    torch.save(randomise(encoder), tmp_path / "weights.pth")
    started = ContrastiveModule(
        make_encoder(), init_from=WarmStart(path=str(tmp_path / "weights.pth"), map={"encoder.": ""})
    )
    assert torch.equal(started.encoder.backbone.linear.weight, encoder.backbone.linear.weight)


def test_a_checkpoint_needs_the_file_no_more_and_says_what_it_was(tmp_path):
    path = save(tmp_path / "ours.ckpt", {f"encoder.{name}": value for name, value in randomise(make_encoder()).items()})
    module = ContrastiveModule(make_encoder(), init_from=WarmStart(path=path))
    assert module.hparams["init_from"] is None
    module._trainer = SimpleNamespace(datamodule=None)
    content: dict[str, dict[str, object]] = {}
    module.on_save_checkpoint(content)
    said = content["dynaclr_wds"]["init_from"]
    assert (said["path"], len(said["sha256"])) == (path, 64)


def test_weights_that_are_missing_or_left_over_are_named(tmp_path):
    weights = {f"model.{name}": value for name, value in make_encoder().state_dict().items()}
    weights["auxiliary_heads.gene.mlp.head.weight"] = weights.pop("model.projection.4.bias")
    path = save(tmp_path / "theirs.ckpt", weights)
    says = (
        r"theirs.ckpt does not fit the encoder: 1 of the encoder are not in the file: encoder.projection.4.bias "
        r"\(model.projection.4.bias\); 1 of the file are taken by nobody: auxiliary_heads.gene.mlp.head.weight\. "
        r".*name what is not wanted in ignore"
    )
    with pytest.raises(CheckpointError, match=says):
        ContrastiveModule(make_encoder(), init_from=WarmStart(path=path, map={"encoder.": "model."}))


def test_without_a_map_a_checkpoint_of_viscy_is_answered_with_the_map(tmp_path):
    path = save(tmp_path / "a.ckpt", {f"model.{name}": value for name, value in make_encoder().state_dict().items()})
    with pytest.raises(CheckpointError, match=r"10 of the encoder are not in the file.*map: \{encoder.: model.\}\."):
        ContrastiveModule(make_encoder(), init_from=WarmStart(path=path))


def test_what_is_not_wanted_is_named_and_the_rest_is_loaded(tmp_path):
    encoder = make_encoder()
    weights = {f"model.{name}": value for name, value in randomise(encoder).items()}
    weights |= {"auxiliary_heads.gene.weight": torch.ones(2), "model.projection.0.weight": torch.ones(9, 9)}
    path = save(tmp_path / "theirs.ckpt", weights)
    start = WarmStart(
        path=path,
        map={"encoder.": "model.", "encoder.projection.": None},
        ignore=["auxiliary_heads.", "model.projection."],
    )
    started = ContrastiveModule(make_encoder(), init_from=start)
    assert torch.equal(started.encoder.backbone.linear.weight, encoder.backbone.linear.weight)
    assert not torch.equal(started.encoder.projection[0].bias, encoder.projection[0].bias)


def test_not_strict_loads_what_fits_and_tells_the_rest(tmp_path, caplog):
    weights = {f"model.{name}": value for name, value in randomise(make_encoder()).items()}
    kept = {"model.backbone.linear.weight": weights["model.backbone.linear.weight"], "other": torch.ones(1)}
    path = save(tmp_path / "theirs.ckpt", kept)
    with caplog.at_level("INFO"):
        started = ContrastiveModule(
            make_encoder(), init_from=WarmStart(path=path, map={"encoder.": "model."}, strict=False)
        )
    assert torch.equal(started.encoder.backbone.linear.weight, kept["model.backbone.linear.weight"])
    assert "9 of the encoder begin anew: encoder.backbone.linear.bias" in caplog.text
    assert "1 of the file are not used: other" in caplog.text
    assert f"1 of 10 weights of the encoder are from {path}" in caplog.text


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_another_shape_are_refused_always(tmp_path, strict):
    weights = {f"encoder.{name}": value for name, value in make_encoder().state_dict().items()}
    path = save(tmp_path / "a.ckpt", weights | {"encoder.backbone.linear.weight": torch.ones(6, 9)})
    says = r"1 have another shape: encoder.backbone.linear.weight is \(6, 8\), encoder.*weight of the file \(6, 9\)"
    with pytest.raises(CheckpointError, match=says):
        ContrastiveModule(make_encoder(), init_from=WarmStart(path=path, strict=strict))


def test_a_file_that_fits_nowhere_is_refused_even_if_not_strict(tmp_path):
    path = save(tmp_path / "a.ckpt", {"nothing": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"10 of the encoder are not in the file: encoder.backbone.linear.weight"):
        ContrastiveModule(make_encoder(), init_from=WarmStart(path=path, strict=False))


def test_a_file_with_objects_is_not_run(tmp_path):
    torch.save({"state_dict": {}, "object": Flat()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"can't be read as a checkpoint") as caught:
        ContrastiveModule(make_encoder(), init_from=WarmStart(path=str(tmp_path / "a.ckpt")))
    assert caught.value.__notes__[0] == "It is what model.init_from.path names."
    assert "keep its weights alone" in caught.value.__notes__[1]


def test_the_longest_prefix_is_taken_and_a_star_is_one_part():
    """CELL-DINO numbers blocks within chunks: chunk 1 of blocks.1.7 is counted through, as 7."""
    own = ["encoder.stem", "encoder.blocks.0.a", "encoder.blocks.7.a", "encoder.head"]
    given = ["m.stem", "m.blocks.0.0.a", "m.blocks.1.7.a"]
    assert plan_places(own, given, {"encoder.": "m.", "encoder.blocks.": "m.blocks.*.", "encoder.head": None}) == {
        "encoder.stem": "m.stem",
        "encoder.blocks.0.a": "m.blocks.0.0.a",
        "encoder.blocks.7.a": "m.blocks.1.7.a",
        "encoder.head": None,
    }
    with pytest.raises(CheckpointError, match=r"b\.\*\.x fits 2 keys of the file \(b\.0\.x, b\.1\.x\)"):
        plan_places(["a.x"], ["b.0.x", "b.1.x"], {"a.": "b.*."})


def test_keys_of_the_encoder_are_those_the_tests_speak_of():
    assert list(make_encoder().state_dict()) == KEYS
