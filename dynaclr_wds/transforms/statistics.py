"""What normalisations by statistics share: which statistics, of which channels, and where these are zero.

The statistics come with the batch (`<key>_norm_meta`), so nothing is looked up here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from dynaclr_wds.contract import STATISTICS
from dynaclr_wds.describe import Described

NormMeta = Mapping[str, Tensor]
"""Level (`timepoint`, `fov`, `dataset`) → statistics, float32 (B, C, len(STATISTICS))."""


class ZeroDivisor(NamedTuple):
    """A row of statistics whose divisor is zero in one channel."""

    row: int
    channel: int
    constant: bool
    """What would take its place is zero too: the channel is constant."""


class StatisticsNormalization(Described, nn.Module, ABC):
    """Base of normalisations that divide by a statistic; what to divide by is for subclasses to say.

    Parameters
    ----------
    level
        Where the statistics are taken: `timepoint`, `fov` or `dataset`; or another, which a subclass knows.
    channels
        Channels to normalise, in stored order; None = all. The others keep their values.
    eps
        The share of the largest absolute value up to which a divisor counts as zero.
    """

    def __init__(self, level: str, channels: Sequence[int] | None, eps: float) -> None:
        super().__init__()
        self.level = level
        self.channels = None if channels is None else tuple(channels)
        self.eps = eps

    @abstractmethod
    def choose_divisor(
        self, statistics: Float32[Tensor, "*rows c k"]
    ) -> tuple[Float32[Tensor, "*rows c"], Float32[Tensor, "*rows c"]]:
        """Return the divisor that is asked for, and what is divided by: infinity where a channel is constant."""

    @abstractmethod
    def describe_zeros(self, places: str) -> str:
        """Say what is zero in the places where it is, and what to do."""

    @property
    @abstractmethod
    def ends(self) -> tuple[str, str]:
        """What becomes of a channel whose divisor is zero, and of one that is constant."""

    def find_zero_divisors(self, statistics: Mapping[str, Float[np.ndarray, "rows c k"]]) -> list[ZeroDivisor]:
        """List the rows and channels where the divisor is zero, so that something else is divided by.

        Parameters
        ----------
        statistics
            Level → statistics, (rows, C, len(STATISTICS)): the arrays `stats_*` of a shard set. Rows and channels of
            NaN, which hold nothing, are passed over.

        Returns
        -------
        In order of row and channel; empty where all is well, or where each patch has its own statistics. Channels that
        are not normalised are left out.
        """
        if self.level == "patch":
            return []
        asked, chosen = self.choose_divisor(torch.from_numpy(np.array(statistics[self.level], np.float32)))
        return [
            ZeroDivisor(row, channel, bool(chosen[row, channel] == torch.inf))
            for row, channel in torch.nonzero((chosen != asked) & ~asked.isnan()).tolist()
            if self.channels is None or channel in self.channels
        ]

    def describe_zero_divisors(
        self,
        statistics: Mapping[str, Float[np.ndarray, "rows c k"]],
        row_experiments: Mapping[str, Sequence[str]],
        channel_names: Mapping[str, Sequence[str]],
    ) -> str | None:
        """Say in a sentence or two where the divisor is zero.

        Parameters
        ----------
        statistics
            As for `find_zero_divisors`.
        row_experiments
            Level → experiment of each row of `statistics[level]`.
        channel_names
            Experiment → names of its stored channels.

        Returns
        -------
        None where no divisor is zero.
        """
        found = self.find_zero_divisors(statistics)
        if not found:
            return None
        return self.describe_zeros(_describe_places(found, row_experiments[self.level], channel_names, self))

    def check_channels(self, count: int) -> None:
        """Refuse channels that the data, of `count` channels, don't have."""
        if self.channels is not None and not all(0 <= c < count for c in self.channels):
            raise ValueError(
                f"{type(self).__name__}: channels={list(self.channels)}, but the data have {count} "
                f"(allowed: 0 to {count - 1}). Name only those, or leave `channels` out for all."
            )

    def pick_statistics(self, x: Tensor, norm_meta: NormMeta) -> Float32[Tensor, "b c k"]:
        """Return the statistics of the level.

        Raises
        ------
        ValueError
            They are not there, or of another shape than the patches need.
        """
        name = type(self).__name__
        if self.level not in norm_meta:
            raise ValueError(
                f"{name}: level={self.level!r} is not among the statistics of the batch "
                f"({', '.join(sorted(norm_meta)) or 'none'}). Choose one of them."
            )
        statistics = norm_meta[self.level]
        expected = (x.shape[0], x.shape[1], len(STATISTICS))
        if tuple(statistics.shape) != expected:
            raise ValueError(
                f"{name}: statistics of level {self.level!r} have shape {tuple(statistics.shape)}, "
                f"but must have {expected}: (sample, channel, {', '.join(STATISTICS)})."
            )
        return statistics

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"level={self.level}, channels={'all' if self.channels is None else list(self.channels)}"


def pick(statistics: Float32[Tensor, "*rows c k"], name: str) -> Float32[Tensor, "*rows c"]:
    """Return one statistic of each row and channel."""
    return statistics[..., STATISTICS.index(name)]


def _describe_places(
    found: Sequence[ZeroDivisor],
    row_experiments: Sequence[str],
    channel_names: Mapping[str, Sequence[str]],
    module: StatisticsNormalization,
) -> str:
    """Say in which channels of which experiments divisors are zero, and what becomes of them."""
    places: dict[tuple[str, int, bool], int] = {}
    for row, channel, constant in found:
        key = (row_experiments[row], channel, constant)
        places[key] = places.get(key, 0) + 1
    return "; ".join(
        f"channel {channel_names[experiment][channel]!r} of experiment {experiment!r} ({count} of level "
        f"{module.level!r}: {module.ends[constant]})"
        for (experiment, channel, constant), count in places.items()
    )
