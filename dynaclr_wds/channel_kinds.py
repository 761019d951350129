"""Tells label-free channels from fluorescence by their names. Imports nothing heavy: both halves ask here.

Rule and words stand in docs/TRANSFORMS.md. Of the channels and markers in the collections of the reference
implementation it says what `viscy_data.channel_utils.parse_channel_name` says; it knows more words than that.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["fluorescence", "labelfree"]

KINDS: tuple[Kind, ...] = ("fluorescence", "labelfree")

_LABELFREE = re.compile(
    r"""
    # abbreviations: whole words between characters that are neither letters nor digits
    (?<![A-Za-z0-9]) (?i:
        (bf|dic|tl)\d* | phc | pc | dpc | pol | polscope | qpi | qpm | dhm | holo | oblique
        | trans (?![ _-]?golgi)
    ) (?![A-Za-z0-9])
    |
    # beginnings of words, where a capital after a small letter begins a word too
    ((?<![A-Za-z]) | (?<=[a-z])(?=[A-Z])) (?i:
        (?<!\b[SM][ _-]) (?<!\bG[0-2][ _-]) phase  # not a phase of the cell cycle
        | (bright|dark) [ _-]? field | transmi(tt|ss) | retard | birefring | polari[sz] | nomarski
        | hologra | holotomo | refractive | label [ _-]? free
    )
    """,
    re.VERBOSE,
)
_STAINED = re.compile(
    r"""
    prediction | virtual | (?<![a-z]) vs_  # made from another channel
    | (?<![a-z0-9]) (ex|em) [ _-]? \d{3}  # wavelengths of filters
    | (?<![a-z0-9]) [a-z]*[bcgry]fp\d* (?![a-z]) | cherry | tomato | dapi | hoechst | fitc | tritc | fucci | alexa
    | (?<![a-z0-9]) cy [ _-]? [357] (?![a-z0-9])
    """,
    re.VERBOSE | re.IGNORECASE,
)


def find_kind(channel: str) -> Kind:
    """Tell from a channel's name, or its marker's, whether it is label-free; every other one counts as fluorescence.

    Label-free is a name with a word of a label-free method, such as phase, BF or retardance, and with no word of a
    stain: a fluorophore, the wavelengths of a filter, or a prediction from another channel.
    """
    return "labelfree" if _LABELFREE.search(channel) and not _STAINED.search(channel) else "fluorescence"
