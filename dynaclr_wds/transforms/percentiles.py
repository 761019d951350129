"""Makes intensities comparable: maps two percentiles, or minimum and maximum, to two values.

The percentiles are those of the frame, FOV or experiment, which come with the batch, or of each patch itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from dynaclr_wds.transforms.statistics import NormMeta, StatisticsNormalization, pick

STORED = {0.0: "min", 1.0: "p1", 50.0: "median", 99.0: "p99", 100.0: "max"}
"""Percentile → the statistic that the shards hold of it."""

Bounds = tuple[Tensor, Tensor, Tensor]
"""Lower percentile, upper percentile and maximum, each (B, C)."""


class NormalizePercentiles(StatisticsNormalization):
    """Map the lower percentile of each sample and channel to `b_min` and the upper one to `b_max`.

    With `lower: 0` and `upper: 100` this is min–max normalisation. Where the two percentiles are equal, as in a sparse
    channel most of whose pixels are alike, the maximum takes the place of the upper one; where that is the same too (a
    constant channel), the result is `b_min`.

    Parameters
    ----------
    level
        Where the percentiles are taken: `timepoint` (one frame of a FOV), `fov` (all its frames), `dataset` (the
        experiment), or `patch`: the patch itself as it was read, before anything is cropped, each channel for itself.
    lower, upper
        Percentiles, 0 <= lower < upper <= 100. Shards hold 0, 1, 50, 99 and 100; others can be had of `patch` only.
    b_min, b_max
        What the two percentiles become.
    clip
        Whether values beyond are cut off.
    channels
        Channels to normalise, in stored order; None = all. The others keep their values.
    eps
        The share of the largest absolute value up to which a difference counts as zero.

    Raises
    ------
    ValueError
        Percentiles that are out of order or not stored; in `forward`, a channel that is not in the data, or statistics
        of the wrong shape or without `level`.
    """

    def __init__(
        self,
        level: Literal["timepoint", "fov", "dataset", "patch"] = "fov",
        lower: float = 1.0,
        upper: float = 99.0,
        b_min: float = 0.0,
        b_max: float = 1.0,
        clip: bool = False,
        channels: Sequence[int] | None = None,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(level, channels, eps)
        if not 0 <= lower < upper <= 100:
            raise ValueError(
                f"NormalizePercentiles: lower={lower} and upper={upper} must be 0 <= lower < upper <= 100. "
                "Give percentiles, such as 1 and 99."
            )
        missing = [value for value in (lower, upper) if level != "patch" and value not in STORED]
        if missing:
            raise ValueError(
                f"NormalizePercentiles: percentile {missing[0]:g} of level {level!r} is not stored (allowed: "
                f"{', '.join(f'{value:g}' for value in STORED)}). Choose one of these, or level: patch."
            )
        if not b_min < b_max:
            raise ValueError(
                f"NormalizePercentiles: b_min={b_min} must be < b_max={b_max}. Give the lower value first."
            )
        self.lower, self.upper = float(lower), float(upper)
        self.b_min, self.b_max, self.clip = b_min, b_max, clip

    def forward(self, x: Float32[Tensor, "b c z y x"], norm_meta: NormMeta) -> Float32[Tensor, "b c z y x"]:
        """Return the normalised copy of `x`."""
        self.check_channels(x.shape[1])
        statistics = None if self.level == "patch" else self.pick_statistics(x, norm_meta)
        if self.channels is None:
            return self._scale(x, statistics)
        result = x.clone()
        for c in self.channels:  # one by one: an index list would be copied from the host
            result[:, c : c + 1] = self._scale(
                x[:, c : c + 1], None if statistics is None else statistics[:, c : c + 1]
            )
        return result

    def choose_divisor(
        self, statistics: Float32[Tensor, "*rows c k"]
    ) -> tuple[Float32[Tensor, "*rows c"], Float32[Tensor, "*rows c"]]:
        """Return the difference of the percentiles, and what is divided by; see `NormalizePercentiles`."""
        low, high, top = self._stored(statistics)
        return high - low, self._choose_extent(low, high, top)

    @property
    def ends(self) -> tuple[str, str]:
        """What becomes of a channel whose percentiles are equal, and of one that is constant."""
        return "reaches up to the maximum instead", f"becomes {self.b_min:g}, as the maximum is the same"

    def describe_zeros(self, places: str) -> str:
        """Say where the two percentiles are equal, and what to do."""
        return (
            f"NormalizePercentiles: percentiles {self.lower:g} and {self.upper:g} are equal in {places}. "
            "Choose a larger upper percentile, or another level, to treat all alike."
        )

    def _scale(self, x: Tensor, statistics: Tensor | None) -> Tensor:
        low, high, top = self._of_patch(x) if statistics is None else self._stored(statistics)
        scale = (self.b_max - self.b_min) / self._choose_extent(low, high, top)
        result = torch.sub(x, low[:, :, None, None, None]).mul_(scale[:, :, None, None, None]).add_(self.b_min)
        return result.clamp_(self.b_min, self.b_max) if self.clip else result

    def _choose_extent(self, low: Tensor, high: Tensor, top: Tensor) -> Tensor:
        """Return what is divided by: infinity where the channel is constant."""
        zero = self.eps * torch.maximum(low.abs(), top.abs())
        # `<=` and not `>`: a statistic that is not a number stays one
        whole = torch.where(top - low <= zero, torch.inf, top - low)
        return torch.where(high - low <= zero, whole, high - low)

    def _stored(self, statistics: Float32[Tensor, "*rows c k"]) -> Bounds:
        low, high, top = (pick(statistics, name) for name in (STORED[self.lower], STORED[self.upper], "max"))
        return low, high, top

    def _of_patch(self, x: Float32[Tensor, "b c z y x"]) -> Bounds:
        flat = x.flatten(2)
        low, high = percentile(flat, self.lower), percentile(flat, self.upper)
        return low, high, flat.amax(2)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return (
            f"({self.lower:g}, {self.upper:g}) to ({self.b_min:g}, {self.b_max:g}), clip={self.clip}, "
            f"{super().extra_repr()}"
        )


def percentile(x: Float[Tensor, "*rows n"], q: float) -> Float[Tensor, "*rows"]:
    """Return a percentile of each row, linear between neighbours as `numpy.percentile` does it.

    `torch.quantile` would sort all of it, with indices twice as large as the values.
    """
    place = q / 100 * (x.shape[-1] - 1)
    below = min(int(place), x.shape[-1] - 1)
    above = min(below + 1, x.shape[-1] - 1)
    if torch.are_deterministic_algorithms_enabled():  # the values of kthvalue are the same always, but it is refused
        ordered = x.sort(-1).values
        return torch.lerp(ordered[..., below], ordered[..., above], place - below)
    low = x.kthvalue(below + 1, -1).values
    if above == below or place == below:
        return low
    return torch.lerp(low, x.kthvalue(above + 1, -1).values, place - below)
