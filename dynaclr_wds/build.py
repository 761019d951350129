"""experiments.yaml to shards, from the online side: runs the ETL's own command when training asks for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml


def build_from_yaml(experiments_yaml: str, shards: str, defaults: Mapping[str, Sequence[float] | None]) -> None:
    """Build shards unless those that are there come from the same config.

    Runs `python -m etl.build_shards`, which itself says when there is nothing to do: the ETL is a program
    of its own, so that training needs none of its dependencies in memory.

    Parameters
    ----------
    experiments_yaml
        Experiments and, under `shards:`, build options.
    shards
        Folder to build into.
    defaults
        Build options for what the YAML's `shards:` section leaves open; None = leave it to the ETL.

    Raises
    ------
    FileNotFoundError
        There is no such YAML.
    RuntimeError
        The build failed; its own message stands above.
    """
    path = Path(experiments_yaml)
    if not path.is_file():
        raise FileNotFoundError(f"experiments_yaml={experiments_yaml!r}: there is no such file.")
    parsed = yaml.safe_load(path.read_text())
    given = (parsed.get("shards") or {}) if isinstance(parsed, dict) else {}
    command = [sys.executable, "-m", "etl.build_shards", str(path), "--out", shards]
    for option, values in defaults.items():
        if values is not None and option not in given:
            command += [f"--{option}", *(str(v) for v in values)]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"`{' '.join(command)}` ended with status {done.returncode}; what it printed says why. "
            "If the shards there were built from another config, build again with --overwrite, or name another folder."
        )
