"""Tells label-free channels from fluorescence by their names. Imports nothing heavy: both halves ask here.

The words are about those that the reference implementation looks for (`viscy_data.channel_utils.parse_channel_name`).
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["fluorescence", "labelfree"]

KINDS: tuple[Kind, ...] = ("fluorescence", "labelfree")

_LABELFREE = re.compile(r"phase|bright.?field|retardance|birefringence|(?<![a-z0-9])(bf|dic|pol|phc)(?![a-z0-9])", re.I)
_STAINED = re.compile(r"prediction|virtual|vs_", re.I)


def find_kind(channel: str) -> Kind:
    """Tell from a channel's name, or its marker's, whether it is label-free; every other one counts as fluorescence.

    Label-free is what holds phase, bright field, retardance or birefringence, or the word BF, DIC, Pol or PhC. Virtual
    stains that are predicted from such a channel count as fluorescence.
    """
    return "labelfree" if _LABELFREE.search(channel) and not _STAINED.search(channel) else "fluorescence"
