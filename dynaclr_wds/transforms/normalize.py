"""Makes intensities comparable: subtracts and divides by statistics of the frame, FOV or experiment of each sample.

The statistics come with the batch (`<key>_norm_meta`), so nothing is looked up here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

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
    """The standard deviation is zero too: the channel becomes 0. False: it is divided by the standard deviation."""


class NormalizeSampled(Described, nn.Module):
    """Normalise each sample and channel: `(x - subtrahend) / (divisor + eps)`.

    The formula is that of `NormalizeSampled` in mehta-lab/VisCy, except where the divisor is zero. The IQR of a sparse
    fluorescence channel, most of whose pixels are alike, is zero and would give values of 10¹¹. There the standard
    deviation is the divisor; where that is zero too (a constant channel) the result is 0. A divisor counts as zero up
    to `eps` times the largest absolute value (of `min` and `max`). `find_zero_divisors` says beforehand where that is.

    Statistics that are not a number make the sample NaN, which can't be noticed here without waiting for the device.
    The dataset therefore refuses them earlier.

    Parameters
    ----------
    level
        Where the statistics are taken: one frame of a FOV, all frames of a FOV, or the experiment.
    subtrahend
        The statistic that is subtracted.
    divisor
        The statistic that is divided by, unless it is zero.
    channels
        Channels to normalise, in stored order; None = all. The others keep their values.
    eps
        Added to the divisor; also the share of the largest absolute value up to which a divisor counts as zero.

    Raises
    ------
    ValueError
        In `forward`: a channel that is not in the data, or statistics of the wrong shape or without `level`.
    """

    def __init__(
        self,
        level: Literal["timepoint", "fov", "dataset"] = "fov",
        subtrahend: Literal["mean", "median"] = "mean",
        divisor: Literal["std", "iqr"] = "std",
        channels: Sequence[int] | None = None,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.level = level
        self.subtrahend = subtrahend
        self.divisor = divisor
        self.channels = None if channels is None else tuple(channels)
        self.eps = eps

    def forward(self, x: Float32[Tensor, "b c z y x"], norm_meta: NormMeta) -> Float32[Tensor, "b c z y x"]:
        """Return the normalised copy of `x`."""
        check_channels(self, self.channels, x.shape[1])
        statistics = pick_statistics(self, x, norm_meta, self.level)
        shift = statistics[:, :, STATISTICS.index(self.subtrahend)]
        scale = self._choose_divisor(statistics) + self.eps
        if self.channels is not None:
            shift, scale = shift.clone(), scale.clone()
            for c in range(x.shape[1]):  # one by one: an index list would be copied from the host
                if c not in self.channels:
                    shift[:, c] = 0.0
                    scale[:, c] = 1.0
        return torch.sub(x, shift[:, :, None, None, None]).div_(scale[:, :, None, None, None])

    def find_zero_divisors(self, statistics: Mapping[str, Float[np.ndarray, "rows c k"]]) -> list[ZeroDivisor]:
        """List the rows and channels where the divisor is zero, so that something else is divided by.

        Parameters
        ----------
        statistics
            Level → statistics, (rows, C, len(STATISTICS)): the arrays `stats_*` of a shard set. Rows and channels of
            NaN, which hold nothing, are passed over.

        Returns
        -------
        In order of row and channel; empty where all is well. Channels that are not normalised are left out.
        """
        rows = torch.from_numpy(np.array(statistics[self.level], np.float32))
        divisor = rows[:, :, STATISTICS.index(self.divisor)]
        chosen = self._choose_divisor(rows)
        found = torch.nonzero((chosen != divisor) & ~divisor.isnan() | (chosen == torch.inf)).tolist()
        return [
            ZeroDivisor(row, channel, bool(chosen[row, channel] == torch.inf))
            for row, channel in found
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
        ends = "divided by std", "becomes 0, as std is 0 too"
        places = describe_places(found, row_experiments[self.level], channel_names, self.level, ends)
        return (
            f"NormalizeSampled: divisor {self.divisor!r} is 0 in {places}. "
            "Choose divisor: std, or another level, to treat all alike."
        )

    def _choose_divisor(self, statistics: Float32[Tensor, "*rows c k"]) -> Float32[Tensor, "*rows c"]:
        """Return the divisor, the standard deviation where it is zero, infinity where that is zero too."""
        low, high, std, divisor = (
            statistics[..., STATISTICS.index(name)] for name in ("min", "max", "std", self.divisor)
        )
        zero = self.eps * torch.maximum(low.abs(), high.abs())
        # `<=` and not `>`: a statistic that is not a number stays one
        return torch.where(divisor <= zero, torch.where(std <= zero, torch.inf, std), divisor)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        channels = "all" if self.channels is None else list(self.channels)
        return f"level={self.level}, ({self.subtrahend}, {self.divisor}), channels={channels}"


def check_channels(owner: object, channels: Sequence[int] | None, count: int) -> None:
    """Refuse channels that the data don't have."""
    if channels is not None and not all(0 <= c < count for c in channels):
        raise ValueError(
            f"{type(owner).__name__}: channels={list(channels)}, but the data have {count} "
            f"(allowed: 0 to {count - 1}). Name only those, or leave `channels` out for all."
        )


def pick_statistics(owner: object, x: Tensor, norm_meta: NormMeta, level: str) -> Float32[Tensor, "b c k"]:
    """Return the statistics of one level.

    Raises
    ------
    ValueError
        They are not there, or of another shape than the patches need.
    """
    name = type(owner).__name__
    if level not in norm_meta:
        raise ValueError(
            f"{name}: level={level!r} is not among the statistics of the batch "
            f"({', '.join(sorted(norm_meta)) or 'none'}). Choose one of them."
        )
    statistics = norm_meta[level]
    expected = (x.shape[0], x.shape[1], len(STATISTICS))
    if tuple(statistics.shape) != expected:
        raise ValueError(
            f"{name}: statistics of level {level!r} have shape {tuple(statistics.shape)}, "
            f"but must have {expected}: (sample, channel, {', '.join(STATISTICS)})."
        )
    return statistics


def describe_places(
    found: Sequence[ZeroDivisor],
    row_experiments: Sequence[str],
    channel_names: Mapping[str, Sequence[str]],
    level: str,
    ends: tuple[str, str],
) -> str:
    """Say in which channels of which experiments divisors are zero, and what becomes of them.

    Parameters
    ----------
    found
        Where they are.
    row_experiments
        Experiment of each row of the statistics.
    channel_names
        Experiment → names of its stored channels.
    level
        Of the statistics.
    ends
        What becomes of a channel, and of one that is constant.
    """
    places: dict[tuple[str, int, bool], int] = {}
    for row, channel, constant in found:
        key = (row_experiments[row], channel, constant)
        places[key] = places.get(key, 0) + 1
    return "; ".join(
        f"channel {channel_names[experiment][channel]!r} of experiment {experiment!r} ({count} of level {level!r}: "
        f"{ends[constant]})"
        for (experiment, channel, constant), count in places.items()
    )
