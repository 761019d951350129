"""Holds the options about z: how the stack is centred on the focus, and how channels are reduced to one slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from dynaclr_wds.channel_kinds import KINDS, find_kind
from etl.source.fields import As, Text, choice, says, whole

FocusLevel = Literal["timepoint", "fov", "dataset"]
Reduction = Literal["center", "mip", "none"]

REDUCTION_KEYS = ("default", *KINDS)
"""Keys of `z_reduction` that are no channel or marker."""

_KIND = "Leave it out for `center`."
_Fraction = Annotated[
    float,
    Field(strict=True, allow_inf_nan=False, ge=0, le=1),
    says("a fraction, 0 to 1", "Write 0.5 to have the focus in the middle."),
]
Reductions: Any = Annotated[
    Mapping[Text, choice(Reduction, _KIND)],  # type: ignore[misc]  # pydantic reads it, nobody else
    Field(min_length=1),
    says("a mapping of channel, or kind of channel, to reduction", "Write {default: center, fluorescence: mip}."),
]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ZFocus:
    """Slices around the focus of each frame."""

    window: Annotated[int, As(whole(1))]
    """Slices to take."""
    channel: Text | None = None
    """Channel of the plate whose focus counts, stored or not; None is the first that is stored."""
    offset: _Fraction = 0.5
    """Fraction of the slices that lies below the focus."""
    level: Annotated[FocusLevel, As(choice(FocusLevel, "Leave it out for `timepoint`."))] = "timepoint"
    """What shares a focus: nothing (each frame has its own), the frames of a FOV, or all of a plate."""

    def below(self, size: int) -> int:
        """Return how many of `size` slices lie below the focus."""
        return int(size * self.offset)


def choose_reductions(
    options: Mapping[str, Reduction] | None, channels: Sequence[str], markers: Mapping[str, str]
) -> tuple[Reduction, ...]:
    """Choose how each channel is reduced: by its name, else its marker, else its kind, else the default, `center`.

    Parameters
    ----------
    options
        None reduces nothing.
    markers
        Channel → what it shows. Name or marker may say that a channel is label-free.
    """
    rule: Mapping[str, Reduction] = {"default": "none"} if options is None else options
    return tuple(_choose(rule, channel, markers.get(channel, channel)) for channel in channels)


def _choose(options: Mapping[str, Reduction], channel: str, marker: str) -> Reduction:
    kind = "labelfree" if "labelfree" in (find_kind(channel), find_kind(marker)) else "fluorescence"
    return next((options[key] for key in (channel, marker, kind, "default") if key in options), "center")
