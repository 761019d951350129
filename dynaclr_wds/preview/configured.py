"""The `data:` section of a training's config to the DataModule that the training would make, without its network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader
from lightning.pytorch.cli import LightningArgumentParser

from dynaclr_wds.config_errors import Asked, explain_mistake
from dynaclr_wds.datamodule import MultiExperimentDataModule
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.program import called_as, explain_error
from dynaclr_wds.yaml_limits import check_yaml


def make_data(config: Path | None, shards: str | None = None, options: Sequence[str] = ()) -> MultiExperimentDataModule:
    """Make the DataModule of a training.

    Parameters
    ----------
    config
        Config of a training; None = the defaults of the DataModule.
    shards
        In place of the config's; needed without one.
    options
        As `fit` takes them: `--data.batch_size`, `64`, ….

    Raises
    ------
    ConfigError
        There are no shards, or the config or an option is wrong, with the nearest that is right.
    """
    given = {} if config is None else read_data_section(config)
    given |= {} if shards is None else {"shards": shards}
    if given.get("shards") is None:
        where = "no config" if config is None else f"{config}: data.shards is missing"
        raise ConfigError(f"{where}, and no shards. Name the folder that `dynaclr-wds build` wrote: preview SHARDS.")
    parser = LightningArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_lightning_class_args(MultiExperimentDataModule, "data")
    words = [] if config is None else ["-c", str(config)]
    asked = Asked("fit", [*words, *options], [action.dest for action in parser._actions])
    for key in given:
        if f"data.{key}" not in asked.keys:
            raise ConfigError(explain_mistake(f"Group 'data' does not accept option '{key}'", asked))
    try:
        parsed = parser.parse_args([*(_as_option(*one) for one in given.items()), *options])
    except Exception as error:  # jsonargparse raises errors of its own, and argparse's
        raise ConfigError(explain_mistake(str(error), asked)) from error
    try:
        made: MultiExperimentDataModule = parser.instantiate_classes(parsed).data
    except (ValueError, TypeError, ImportError) as error:
        if explain_error(error) is not None:
            raise
        raise ConfigError(f"the DataModule can't be made as the config says: {error}. Correct its `data:`.") from error
    return made


def _as_option(key: str, value: object) -> str:
    """Write a key of the config as it would be typed, so that errors name it."""
    return f"--data.{key}={value if isinstance(value, str) else json.dumps(value)}"


def read_data_section(config: Path) -> dict[str, Any]:
    """Read the `data:` section of a config, as `fit` would.

    Raises
    ------
    ConfigError
        The file can't be read, is no YAML, or has no such section.
    """
    if not config.is_file():
        raise ConfigError(
            f"there is no config {config}. `{called_as('init')} experiments.yaml` writes configs/ for your experiments."
        )
    try:
        text = config.read_text(encoding="utf-8")
        check_yaml(text, str(config))
        document = get_loader("yaml")(text)
    except ConfigError:
        raise
    except (OSError, yaml.YAMLError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{config}: can't be read as YAML ({why}). Give the config of a training.") from error
    data = document.get("data") if isinstance(document, Mapping) else None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{config}: has no `data:` section. Give the config of a training.")
    return dict(data)
