"""Makes intensities comparable: subtracts and divides by statistics of the frame, FOV or experiment of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from dynaclr_wds.transforms.statistics import NormMeta, StatisticsNormalization, pick


class NormalizeSampled(StatisticsNormalization):
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
        super().__init__(level, channels, eps)
        self.subtrahend = subtrahend
        self.divisor = divisor

    def forward(self, x: Float32[Tensor, "b c z y x"], norm_meta: NormMeta) -> Float32[Tensor, "b c z y x"]:
        """Return the normalised copy of `x`."""
        self.check_channels(x.shape[1])
        statistics = self.pick_statistics(x, norm_meta)
        shift = pick(statistics, self.subtrahend)
        scale = self.choose_divisor(statistics)[1] + self.eps
        if self.channels is not None:
            shift, scale = shift.clone(), scale.clone()
            for c in range(x.shape[1]):  # one by one: an index list would be copied from the host
                if c not in self.channels:
                    shift[:, c] = 0.0
                    scale[:, c] = 1.0
        return torch.sub(x, shift[:, :, None, None, None]).div_(scale[:, :, None, None, None])

    def choose_divisor(
        self, statistics: Float32[Tensor, "*rows c k"]
    ) -> tuple[Float32[Tensor, "*rows c"], Float32[Tensor, "*rows c"]]:
        """Return the divisor; and the standard deviation where it is zero, infinity where that is zero too."""
        low, high, std, divisor = (pick(statistics, name) for name in ("min", "max", "std", self.divisor))
        zero = self.eps * torch.maximum(low.abs(), high.abs())
        # `<=` and not `>`: a statistic that is not a number stays one
        return divisor, torch.where(divisor <= zero, torch.where(std <= zero, torch.inf, std), divisor)

    @property
    def ends(self) -> tuple[str, str]:
        """What becomes of a channel whose divisor is zero, and of one that is constant."""
        return "divided by std", "becomes 0, as std is 0 too"

    def describe_zeros(self, places: str) -> str:
        """Say where the divisor is zero, and what to do."""
        return (
            f"NormalizeSampled: divisor {self.divisor!r} is 0 in {places}. "
            "Choose divisor: std, or another level, to treat all alike."
        )

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"({self.subtrahend}, {self.divisor}), {super().extra_repr()}"
