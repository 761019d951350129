"""Imports libraries that only some formats need; where one is missing, the error names the extra that brings it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dynaclr_wds.errors import ConfigError


def import_for(module: str, extra: str, what: str) -> Any:
    """Import a library.

    Parameters
    ----------
    extra
        Of this package, that installs it.
    what
        What is read with it, for the error.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{what}: is read with {module}, which is not installed ({error}). Install it: "
            f"pip install 'dynaclr-wds[{extra}]'."
        ) from error
