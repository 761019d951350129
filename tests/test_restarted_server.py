"""Two processes that train together on a server that is killed: they go on when it is back, and end when it is not."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from dynaclr_wds.__main__ import main
from dynaclr_wds.commands import lightning
from tests.conftest import make_matrix_set
from tests.forked_commands import Ended, ForkedCommands
from tests.remote import upload
from tests.servers.seaweedfs import ROLES, SeaweedFS
from tests.shared_build import make_once

ROOT = Path(__file__).parent.parent
FOLDER = "DYNACLR_TEST_FOLDER"
"""Name of the variable: where ranks say what they see."""
PAUSE_AT = 2
"""Step before which ranks wait until the server was killed."""
MOST_SECONDS = 120.0
"""A training that takes longer to end hangs."""
SMALL = shlex.split(
    "-c configs/fit_triplet.yaml -c small.yaml --trainer.max_epochs 1 --trainer.limit_val_batches 0 "
    "--trainer.accelerator cpu --trainer.enable_progress_bar false --trainer.enable_model_summary false "
    "--trainer.num_sanity_val_steps 0 --data.batch_size 4 --data.window_bytes 66% --data.num_streams 2 "
    "--data.relax_lineages true --data.tau_range [0.5,1.5] --data.z_range [0,1] "
    "--trainer.devices 2 --trainer.strategy ddp "
    "--trainer.callbacks+=tests.test_restarted_server.Witness"
)
SMALL_YAML = """
model:
  encoder:
    class_path: dynaclr_wds.train.encoder.ProjectedEncoder
    init_args: {backbone: tests.forked_commands.Backbone, embedding_dim: 8, projection_dim: 4}
"""


class Witness(Callback):
    """Writes down every batch of its rank; pauses in the middle of the epoch until the test says go."""

    def on_train_batch_start(self, trainer: Any, _: Any, batch: dict[str, Any], batch_idx: int) -> None:
        folder, rank = Path(os.environ[FOLDER]), trainer.global_rank
        parts = [batch[name].contiguous().view(torch.uint8).numpy().tobytes() for name in ("anchor", "positive")]
        with (folder / f"batches-{rank}").open("a") as file:
            file.write(hashlib.sha256(b"".join(parts)).hexdigest() + "\n")
        if batch_idx == PAUSE_AT:
            (folder / f"reached-{rank}").touch()
            wait_for(folder / "go")


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not come"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_once(tmp_path_factory, "matrix", make_matrix_set) / "shards"


Fit = Callable[..., Ended]


@pytest.fixture
def fit(commands: ForkedCommands, tmp_path: Path) -> Fit:
    """Train as two ranks: `fit(name, shards, *words, **environment)`; the folder `name` gets what they saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def run(name: str, shards: str | Path, *words: str, **environment: str) -> Ended:
        folder = tmp_path / name
        shutil.copytree(ROOT / "configs", folder / "configs", dirs_exist_ok=True)
        (folder / "small.yaml").write_text(SMALL_YAML)
        ranks = [place | environment | {"LOCAL_RANK": str(rank), FOLDER: str(folder)} for rank in (0, 1)]
        return commands.run(folder, ["fit", *SMALL, "--data.shards", str(shards), *words], *ranks)

    return run


def batches(folder: Path) -> list[list[str]]:
    return [(folder / f"batches-{rank}").read_text().split() for rank in (0, 1)]


def start(name: str, server: SeaweedFS, url: str, fit: Fit, folder: Path, retry_timeout: float) -> Future[Ended]:
    """Start a training, and return when both ranks are in the middle of the epoch."""
    key, secret, _ = ROLES["reader"]
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": server.endpoint}
    limits = f"{{retry_timeout: {retry_timeout}, stall_timeout: 5, request_timeout: 10}}"
    words = ["--data.cache_dir", str(folder / "cache"), "--data.storage_options", limits]
    ended: Future[Ended] = Future()
    threading.Thread(target=lambda: ended.set_result(fit(name, url, *words, **keys)), daemon=True).start()
    wait_for(*(folder / name / f"reached-{rank}" for rank in (0, 1)))
    return ended


@pytest.mark.slow
def test_two_processes_go_on_when_a_killed_server_is_back_and_end_when_it_is_not(
    fit: Fit, shards: Path, tmp_path: Path, bucket_name: str
):
    for name in ("local", "back", "gone"):
        (tmp_path / name).mkdir()
    (tmp_path / "local" / "go").touch()
    undisturbed = fit("local", shards)
    assert (undisturbed.status, undisturbed.others) == (0, (0,)), undisturbed.said
    with SeaweedFS() as server:
        url = upload(server.bucket(bucket_name), shards)

        back = start("back", server, url, fit, tmp_path, 120.0)
        server.kill()
        (tmp_path / "back" / "go").touch()
        server.start()
        found = back.result(MOST_SECONDS)
        assert (found.status, found.others) == (0, (0,)), found.said
        assert batches(tmp_path / "back") == batches(tmp_path / "local")

        gone = start("gone", server, url, fit, tmp_path, 2.0)
        server.kill()
        begun = time.monotonic()
        (tmp_path / "gone" / "go").touch()
        found = gone.result(MOST_SECONDS)
        assert time.monotonic() - begun < MOST_SECONDS
        assert (found.status, found.others) == (2, (2,)), found.said
    said = [(tmp_path / "gone" / f"said-{rank}.txt").read_text() for rank in (0, 1)]
    own = rf"error: {re.escape(url)}/.*\.tar, bytes .*: the request failed \(connection refused; \d+ tries in \d+ s\)"
    other = r"error: Rank \d of 2 can't go on alone: another rank has ended\."
    assert all(len(re.findall(f"{own}|{other}", text)) == 1 and "Traceback" not in text for text in said), said
    assert any(re.search(own, text) for text in said), said
    seen, whole = batches(tmp_path / "gone"), batches(tmp_path / "local")
    assert all(
        PAUSE_AT < len(one) < len(all_) and one == all_[: len(one)] for one, all_ in zip(seen, whole, strict=True)
    )


def test_a_rank_says_in_one_line_that_another_one_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def lose(_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8628")

    monkeypatch.setattr(lightning, "_make_command", lose)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert main(["fit", "-c", "configs/fit.yaml"]) == 2
    finally:
        torch.distributed.destroy_process_group()
    said = "error: Rank 0 of 1 can't go on alone: another rank has ended. What that one said is the reason.\n"
    assert capsys.readouterr().err == said
    with pytest.raises(RuntimeError, match="Connection closed by peer"):  # of something else
        main(["fit", "-c", "configs/fit.yaml"])
