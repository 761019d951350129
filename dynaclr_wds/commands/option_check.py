"""Options of `fit` and `validate` to a refusal of those that can't be, before torch and Lightning are imported.

Names of options are names of parameters, so they are read from the source of the classes, without importing it. What
passes here may still be refused by the parser, which knows types and classes too; what is refused here would be there.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dynaclr_wds.config_errors import Asked, explain_mistake
from dynaclr_wds.errors import ConfigError

_OURS = Path(__file__).parents[1]
GROUPS: dict[str, tuple[str, str]] = {
    "model": ("train/engine.py", "ContrastiveModule"),
    "data": ("datamodule.py", "MultiExperimentDataModule"),
    "ledger": ("train/epoch_ledger.py", "EpochLedger"),
    "verdict": ("train/plan_verdict.py", "PlanVerdict"),
    "finite_loss": ("train/finite_loss.py", "FiniteLoss"),
    "checkpoint": ("train/checkpoints.py", "TrainingCheckpoint"),
}
"""Group of options → module and class whose parameters they are; the trainer's are Lightning's."""

_ALWAYS = ("config", "help", "help_all", "print_config", "seed_everything", "trainer", *GROUPS)
_NO_OPTIONS = ("self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders")
_OWN = {"validate": ("override",)}
"""Command → options that `commands/lightning.py` adds to it."""


def refuse_unknown_options(argv: Sequence[str]) -> None:
    """Refuse an option that does not exist, and a config file that is not there.

    Parameters
    ----------
    argv
        `fit` or `validate` and its options.

    Raises
    ------
    ConfigError
        Says it as the parser would.
    """
    command, words = argv[0], argv[1:]
    try:
        keys = list_options(command)
    except (OSError, SyntaxError, KeyError):  # Lightning is elsewhere, or built otherwise: its parser will tell
        return
    asked = Asked(command, words, keys)
    for word in words:
        name = word.removeprefix("--").partition("=")[0].removesuffix("+")
        if word.startswith("--") and len(word) > 2 and not is_option(name, keys):
            raise ConfigError(explain_mistake(f"unrecognized arguments: {word}", asked))
    for config in asked.configs:
        if config.endswith((".yaml", ".yml")) and "://" not in config and not Path(config).is_file():
            raise ConfigError(explain_mistake(f"Parser key \"config\":\n  File does not exist: '{config}'", asked))


def is_option(name: str, keys: Sequence[str]) -> bool:
    """Whether a name is an option, or may be one of a class that an option takes."""
    return name in (*_ALWAYS, *keys) or any(name.startswith(f"{key}.") for key in keys)


def list_options(command: str) -> list[str]:
    """List the options of a command, those of classes that options take left out."""
    trainer = _find_lightning() / "pytorch" / "trainer" / "trainer.py"
    keys = [name for name in _read_parameters(trainer, "Trainer", command) if name not in _NO_OPTIONS]
    keys += _OWN.get(command, ())
    keys += [f"trainer.{name}" for name in _read_parameters(trainer, "Trainer")]
    for group, (module, kind) in GROUPS.items():
        keys += [f"{group}.{name}" for name in _read_parameters(_OURS / module, kind)]
    return keys


def _find_lightning() -> Path:
    spec = find_spec("lightning")  # of a top-level package: nothing is imported
    if spec is None or not spec.submodule_search_locations:
        raise OSError("lightning is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _read_parameters(path: Path, kind: str, method: str = "__init__") -> list[str]:
    """Read the names of a method's parameters from the source."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    methods = {node.name: node for node in classes[kind].body if isinstance(node, ast.FunctionDef)}
    given = methods[method].args
    return [argument.arg for argument in (*given.args, *given.kwonlyargs) if argument.arg != "self"]
