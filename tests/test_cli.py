"""Laws of the command line: every config loads, what is printed loads again, a run goes from config to embeddings."""

import contextlib
import io
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from dynaclr_wds import __main__ as command
from dynaclr_wds.commands import lightning as cli
from dynaclr_wds.commands.going_on import find_program, format_resume
from dynaclr_wds.commands.option_check import is_option, list_options
from dynaclr_wds.commands.short_help import GROUPS
from dynaclr_wds.commands.unused_logs import take_back_unused_logs
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.transforms import BatchTransform, NormalizeSampled

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if "data" in yaml.safe_load(path.read_text()))
"""Those of this command; others (`experiments:`) are the ETL's."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """Lightning warns of arguments of the process beside those that are given; logs go to the test's folder."""
    monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def print_config(*argv: str) -> dict[str, object]:
    """What `--print_config` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exit_:
        command.main([*argv, "--print_config"])
    assert exit_.value.code == 0
    return yaml.safe_load(out.getvalue())


class Stop(Exception):
    """Raised where a run would begin."""


def instantiate(monkeypatch: pytest.MonkeyPatch, *argv: str) -> cli.DynaCLRCommand:
    """Make model, data and trainer as the command would, and stop before the run."""
    made = []

    def stop(self: cli.DynaCLRCommand, _subcommand: str) -> None:
        made.append(self)
        raise Stop

    monkeypatch.setattr(cli.DynaCLRCommand, "_run_subcommand", stop)
    with pytest.raises(Stop):
        command.main(argv)
    return made[0]


def test_there_are_configs():
    assert {"fit.yaml", "fit_3d.yaml", "fit_triplet.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_makes_model_data_and_trainer(path, monkeypatch):
    made = instantiate(monkeypatch, "fit", "-c", str(path))
    assert isinstance(made.model, ContrastiveModule)
    assert isinstance(made.datamodule, MultiExperimentDataModule)
    assert made.trainer._accelerator_connector.use_distributed_sampler is False
    assert made.trainer.logger is None or made.trainer.logger._default_hp_metric is False
    transform = BatchTransform(made.datamodule.normalizations, made.datamodule.augmentations)
    assert isinstance(transform.normalizations[0], NormalizeSampled)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_printed_config_loads_again_and_is_the_same(path, tmp_path):
    printed = print_config("fit", "-c", str(path))
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(printed))
    assert print_config("fit", "-c", "printed.yaml") == printed


def test_the_3d_config_trains_on_a_stack(monkeypatch):
    path = next(path for path in CONFIGS if path.name == "fit_3d.yaml")
    made = instantiate(monkeypatch, "fit", "-c", str(path), "--model.encoder.init_args.backbone", "resnet10")
    x = torch.rand(2, 2, 15, 24, 24)
    batch = {"anchor": x, "positive": x, "anchor_norm_meta": {"fov": torch.ones(2, 2, 8)}}
    batch["positive_norm_meta"] = batch["anchor_norm_meta"]
    data = made.datamodule
    batch = BatchTransform(data.normalizations, data.augmentations, (None, 16, 16))(batch, training=True)
    features, projections = made.model(batch["anchor"])
    assert (features.shape, projections.shape) == ((2, 512), (2, 128))


def test_hcl_beta_is_set_once(monkeypatch):
    made = instantiate(monkeypatch, "fit", "--data.shards=none", "--model.hcl_beta=1.5")
    assert (made.model.loss.beta, made.datamodule.hcl_beta) == (1.5, 1.5)


def test_hcl_beta_of_the_data_on_the_command_line_says_where_it_belongs(capsys):
    assert command.main(["fit", "--data.shards=none", "--data.hcl_beta=1.5"]) == 2
    assert 'Linked "data.hcl_beta" must be given via "model.hcl_beta"' in capsys.readouterr().err


def test_hcl_beta_of_the_data_in_a_config_is_not_lost_silently(monkeypatch, tmp_path):
    (tmp_path / "own.yaml").write_text("data: {shards: none, hcl_beta: 3.0}")
    with pytest.warns(UserWarning, match=r"own.yaml: data.hcl_beta=3.0 is not used, model.hcl_beta=0.5 is"):
        instantiate(monkeypatch, "fit", "-c", "own.yaml")


def parsers(monkeypatch: pytest.MonkeyPatch) -> dict[str, LightningArgumentParser]:
    """The parsers of Lightning's commands."""
    made = []

    def stop(self: cli.DynaCLRCommand, *_: object) -> None:
        made.append(self)
        raise Stop

    monkeypatch.setattr(cli.DynaCLRCommand, "parse_arguments", stop)
    with pytest.raises(Stop):
        command.main(["fit"])
    return made[0]._subcommand_parsers


@pytest.mark.parametrize("name", ["fit", "validate"])
def test_short_help_tells_the_truth_about_options_and_defaults(monkeypatch, name):
    parser = parsers(monkeypatch)[name]
    actions = {action.dest: action for action in parser._actions}
    shown = [option for options in GROUPS.values() for option in options if name == "fit" or not option.fit_only]
    assert [option.name for option in shown if option.name not in actions] == []
    for option in shown:
        default = parser.get_defaults().get(option.name)
        if option.default:
            assert yaml.safe_load(option.default) == (list(default) if isinstance(default, tuple) else default), option


def test_short_help_shows_some_twenty_options_and_the_way_to_all(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dynaclr-wds"])
    assert command.main(["fit", "-c", "some.yaml", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: dynaclr-wds fit -c CONFIG [--KEY VALUE ...]"
    assert sum(line.startswith("  --") for line in lines) == 21
    assert "  dynaclr-wds fit -c configs/fit.yaml --data.batch_size 256 --trainer.max_epochs 50" in lines
    assert "  --data.batch_size              samples per step and per GPU (default: 128)" in lines
    assert "  dynaclr-wds fit --help_all" in lines
    assert len(lines) < 50


def test_help_all_shows_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["fit", "--help_all"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--trainer.gradient_clip_val" in out
    assert len(out.splitlines()) > 500


@pytest.mark.parametrize("name", ["fit", "validate"])
def test_every_option_of_the_parser_passes_the_quick_check(monkeypatch, name):
    keys = list_options(name)
    known = [
        word.removeprefix("--").removesuffix("+")
        for action in parsers(monkeypatch)[name]._actions
        for word in action.option_strings
        if word.startswith("--")
    ]
    assert len(known) > 100
    assert [option for option in known if not is_option(option, keys)] == []
    assert is_option("model.encoder.init_args.backbone", keys)
    assert not any(is_option(option, keys) for option in ("data.batchsize", "epochs", "trainer.max_epoch", "train"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data.batchsize 3", "there is no option --data.batchsize. Did you mean --data.batch_size?"),
        ("-c no.yaml", "there is no config no.yaml. `dynaclr-wds init experiments.yaml` writes configs/ for your"),
    ],
)
def test_a_misspelt_option_is_refused_before_torch_is_imported(words, said):
    script = f"""
import sys
from dynaclr_wds.__main__ import main
sys.argv = ["dynaclr-wds"]
assert main(["fit", *{words.split()}]) == 2
assert not {{"torch", "lightning", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"error: {said}")


def test_own_commands_are_run_without_lightning(monkeypatch):
    class Shuffle:
        @staticmethod
        def main(argv: list[str]) -> int:
            assert argv == ["--seed", "3"]
            return 7

    monkeypatch.setitem(sys.modules, "dynaclr_wds.own_shuffle", Shuffle)
    monkeypatch.setitem(command.COMMANDS, "shuffle", ("dynaclr_wds.own_shuffle", "Show how well batches are mixed."))
    assert command.main(["shuffle", "--seed", "3"]) == 7
    assert re.search(r"^  shuffle +Show how well batches are mixed\.$", command.describe_commands(), re.M)


class Flat(torch.nn.Module):
    """A backbone of one linear layer, small enough to train in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2 * 8 * 8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


class InMemory(MultiExperimentDataModule):
    """The DataModule with batches in the place of shards."""

    def setup(self, stage: str | None = None) -> None:
        assert stage in ("fit", "validate")

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(3, 4, 2, 1, 8, 8, generator=generator)
        batches = [{"anchor": a, "positive": a + 0.1} for a in x]
        return DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # a run after the training has its own
def test_from_config_through_training_and_checkpoint_to_validation(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "MultiExperimentDataModule", InMemory)
    encoder = {
        "class_path": "dynaclr_wds.train.encoder.ProjectedEncoder",
        "init_args": {"backbone": {"class_path": f"{__name__}.Flat"}, "embedding_dim": 6, "projection_dim": 4},
    }
    config = {
        "trainer": {
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "logs"}},
        },
        "model": {"encoder": encoder, "hcl_beta": 1.0},
        "data": {"shards": "none"},
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    assert command.main(["fit", "-c", "fit.yaml", *QUIET]) == 0
    (saved,) = tmp_path.rglob("config.yaml")
    checkpoint = saved.parent / "checkpoints" / "last.ckpt"
    assert yaml.safe_load(saved.read_text())["model"]["hcl_beta"] == 1.0
    capsys.readouterr()
    assert command.main(["validate", "-c", str(saved), "--ckpt_path", str(checkpoint), *QUIET]) == 0
    assert re.search(r"^loss/val \d\.\d{1,4}$", capsys.readouterr().out, re.MULTILINE)
    assert list(tmp_path.rglob("config.yaml")) == [saved], "only a training keeps its config"


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("options", [[], ["--model.schedule=cosine"]], ids=["constant", "cosine"])
def test_a_log_has_the_learning_rate_and_no_metric_that_is_always_minus_one(monkeypatch, tmp_path, options):
    monkeypatch.setattr(cli, "MultiExperimentDataModule", InMemory)
    (tmp_path / "fit.yaml").write_text(FLAT)
    assert command.main(["fit", "-c", "fit.yaml", "--trainer.logger=true", *options, *QUIET]) == 0
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    scalars = events.Tags()["scalars"]
    assert "hp_metric" not in scalars
    rates = [event.value for event in events.Scalars("lr-AdamW")]
    assert len(rates) == len(events.Scalars("loss/train_step")) > 1
    assert rates[0] == pytest.approx(1e-3)
    assert (rates[-1] < 0.9e-3) is bool(options)


def test_the_learning_rate_is_left_to_the_user_and_needs_a_logger():
    (own,) = cli.choose_rate_curve(True, [])
    assert isinstance(own, LearningRateMonitor)
    assert cli.choose_rate_curve(None, [ModelCheckpoint()]) != []
    assert cli.choose_rate_curve(True, [own]) == cli.choose_rate_curve(True, own) == []
    assert cli.choose_rate_curve(False, []) == cli.choose_rate_curve([], []) == []


def test_validation_without_a_checkpoint_is_refused(capsys):
    assert command.main(["validate", "--data.shards=none"]) == 2
    assert re.fullmatch(
        r"error: validate: --ckpt_path is not given, .* Give the checkpoint of a training.*\n", capsys.readouterr().err
    )


class Diverging(InMemory):
    """Batches whose values are not finite from the second on."""

    def train_dataloader(self) -> DataLoader:
        batches = list(super().train_dataloader())
        batches[1]["anchor"][0] = float("inf")
        return DataLoader(batches, batch_size=None)


FLAT = f"""
trainer: {{max_epochs: 1, logger: false, log_every_n_steps: 1}}
model:
  encoder:
    class_path: dynaclr_wds.train.encoder.ProjectedEncoder
    init_args: {{backbone: {{class_path: {__name__}.Flat}}, embedding_dim: 6, projection_dim: 4}}
data: {{shards: none}}
"""


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_training_ends_with_where_its_checkpoints_are_and_how_to_embed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "MultiExperimentDataModule", InMemory)
    (tmp_path / "fit.yaml").write_text(FLAT)
    assert command.main(["fit", "-c", "fit.yaml", *QUIET]) == 0
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["TrainingCheckpoint"]
    assert capsys.readouterr().out.endswith(
        "\nFinished: 1 epoch, 3 steps.\n"
        f"Best checkpoint: checkpoints/epoch=0-step=3.ckpt (loss/val {float(kept['best_model_score']):.4g})\n"
        "Last checkpoint: checkpoints/last.ckpt\n"
        "Embed with:\n"
        "  python -m dynaclr_wds predict --ckpt checkpoints/epoch=0-step=3.ckpt --out embeddings.parquet\n"
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_training_that_fails_says_from_where_it_can_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "MultiExperimentDataModule", Diverging)
    (tmp_path / "fit.yaml").write_text(FLAT)
    given = ["fit", "-c", "fit.yaml", *QUIET, "--checkpoint.every_n_train_steps=1"]
    assert command.main(given) == 2
    again = shlex.join(["python", "-m", "dynaclr_wds", *given, "--ckpt_path", "checkpoints/last.ckpt"])
    *_, what, last, go_on = capsys.readouterr().err.splitlines()
    assert what.startswith("error: The loss is nan in step 2 (epoch 1, batch 2 of the epoch), so training stopped.")
    assert [last, go_on] == ["The last checkpoint is checkpoints/last.ckpt. Go on from it with:", f"  {again}"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_training_without_checkpoints_is_left_without(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "MultiExperimentDataModule", InMemory)
    (tmp_path / "fit.yaml").write_text(FLAT)
    assert command.main(["fit", "-c", "fit.yaml", *QUIET, "--trainer.enable_checkpointing=false"]) == 0
    assert list(tmp_path.rglob("*.ckpt")) == []
    assert capsys.readouterr().out.endswith("Finished: 1 epoch, 3 steps.\nNo checkpoint was saved.\n")


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_finished_training_says_so_and_leaves_no_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "MultiExperimentDataModule", InMemory)
    (tmp_path / "fit.yaml").write_text(FLAT.replace("logger: false", "logger: true"))
    assert command.main(["fit", "-c", "fit.yaml", *QUIET]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(") on CPU, precision 32-true.")
    last, before = "lightning_logs/version_0/checkpoints/last.ckpt", sorted(tmp_path.rglob("*"))
    given = ["fit", "-c", "fit.yaml", *QUIET, f"--ckpt_path={last}"]
    assert command.main(given) == 0
    longer = shlex.join(["python", "-m", "dynaclr_wds", *given, "--trainer.max_epochs", "2"])
    assert capsys.readouterr().out == (
        f"This training is finished: {last} is at epoch 1 of 1, step 3. Nothing was trained.\n"
        f"To train longer, give a larger --trainer.max_epochs:\n  {longer}\n"
    )
    assert sorted(tmp_path.rglob("*")) == before
    assert command.main([*given, "--trainer.max_steps", "3"]) == 0
    assert f"{last} is at step 3 of 3. Nothing was trained." in capsys.readouterr().out
    assert command.main([*given, "--trainer.max_epochs", "2"]) == 0
    first, *_, end = capsys.readouterr().out.split("\nFinished: ")
    assert f"It goes on from {last}, in epoch 2 of 2 after step 3." in first
    assert end.startswith("2 epochs, 6 steps.")


@pytest.mark.parametrize("name", ["fit", "validate"])
def test_nothing_is_said_to_be_done_before_data_and_checkpoint_are_there(monkeypatch, tmp_path, capsys, name):
    (tmp_path / "fit.yaml").write_text(FLAT)
    checkpoint = ["--ckpt_path=lost.ckpt"]
    assert command.main([name, "-c", "fit.yaml", *QUIET, *checkpoint]) == 2
    monkeypatch.setattr(cli, "MultiExperimentDataModule", InMemory)
    assert command.main([name, "-c", "fit.yaml", *QUIET, *checkpoint]) == 2
    assert capsys.readouterr().out == ""


class Refusing(InMemory):
    """Data that can't be had."""

    def setup(self, **_: object) -> None:
        raise ConfigError("window_bytes=1 is too small.")


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_only_a_training_that_made_a_step_leaves_a_log(monkeypatch, tmp_path):
    def fit(data: type, *argv: str) -> int:
        monkeypatch.setattr(cli, "MultiExperimentDataModule", data)
        return command.main(["fit", "-c", "fit.yaml", *QUIET, *argv])

    (tmp_path / "fit.yaml").write_text(FLAT.replace("logger: false", "logger: true"))
    assert fit(Refusing) == 2
    assert fit(InMemory, "--ckpt_path=lost.ckpt") == 2
    assert fit(InMemory, "--model.loss.class_path=torch.nn.TripletMarginLoss") == 2  # in the first batch
    assert [path.name for path in tmp_path.iterdir()] == ["fit.yaml"]
    assert fit(Diverging, "--checkpoint.every_n_train_steps=1") == 2  # in the second batch
    logs = tmp_path / "lightning_logs"
    assert [path.name for path in logs.iterdir()] == ["version_0"]
    before = sorted(logs.rglob("*"))
    assert before[0].name == "version_0"
    assert fit(Refusing) == 2
    assert fit(Refusing, "--trainer.logger.class_path=CSVLogger", "--trainer.logger.init_args.save_dir=csv") == 2
    assert sorted(logs.rglob("*")) == before
    assert not (tmp_path / "csv").exists()


def fail_with(version: str, there: str) -> None:
    """Fail as a training would, after its logger has made its folder and somebody else has written a file there."""
    trainer = Trainer(logger=TensorBoardLogger(".", version=version), accelerator="cpu", enable_checkpointing=False)
    with take_back_unused_logs(trainer):
        assert trainer.logger.experiment is not None
        (Path(trainer.log_dir) / there).touch()
        raise ConfigError("refused")


@pytest.mark.parametrize("there", ["notes.txt", "events.out.tfevents.1.host.1.0"])
def test_a_folder_that_somebody_else_writes_to_is_left(tmp_path, there):
    with pytest.raises(ConfigError, match="refused"):
        fail_with("a", there)
    assert (tmp_path / "lightning_logs/a" / there).exists()


def test_a_folder_that_was_there_is_left(tmp_path):
    before = tmp_path / "lightning_logs/a/hparams.yaml"
    before.parent.mkdir(parents=True)
    before.touch()
    with pytest.raises(ConfigError, match="refused"):
        fail_with("a", "config.yaml")
    assert before.exists()


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_a_device_that_is_not_there_is_answered_with_what_to_do(monkeypatch, tmp_path, capsys, name):
    for kind in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: False))
    (tmp_path / "fit.yaml").write_text(FLAT)
    assert command.main(["fit", "-c", "fit.yaml", "--trainer.accelerator", name]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: --trainer.accelerator {name}: torch finds no such device on this machine. Give --trainer.accelerator "
        "auto, or cpu; where there is a GPU, install its driver and a torch that was built for it."
    )


@pytest.mark.parametrize(
    "given",
    [
        ["fit", "--ckpt_path", "old one.ckpt", "-c", "my config.yaml"],
        ["fit", "--ckpt_path=old.ckpt", "-c", "my config.yaml"],
        ["fit", "-c", "my config.yaml"],
    ],
)
def test_the_command_that_goes_on_is_the_one_given_from_another_checkpoint(given):
    expected = "python -m dynaclr_wds fit -c 'my config.yaml' --ckpt_path 'a b/last.ckpt'"
    assert format_resume(given, "a b/last.ckpt") == expected


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (
            ["/x/dynaclr_wds/__main__.py", "fit"],
            [".venv/bin/python", "-m", "dynaclr_wds", "fit"],
            ".venv/bin/python -m dynaclr_wds",
        ),
        (["/nowhere/dynaclr-wds", "fit"], ["/nowhere/python3", "/nowhere/dynaclr-wds", "fit"], "/nowhere/dynaclr-wds"),
    ],
)
def test_the_program_is_called_as_it_was_started(monkeypatch, argv, orig_argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert shlex.join(find_program()) == expected


def test_weights_that_change_with_the_epoch_are_read_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "--data.group_weights={0: {e0: 1, e1: 0}, 20: {e0: 1, e1: 2}}"
    data = instantiate(monkeypatch, "fit", "--data.shards=none", given, "--data.stratify_by=null").datamodule
    assert data.group_weights == {0: {"e0": 1, "e1": 0}, 20: {"e0": 1, "e1": 2}}
    assert data.sampling.of_epoch(20).weights == {"e0": 1, "e1": 2}
    assert (data.stratify_by, data.sampling.condition_balanced) == ([], False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model.encoder.init_args.in_channels 3", "patches have (channels, planes) = (2, 3), but in_channels"),
        ("--data.channels_per_sample 1", "patches have (channels, planes) = (1, 3), but in_channels"),
        ("--model.loss.class_path torch.nn.TripletMarginLoss", "compares with a negative, but the batch has none"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_said_or_read(
    shards, monkeypatch, capsys, options, said
):
    def read(*_: object) -> None:
        raise AssertionError("a patch was read")

    monkeypatch.setattr("dynaclr_wds.read.dataset.MultiExperimentTripletDataset.__getitems__", read)
    argv = ["fit", "-c", str(FOLDER / "fit_3d.yaml"), "--data.shards", str(shards), "--data.tau_range", "[0.5, 1.5]"]
    argv += ["--model.encoder.init_args.in_stack_depth", "3", "--trainer.accelerator", "cpu", *shlex.split(options)]
    assert command.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: model.")
    assert said in err
