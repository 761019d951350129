"""experiments.yaml to shards, from the online side: runs the ETL's own command when training asks for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.file_checks import read_manifest_file
from dynaclr_wds.local_paths import refuse_url
from dynaclr_wds.yaml_limits import check_yaml

BuildOptions = Mapping[str, Sequence[int | float] | None]


def build_from_yaml(experiments_yaml: str, shards: str, wanted: BuildOptions) -> None:
    """Build shards unless those that are there come from the same config.

    Runs `python -m etl.build_shards`, which brings a set up to date or says that there is nothing to do. The ETL is a
    program of its own, so that training needs none of its dependencies in memory.

    What the YAML's `shards:` section leaves open is as `wanted`; or as in the set that is there, where that holds
    what is wanted: asking for narrower patches is no reason to build again. A set of another config is replaced, with
    a warning, unless it shares no experiment with the YAML: then `shards` is more likely to be the wrong folder.

    Parameters
    ----------
    experiments_yaml
        Experiments and, under `shards:`, build options.
    shards
        Folder to build into.
    wanted
        `z_range`, `yx_patch_size` and `tau_range_hours` of the training; None = leave it to the ETL.

    Raises
    ------
    FileNotFoundError
        There is no such YAML.
    ValueError
        `shards` holds other experiments, or something that is not a shard set.
    RuntimeError
        The build failed; its own message stands above.
    """
    refuse_url(experiments_yaml, "experiments_yaml")
    refuse_url(shards, "shards")
    path = Path(experiments_yaml)
    if not path.is_file():
        raise FileNotFoundError(f"experiments_yaml={experiments_yaml!r}: there is no such file.")
    text = path.read_text(encoding="utf-8")
    check_yaml(text, str(path))
    parsed = yaml.safe_load(text)
    document: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    found = _read_found(Path(shards))
    if found is not None:
        _check_same_experiments(found, document, experiments_yaml, shards)
    command = [sys.executable, "-m", "etl.build_shards", str(path), "--out", shards, "--replace"]
    for option, values in _plan_options(wanted, document.get("shards") or {}, found).items():
        command += [f"--{option}", *(str(v) for v in values)]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` ended with status {done.returncode}; what it printed says why.")
    built = _read_found(Path(shards))
    if found is not None and built is not None and built.config_hash != found.config_hash:
        rank_zero_warn(f"shards={shards!r} held another config than {experiments_yaml}, and were built again.")


def _read_found(root: Path) -> Manifest | None:
    path = root / MANIFEST
    return read_manifest_file(path) if path.is_file() else None


def _plan_options(
    wanted: BuildOptions, given: Mapping[str, Any], found: Manifest | None
) -> dict[str, Sequence[int | float]]:
    """Say which options to pass for what the YAML leaves open."""
    options = {}
    for name, want in wanted.items():
        stored = None if found is None else found.config[name]
        if found is not None and (want is None or stored is None or _holds(name, stored, want)):
            want = stored
        if want is not None and name not in given:
            options[name] = want
    return options


def _holds(name: str, stored: Sequence[int | float], want: Sequence[int | float]) -> bool:
    """Whether a set stored with one value of an option serves another."""
    if name == "yx_patch_size":
        return all(s >= w for s, w in zip(stored, want, strict=True))
    return stored[0] <= want[0] and want[1] <= stored[1]


def _check_same_experiments(found: Manifest, document: Mapping[str, Any], experiments_yaml: str, shards: str) -> None:
    entries = document.get("experiments")
    asked = [e.get("name") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    stored = [e.name for e in found.experiments]
    if asked and not set(asked) & set(stored):
        raise ValueError(
            f"shards={shards!r} hold the experiments {stored}, {experiments_yaml} lists {asked}: none in common, so "
            "they are not replaced. Name another folder, or remove this one."
        )
