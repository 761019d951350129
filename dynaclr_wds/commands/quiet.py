"""Leaves out messages of libraries that say nothing about a run: advertisements, absent devices, deprecations.

Each is named by its module and its beginning, so that whatever else these libraries say is still heard.
"""

from __future__ import annotations

import logging
import warnings

_INFO = (
    "💡 Tip: For seamless cloud",
    "TPU available: False",
    "Loading `train_dataloader` to estimate number of stepping batches.",
)
"""Beginnings of what Lightning logs through `rank_zero_info`."""

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


def quiet_libraries() -> None:
    """Leave these messages out from now on, in this process."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_says_something)
    for message, category, module in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)


def _says_something(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_INFO)
