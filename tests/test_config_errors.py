"""Every mistake in an option or a config of a training is one line: the key, what is allowed, the nearest name."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from dynaclr_wds import __main__ as command

ENCODER = "dynaclr_wds.train.encoder.MonaiEncoder"
NORMALIZE = "dynaclr_wds.transforms.NormalizeSampled"
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"

OPTIONS = [
    ("--data.batchsize=3", "there is no option --data.batchsize. Did you mean --data.batch_size?"),
    ("--batch_size=3", "there is no option --batch_size. Did you mean --data.batch_size?"),
    ("--zebra=3", "there is no option --zebra. `dynaclr-wds fit --help_all` lists all there are."),
    ("extra", "'extra' is no option. Options begin with --; `dynaclr-wds fit --help_all` lists all there are."),
    ("--data.batch_size", "argument --data.batch_size: expected one argument"),
    ("--data.batch_size=many", "data.batch_size=many must be a whole number. Correct it."),
    ("--model.schedule=cosin", "model.schedule=cosin must be one of constant, cosine. Did you mean cosine?"),
    ("--trainer.max_epochs=3.5", "trainer.max_epochs=3.5 must be a whole number or null. Correct it."),
    ("--data.tau_range=3", "data.tau_range=3 must be a list. Correct it."),
    ("--model.encoder=Monai", f"model.encoder='Monai': there is no such class. Give module.Class, as in {ENCODER}."),
    ("--model.encoder.backbone=x", "model.encoder has no class yet. Give its class_path first: --model.encoder="),
    ("--model.init_from=last.ckpt", "model.init_from has keys: path, map, ignore, strict. Give --model.init_from.path"),
    ("--config=a.yaml", "there is no config a.yaml. `dynaclr-wds init experiments.yaml` writes configs/ for your"),
]

CONFIGS = [
    ("data: {batchsize: 3}", "my.yaml: there is no key data.batchsize. Did you mean data.batch_size?"),
    ("data: {batch_size: many}", "my.yaml: data.batch_size=many must be a whole number. Correct it."),
    ("optimizer: 3", "my.yaml: there is no key optimizer. `dynaclr-wds fit --help_all` lists all there are."),
    ("data: {shards: n", "my.yaml: can't be read as YAML (while parsing a flow mapping in line 1, column 7"),
    (
        f"model: {{encoder: {{class_path: {ENCODER[:-1]}}}}}",
        f"my.yaml: model.encoder={ENCODER[:-1]!r}: there is no such class. Did you mean {ENCODER}?",
    ),
    (
        f"model: {{encoder: {{class_path: {ENCODER}, init_args: {{in_chanels: 3}}}}}}",
        "my.yaml: model.encoder: MonaiEncoder has no parameter in_chanels. Did you mean in_channels?",
    ),
    (
        f"data: {{normalizations: [{{class_path: {NORMALIZE}, init_args: {{levle: fov}}}}]}}",
        "my.yaml: data.normalizations: NormalizeSampled has no parameter levle. Did you mean level?",
    ),
    (
        f"trainer: {{callbacks: [{{class_path: {CHECKPOINT}, init_args: {{zzz: a}}}}]}}",
        "my.yaml: trainer.callbacks: ModelCheckpoint has no parameter zzz. It has dirpath, filename, monitor,",
    ),
    (
        f"model: {{encoder: {{class_path: {ENCODER}, init_args: {{backbone: resnet19}}}}}}",
        "model.encoder.backbone='resnet19' is not one of resnet10, resnet18,",
    ),
    (
        "trainer: {accelerator: tpuu}",
        "model, data or trainer can't be made as the config says: You selected an invalid",
    ),
    (
        "trainer: {barebones: true, enable_checkpointing: true}",
        "model, data or trainer can't be made as the config says",
    ),
    ("data: {shards: none}", "shards='none': there is no manifest.json. Build the shards with `dynaclr-wds build"),
    (
        "data: {shards: 'ftp://b/n'}",
        "shards: URLs of scheme 'ftp' can't be read; use s3://, gs://, az://, https://, http:// or",
    ),
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dynaclr-wds"])
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # their handlers write to the stderr of another test
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that fails says: one line, as the last, without usage or traceback."""
    assert command.main(["fit", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith(("error", "usage", "tip", "Traceback"))] == lines[-1:]
    return lines[-1]


@pytest.mark.parametrize(("option", "said"), OPTIONS, ids=[option for option, _ in OPTIONS])
def test_a_mistake_in_an_option_is_one_line(capsys, option, said):
    assert answer(capsys, "--data.shards=none", option).startswith(f"error: {said}")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning, about a trainer that never runs
@pytest.mark.parametrize(("config", "said"), CONFIGS, ids=[said[:60] for _, said in CONFIGS])
def test_a_mistake_in_a_config_is_one_line(capsys, tmp_path, config, said):
    (tmp_path / "base.yaml").write_text("data: {shards: none}\ntrainer: {accelerator: cpu, logger: false}\n")
    (tmp_path / "my.yaml").write_text(config)
    found = answer(capsys, "-c", "base.yaml", "-c", "my.yaml")
    assert found.replace("base.yaml, ", "").startswith(f"error: {said}")


def test_what_must_be_given_is_named_with_the_way_to_give_it(capsys):
    assert answer(capsys) == (
        "error: data.shards must be given. Give --data.shards, or a config: -c configs/fit.yaml (`dynaclr-wds init` "
        "writes one)."
    )


def test_debug_shows_where_a_mistake_in_a_config_was_found(capsys):
    assert command.main(["fit", "--data.shards=n", "--debug", "--data.batch_size=many"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: data.batch_size=many must be a whole number. Correct it.\n")
