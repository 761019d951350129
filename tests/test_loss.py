"""Laws of the loss: β = 0 is NT-Xent, the published formula otherwise, finite whatever the input."""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from pytorch_metric_learning.miners import BatchEasyHardMiner
from pytorch_metric_learning.reducers import SumReducer
from torch import nn

import dynaclr_wds.train
from dynaclr_wds.train.annealing import anneal
from dynaclr_wds.train.loss import NTXentHCL, plan_pairs


def make(batch_size: int = 16, dim: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * batch_size, dim, generator=generator), torch.arange(batch_size).repeat(2)


def slow_loss(embeddings: torch.Tensor, temperature: float, beta: float) -> float:
    """The formula read aloud, in float64, one pair at a time."""
    z = torch.nn.functional.normalize(embeddings.double(), dim=1)
    s = (z @ z.T).tolist()
    n = len(s)
    losses = []
    for i in range(n):
        j = (i + n // 2) % n
        negatives = [s[i][k] for k in range(n) if k not in (i, j)]
        total = sum(math.exp(beta * v) for v in negatives)
        weights = [len(negatives) * math.exp(beta * v) / total for v in negatives]
        positive = math.exp(s[i][j] / temperature)
        denominator = positive + sum(w * math.exp(v / temperature) for w, v in zip(weights, negatives, strict=True))
        losses.append(-math.log(positive / denominator))
    return sum(losses) / n


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_beta_0_equals_nt_xent_exactly(temperature):
    embeddings, labels = make()
    assert torch.equal(
        NTXentHCL(temperature, beta=0.0)(embeddings, labels), NTXentLoss(temperature)(embeddings, labels)
    )


def test_beta_towards_0_approaches_nt_xent():
    embeddings, labels = make()
    torch.testing.assert_close(NTXentHCL(0.5, beta=1e-6)(embeddings, labels), NTXentLoss(0.5)(embeddings, labels))


@pytest.mark.parametrize(("temperature", "beta"), [(0.07, 0.5), (0.5, 2.0), (0.1, 10.0)])
def test_loss_is_the_formula(temperature, beta):
    embeddings, labels = make()
    loss = NTXentHCL(temperature, beta)(embeddings, labels).item()
    assert loss == pytest.approx(slow_loss(embeddings, temperature, beta), rel=1e-5)


def test_loss_of_a_batch_small_enough_to_check_by_hand():
    # anchors at 0° and 90°, each with its positive on it: s = 1 to the positive, 0 to both negatives
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    loss = NTXentHCL(temperature=1.0, beta=3.0)(embeddings, indices_tuple=plan_pairs(2))
    assert loss.item() == pytest.approx(math.log((math.e + 2) / math.e))


def test_larger_beta_weighs_hard_negatives_more():
    embeddings, labels = make()
    losses = [NTXentHCL(0.1, beta)(embeddings, labels).item() for beta in (0.0, 0.5, 2.0, 8.0)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_planned_pairs_are_those_of_the_labels(batch_size):
    labels = torch.arange(batch_size).repeat(2)
    same = labels[:, None] == labels
    positives = {(i, j) for i, j in torch.nonzero(same).tolist() if i != j}
    negatives = {(i, j) for i, j in torch.nonzero(~same).tolist()}
    a1, p, a2, n = plan_pairs(batch_size)
    assert set(zip(a1.tolist(), p.tolist(), strict=True)) == positives
    assert set(zip(a2.tolist(), n.tolist(), strict=True)) == negatives
    assert (len(a1), len(a2)) == (len(positives), len(negatives))


def test_gradients_are_those_of_the_formula():
    embeddings, labels = make(batch_size=3, dim=4)
    embeddings = embeddings.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: NTXentHCL(0.3, 1.5)(x, labels), (embeddings,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_under_autocast_and_near_float32(dtype):
    embeddings, labels = make(batch_size=8)
    loss_function = NTXentHCL(0.01, 5.0)  # e^(1/T) is far outside float16
    half = embeddings.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_function(half, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.isfinite().all()
    assert loss.item() == pytest.approx(loss_function(embeddings, labels).item(), rel=0.05)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_finite_when_everything_collapses_to_one_point(value):
    embeddings = torch.full((8, 4), value, requires_grad=True)
    loss = NTXentHCL(0.07, 0.5)(embeddings, torch.arange(4).repeat(2))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), rel=1e-5)  # one positive among 7 that look the same
    assert embeddings.grad.isfinite().all()


def test_opposite_embeddings_keep_their_gradient():
    # the positive is as far as it can be: NT-Xent's own log((num / den) + 1e-7) would have lost it
    embeddings = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]], requires_grad=True)
    loss = NTXentHCL(0.05, 0.5)(embeddings, torch.arange(2).repeat(2))
    loss.backward()
    assert loss.item() > 30
    assert embeddings.grad.abs().max() > 0.1


def test_one_pair_without_negatives_gives_a_zero_that_can_be_trained_on():
    embeddings = torch.randn(2, 4, requires_grad=True)
    loss = NTXentHCL()(embeddings, indices_tuple=plan_pairs(1))
    loss.backward()
    assert loss.item() == 0.0


def test_an_anchor_without_negatives_of_its_own_counts_as_0():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    pairs = (torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0]), torch.tensor([2]))
    loss = NTXentHCL(temperature=1.0, beta=1.0)(embeddings, indices_tuple=pairs)
    loss.backward()
    assert loss.item() == pytest.approx(math.log((math.e + 1) / math.e) / 2)
    assert embeddings.grad.isfinite().all()


def test_reducers_and_miners_of_the_library_work():
    embeddings, labels = make()
    total = NTXentHCL(0.5, reducer=SumReducer())(embeddings, labels).item()
    assert total == pytest.approx(32 * NTXentHCL(0.5)(embeddings, labels).item(), rel=1e-5)
    mined = BatchEasyHardMiner()(embeddings, labels)
    assert NTXentHCL(0.5)(embeddings, labels, mined).isfinite()


def test_memory_stays_proportional_to_pairs():
    """2·256 embeddings: positive × negative pairs would be 0.5 GB a tensor; a pair list is 1 MB."""
    embeddings = torch.randn(512, 16, requires_grad=True)
    largest = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        NTXentHCL()(embeddings, indices_tuple=plan_pairs(256)).backward()
    assert largest <= 512 * 512


@pytest.mark.parametrize(("temperature", "beta"), [(0.0, 0.5), (0.07, -1.0)])
def test_bad_settings_are_refused(temperature, beta):
    with pytest.raises(ValueError, match=rf"temperature={temperature} must be > 0 and beta={beta} >= 0"):
        NTXentHCL(temperature, beta)


def test_no_tensor_value_is_needed_on_the_host():
    """Meta tensors have no values: reading one raises."""
    loss = NTXentHCL()(torch.empty(8, 4, device="meta"), indices_tuple=plan_pairs(4, "meta"))
    assert loss.shape == ()


def test_annealing_is_half_a_cosine_that_then_stays():
    values = [anneal(0.5, 0.1, epoch, 4) for epoch in range(7)]
    assert values == pytest.approx([0.5, 0.3 + 0.2 * math.sqrt(0.5), 0.3, 0.3 - 0.2 * math.sqrt(0.5), 0.1, 0.1, 0.1])
    assert anneal(0.5, 0.1, 0, 0) == 0.1


def test_temperature_follows_its_schedule():
    loss = NTXentHCL(0.1, 0.5, temperature_schedule="cosine", temperature_start=0.5, temperature_warmup_epochs=4)
    assert loss.temperature == 0.5
    loss.step(2)
    assert loss.temperature == pytest.approx(0.3)
    embeddings, labels = make()
    torch.testing.assert_close(loss(embeddings, labels), NTXentHCL(0.3, 0.5)(embeddings, labels))
    loss.step(9)
    assert loss.temperature == 0.1
    with pytest.raises(ValueError, match=r"temperature_start=0.0 must be > 0"):
        NTXentHCL(temperature_start=0.0)


def test_constant_temperature_is_not_changed_by_epochs():
    loss = NTXentHCL(0.2)
    loss.step(3)
    assert loss.temperature == 0.2


# inside the module of mehta-lab/VisCy

VISCY = """
from pytorch_metric_learning.losses import NTXentLoss as Base


class NTXentLoss(Base):
    def __init__(self, temperature=0.07, temperature_schedule="constant", **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        self.temperature_schedule = temperature_schedule

    def step(self, epoch):
        raise AssertionError("not the schedule of the loss that was given")
"""


@pytest.fixture
def viscy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[type, ModuleType]:
    """A package with VisCy's NTXentLoss, and our module of losses as it is imported beside that."""
    (tmp_path / "viscy_models/contrastive").mkdir(parents=True)
    for name, text in {"__init__": "", "contrastive/__init__": "", "contrastive/loss": VISCY}.items():
        (tmp_path / "viscy_models" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dynaclr_wds.train.loss")
    monkeypatch.setattr(dynaclr_wds.train, "loss", dynaclr_wds.train.loss)  # to be put back
    ours = importlib.import_module("dynaclr_wds.train.loss")
    theirs = importlib.import_module("viscy_models.contrastive.loss").NTXentLoss
    yield theirs, ours
    for name in [name for name in sys.modules if name.startswith("viscy_models")]:
        del sys.modules[name]


class TheirModule:
    """Does with a loss what `dynaclr.engine.ContrastiveModule` of VisCy does, step by step."""

    def __init__(self, encoder: nn.Module, loss_function: nn.Module, their_loss: type) -> None:
        self.model, self.loss_function, self.their_loss = encoder, loss_function, their_loss
        self.logged: dict[str, float] = {}

    def on_train_epoch_start(self, epoch: int) -> None:
        if hasattr(self.loss_function, "step"):
            self.loss_function.step(epoch)
        if hasattr(self.loss_function, "temperature"):
            self.logged["hparams/temperature"] = self.loss_function.temperature

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        _, anchor = self.model(batch["anchor"])
        _, positive = self.model(batch["positive"])
        if isinstance(self.loss_function, self.their_loss):
            indices = torch.arange(0, anchor.size(0), device=anchor.device)
            labels = torch.cat((indices, indices))
            loss = self.loss_function(torch.cat((anchor, positive)), labels)
        else:
            _, negative = self.model(batch["negative"])
            loss = self.loss_function(anchor, positive, negative)
        self.logged["loss/train"] = loss.to(anchor.device)
        if isinstance(self.loss_function, self.their_loss):  # as for their metrics of negatives
            self.logged["negatives"] = True
        return loss


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.linear(x)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_works_inside_the_module_of_viscy(viscy, beta):
    theirs, ours = viscy
    torch.manual_seed(0)
    loss = ours.NTXentHCL(0.1, beta, temperature_schedule="cosine", temperature_start=0.5, temperature_warmup_epochs=4)
    module = TheirModule(Both(), loss, theirs)
    module.on_train_epoch_start(2)
    batch = {"anchor": torch.randn(4, 5), "positive": torch.randn(4, 5)}
    value = module.training_step(batch)
    value.backward()
    assert module.logged == {"hparams/temperature": pytest.approx(0.3), "loss/train": value, "negatives": True}
    projections = torch.cat([module.model(batch["anchor"])[1], module.model(batch["positive"])[1]])
    assert value.item() == pytest.approx(slow_loss(projections.detach(), 0.3, beta), rel=1e-5)
    assert module.model.linear.weight.grad.abs().sum() > 0


def test_loss_outlives_a_viscy_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "viscy_models").mkdir()
    (tmp_path / "viscy_models/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dynaclr_wds.train.loss")
    monkeypatch.setattr(dynaclr_wds.train, "loss", dynaclr_wds.train.loss)  # to be put back
    ours = importlib.import_module("dynaclr_wds.train.loss")
    assert NTXentLoss in ours.NTXentHCL.__bases__
