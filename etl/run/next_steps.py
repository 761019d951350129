"""Set to commands: what to run next with it, with the user's own paths, so that a line can be copied as it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dynaclr_wds.contract import Manifest
from dynaclr_wds.errors import DynaCLRError
from dynaclr_wds.program import called_as
from dynaclr_wds.storage.location import Place
from etl.source.config import CHANGES_NO_BYTE
from etl.source.experiments import BuildConfig, parse_build_config

_YAML = "experiments.yaml"
_CONFIG = Path("configs/fit.yaml")


def list_next(yaml_path: Place, out: Place) -> list[str]:
    """Return the commands for a set that was just built: to train with it, and to read it back.

    Parameters
    ----------
    yaml_path
        What it was built from.
    out
        Where it is.
    """
    shards = shlex.quote(str(out))
    verify = f"{called_as('verify')} {shards}"
    if not _CONFIG.is_file():
        wanted = "" if str(out) == "shards" else f" --shards {shards}"
        return [f"{called_as('init')} {shlex.quote(str(yaml_path))}{wanted}", verify]
    wanted = "" if _read_shards(_CONFIG) == str(out) else f" --data.shards {shards}"
    return [f"{called_as('fit')} -c {_CONFIG}{wanted}", verify]


def describe_options(overrides: Mapping[str, Any]) -> str:
    """Say how to keep options of a command line that later commands need as well; empty without any."""
    kept = {name: value for name, value in overrides.items() if name not in CHANGES_NO_BYTE}
    if not kept:
        return ""
    lines = yaml.safe_dump(kept, default_flow_style=None, sort_keys=False, allow_unicode=True).strip().splitlines()
    written = ", ".join(f"`{line}`" for line in lines)
    return f"Other commands don't know the options given here. Write them below `shards:` in the YAML: {written}."


def _read_shards(config: Path) -> str | None:
    """Return what a config of a training says of its shards; None where it can't be read."""
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["shards"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None
    return str(found)


def describe_repair(root: Place, manifest: Manifest | None) -> str:
    """Return the command that mends a set, in backquotes; and what else it needs, where that can't be found.

    The YAML that a set was built from stands nowhere in it. It is looked for in this folder, those in it, and above the
    set; it is known by its config, or at least by the names of its experiments.

    Parameters
    ----------
    manifest
        None where it is damaged.
    """
    configs = {path: _read_config(path) for path in _list_yamls(root)}
    same, found = [], list(configs)
    if manifest is not None:
        names = [record.name for record in manifest.experiments]
        same = [path for path, config in configs.items() if config and config.token == manifest.config_hash]
        found = [path for path, config in configs.items() if config and [e.name for e in config.experiments] == names]
    path = shlex.quote(str((same or found or [Path("EXPERIMENTS.yaml")])[0]))
    command = f"`{called_as('build')} {path} --out {shlex.quote(str(root))} --repair`"
    if same:
        return command
    what = "the options" if found else "the YAML and the options"
    return f"{command}, with {what} that it was built with"


def _list_yamls(root: Place) -> list[Path]:
    above = list(root.parents)[:3] if isinstance(root, Path) else []
    near = [Path(_YAML), *sorted(Path().glob(f"*/{_YAML}")), *(folder / _YAML for folder in above)]
    return [path for path in dict.fromkeys(near) if path.is_file()]


def _read_config(path: Path) -> BuildConfig | None:
    """Return what a YAML asks for without options; None where it can't be read."""
    try:
        return parse_build_config(path)
    except (DynaCLRError, OSError, ValueError):
        return None
