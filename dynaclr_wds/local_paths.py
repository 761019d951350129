"""Reads options that are places; refuses URLs where a local path is needed, before a `Path` makes a folder of them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Place, parse_place

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")


def refuse_url(path: str | Path, where: str) -> None:
    """Refuse a URL; `where` names the option or key.

    Raises
    ------
    ConfigError
        `path` begins with a scheme, such as `s3://`, `gs://`, `az://` or `https://`.
    """
    if _URL.match(str(path)):
        raise ConfigError(
            f"{where}={str(path)!r} is a URL, and URLs are not supported here yet: it must be a path on a local or "
            "mounted disk. Copy the files to a disk, or mount the bucket."
        )


def parse_local_path(text: str) -> Path:
    """Read an option that is a path (a `type=` of argparse); refuses URLs."""
    try:
        refuse_url(text, "path")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
    return Path(text)


def parse_yaml_place(text: str) -> Place:
    """Read an option that names a YAML, on a disk or in object storage (a `type=` of argparse)."""
    try:
        return parse_place(text, "path")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
