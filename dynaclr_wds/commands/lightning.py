"""Config to a run: LightningCLI with our model, our data and the defaults that they need."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import DefaultHelpFormatter, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from dynaclr_wds.commands.going_on import (
    FirstLine,
    describe_end,
    describe_failure,
    describe_finished,
    describe_stop,
)
from dynaclr_wds.commands.quiet import quiet_libraries
from dynaclr_wds.commands.unused_logs import take_back_unused_logs
from dynaclr_wds.config_errors import Asked, explain_absent_device, explain_mistake
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ConfigError, WindowError
from dynaclr_wds.program import called_as, explain_error
from dynaclr_wds.storage.options import kept_options
from dynaclr_wds.train.checkpoints import TrainingCheckpoint
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.train.epoch_ledger import EpochLedger
from dynaclr_wds.train.finite_loss import FiniteLoss
from dynaclr_wds.train.plan_verdict import PlanVerdict
from dynaclr_wds.train.progress import choose_progress
from dynaclr_wds.train.slow_hint import SlowHint
from dynaclr_wds.train.stop_signals import Stopped
from dynaclr_wds.world import is_lost_rank
from dynaclr_wds.yaml_limits import limit_loader

TRAINER_DEFAULTS: dict[str, Any] = {"use_distributed_sampler": False, "enable_model_summary": False}
"""The sampler deals batches to ranks itself; Lightning must not deal them out again. Our line replaces its summary."""

DESCRIPTIONS = {
    "fit": "Train, validate after every epoch, keep checkpoints. --ckpt_path resumes, in the middle of an epoch too.",
    "validate": "Run the validation experiments through a trained network (--ckpt_path) and print the metrics.",
}


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description as they are written."""


class _Mistake(Exception):
    """What jsonargparse has to say, on its way to `DynaCLRCommand`."""


class _Parser(LightningArgumentParser):
    """Raises where jsonargparse would print its usage of 88 lines and exit. Options must be written out."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser: its error is part of another's
            super().error(message, ex)
        raise _Mistake(message) from ex


class SaveFitConfig(SaveConfigCallback):
    """Keep the config beside the checkpoints of a training; other commands leave nothing behind."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `config.yaml` in the folder of the log, without keys of object storage."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config["data.storage_options"] = kept_options(self.config.get("data.storage_options"))
            super().setup(trainer, pl_module, stage)


class DynaCLRCommand(LightningCLI):
    """LightningCLI for contrastive training.

    - `model.hcl_beta` is set once; the data are given the same value.
    - `fit` saves checkpoints, stops at a loss that is not finite, and says at its end how to go on.
    - `validate` needs a checkpoint: a network that was never trained has nothing to validate.
    - `model.lr`, `weight_decay` and `schedule` make the optimizer, so there are no `optimizer` keys.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Lightning's runs the command
        self.given: list[str] = sys.argv[1:] if kwargs.get("args") is None else kwargs["args"]
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what must be the same on both sides; add what every training has."""
        parser.link_arguments("model.hcl_beta", "data.hcl_beta")
        parser.add_lightning_class_args(EpochLedger, "ledger")
        parser.add_lightning_class_args(PlanVerdict, "verdict")
        parser.add_lightning_class_args(FiniteLoss, "finite_loss")
        parser.add_lightning_class_args(TrainingCheckpoint, "checkpoint")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "validate":
            text = "Validate on cells that the checkpoint was trained on, too."
            parser.add_argument("--override", action="store_true", help=text)
        return parser

    def before_validate(self) -> None:
        """Tell the module whether it may validate on cells that it was trained on."""
        self.model.validates_trained_cells = bool(self.config[self.config.subcommand].override)

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train, and say last how to go on."""
        try:
            with take_back_unused_logs(self.trainer) as steps:
                self.trainer.fit(model, **kwargs)
        except Stopped as stopped:
            stopped.said = True
            self._say("\n" + describe_stop(stopped, self.trainer, self.given))
            raise
        except Exception as error:
            if hint := describe_failure(self.trainer, self.given):
                error.add_note(hint)
            raise
        if self.trainer.ckpt_path and not steps.began:
            self._say(describe_finished(self.trainer, self.given))
        else:
            self._say("\n" + describe_end(self.trainer))

    def validate(self, model: LightningModule, *, verbose: bool = True, **kwargs: Any) -> None:
        """Validate, and print the metrics with four digits, as a training does."""
        for metrics in self.trainer.validate(model, verbose=False, **kwargs):
            for name, value in sorted(metrics.items()) if verbose else ():
                self._say(f"{name} {value:.4g}")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, TrainingCheckpoint)]
        if self.config.subcommand == "validate":
            config["logger"] = False  # its numbers are printed; a log of its own would stand among the trainings'
        own, fits = config.get("callbacks") or [], self.config.subcommand == "fit"
        more: list[Callback] = [*choose_progress(config.get("enable_progress_bar") is not False, own)]
        if fits:
            more += [*choose_rate_curve(config.get("logger"), own), SlowHint()]
        try:
            first_line = FirstLine("Training" if fits else "Validating")
            trainer = super()._instantiate_trainer(config, [first_line, *callbacks, *more])
        except MisconfigurationException as error:
            absent = explain_absent_device("--trainer.accelerator", config.get("accelerator"), str(error))
            raise ConfigError(absent or str(error)) from error
        for logger in trainer.loggers if config.get("logger") in (None, True) else ():
            if isinstance(logger, TensorBoardLogger):  # Lightning's choice: without a curve that is always -1
                logger._default_hp_metric = False
        return trainer

    def _say(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(text, flush=True)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; explain mistakes in a few lines, and say so where a config sets what the link overrules."""
        try:
            self.config = parser.parse_args(args)
        except _Mistake as mistake:
            command = str(args[0])
            keys = [action.dest for action in self._parser(command)._actions]
            raise ConfigError(explain_mistake(str(mistake), Asked(command, args[1:], keys))) from mistake
        chosen = self.config[self.config.subcommand]
        self._given_model: dict[str, Any] = chosen.model.as_dict()
        if self.config.subcommand == "validate" and not chosen.ckpt_path:
            raise ConfigError(
                "validate: --ckpt_path is not given, and a network that was never trained has nothing to validate. "
                "Give the checkpoint of a training, such as --ckpt_path logs/fit/version_0/checkpoints/last.ckpt."
            )
        for path in chosen.get("config") or []:
            given = (yaml.safe_load(Path(path).read_text()).get("data") or {}).get("hcl_beta", chosen.model.hcl_beta)
            if given != chosen.model.hcl_beta:
                rank_zero_warn(
                    f"{path}: data.hcl_beta={given} is not used, model.hcl_beta={chosen.model.hcl_beta} is. "
                    "The loss owns it: set model.hcl_beta."
                )

    def before_instantiate_classes(self) -> None:
        """Say where the checkpoint, which Lightning merges into the config, overrules what was given for the model."""
        used = self.config[self.config.subcommand].model.as_dict()
        default = self._subcommand_parsers[self.config.subcommand].get_defaults().model.as_dict()
        given = {
            name: value
            for name, value in self._given_model.items()
            if name != "init_from" and value != default[name]  # only a training that begins uses it
        }
        if overruled := describe_overruled(given, used, "model."):
            rank_zero_warn(f"The checkpoint decides, not config and options: {'; '.join(overruled)}.")

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; what their classes refuse is a mistake in the config."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError) as error:
            if explain_error(error) is not None:
                raise
            raise ConfigError(f"model, data or trainer can't be made as the config says: {error}") from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's commands but `test`, for which there is no data, and `predict`, which needs no config."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in DESCRIPTIONS}


def choose_rate_curve(logger: object, callbacks: Callback | Sequence[Callback]) -> list[Callback]:
    """Log the learning rate, unless there is no logger or the user's callbacks do so."""
    own = [callbacks] if isinstance(callbacks, Callback) else callbacks
    if logger is False or logger == [] or any(isinstance(one, LearningRateMonitor) for one in own):
        return []
    return [LearningRateMonitor(logging_interval="step")]


def describe_overruled(given: Mapping[str, Any], used: Mapping[str, Any], prefix: str) -> list[str]:
    """List the options whose value is not the one that was given, each with both values.

    Where another class is used, its arguments are not compared; nor is what was left to the training to find out.
    """
    both = [name for name in given if name in used and given[name] is not None and given[name] != used[name]]
    lines = []
    for name in ["class_path"] if "class_path" in both else both:
        mine, own = given[name], used[name]
        if isinstance(mine, Mapping) and isinstance(own, Mapping):
            lines += describe_overruled(mine, own, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name} is {own} as in training, not {mine} as asked")
    return lines


def run_lightning(argv: Sequence[str]) -> DynaCLRCommand:
    """Parse the arguments, make model, data and trainer, and run the command.

    Parameters
    ----------
    argv
        `fit` or `validate` and its options.

    Raises
    ------
    ConfigError
        A mistake in the config or the options.
    """
    quiet_libraries()
    _limit_configs()
    try:
        return _make_command(argv)
    except WindowError as error:
        raise ConfigError(error.spell("--data.")) from error
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise RuntimeError(
            f"Rank {torch.distributed.get_rank()} of {torch.distributed.get_world_size()} can't go on alone: another "
            "rank has ended. What that one said is the reason."
        ) from error


@functools.cache
def _limit_configs() -> None:
    """Have jsonargparse refuse YAML that fills the memory, whatever file or option it stands in."""
    set_loader("yaml", limit_loader(get_loader("yaml")), (yaml.YAMLError,))


def _make_command(argv: Sequence[str]) -> DynaCLRCommand:
    return DynaCLRCommand(
        ContrastiveModule,
        MultiExperimentDataModule,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=0,
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=_Parser,
        parser_kwargs={
            "prog": called_as(""),
            "allow_abbrev": False,
            "formatter_class": _HelpFormatter,
            **{name: {"description": text} for name, text in DESCRIPTIONS.items()},
        },
        auto_configure_optimizers=False,
        args=list(argv),
    )


def leave_processes() -> None:
    """Leave the process group of a distributed run; exiting without it may abort (pytorch/pytorch#190489)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
