"""Laws of checkpoints: there always is one, it is whole, its weights are finite, and going on from it is exact."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from dynaclr_wds import MultiExperimentDataModule
from dynaclr_wds.errors import ConfigError, NotFiniteError
from dynaclr_wds.train import ContrastiveModule, FiniteLoss, TrainingCheckpoint
from dynaclr_wds.train.checkpoint_files import WholeCheckpointIO
from dynaclr_wds.train.stop_signals import Stopped

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers which may be a bottleneck"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:val_experiments is empty"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Dropping(nn.Module):
    """An encoder that draws random numbers in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 16 * 16, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x / 1000)


class Noise(nn.Module):
    """An augmentation, drawn from the global generator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 100 * torch.randn_like(x)


class History(Callback):
    """Notes every loss, and the weights after every step."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, _trainer, _module, outputs, *_):
        self.trained.append(float(outputs["loss"]))

    def on_validation_end(self, trainer, _module):
        if not trainer.sanity_checking:
            self.validated.append(float(trainer.callback_metrics["loss/val"]))


class SignalAt(Callback):
    """Sends this process a signal when a hook is called for the nth time."""

    def __init__(self, hook: str, nth: int, signum: int) -> None:
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == nth:
                os.kill(os.getpid(), signum)

        setattr(self, hook, count)


def make_data(shards: Path, **options: Any) -> MultiExperimentDataModule:
    options = {
        "val_experiments": ["e3"],
        "tau_range": (0.5, 1.5),
        "batch_size": 40,
        "augmentations": [Noise()],
    } | options
    return MultiExperimentDataModule(str(shards), **options)


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "limit_val_batches": 2, "num_sanity_val_steps": 1} | options
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder, log_every_n_steps=1, callbacks=[*callbacks], **options,
    )  # fmt: skip


def make_model() -> ContrastiveModule:
    torch.manual_seed(0)
    return ContrastiveModule(Dropping(), lr=1e-3, schedule="cosine", warmup_steps=2)


def weights(model: LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[History, dict[str, torch.Tensor], Path]:
    """A training of two epochs that nobody stopped: what it noted, its weights, its checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder, history, model = tmp_path_factory.mktemp("whole"), History(), make_model()
    make_trainer(folder, history, TrainingCheckpoint()).fit(model, datamodule=make_data(shards))
    return history, weights(model), folder / "checkpoints"


# there always is one


def test_last_and_best_are_saved(whole):
    history, _, folder = whole
    steps = len(history.trained) // 2
    best = 1 + history.validated.index(min(history.validated))
    assert sorted(path.name for path in folder.iterdir()) == [
        f"epoch=0-step={steps}.ckpt", f"epoch=1-step={2 * steps}.ckpt", "last.ckpt",
    ]  # fmt: skip
    state = torch.load(folder / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2 * steps
    kept = state["callbacks"]["TrainingCheckpoint"]
    assert (kept["monitor"], Path(kept["best_model_path"]).name) == (
        "loss/val",
        f"epoch={best - 1}-step={best * steps}.ckpt",
    )


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0, "check_val_every_n_epoch": 2}])
def test_without_validation_the_training_loss_is_monitored(shards, tmp_path, options):
    checkpoint = TrainingCheckpoint(save_top_k=1)
    make_trainer(tmp_path, checkpoint, **options).fit(make_model(), datamodule=make_data(shards, val_experiments=[]))
    assert checkpoint.monitor == "loss/train"
    assert len(list(tmp_path.rglob("epoch=*.ckpt"))) == 1
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_metric_of_a_validation_that_is_not_there_is_refused_before_the_first_step(shards, tmp_path):
    history = History()
    trainer = make_trainer(tmp_path, history, TrainingCheckpoint(monitor="loss/val"))
    with pytest.raises(ConfigError, match=r"monitor='loss/val' will never be logged.*Set checkpoint.monitor to auto"):
        trainer.fit(make_model(), datamodule=make_data(shards, val_experiments=[]))
    assert history.trained == []


def test_a_metric_that_nobody_logs_is_warned_of_and_last_is_saved(shards, tmp_path):
    trainer = make_trainer(tmp_path, TrainingCheckpoint(monitor="accuracy"), max_epochs=1)
    with pytest.warns(
        UserWarning, match=r"monitor='accuracy' was not logged; logged are \['loss/train', 'loss/train_step'"
    ):
        trainer.fit(make_model(), datamodule=make_data(shards))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


class Watch(Callback):
    """Notes the step of `last.ckpt` after every step."""

    def __init__(self, folder: Path) -> None:
        self.last, self.steps = folder / "checkpoints" / "last.ckpt", []

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append(torch.load(self.last, weights_only=True)["global_step"] if self.last.exists() else 0)


def test_last_is_saved_every_n_steps(shards, tmp_path):
    watch = Watch(tmp_path)
    checkpoint = TrainingCheckpoint(every_n_train_steps=2)
    make_trainer(tmp_path, watch, checkpoint, limit_train_batches=6, max_epochs=1).fit(
        make_model(), datamodule=make_data(shards)
    )
    assert watch.steps[:6] == [0, 0, 2, 2, 4, 4]


def test_beside_a_checkpoint_of_the_users_own(shards, tmp_path):
    folder = tmp_path / "checkpoints"
    own = ModelCheckpoint(folder, monitor="loss/train", save_last=True, save_top_k=1)
    ours = TrainingCheckpoint(str(folder), save_top_k=1)
    make_trainer(tmp_path, own, ours, max_epochs=1).fit(make_model(), datamodule=make_data(shards))
    saved = [own.best_model_path, own.last_model_path, ours.best_model_path, ours.last_model_path]
    assert len(set(saved)) == 4
    assert all(Path(path).exists() for path in saved)


def test_negative_steps_are_refused():
    with pytest.raises(ConfigError, match=r"checkpoint.every_n_train_steps=-1 must be >= 0"):
        TrainingCheckpoint(every_n_train_steps=-1)


# stopped by a signal, at the very step

STOPS = [
    ("on_train_batch_start", 3, signal.SIGINT),
    ("on_before_optimizer_step", 2, signal.SIGTERM),
    ("on_train_batch_end", -1, signal.SIGINT),  # the last batch: validation follows
    ("on_validation_start", 2, signal.SIGTERM),  # the first is Lightning's sanity check
    ("on_validation_batch_start", 3, signal.SIGINT),
    ("on_train_epoch_end", 1, signal.SIGTERM),
]


@pytest.mark.parametrize(("hook", "nth", "signum"), STOPS, ids=[hook for hook, _, _ in STOPS])
def test_a_stopped_training_that_goes_on_equals_one_that_was_not_stopped(shards, tmp_path, whole, hook, nth, signum):
    expected, final, _ = whole
    nth = nth % (len(expected.trained) // 2) + 1 if nth < 0 else nth
    first, handlers = History(), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    trainer = make_trainer(tmp_path, first, SignalAt(hook, nth, signum), TrainingCheckpoint())
    with pytest.raises(Stopped) as stopped:
        trainer.fit(make_model(), datamodule=make_data(shards))
    assert stopped.value.code == 128 + signum
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == len(first.trained) > 0

    second, model = History(), make_model()
    make_trainer(tmp_path, second, TrainingCheckpoint()).fit(model, datamodule=make_data(shards), ckpt_path=last)
    assert first.trained + second.trained == expected.trained
    assert first.validated + second.validated == expected.validated
    assert_same(weights(model), final)
    stopped_in_the_first_epoch = 0 < len(first.trained) < len(expected.trained) // 2
    assert not stopped_in_the_first_epoch or (tmp_path / "pairs" / "train" / "epoch=000.png").is_file()

    third = History()  # the checkpoint of the end says that nothing is left
    make_trainer(tmp_path, third, TrainingCheckpoint()).fit(make_model(), datamodule=make_data(shards), ckpt_path=last)
    assert third.trained == third.validated == []


@pytest.mark.parametrize(("hook", "nth"), [("on_validation_batch_start", 3), ("on_train_batch_start", 6)])
def test_validations_in_the_middle_of_an_epoch_are_all_made(shards, tmp_path, hook, nth):
    options = {"val_check_interval": 4, "limit_train_batches": 8, "max_epochs": 1}
    whole, model = History(), make_model()
    make_trainer(tmp_path / "whole", whole, **options, enable_checkpointing=False).fit(
        model, datamodule=make_data(shards)
    )
    first, second, again = History(), History(), make_model()
    trainer = make_trainer(tmp_path, first, SignalAt(hook, nth, signal.SIGTERM), TrainingCheckpoint(), **options)
    with pytest.raises(Stopped):
        trainer.fit(make_model(), datamodule=make_data(shards))
    last = tmp_path / "checkpoints" / "last.ckpt"
    make_trainer(tmp_path, second, TrainingCheckpoint(), **options).fit(
        again, datamodule=make_data(shards), ckpt_path=last
    )
    assert len(first.trained) == (4 if "validation" in hook else 6)
    assert first.trained + second.trained == whole.trained
    assert first.validated + second.validated == whole.validated
    assert_same(weights(again), weights(model))


def test_a_validation_that_was_made_again_is_not_made_a_third_time(shards, tmp_path):
    """The checkpoint after a validation that was cut off says nothing of the cut any more."""
    last, history = tmp_path / "checkpoints" / "last.ckpt", History()
    trainer = make_trainer(tmp_path, SignalAt("on_validation_batch_start", 3, signal.SIGINT), TrainingCheckpoint())
    with pytest.raises(Stopped):
        trainer.fit(make_model(), datamodule=make_data(shards))
    make_trainer(tmp_path, TrainingCheckpoint(), max_epochs=1).fit(
        make_model(), datamodule=make_data(shards), ckpt_path=last
    )
    make_trainer(tmp_path, history, TrainingCheckpoint()).fit(
        make_model(), datamodule=make_data(shards), ckpt_path=last
    )
    assert len(history.validated) == 1


def test_best_checkpoints_of_an_earlier_folder_are_ranked_with_the_new_ones(shards, tmp_path, whole):
    history, _, folder = whole
    checkpoint = TrainingCheckpoint(save_top_k=1)
    trainer = make_trainer(tmp_path, checkpoint, max_epochs=3)
    trainer.fit(make_model(), datamodule=make_data(shards), ckpt_path=folder / "last.ckpt")
    assert Path(checkpoint.last_model_path) == tmp_path / "checkpoints" / "last.ckpt"
    assert float(checkpoint.best_model_score) <= min(history.validated)
    assert (folder / "last.ckpt").exists()


def test_gradients_that_are_added_up_are_not_cut_in_two(shards, tmp_path):
    trainer = make_trainer(
        tmp_path, SignalAt("on_train_batch_start", 3, signal.SIGINT), TrainingCheckpoint(), accumulate_grad_batches=2
    )
    with pytest.raises(Stopped):
        trainer.fit(make_model(), datamodule=make_data(shards))
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 4


def test_a_training_that_is_stopped_at_its_last_step_has_finished(shards, tmp_path, whole):
    steps = len(whole[0].trained)
    trainer = make_trainer(tmp_path, SignalAt("on_train_batch_end", steps, signal.SIGTERM), TrainingCheckpoint())
    with pytest.raises(Stopped):  # during the last validation: it is made again
        trainer.fit(make_model(), datamodule=make_data(shards))
    done = make_trainer(tmp_path, SignalAt("on_train_epoch_end", 2, signal.SIGTERM), TrainingCheckpoint())
    done.fit(make_model(), datamodule=make_data(shards))
    assert (done.current_epoch, done.global_step) == (2, steps)


# whole or absent


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "last.ckpt"
    files = WholeCheckpointIO()
    files.save_checkpoint({"step": 1}, path)
    child = os.fork()
    if child == 0:

        class Killed:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        files.save_checkpoint({"step": torch.zeros(1000), "rest": Killed()}, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert torch.load(path, weights_only=True) == {"step": 1}
    files.save_checkpoint({"step": 2}, path)
    assert [(file.name, torch.load(file, weights_only=True)) for file in tmp_path.iterdir()] == [
        ("last.ckpt", {"step": 2})
    ]


def test_checkpoints_are_written_beside_their_place(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.mkstemp", lambda *_, **__: pytest.fail("written elsewhere, then copied"))
    make_trainer(tmp_path, TrainingCheckpoint(), max_epochs=1).fit(make_model(), datamodule=make_data(shards))
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


# finite, or stopped


class Spoil(Callback):
    """Makes a pixel of one sample of a batch not a number."""

    def __init__(self, at: int) -> None:
        self.at, self.meta = at, {}

    def on_train_batch_start(self, trainer, _module, batch, _number):
        if trainer.global_step == self.at:
            batch["positive"][7, 1, 0, 3, 3] = float("nan")
            self.meta = batch["anchor_meta"][7]


def test_a_loss_that_is_not_finite_names_step_batch_and_cells(shards, tmp_path):
    spoil, model, history = Spoil(5), make_model(), History()
    trainer = make_trainer(tmp_path, spoil, history, FiniteLoss(), TrainingCheckpoint(every_n_train_steps=2))
    with pytest.raises(NotFiniteError) as caught:
        trainer.fit(model, datamodule=make_data(shards))
    said, meta = str(caught.value), spoil.meta
    assert said.startswith("The loss is nan in step 6 (epoch 1, batch 6 of the epoch), so training stopped.")
    assert f"The batch is of {meta['experiment']} (40 cells)." in said
    assert (
        f"Cells: {meta['experiment']} fov {meta['fov_name']} track {meta['track_id']} t {meta['t']} "
        "(positive channel [1] not finite)." in said
    )
    assert "Not finite, as the network got them: 0 of 40 patches of 'anchor', 1 of 40 patches of 'positive'." in said
    assert "Look at these patches and their normalisation; else lower model.lr" in said
    assert len(history.trained) == 5
    assert all(bool(p.isfinite().all()) for p in model.parameters()), "the weights of the step before are kept"
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4


def test_a_network_that_diverges_is_told_from_bad_pixels(shards, tmp_path):
    class Diverge(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                pl_module.encoder.layers[1].weight.data.fill_(float("inf"))

    with pytest.raises(
        NotFiniteError, match=r"in step 4 .*All inputs of the batch are finite: the network has diverged."
    ):
        make_trainer(tmp_path, Diverge(), FiniteLoss()).fit(make_model(), datamodule=make_data(shards))


def test_no_checkpoint_of_broken_weights_replaces_the_good_one(shards, tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 4:
                pl_module.encoder.layers[1].weight.data[0, 0] = float("nan")

    trainer = make_trainer(tmp_path, Break(), TrainingCheckpoint(every_n_train_steps=2))
    with pytest.raises(NotFiniteError, match=r"weights are not finite, 'encoder.layers.1.weight' first. No checkpoint"):
        trainer.fit(make_model(), datamodule=make_data(shards))
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(bool(value.isfinite().all()) for value in state["state_dict"].values() if value.is_floating_point())
