"""Leaves out messages of libraries that say nothing about a run: advertisements, absent devices, deprecations.

Each is named by its module and its beginning, so that whatever else these libraries say is still heard.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path

_INFO = (
    "💡 Tip: For seamless cloud",
    "TPU available: False",
    "GPU available: ",  # `describe_run` and `describe_job` say what is used
    "`Trainer.fit` stopped: `max_epochs=",  # the last lines say how far it came
    "`Trainer.fit` stopped: `max_steps=",
    "Seed set to ",
    "Restoring states from the checkpoint path at ",  # `describe_run` says from which checkpoint
    "Restored all states from the checkpoint at ",
    "Loaded model weights from the checkpoint at ",
    "LOCAL_RANK: ",
    "Received SIGTERM: ",  # `StopSignals` says what is done about it
    "Bypassing SIGTERM: ",
    "Loading `train_dataloader` to estimate number of stepping batches.",
)
"""Beginnings of what Lightning logs."""

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.signal_connector",
)

_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # Lightning 2.6 uses a check that torch 2.13 deprecates
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning, r"lightning\.pytorch\.utilities\._pytree"),
    # nothing is held out, which the DataModule has said
    (r"Total length of `list` across ranks is zero", UserWarning, r"lightning\.pytorch\.utilities\.data"),
    # losses of epochs are logged all the same, and progress is printed
    (r"The number of training batches \(\d+\) is smaller than the logging", UserWarning, r"lightning\.pytorch\.loops"),
    # parts that are frozen, which model.freeze asks for
    (r"Found \d+ module\(s\) in eval mode at the start of training", UserWarning, r"lightning\.pytorch\.loops"),
)
"""Beginning (a regular expression), category and module of what is left out."""


_OURS = str(Path(__file__).parents[1]) + os.sep
_formatted = warnings.formatwarning


def quiet_libraries() -> None:
    """Leave these messages out from now on, in this process, and write our own warnings as sentences."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_says_something)
    for message, category, module in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Write our own warnings without the place in our code that gives them."""
    if filename.startswith(_OURS) and category is UserWarning:
        return f"warning: {message}\n"
    return _formatted(message, category, filename, lineno, line)


def _says_something(record: logging.LogRecord) -> bool:
    return not re.sub(r"^\[rank: \d+\] ", "", str(record.msg)).startswith(_INFO)
