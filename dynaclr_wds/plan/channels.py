"""Channels to choices: which channels a sample may hold when not all of them are read, and what those show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Int64

from dynaclr_wds.errors import ConfigError

CHANNEL_LABELS = ("channel", "marker")
"""Labels that a choice of channels has: their names, and what they show (`+` between those of several)."""

ChannelsPerSample = int | Sequence[str] | None
"""How many channels a sample holds (any such set of them), or the channels themselves; None = all, no choice."""


@dataclass(frozen=True, kw_only=True)
class ChannelChoices:
    """The sets of channels that a sample of each experiment may hold: its *choices*, counted from 0."""

    channels: tuple[tuple[tuple[int, ...], ...], ...]
    """Experiment → choice → channels, in stored order."""
    labels: Mapping[str, tuple[tuple[str, ...], ...]]
    """Each of `CHANNEL_LABELS` → experiment → choice → value."""

    @property
    def per_sample(self) -> int:
        """Channels of a sample."""
        return next(len(choices[0]) for choices in self.channels if choices)

    @cached_property
    def count(self) -> Int64[np.ndarray, " e"]:
        """Choices of each experiment."""
        return np.array([len(choices) for choices in self.channels], np.int64)

    @cached_property
    def table(self) -> Int64[np.ndarray, "e most k"]:
        """Channels of each choice; −1 where an experiment has fewer choices."""
        out = np.full((len(self.channels), int(self.count.max()), self.per_sample), -1)
        for experiment, choices in enumerate(self.channels):
            out[experiment, : len(choices)] = np.reshape(choices, (len(choices), self.per_sample))
        return out

    def codes(self, label: str) -> tuple[Int64[np.ndarray, "e most"], tuple[str, ...]]:
        """Number the values of a channel label: code of each choice, and what the codes stand for."""
        values = tuple(dict.fromkeys(value for choices in self.labels[label] for value in choices))
        out = np.full(self.table.shape[:2], -1)
        for experiment, choices in enumerate(self.labels[label]):
            out[experiment, : len(choices)] = [values.index(value) for value in choices]
        return out, values


def list_positions(channels: Sequence[str], per_sample: ChannelsPerSample) -> list[list[str]]:
    """List, for each position of the C axis of a sample, the names of the channels that may stand there."""
    if per_sample is None:
        return [[name] for name in channels]
    if isinstance(per_sample, int):
        return [list(channels)] * per_sample
    return [[name] for name in per_sample]


def list_choices(
    experiments: Sequence[str],
    channels: Sequence[Sequence[str]],
    markers: Sequence[Sequence[str]],
    per_sample: int | Sequence[str],
    used: Sequence[bool],
) -> ChannelChoices:
    """List the choices of each experiment.

    Parameters
    ----------
    experiments
        Names, for errors.
    channels, markers
        Name and marker of each stored channel, by experiment.
    per_sample
        k: every set of k channels. Names of channels or markers: these, in this order.
    used
        Whether each experiment is drawn from. One that isn't has no choice.

    Raises
    ------
    ConfigError
        An experiment has fewer channels, or lacks one that is named.
    """
    found: list[tuple[tuple[int, ...], ...]] = []
    for name, own, shown, drawn in zip(experiments, channels, markers, used, strict=True):
        if not drawn:
            found.append(())
        elif isinstance(per_sample, int):
            if not 1 <= per_sample <= len(own):
                raise ConfigError(
                    f"channels_per_sample={per_sample}, but {name!r} stores {len(own)} channels: {list(own)}. Give 1 "
                    f"to {len(own)}, or leave the experiment out."
                )
            found.append(tuple(combinations(range(len(own)), per_sample)))
        else:
            found.append((tuple(_find_channel(wanted, name, own, shown) for wanted in per_sample),))
    pairs = list(zip(found, channels, markers, strict=True))
    return ChannelChoices(
        channels=tuple(found),
        labels={
            "channel": tuple(tuple("+".join(own[c] for c in choice) for choice in of) for of, own, _ in pairs),
            "marker": tuple(tuple("+".join(shown[c] for c in choice) for choice in of) for of, _, shown in pairs),
        },
    )


def _find_channel(wanted: str, experiment: str, channels: Sequence[str], markers: Sequence[str]) -> int:
    for names in (channels, markers):
        if wanted in names:
            return list(names).index(wanted)
    raise ConfigError(
        f"channels_per_sample names {wanted!r}, which {experiment!r} doesn't store: its channels are {list(channels)}, "
        f"their markers {list(markers)}. Name one of these, or leave the experiment out."
    )
