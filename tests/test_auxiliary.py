"""Laws of auxiliary heads: which rows count, what is lost and scored, and that a checkpoint knows what they predict."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

import dynaclr_wds.__main__ as command
from dynaclr_wds.errors import CheckpointError, ConfigError
from dynaclr_wds.train import ContrastiveModule, ProjectedEncoder
from dynaclr_wds.train.auxiliary import NO_TARGET, AuxiliaryHead, AuxiliaryHeads, plan_targets
from dynaclr_wds.train.embeddings import make_rows
from tests.shared_build import make_once

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Flat(nn.Module):
    """A backbone of one linear layer."""

    def __init__(self, pixels: int = 8, planes: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, planes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


def make_heads(**settings: object) -> AuxiliaryHeads:
    """One head without hidden layers whose logits are twice the features."""
    defaults = {"label": "condition", "values": ["a", "b", "c"], "hidden_dims": [], "cosine_classifier": False}
    head = AuxiliaryHead(**defaults | {"in_dims": 3} | settings)
    heads = AuxiliaryHeads({"gene": head}, nn.Identity())
    with torch.no_grad():
        heads["gene"][0].weight.copy_(2 * torch.eye(3))
        heads["gene"][0].bias.zero_()
    return heads


def rows(*values: str | None) -> list[dict[str, object]]:
    return [{"experiment": "e0", "condition": value} for value in values]


# what is lost and scored


def test_rows_without_a_known_value_have_no_target():
    head = AuxiliaryHead(label="condition", values=["a", "b"])
    targets, count = plan_targets(rows("b", None, "other", "a"), head)
    assert (targets.tolist(), count) == ([1, NO_TARGET, NO_TARGET, 0], 2)


def test_loss_and_accuracies_are_of_the_rows_with_a_target():
    features = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0], [0.5, 0.0, 1.0]], requires_grad=True)
    (scored,) = make_heads(top_k=2).score(features, rows("a", "c", None, "b"))
    assert (scored.name, scored.count) == ("gene", 3)

    def lost(*logits: float) -> float:
        """Of the first logit."""
        return math.log(sum(math.exp(value) for value in logits)) - logits[0]

    assert scored.loss.item() == pytest.approx((lost(2, 0, 0) + lost(1, 0, 2) + lost(0, 1, 2)) / 3)
    assert {name: value.item() for name, value in scored.metrics.items()} == {
        "loss/aux/gene": pytest.approx(scored.loss.item()),
        "accuracy/gene": pytest.approx(1 / 3),  # the first row
        "accuracy_top2/gene": pytest.approx(2 / 3),  # and the second
    }
    scored.loss.backward()
    assert features.grad[2].abs().sum() == 0


def test_a_batch_without_a_known_value_loses_nothing_and_can_be_trained_on():
    features = torch.rand(2, 3, requires_grad=True)
    (scored,) = make_heads().score(features, rows(None, "other"))
    assert (scored.count, scored.loss.item()) == (0, 0.0)
    scored.loss.backward()
    assert features.grad.abs().sum() == 0


def test_no_value_of_the_device_is_needed_on_the_host():
    """Meta tensors have no values: reading one raises."""
    (scored,) = make_heads(top_k=2).to("meta").score(torch.empty(2, 3, device="meta"), rows("a", None))
    assert {value.device.type for value in (scored.loss, scored.labelled, *scored.metrics.values())} == {"meta"}
    assert scored.count == 1


def test_weight_follows_its_schedule():
    head = AuxiliaryHead(label="x", loss_weight=0.5, weight_schedule="cosine", weight_start=0.1, weight_warmup_epochs=4)
    assert [head.weight(epoch) for epoch in (0, 2, 4, 9)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert AuxiliaryHead(label="x", loss_weight=0.5, weight_start=0.1).weight(0) == 0.5


def test_loss_of_a_head_is_added_by_its_weight():
    torch.manual_seed(0)
    batch = {key: torch.rand(3, 1, 2, 2, 2) for key in ("anchor", "positive")} | {"anchor_meta": rows("a", "b", None)}
    losses = {}
    for weight in (None, 0.0, 0.5):
        torch.manual_seed(1)
        head = {"label": "condition", "values": ["a", "b"], "loss_weight": weight}
        heads = None if weight is None else {"gene": AuxiliaryHead(**head)}
        module = ContrastiveModule(ProjectedEncoder(Flat(), embedding_dim=6), auxiliary_heads=heads, log_pairs=0)
        logged: dict[str, float] = {}
        module.log = lambda name, value, _to=logged, **_: _to.update({name: float(value)})
        module.log_dict = lambda values, _to=logged, **_: _to.update({n: float(v) for n, v in values.items()})
        losses[weight] = module.training_step(batch, 1).item(), logged
    assert losses[0.0][0] == losses[None][0]
    aux = losses[0.5][1]["loss/aux/gene/train"]
    assert aux > 0
    assert losses[0.5][0] == pytest.approx(losses[None][0] + 0.5 * aux)
    assert losses[0.5][1]["loss/train"] == losses[None][1]["loss/train"]  # the contrastive loss alone
    assert losses[0.5][1]["labelled/gene/train"] == pytest.approx(2 / 3)


def test_prediction_names_the_most_probable_value():
    heads = make_heads(num_classes=3, values=["a", "b"])
    predicted = heads.predict(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    values, probability = predicted["gene"]
    assert values == ["a", None]  # the third class has no value yet
    assert probability.tolist() == pytest.approx([math.exp(2) / (math.exp(2) + 2)] * 2)


# what is refused


def test_a_label_that_the_shards_lack_is_named_with_those_they_have():
    heads = AuxiliaryHeads({"gene": AuxiliaryHead(label="gene", in_dims=3)}, nn.Identity())
    assert len(heads) == 0
    says = (
        r"model.auxiliary_heads.gene.label='gene' is not a label of the shards with values; they have condition, well\."
    )
    with pytest.raises(ConfigError, match=says):
        heads.build({"condition": ["a"], "well": ["A/1"], "empty": []})
    with pytest.raises(ConfigError, match=r"the values of their labels are not known"):
        heads.score(torch.rand(2, 3), rows("a", "b"))


def test_fewer_classes_than_values_are_refused():
    with pytest.raises(ConfigError, match=r"gene.num_classes=2 is less than the 3 values of 'condition'"):
        make_heads(num_classes=2)


def test_an_encoder_that_does_not_say_its_features_asks_for_them():
    with pytest.raises(
        ConfigError, match=r"Identity has no attribute num_features.*model.auxiliary_heads.gene.in_dims"
    ):
        AuxiliaryHeads({"gene": {"label": "condition"}}, nn.Identity())


def test_rows_without_the_label_are_answered_with_what_they_have():
    with pytest.raises(ConfigError, match=r"anchor_meta has no 'gene'; it has experiment, condition"):
        plan_targets(rows("a"), AuxiliaryHead(label="gene", values=["a"]))


def test_a_label_that_has_the_name_of_a_heads_column_is_refused():
    predicted = {"gene": (["a"], torch.ones(1))}
    with pytest.raises(ValueError, match=r"has the label 'gene_predicted' already.*auxiliary_heads.gene"):
        make_rows([{"gene_predicted": "x"}], torch.ones(1, 2), torch.ones(1, 2), predicted)


# from a config to a table

CONFIG = {
    "seed_everything": 3,
    "trainer": {
        "accelerator": "cpu", "max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    },
    "model": {
        "encoder": {
            "class_path": "dynaclr_wds.train.ProjectedEncoder",
            "init_args": {
                "backbone": {"class_path": "tests.test_auxiliary.Flat", "init_args": {"pixels": 2 * 3 * 16 * 16}},
                "embedding_dim": 6,
            },
        },
        "loss": {
            "class_path": "dynaclr_wds.NTXentHCL",
            "init_args": {"temperature": 0.1, "temperature_schedule": "cosine", "temperature_warmup_epochs": 4,
                          "temperature_start": 0.5},
        },
        "auxiliary_heads": {
            "state": {"label": "condition", "hidden_dims": 4, "loss_weight": 0.5, "weight_schedule": "cosine"}
        },
        "freeze": ["projection"],
        "log_pairs": 0,
    },
    "data": {
        "val_experiments": ["e3"], "tau_range": [0.5, 1.5], "batch_size": 8, "num_workers": 0,
        "normalizations": [
            {"class_path": "dynaclr_wds.transforms.NormalizeSampled", "init_args": {"level": "timepoint"}}
        ],
    },
    "checkpoint": {"dirpath": "saved"},
}  # fmt: skip


def call(*argv: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dynaclr_wds"])
        patch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
        return command.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small training with a head. Read only."""

    def make(folder: Path) -> None:
        config = CONFIG | {"data": {**CONFIG["data"], "shards": str(shards)}}
        (folder / "fit.yaml").write_text(yaml.safe_dump(config))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert call("fit", "-c", "fit.yaml") == 0

    return make_once(tmp_path_factory, "trained_with_head", make)


def test_checkpoint_knows_the_values_and_loads_alone(trained):
    saved = torch.load(trained / "saved/last.ckpt", weights_only=True)
    head = saved["hyper_parameters"]["auxiliary_heads"]["state"]
    assert (head["label"], head["values"], head["in_dims"]) == ("condition", ["control", "infected"], 6)
    module = ContrastiveModule.load_from_checkpoint(trained / "saved/last.ckpt")
    assert torch.equal(module.auxiliary_heads["state"][0].weight, saved["state_dict"]["auxiliary_heads.state.0.weight"])
    assert module.frozen == ["projection"]
    # epoch 1 of a cosine over 4: 0.1 + 0.2 * (1 + cos 45°)
    assert module.loss.temperature == pytest.approx(0.1 + 0.2 * (1 + math.sqrt(0.5)))


def test_table_holds_what_the_head_predicts(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckpt = trained / "saved/last.ckpt"
    assert call("predict", "--accelerator", "cpu", "--ckpt", ckpt, "--out", "out.parquet") == 0
    table = pq.read_table("out.parquet")
    assert set(table["state_predicted"].unique().to_pylist()) <= {"control", "infected"}
    probability = table["state_probability"]
    assert pc.min(probability).as_py() >= 0.5
    module = ContrastiveModule.load_from_checkpoint(ckpt).eval()
    features = torch.tensor(table["features"].to_pylist())
    values, chance = module.auxiliary_heads.predict(features)["state"]
    assert table["state_predicted"].to_pylist() == values
    torch.testing.assert_close(torch.tensor(probability.to_pylist()), chance)


def test_training_goes_on_without_a_word(trained, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((trained / "fit.yaml").read_text())
    config["model"]["init_from"] = {"path": "gone.ckpt"}  # what it began with is not needed any more
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    ckpt = trained / "saved/last.ckpt"
    assert call("fit", "-c", "fit.yaml", "--trainer.max_epochs", 3, "--ckpt_path", ckpt) == 0
    assert [str(warning.message) for warning in recwarn if "is not used" in str(warning.message)] == []
    assert torch.load("saved/last.ckpt", weights_only=True)["epoch"] == 2


def test_a_checkpoint_of_other_values_is_refused(trained):
    module = ContrastiveModule(
        ProjectedEncoder(Flat(1536), embedding_dim=6),
        auxiliary_heads={"state": {"label": "condition", "hidden_dims": 4, "values": ["infected", "control"]}},
    )
    checkpoint = torch.load(trained / "saved/last.ckpt", weights_only=True)
    says = r"state.values=\['infected', 'control'\], but the checkpoint was trained with \['control', 'infected'\]"
    with pytest.raises(CheckpointError, match=says):
        module.on_load_checkpoint(checkpoint)


def test_validation_logs_the_head(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ckpt = trained / "saved/last.ckpt"
    assert call("validate", "-c", trained / "fit.yaml", "--ckpt_path", ckpt) == 0
    said = capsys.readouterr().out
    assert "accuracy/state/val" in said
    assert "labelled/state/val" in said


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ({"labels": "condition"}, "auxiliary_heads"),
        ({"label": "gene"}, r"label='gene' is not a label of the shards with values; they have condition"),
    ],
)
def test_a_mistake_in_a_config_is_said(shards, tmp_path, monkeypatch, capsys, head, says):
    monkeypatch.chdir(tmp_path)
    model = CONFIG["model"] | {"auxiliary_heads": {"state": head}}
    config = CONFIG | {"data": {**CONFIG["data"], "shards": str(shards)}, "model": model}
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    assert call("fit", "-c", "fit.yaml") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
