"""Streaming from real shards: the right pixels, bounded memory, exact resume through Lightning, real processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import dynaclr_wds.datamodule
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import FormatError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train.epoch_ledger import EpochLedger
from dynaclr_wds.world import World
from tests.forked_commands import ForkedCommands

ROOT = Path(__file__).parent.parent
STREAMS = {
    "window_bytes": 8 << 20,
    "num_streams": 4,
    "batch_size": 6,
    "val_experiments": ["e1"],
    "tau_range": (0.5, 1.5),
}


class Recorder(pl.LightningModule):
    """Trains one weight and remembers which observations it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch, _):
        meta = (batch["anchor_meta"], batch["positive_meta"])
        self.seen.append([int(o) for m in meta for o in m.observations])
        return self.weight * batch["anchor"].mean()

    def validation_step(self, *_):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


OF_A_LOADER = ("dynaclr-plan", "dynaclr-read", "dynaclr-fetch")


def fit(
    shards: Path, *, callbacks=(), ckpt_path=None, max_epochs=1, val_batches=0, train_batches=1.0, **config
) -> list[list[int]]:
    model = Recorder()
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=val_batches,
        limit_train_batches=train_batches,
        callbacks=list(callbacks),
    )
    data = MultiExperimentDataModule(str(shards), **{"num_workers": 2, **STREAMS, **config})
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=False)
    return model.seen


@pytest.fixture
def shards(short_clips: Path) -> Path:
    """A set that is large beside its clips."""
    return short_clips


def loader_of(shards: Path, **config):
    data = MultiExperimentDataModule(str(shards), **{"num_workers": 2, **STREAMS, **config})
    data.setup("fit")
    return data.train_dataloader()


def test_a_streamed_batch_holds_the_pixels_that_the_plan_names(shards):
    loader = loader_of(shards)
    a, root = ShardSet.open(shards).arrays, ShardSet.open(shards)
    plans = list(loader.batch_sampler)
    for plan, batch in zip(plans, loader, strict=True):
        for place in (0, 5):
            row = plan.positive[place]
            shard = root.manifest.shards[a["block_shard"][a["clip_block"][a["patch_clip"][row]]]]
            raw = (shards / shard.path).read_bytes()[a["patch_offset"][row] :]
            stored = next(e for e in root.manifest.experiments if e.name == plan.group)
            want = np.frombuffer(raw[: stored.patch_bytes], stored.dtype).reshape(stored.shape)
            assert (batch["positive"][place].numpy() == want).all()


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_order_does_not_depend_on_threads_and_memory_is_bounded(shards, num_workers):
    loader = loader_of(shards, num_workers=num_workers, window_bytes=3 << 20, num_streams=1)
    want = [p.anchor.tolist() for p in loader.batch_sampler]
    a, got, peak = ShardSet.open(shards).arrays, [], 0
    for batch in loader:
        got.append(batch["anchor_meta"].observations.tolist())
        peak = max(peak, loader.dataset.window.peak_bytes)
    assert got == [a["patch_obs"][rows].tolist() for rows in want]
    assert 0 < peak <= 3 << 20
    assert loader.dataset.window is None


def resident_bytes(root: Path) -> int:
    """Count the pages of files under a folder that are this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = str(root) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_retired_blocks_are_no_longer_memory_of_the_process(shards):
    window = 3 << 20
    # a check maps whole blocks, with up to 64 KiB around each: as much as a block of this small set
    loader = loader_of(shards, window_bytes=window, num_streams=1, verify_reads=False)
    before = resident_bytes(shards)
    blocks = loader.batch_sampler.blocks(0)
    assert blocks.bytes.sum() > 1.2 * window
    most = max(resident_bytes(shards) - before for n, _ in enumerate(loader) if n % 6 == 5)
    assert window / 2 < most <= window
    assert resident_bytes(shards) - before < window / 20


def test_a_shard_that_is_cut_short_meanwhile_is_named(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    loader = loader_of(copy, window_bytes=3 << 20, num_streams=1)
    list(loader)
    loader.batch_sampler.set_epoch(1)
    for tar in copy.glob("e0/*.tar"):
        os.truncate(tar, 4096)
    with pytest.raises(FormatError, match=r"e0/.*\.tar: has 4,096 bytes"):
        list(loader)


def test_a_shard_that_is_replaced_under_its_name_changes_nothing_for_who_reads_it(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    loader = loader_of(copy)
    before = [batch["anchor"].clone() for batch in loader]
    for tar in copy.glob("e0/*.tar"):
        tar.with_suffix(".new").write_bytes(b"other bytes")
        tar.with_suffix(".new").replace(tar)
    loader.batch_sampler.set_epoch(1)
    list(loader)
    loader.batch_sampler.set_epoch(0)
    assert all(torch.equal(a, batch["anchor"]) for a, batch in zip(before, loader, strict=True))


def test_leaving_early_stops_the_threads(shards):
    for _ in zip(loader_of(shards), range(2), strict=False):
        pass
    assert not [
        t.name for t in threading.enumerate() if t.name.startswith(("dynaclr-plan", "dynaclr-read", "dynaclr-fetch"))
    ]


def test_a_shard_that_is_gone_is_named(shards, tmp_path):
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(shards)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(shards)).write_bytes(path.read_bytes())
    loader = loader_of(copy)
    for tar in copy.glob("e0/*.tar"):
        tar.unlink()
    with pytest.raises(FormatError, match=r"e0/.*\.tar: is gone"):
        list(loader)
    assert not [
        t.name for t in threading.enumerate() if t.name.startswith(("dynaclr-plan", "dynaclr-read", "dynaclr-fetch"))
    ]


@pytest.mark.parametrize("window", [None, STREAMS["window_bytes"]])
def test_every_epoch_leaves_its_ledger(shards, tmp_path, window):
    seen = fit(shards, max_epochs=2, window_bytes=window, callbacks=[EpochLedger(str(tmp_path))])
    files = sorted(tmp_path.glob("*.json"))
    assert [f.name for f in files] == ["ledger-epoch=000.json", "ledger-epoch=001.json"]
    for epoch, file in enumerate(files):
        ledger = json.loads(file.read_text())
        steps = seen[epoch * ledger["batches"] : (epoch + 1) * ledger["batches"]]
        anchors = [o for step in steps for o in step[: len(step) // 2]]
        assert sum(c["unique"] for c in ledger["coverage"]) == len(set(anchors))
        assert sum(c["repeated"] for c in ledger["coverage"]) == len(anchors) - len(set(anchors))
        assert bool(ledger["streaming"]) == (window is not None)


def test_the_ledger_says_what_was_held_and_not_what_was_planned(shards, tmp_path):
    fit(shards, callbacks=[EpochLedger(str(tmp_path))], num_streams=1, window_bytes=3 << 20)
    streaming = json.loads((tmp_path / "ledger-epoch=000.json").read_text())["streaming"]
    loader = loader_of(shards, num_streams=1, window_bytes=3 << 20)
    most = 0
    for _ in loader:
        most = max(most, loader.dataset.window.peak_bytes)
    assert loader.dataset.held_peak_bytes == most > 2 << 20
    assert 2 << 20 < streaming["held_peak_bytes"] <= 3 << 20
    assert streaming["held_peak_bytes"] != streaming["planned_peak_bytes"]


def test_a_ledger_counts_what_was_trained_on_not_what_was_planned(shards, tmp_path):
    seen = fit(shards, callbacks=[EpochLedger(str(tmp_path))], train_batches=3)
    ledger = json.loads((tmp_path / "ledger-epoch=000.json").read_text())
    assert ledger["batches"] == len(seen) == 3
    assert sum(c["unique"] + c["repeated"] for c in ledger["coverage"]) == 3 * STREAMS["batch_size"]


class SaveEveryStep(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit_rank(monkeypatch, shards: Path, rank: int, size: int, **config) -> list[list[int]]:
    """Train as one of `size` processes, in this one."""
    monkeypatch.setattr(dynaclr_wds.datamodule, "detect_world", lambda _: World(rank, size))
    return fit(shards, batch_size=40, **config)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1), (2, 2)])
def test_resume_in_mid_epoch_through_a_checkpoint_for_any_world_and_threads(
    shards, tmp_path, monkeypatch, before, after
):
    whole = fit_rank(monkeypatch, shards, 0, 1, max_epochs=2)
    epoch = len(whole) // 2
    assert epoch % 4 == 0
    fit_rank(monkeypatch, shards, 0, before, num_workers=1 + before, callbacks=[SaveEveryStep(tmp_path)])
    for step in {1, epoch // before - 1}:
        ckpt = tmp_path / f"{step}.ckpt"
        state = torch.load(ckpt, weights_only=False)["MultiExperimentDataModule"]
        assert len(json.dumps(state)) < 2000
        at = step * before
        kept = (epoch - at) // after * after
        config = {"max_epochs": 2, "num_workers": step % 3, "ckpt_path": ckpt}
        ranks = [fit_rank(monkeypatch, shards, r, after, **config) for r in range(after)]
        merged = [s for steps in zip(*ranks, strict=True) for s in steps]
        assert merged == [*whole[at : at + kept], *whole[epoch:]], step


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "after_training"), [(1, 4, True), (2, 2, False), (4, 1, False)])
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resume_from_the_checkpoint_of_an_epochs_end(shards, tmp_path, monkeypatch, before, after, after_training):
    def run(rank: int, size: int, folder: str, **config):
        saver = ModelCheckpoint(tmp_path / folder, "end", save_on_train_epoch_end=after_training)
        return fit_rank(monkeypatch, shards, rank, size, val_batches=1, callbacks=[saver], **config)

    whole = run(0, 1, "whole", max_epochs=2)
    run(0, before, "before")
    ckpt = tmp_path / "before" / "end.ckpt"
    ranks = [run(r, after, f"after{r}", max_epochs=2, ckpt_path=ckpt) for r in range(after)]
    assert [s for steps in zip(*ranks, strict=True) for s in steps] == whole[len(whole) // 2 :]


DDP = """
import json, sys
from pathlib import Path
from tests.test_streaming import STREAMS, Recorder, SaveEveryStep
import lightning.pytorch as pl
import torch
from dynaclr_wds.commands.lightning import leave_processes
from dynaclr_wds.datamodule import MultiExperimentDataModule

if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    data = MultiExperimentDataModule(given["shards"], num_workers=2, **STREAMS | given["options"])
    model = Recorder()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=given["devices"], strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, limit_val_batches=0,
        callbacks=[SaveEveryStep(Path(given["save"]))] if given["save"] else [],
    )
    trainer.fit(model, data, ckpt_path=given["ckpt"], weights_only=False)
    Path(given["out"], f"{trainer.global_rank}.json").write_text(json.dumps(model.seen))
    leave_processes()
"""


def say(shards: Path, out: Path, devices: int, save="", ckpt=None, **options) -> str:
    """The words of the script."""
    given = {"shards": shards, "out": out, "devices": devices, "save": save, "ckpt": ckpt, "options": options}
    return json.dumps(given, default=str)


def fit_forks(commands: ForkedCommands, shards: Path, out: Path, devices: int, **options) -> list[list[int]]:
    """The same, in processes that are started as on a cluster: each is told its rank."""
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [place | {"LOCAL_RANK": str(rank)} for rank in range(devices)]
    ended = commands.run_code(out, DDP, [say(shards, out, devices, **options)], *ranks)
    assert (ended.status, set(ended.others)) == (0, {0}), ended.said
    return read_ranks(out, devices)


def fit_processes(shards: Path, out: Path, devices: int, save="", **options) -> list[list[int]]:
    """Train in real processes (gloo), which Lightning starts; return what they saw, in the order of the sequence."""
    out.mkdir()
    script = out / "train.py"
    script.write_text(DDP)
    done = subprocess.run(
        [sys.executable, str(script), say(shards, out, devices, save=save, **options)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        cwd=out,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return read_ranks(out, devices)


def read_ranks(out: Path, devices: int) -> list[list[int]]:
    ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(devices)]
    return [step for steps in zip(*ranks, strict=True) for step in steps]


@pytest.mark.slow
def test_processes_see_disjoint_batches_and_go_on_as_another_number(shards, tmp_path, commands):
    save = tmp_path / "save"
    save.mkdir()
    whole = fit_processes(shards, tmp_path / "two", 2, save=save, batch_size=40)
    assert whole == fit(shards, batch_size=40)
    assert len(whole) % 4 == 0
    assert fit_forks(commands, shards, tmp_path / "four", 4, ckpt=save / "2.ckpt", batch_size=40) == whole[4:]


@pytest.mark.slow
def test_ranks_see_disjoint_batches_where_some_strata_have_fewer_blocks_than_streams(shards, monkeypatch):
    config = {"num_streams": 16, "window_bytes": 1 << 27}
    whole = fit_rank(monkeypatch, shards, 0, 1, **config)
    ranks = [fit_rank(monkeypatch, shards, rank, 2, **config) for rank in range(2)]
    assert [step for steps in zip(*ranks, strict=True) for step in steps] == whole
