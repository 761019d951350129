"""Loads what an installation may lack: libraries of extras, of which it says how to get them, and compiled parts."""

from __future__ import annotations

import ctypes
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dynaclr_wds.errors import ConfigError

_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def import_optional(name: str, needed_by: str, extra: str | None = None) -> Any:
    """Import a library of one of the extras of this package.

    Parameters
    ----------
    name
        Of the module, such as `timm`.
    needed_by
        What needs it, for the error.
    extra
        Of the package; None = as the module.

    Raises
    ------
    ConfigError
        It is not installed, or can't be imported; says what to do.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = "" if error.name == name else f" (it lacks {error.name})"
        raise ConfigError(
            f"{needed_by} needs {name}, which is not installed{missing}. Install it with: "
            f"pip install 'dynaclr-wds[{extra or name}]'"
        ) from error
    except Exception as error:  # torchvision raises RuntimeError beside a torch that it wasn't built for
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{needed_by} needs {name}, which is installed but can't be imported ({first:.200}). "
            f"{_advise(extra or name)}"
        ) from error


def load_library(module: str) -> ctypes.CDLL | None:
    """Load a compiled part of this package, such as `etl.cut._pixels`; None where there was no compiler for it."""
    spec = find_spec(module)
    return None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)


def _advise(extra: str) -> str:
    if extra not in ("timm", "transformers"):
        return f"Install it anew: pip install --upgrade --force-reinstall 'dynaclr-wds[{extra}]'."
    return (
        "Mostly torchvision was built for another torch: install the two together, pip install --upgrade torch "
        f"torchvision, with --index-url {_CPU_INDEX} where there is no GPU."
    )
