"""A plain run says what is of use and no more: no advertisement, no warning, no carriage return in a log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]

SAID = (r"Channel dropout is on: .*", r"Validation: 3 fields of view of e3 .*, held out by .*")
"""All that may be on standard error."""


def call(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONWARNINGS", None)
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def test_lightnings_own_line_about_a_signal_is_left_out():
    """Ours says what is done about it."""
    code = (
        "import logging, lightning.pytorch.trainer.connectors.signal_connector as lightning\n"
        "from dynaclr_wds.commands.quiet import quiet_libraries\n"
        "quiet_libraries()\n"
        "lightning.log.setLevel(logging.INFO)\n"
        "lightning.log.info('[rank: 0] Received SIGTERM: 15')\n"
        "lightning.log.info('something else')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["something else"]


@pytest.mark.slow
def test_fit_and_validate_hold_no_noise(shards, tmp_path):
    config = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text())
    config["trainer"] |= {"max_epochs": 2, "default_root_dir": "runs", "log_every_n_steps": 50}
    config["trainer"]["callbacks"] = [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": "runs/checkpoints", "save_last": True},
        }
    ]
    config["model"]["encoder"]["init_args"]["backbone"]["init_args"]["n_input_channels"] = 6  # 2 channels of 3 planes
    config["data"] |= {
        "shards": str(shards), "val_experiments": ["e3"], "batch_size": 16, "tau_range": [0.5, 1.5],
        "final_yx_patch_size": None,
    }  # fmt: skip
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    fit = call(tmp_path, "dynaclr_wds", "fit", "-c", "fit.yaml")
    validate = call(tmp_path, "dynaclr_wds", "validate", "-c", "fit.yaml", "--ckpt_path", "runs/checkpoints/last.ckpt")
    for done in (fit, validate):
        unknown = [line for line in done.stderr.splitlines() if not any(re.fullmatch(s, line) for s in SAID)]
        assert unknown == []
        assert not re.search(r"(?i)warning|💡|\btip\b|deprecat|num_workers|_pytree|TPU|\r", done.stdout + done.stderr)
    lines = [line.split(":")[0] for line in fit.stdout.splitlines() if not line.startswith("  ")]
    assert lines[0].startswith("Training ProjectedEncoder (")
    assert lines[0].endswith(") on CPU, precision 32-true.")
    assert lines[1] == "plan of an epoch"
    epochs = ["epoch 1 of 2", "epoch 2 of 2"]
    assert sorted(lines[2:6]) == [*epochs, *(f"summary of {epoch}" for epoch in epochs)]
    assert lines[6:] == ["", "Finished", "Best checkpoint", "Last checkpoint", "Embed with"]
