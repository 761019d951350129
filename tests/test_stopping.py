"""Every training config is stopped by a signal, resumed by the command that was printed, and ends as if never stopped.

Commands are real processes. One test goes the whole way through the shell; the others are forked after the imports.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etl import build_shards
from etl.simulate.__main__ import SimulationConfig, simulate_collection
from tests.forked_commands import CALLBACK, SIGNAL_AT, Ended, ForkedCommands
from tests.forking import ROOT
from tests.shared_build import make_once

pytestmark = pytest.mark.slow

SMALL = shlex.split(
    "--trainer.max_epochs 2 --trainer.limit_train_batches 4 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.log_every_n_steps 1 "
    "--data.batch_size 8 --data.shards shards"
)
SMALL_NETWORK = ["-c", "small.yaml"]
"""What takes the place of the configs' encoders, which tests/test_cli.py makes."""
SMALL_YAML = """
model:
  encoder:
    class_path: dynaclr_wds.train.encoder.ProjectedEncoder
    init_args: {backbone: tests.forked_commands.Backbone, embedding_dim: 8, projection_dim: 4}
"""
HELD_OUT = ["--data.val_experiments", "[sim_03]"]
CONFIGS = {
    "fit.yaml": (SMALL_NETWORK, "on_train_batch_start:3:SIGINT"),
    "fit_3d.yaml": (
        [*SMALL_NETWORK, *HELD_OUT],
        "on_validation_batch_start:2:SIGTERM",
    ),  # the first is the sanity check
    "fit_triplet.yaml": ([*SMALL_NETWORK, *HELD_OUT], "on_train_batch_start:6:SIGTERM"),
    "demo.yaml": ([], "on_before_optimizer_step:2:SIGINT"),
}
"""Options, and when which signal is sent. `fit.yaml` has nothing held out, as it is shipped."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        config = SimulationConfig(experiments=4, fovs=2, frames=8, size=64, cells=6, cell_radius=7.0)
        path = simulate_collection(root / "plates", config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            assert build_shards.main([str(path), "--out", str(root / "shards"), "--quiet"]) == 0

    return make_once(tmp_path_factory, "stopping", make) / "shards"


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    """Where a user would be: configs, shards."""
    (tmp_path / "shards").symlink_to(shards)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "small.yaml").write_text(SMALL_YAML)
    return tmp_path


def read_state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def parse_last_lines(said: str) -> tuple[str, list[str]]:
    """Return the checkpoint and the words of the command that the last lines name."""
    found = re.search(r"\nCheckpoint: (.+)\nGo on with:\n  (python -m dynaclr_wds .+)\n$", said)
    assert found, said
    return found[1], shlex.split(found[2])


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_stopped_and_resumed_and_ends_as_if_it_was_not_stopped(
    name: str, folder: Path, commands: ForkedCommands, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options, when = CONFIGS[name]
    given = ["fit", "-c", f"configs/{name}", *options, *SMALL, CALLBACK]
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(folder, whole, symlinks=True, dirs_exist_ok=True)
    uninterrupted = commands.run(whole, given)
    assert uninterrupted.status == 0, uninterrupted.said

    stopped = commands.run(folder, given, **{SIGNAL_AT: when})
    assert stopped.status == 128 + signal.Signals[when.split(":")[-1]], stopped.said
    checkpoint, command = parse_last_lines(stopped.said)
    assert command[3:] == [*given, "--ckpt_path", checkpoint]
    assert (folder / checkpoint).exists()

    resumed = commands.run(folder, command[3:])
    assert resumed.status == 0, resumed.said
    expected, found = find_last(uninterrupted), find_last(resumed)
    one, other = read_state(whole / expected), read_state(folder / found)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def find_last(ended: Ended) -> str:
    found = re.search(
        r"\nFinished: 2 epochs, 8 steps\.\n.*^Last checkpoint: (.+)\nEmbed with:\n", ended.said, re.S | re.M
    )
    assert found, ended.said
    return found[1]


def test_the_whole_way_through_the_shell(folder: Path) -> None:
    """Ctrl-C, as a terminal sends it: to all processes of the group."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    given = shlex.join(["python", "-m", "dynaclr_wds", "fit", "-c", "configs/fit_triplet.yaml", *SMALL_NETWORK, *SMALL])
    with subprocess.Popen(
        f"exec {given} --trainer.callbacks+=tests.forked_commands.SayAndWait", shell=True, cwd=folder, text=True,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line == "in the third step\n":
                os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130, said
    assert "Ctrl-C: finishing the step, then saving. Ctrl-C again stops at once." in said
    _, command = parse_last_lines(said)
    done = subprocess.run(
        shlex.join(command), shell=True, cwd=folder, text=True, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "\nFinished: 2 epochs, 8 steps.\n" in done.stdout


@pytest.mark.parametrize(("hook", "name"), [("setup", "SIGINT"), ("on_sanity_check_start", "SIGTERM")])
def test_before_the_first_step_it_ends_with_one_line_and_the_command(
    hook: str, name: str, folder: Path, commands: ForkedCommands
) -> None:
    given = ["fit", "-c", "configs/fit_triplet.yaml", *SMALL_NETWORK, *SMALL, *HELD_OUT, CALLBACK]
    ended = commands.run(folder, given, **{SIGNAL_AT: f"{hook}:1:{name}"})
    assert ended.status == 128 + signal.Signals[name], ended.said
    cause = "Ctrl-C" if name == "SIGINT" else name
    again = shlex.join(["python", "-m", "dynaclr_wds", *given])
    assert ended.said.endswith(
        f"\nStopped by {cause} before the first step, so nothing was saved. Start again:\n  {again}\n"
    )
    assert "Traceback" not in ended.said
    assert "KeyboardInterrupt" not in ended.said
    assert list(folder.rglob("*.ckpt")) == []


def test_a_second_ctrl_c_stops_at_once(folder: Path, commands: ForkedCommands) -> None:
    given = ["fit", "-c", "configs/fit_triplet.yaml", *SMALL_NETWORK, *SMALL, CALLBACK]
    ended = commands.run(folder, given, **{SIGNAL_AT: "on_train_batch_start:3:SIGINT:SIGINT"})
    assert ended.status == -signal.SIGINT, ended.said
    assert ended.said.endswith("\nStopped at once, without saving.\n")


def test_a_signal_during_imports_ends_with_one_line() -> None:
    """Here the process signals itself when torch is about to be imported."""
    script = """
import os, runpy, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["dynaclr_wds", "fit"]
runpy.run_module("dynaclr_wds", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        143,
        "",
        "Stopped by SIGTERM before anything was done; nothing was saved.\n",
    )


def test_slurm_requeues_at_the_very_step_and_the_next_job_goes_on(folder: Path, commands: ForkedCommands) -> None:
    """SLURM sends SIGUSR1 ahead of the time limit, then SIGTERM; the job that comes back is given no checkpoint."""
    (folder / "bin").mkdir()
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" > requeued.txt\n')
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "1",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    given = ["fit", "-c", "configs/fit_triplet.yaml", *SMALL_NETWORK, *SMALL, CALLBACK]
    warned = commands.run(folder, given, **slurm, **{SIGNAL_AT: "on_before_optimizer_step:3:SIGUSR1:SIGTERM"})
    assert warned.status == 143, warned.said
    assert (folder / "requeued.txt").read_text() == "requeue 77\n"
    saved = torch.load(folder / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    last, _ = parse_last_lines(warned.said)
    state = read_state(folder / last)
    assert [key for key in state if not torch.equal(state[key], saved["state_dict"][key])] == []

    again = commands.run(folder, given, **slurm)
    assert again.status == 0, again.said
    assert "It goes on from hpc_ckpt_1.ckpt, in epoch 1 of 2 after step 3." in again.said
    assert "hpc_ckpt_1.ckpt" in again.said
    whole = commands.run(folder, given)
    one, other = read_state(folder / find_last(whole)), read_state(folder / find_last(again))
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_a_signal_to_one_rank_stops_all_at_the_same_step(folder: Path, commands: ForkedCommands) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in (0, 1)
    ]
    given = ["fit", "-c", "configs/fit_triplet.yaml", *SMALL_NETWORK, *SMALL, CALLBACK]
    given += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    whole = commands.run(folder, given, *ranks)
    assert (whole.status, whole.others) == (0, (0,)), whole.said
    stopped = commands.run(folder, given, ranks[0], ranks[1] | {SIGNAL_AT: "on_before_optimizer_step:3:SIGTERM"})
    assert (stopped.status, stopped.others) == (143, (143,)), stopped.said
    checkpoint, command = parse_last_lines(stopped.said)
    assert torch.load(folder / checkpoint, weights_only=True)["global_step"] == 3
    resumed = commands.run(folder, command[3:], *ranks)
    assert (resumed.status, resumed.others) == (0, (0,)), resumed.said
    one, other = read_state(folder / find_last(whole)), read_state(folder / find_last(resumed))
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
