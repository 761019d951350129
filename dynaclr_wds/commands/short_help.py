"""The options of `fit` and `validate` that people change, as a page of text. Light: nothing of Lightning is imported.

The parser has some hundreds more; `--help_all` lists them. A test compares names and defaults with the parser's.
"""

from __future__ import annotations

from typing import NamedTuple

from dynaclr_wds.program import called_as


class Option(NamedTuple):
    """One line of the page."""

    name: str
    """Key of the config; with `--` before it, the option."""
    default: str
    """As YAML; empty where there is none to show."""
    text: str
    """What it does, in one line."""
    fit_only: bool = False


GROUPS: dict[str, tuple[Option, ...]] = {
    "run": (
        Option("config", "", "config file (-c); options win over it, and a later file over an earlier one"),
        Option("ckpt_path", "null", "checkpoint to go on from (fit), or to look at (validate)"),
        Option("seed_everything", "0", "seed of the network's weights and of augmentations"),
        Option("trainer.max_epochs", "null", "epochs to train", fit_only=True),
        Option("trainer.accelerator", "auto", "cpu, gpu, mps or auto"),
        Option("trainer.devices", "auto", "how many, or which: 2, or [0, 3]"),
        Option("trainer.precision", "null", "bf16-mixed is faster on recent GPUs"),
    ),
    "data": (
        Option("data.shards", "", "folder that `build` wrote"),
        Option("data.val_experiments", "null", "experiments to hold out, by name"),
        Option(
            "data.split", "experiments", "what is held out: experiments; or fovs, or a label, with data.split_ratio"
        ),
        Option("data.batch_size", "128", "samples per step and per GPU"),
        Option("data.num_workers", "2", "threads that read"),
        Option("data.window_bytes", "null", "stream through so much memory; null = shards fit the page cache"),
        Option("data.tau_range", "[0.5, 2.0]", "hours from anchor to positive, shortest and longest"),
        Option("data.final_yx_patch_size", "null", "pixels (Y, X) that the network sees, cropped after augmentation"),
        Option("data.batch_group_by", "[experiment]", "labels: each batch is drawn from one value of these", True),
        Option("data.stratify_by", "[condition]", "labels: their values are balanced in a batch", fit_only=True),
        Option("data.temporal_enrichment", "false", "most of a batch near one time after infection", fit_only=True),
    ),
    "model": (
        Option(
            "model.encoder", "null", "the network; of it --model.encoder.init_args.backbone=resnet50, in_channels, …"
        ),
        Option("model.lr", "0.001", "peak learning rate", fit_only=True),
        Option("model.temperature", "0.07", "temperature of the loss", fit_only=True),
    ),
}

_ABOUT = {
    "fit": "Train, validate after every epoch, keep checkpoints. Every option is also a key of the config.",
    "validate": "Run the held-out experiments through a trained network and print the metrics.",
}
_EXAMPLES = {
    "fit": (
        ("-c configs/fit.yaml", ""),
        ("-c configs/fit.yaml --data.batch_size 256 --trainer.max_epochs 50", ""),
        ("-c configs/fit.yaml --print_config", "what would run, defaults included"),
        ("-c configs/fit.yaml --ckpt_path last.ckpt", "go on, in the middle of an epoch too"),
    ),
    "validate": (("-c configs/fit.yaml --ckpt_path last.ckpt", ""),),
}


def has_short_help(command: str) -> bool:
    """Whether there is a page for a command."""
    return command in _ABOUT


def describe_options(command: str) -> str:
    """Return the page for `fit` or `validate`."""
    name = called_as(command)
    examples = [f"  {name} {line}" + (f"   # {why}" if why else "") for line, why in _EXAMPLES[command]]
    lines = [f"usage: {name} -c CONFIG [--KEY VALUE ...]", "", _ABOUT[command], "", *examples]
    for group, options in GROUPS.items():
        shown = [option for option in options if command == "fit" or not option.fit_only]
        lines += ["", f"{group}:", *(_format_option(option) for option in shown)]
    lines += [
        "",
        "These are the options that people change. See all of them, with every parameter of the trainer:",
        f"  {name} --help_all",
        "of one class, such as a callback, a logger or an augmentation:",
        f"  {name} --trainer.logger.help lightning.pytorch.loggers.CSVLogger",
    ]
    return "\n".join(lines)


def _format_option(option: Option) -> str:
    default = f" (default: {option.default})" if option.default else ""
    return f"  --{option.name:<28} {option.text}{default}"
