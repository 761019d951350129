"""Progress is told as lines where output is no terminal: how far, how fast, and what is waited for."""

from __future__ import annotations

import re
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import nn

import dynaclr_wds.train.pace
from dynaclr_wds.read.loader import ThreadDataLoader
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.train.pace import Pace, Remaining, Stride
from dynaclr_wds.train.progress import ProgressLines, WaitingBar, choose_progress
from dynaclr_wds.train.slow_hint import SlowHint, advise_on_loader, advise_on_threads

LINE = re.compile(
    r"epoch 1 of 2, step 4/4: loss [\d.e-]+, [\d,]+ samples/s, \d+% of the time waiting for the loader, "
    r"about 5 s left, validation not counted"
)
EPOCH = re.compile(
    r"epoch 2 of 2: loss/train [\d.]+, loss/val [\d.]+, \d+ s, [\d,]+ samples/s, \d+% of the time waiting for "
    r"the loader"
)


class Batches:
    """Four batches of two pairs, each after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 8

    def __getitems__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        x = torch.rand(len(numbers), 1, 1, 4, 4, generator=torch.Generator().manual_seed(numbers[0]))
        return {"anchor": x, "positive": x + 0.1}


class Data(LightningDataModule):
    def train_dataloader(self) -> ThreadDataLoader:
        return ThreadDataLoader(Batches(), batch_size=2, num_workers=0)

    val_dataloader = predict_dataloader = train_dataloader


def fit(tmp_path, *callbacks, **options) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=tmp_path, log_every_n_steps=2, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(ContrastiveModule(encoder, log_pairs=0), Data())


@pytest.mark.filterwarnings("ignore:The checkpoints will not say how to make encoder:UserWarning")
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch:UserWarning")
@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.:UserWarning")
def test_the_epoch_that_a_run_goes_on_with_says_of_which_steps_its_loss_is(tmp_path, capsys):
    module = ContrastiveModule(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), log_pairs=0)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_last=True)
    options = {"accelerator": "cpu", "logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    Trainer(max_steps=3, callbacks=[saving], enable_progress_bar=False, **options).fit(module, Data())
    lines = ProgressLines(least_seconds=0.0)
    trainer = Trainer(max_epochs=2, callbacks=[lines], enable_checkpointing=False, log_every_n_steps=2, **options)
    capsys.readouterr()
    trainer.fit(module, Data(), ckpt_path=tmp_path / "last.ckpt")
    first, second = re.findall(r"^epoch \d of 2: loss/train [\d.]+(.*?), loss/val", capsys.readouterr().out, re.M)
    assert (first, second) == (" (of steps 4 to 4)", "")


def test_lines_say_step_loss_rate_waiting_and_time_left(tmp_path, capsys):
    fit(tmp_path, ProgressLines(least_seconds=0.0))
    out = capsys.readouterr().out
    assert "\r" not in out
    lines = [line for line in out.splitlines() if not line.startswith("validation")]
    assert [line.split(":")[0] for line in lines] == [
        "epoch 1 of 2, step 2/4", "epoch 1 of 2, step 4/4", "epoch 1 of 2",
        "epoch 2 of 2, step 2/4", "epoch 2 of 2, step 4/4", "epoch 2 of 2",
    ]  # fmt: skip
    assert "left" not in lines[0]  # two steps are too few to go by
    assert LINE.fullmatch(lines[1])
    assert "left" in lines[3]
    assert "not counted" not in lines[3]
    assert EPOCH.fullmatch(lines[-1])


def test_lines_are_at_least_ten_seconds_apart(tmp_path, capsys):
    fit(tmp_path, ProgressLines())
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 1 of 2", "epoch 2 of 2"]


def test_lines_that_are_asked_for_come_at_their_very_steps(tmp_path, capsys):
    fit(tmp_path, ProgressLines(every_n_steps=1), limit_val_batches=0)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"epoch {epoch} of 2{step}" for epoch in (1, 2) for step in (*(f", step {n}/4" for n in (1, 2, 3, 4)), "")
    ]


@pytest.mark.parametrize(
    ("seconds_per_step", "steps"),
    [(0.2, [50, 100, 150, 200, 250]), (0.15, [100, 200, 300, 400, 500]), (0.04, [250, 500, 750, 1000])],
)
def test_lines_that_would_come_too_fast_come_at_round_multiples(seconds_per_step, steps):
    stride = Stride(50, 10.0)
    assert [step for step in range(1, steps[-1] + 1) if stride.is_due(step, seconds_per_step)] == steps


def test_a_stride_does_not_come_back_so_that_lines_stay_regular():
    stride = Stride(10, 10.0)
    paces = {10: 1.0, 20: 0.5, 30: 0.3, 40: 0.3, 50: 2.0, 60: 2.0, 70: 2.0, 80: 2.0, 90: 2.0, 100: 2.0, 150: 2.0}
    assert [step for step, pace in paces.items() if stride.is_due(step, pace)] == [10, 20, 50, 100, 150]


def test_the_rest_is_told_from_the_steps_and_epochs_of_this_run(monkeypatch):
    """Steps of 2 s and 30 s of validation per epoch: 10 steps and one more validation are 50 s."""
    now = [0.0]
    monkeypatch.setattr(dynaclr_wds.train.pace.time, "perf_counter", lambda: now[0])
    remaining = Remaining(least_seconds=10.0)

    def step(count: int) -> None:
        for _ in range(count):
            now[0] += 2.0
            remaining.add_step()

    step(4)
    assert remaining.describe(16, 2, validates=True) == []  # 8 s
    step(6)
    assert remaining.describe(10, 2, validates=True) == ["about 20 s left, validation not counted"]
    assert remaining.describe(10, 2, validates=False) == ["about 20 s left"]
    remaining.add_between()
    now[0] += 30.0
    remaining.end_epoch()
    assert remaining.describe(10, 1, validates=True) == ["about 50 s left"]
    step(9)
    assert remaining.describe(1, 1, validates=True) == ["about 30 s left"]
    assert remaining.describe(0, 0, validates=True) == []


def test_only_the_first_rank_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    fit(tmp_path, ProgressLines(least_seconds=0.0))
    assert capsys.readouterr().out == ""


def test_wrong_intervals_are_refused():
    with pytest.raises(ValueError, match=r"every_n_steps=0 must be >= 1"):
        ProgressLines(every_n_steps=0)
    with pytest.raises(ValueError, match=r"least_seconds=-1.0 must be >= 0"):
        ProgressLines(least_seconds=-1.0)


def test_a_bar_in_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert [type(one) for one in choose_progress(True, [])] == [WaitingBar]
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: False))
    assert [type(one) for one in choose_progress(True, [])] == [ProgressLines]
    assert choose_progress(False, []) == []
    assert choose_progress(True, [TQDMProgressBar()]) == []


def test_the_bar_counts_epochs_from_one(tmp_path, monkeypatch):
    seen = []
    tell = WaitingBar._get_train_description
    monkeypatch.setattr(
        WaitingBar, "_get_train_description", lambda self, epoch: seen.append(tell(self, epoch)) or seen[-1]
    )
    fit(tmp_path, WaitingBar())
    assert [text.strip() for text in dict.fromkeys(seen)] == ["Epoch 1 of 2", "Epoch 2 of 2"]


def test_the_bar_shows_what_is_waited_for(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(WaitingBar, "_update_metrics", lambda self, *of: seen.append(self.get_metrics(*of)))
    fit(tmp_path, WaitingBar())
    assert all(re.fullmatch(r"\d+%", items["waiting for the loader"]) for items in seen)
    assert len(seen) >= 8


@pytest.mark.parametrize(("read", "train", "waits"), [(0.03, 0.0, True), (0.0, 0.03, False)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_waiting_is_counted_where_the_loader_is_slow(read, train, waits, num_workers):
    loader = ThreadDataLoader(Batches(read), batch_size=2, num_workers=num_workers, prefetch_factor=1)
    pace = Pace(loader)
    for batch in loader:
        pace.add(batch)
        time.sleep(train)
    assert (pace.steps, pace.samples) == (4, 8)
    assert (pace.waiting > 0.7) is waits
    assert (pace.waiting < 0.3) is not waits


def test_pauses_are_left_out():
    pace = Pace(None)
    pace.pause()
    time.sleep(0.05)
    assert pace.seconds < 0.04
    pace.resume()
    assert pace.seconds < 0.04
    assert pace.waiting is None


def test_a_crowded_machine_is_told_apart_from_a_loader_that_is_too_slow():
    assert advise_on_threads(load=3.9, processors=2, torch_threads=2, workers=1) is None  # its own threads, mostly
    assert advise_on_threads(load=12.0, processors=2, torch_threads=1, workers=4) is None  # nothing that it could do
    crowded = advise_on_threads(load=12.0, processors=2, torch_threads=2, workers=1)
    assert crowded is not None
    assert "about 12 threads want to run on 2 processors" in crowded
    assert "OMP_NUM_THREADS=1" in crowded
    assert advise_on_loader(0.49, processors=8, workers=2) is None
    assert advise_on_loader(None, processors=8, workers=2) is None
    more = advise_on_loader(0.8, processors=8, workers=2)
    assert more == (
        "The network waits for the loader 80% of the time. data.num_workers is 2, and this process may use 8 "
        "processors: set it higher."
    )
    assert "Fewer bytes" in (advise_on_loader(0.8, processors=2, workers=2) or "")


def test_what_makes_a_training_slow_is_said_once(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(sys.modules[__name__], "Batches", partial(Batches, seconds=0.05))
    fit(tmp_path, SlowHint(after_seconds=0.0), enable_progress_bar=False)
    assert capfd.readouterr().out.count("The network waits for the loader") == 1
