"""Config to a run: LightningCLI with our model, our data and the defaults that they need."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from dynaclr_wds.commands.quiet import quiet_libraries
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.train.engine import ContrastiveModule
from dynaclr_wds.train.epoch_ledger import EpochLedger
from dynaclr_wds.train.plan_verdict import PlanVerdict
from dynaclr_wds.train.progress import choose_progress

TRAINER_DEFAULTS: dict[str, Any] = {"use_distributed_sampler": False}
"""The sampler deals batches to ranks itself; Lightning must not deal them out again."""

DESCRIPTIONS = {
    "fit": "Train, validate after every epoch, keep checkpoints. --ckpt_path resumes, in the middle of an epoch too.",
    "validate": "Run the validation experiments through a trained network (--ckpt_path) and print the metrics.",
    "predict": "Embed every observation with a trained network (--ckpt_path); trainer.callbacks says where to write.",
}


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description as they are written."""


class SaveFitConfig(SaveConfigCallback):
    """Keep the config beside the checkpoints of a training; other commands leave nothing behind."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `config.yaml` in the folder of the log."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class DynaCLRCommand(LightningCLI):
    """LightningCLI for contrastive training.

    - `model.hcl_beta` is set once; the data are given the same value.
    - `predict` keeps no predictions in memory: `EmbeddingWriter` has written them.
    - `model.lr`, `weight_decay` and `schedule` make the optimizer, so there are no `optimizer` keys.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what must be the same on both sides; judge the plan, and account for every epoch."""
        parser.link_arguments("model.hcl_beta", "data.hcl_beta")
        parser.add_lightning_class_args(EpochLedger, "ledger")
        parser.add_lightning_class_args(PlanVerdict, "verdict")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        progress = choose_progress(config.get("enable_progress_bar") is not False, config.get("callbacks") or [])
        return super()._instantiate_trainer(config, [*callbacks, *progress])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say so where a config sets what the link overrules."""
        super().parse_arguments(parser, args)
        chosen = self.config[self.config.subcommand]
        for path in chosen.get("config") or []:
            given = (yaml.safe_load(Path(path).read_text()).get("data") or {}).get("hcl_beta", chosen.model.hcl_beta)
            if given != chosen.model.hcl_beta:
                rank_zero_warn(
                    f"{path}: data.hcl_beta={given} is not used, model.hcl_beta={chosen.model.hcl_beta} is. "
                    "The loss owns it: set model.hcl_beta."
                )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's commands but `test`, for which there is no data."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in DESCRIPTIONS}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})
        return parser


def run_lightning(argv: Sequence[str] | None, *, description: str = "") -> DynaCLRCommand:
    """Parse the arguments, make model, data and trainer, and run the command.

    Parameters
    ----------
    argv
        `fit`, `validate` or `predict` and its options; None = those of the process.
    description
        Shown by `--help`.
    """
    quiet_libraries()
    return DynaCLRCommand(
        ContrastiveModule,
        MultiExperimentDataModule,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=0,
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "prog": "python -m dynaclr_wds",
            "description": description,
            "formatter_class": _HelpFormatter,
            **{name: {"description": text} for name, text in DESCRIPTIONS.items()},
        },
        auto_configure_optimizers=False,
        args=None if argv is None else list(argv),
    )


def leave_processes() -> None:
    """Leave the process group of a distributed run; exiting without it may abort (pytorch/pytorch#190489)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
