"""Stored intensities to comparable ones: each sample's own statistics make its channels alike.

The statistics come with the batch (`<key>_norm_meta`), so nothing is looked up here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dynaclr_wds.contract import STATISTICS

NormMeta = Mapping[str, Tensor]
"""Level (`timepoint`, `fov`, `dataset`) → statistics, float32 (B, C, len(STATISTICS))."""


class NormalizeSampled(nn.Module):
    """Normalise each sample and channel: `(x - subtrahend) / (divisor + eps)`.

    The formula is that of `NormalizeSampled` in mehta-lab/VisCy. Statistics that are not a number cannot be seen
    here without waiting for the device and would make the sample NaN; the dataset therefore refuses them before
    they get here.

    Parameters
    ----------
    level
        Where the statistics are taken: one frame of a FOV, all frames of a FOV, or the experiment.
    subtrahend
        What is subtracted.
    divisor
        What is divided by.
    channels
        Channels to normalise, in stored order; None = all. The others keep their values.
    eps
        Keeps a constant image from a division by zero.

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
        statistics = self._statistics(x, norm_meta)
        shift = statistics[:, :, STATISTICS.index(self.subtrahend)]
        scale = statistics[:, :, STATISTICS.index(self.divisor)] + self.eps
        if self.channels is not None:
            shift, scale = shift.clone(), scale.clone()
            for c in range(x.shape[1]):  # one by one: an index list would be copied from the host
                if c not in self.channels:
                    shift[:, c] = 0.0
                    scale[:, c] = 1.0
        return torch.sub(x, shift[:, :, None, None, None]).div_(scale[:, :, None, None, None])

    def _statistics(self, x: Tensor, norm_meta: NormMeta) -> Tensor:
        count = x.shape[1]
        if self.channels is not None and not all(0 <= c < count for c in self.channels):
            raise ValueError(
                f"NormalizeSampled: channels={list(self.channels)}, but the data have {count} "
                f"(allowed: 0 to {count - 1}). Name only those, or leave `channels` out for all."
            )
        if self.level not in norm_meta:
            raise ValueError(
                f"NormalizeSampled: level={self.level!r} is not among the statistics of the batch "
                f"({', '.join(sorted(norm_meta)) or 'none'}). Choose one of them."
            )
        statistics = norm_meta[self.level]
        expected = (x.shape[0], count, len(STATISTICS))
        if tuple(statistics.shape) != expected:
            raise ValueError(
                f"NormalizeSampled: statistics of level {self.level!r} have shape {tuple(statistics.shape)}, "
                f"but must have {expected}: (sample, channel, {', '.join(STATISTICS)})."
            )
        return statistics

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        channels = "all" if self.channels is None else list(self.channels)
        return f"level={self.level}, ({self.subtrahend}, {self.divisor}), channels={channels}"
