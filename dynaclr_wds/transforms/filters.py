"""Filters patches: blurs with a width per axis, and sharpens. Drawn per sample and channel.

Kernels are sums of shifted copies, because every sample has its own and a convolution would need a group for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from kornia.filters import get_gaussian_erf_kernel1d
from torch import Tensor, nn
from torch.nn.functional import pad

from dynaclr_wds.transforms.affine import Border
from dynaclr_wds.transforms.ranges import Range, check_p, parse_range

_PADDING = {"zeros": "constant", "border": "replicate", "reflection": "reflect"}
_SMALLEST = 1e-2
"""Width in pixels below which a Gaussian is a single pixel, to the last digit; 0 would be divided by."""


class RandomBlur(nn.Module):
    """Blur by a Gaussian whose width is drawn for each axis, sample and channel.

    The kernel holds the integrals of the Gaussian over the pixels, as MONAI's and Kornia's (`erf`) do. An axis with the
    range (0, 0), or with one pixel, is left as it is.

    Parameters
    ----------
    sigma_y, sigma_x, sigma_z
        Ranges of the standard deviation along each axis, in pixels and planes, >= 0.
    truncate
        The kernel reaches so many times the upper end of its range to both sides.
    border
        What lies outside of the patch: `zeros`, `border` (the nearest pixel) or `reflection`.
    p
        Probability of a change, per sample and channel.

    Raises
    ------
    ValueError
        A range or probability that is not allowed.
    """

    def __init__(
        self,
        sigma_y: tuple[float, float] = (0.25, 0.75),
        sigma_x: tuple[float, float] = (0.25, 0.75),
        sigma_z: tuple[float, float] = (0.0, 0.0),
        truncate: float = 4.0,
        border: Border = "border",
        p: float = 0.5,
    ) -> None:
        super().__init__()
        ranges = {"sigma_z": sigma_z, "sigma_y": sigma_y, "sigma_x": sigma_x}
        self.sigma = tuple(parse_range(self, name, value, 0.0) for name, value in ranges.items())
        self.truncate, self.border, self.p = truncate, border, check_p(self, p)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the blurred patches."""
        single = x.flatten(0, 1).unsqueeze(1)  # (B·C, 1, Z, Y, X): a kernel for each
        gate = torch.rand((len(single), 1), device=x.device) < self.p
        kernels = [self._sample_kernel(single, r, n, gate) for r, n in zip(self.sigma, x.shape[2:], strict=True)]
        return smooth(single, kernels, self.border).reshape(x.shape)

    def _sample_kernel(self, x: Tensor, sigma: Range, extent: int, gate: Tensor) -> Float[Tensor, "b k"] | None:
        if sigma[1] == 0.0 or extent == 1:
            return None
        draw = torch.rand((len(x), 1), device=x.device, dtype=x.dtype) * (sigma[1] - sigma[0]) + sigma[0]
        return gaussian_kernels(draw.where(gate, 0.0), sigma[1], self.truncate)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        z, y, x = self.sigma
        return f"sigma_z={z}, sigma_y={y}, sigma_x={x}, border={self.border}, p={self.p}"


class RandomSharpness(nn.Module):
    """Sharpen by taking away the Laplacian: `x - alpha * laplace(x)`, the Laplacian of all three axes.

    Beyond the border lies the nearest pixel, so that flat regions stay flat, and single planes are sharpened in 2D.

    Parameters
    ----------
    alpha
        Range of the strength, drawn uniformly, >= 0.
    p
        Probability of a change, per sample and channel.
    """

    def __init__(self, alpha: tuple[float, float] = (0.1, 0.5), p: float = 0.1) -> None:
        super().__init__()
        self.alpha = parse_range(self, "alpha", alpha, 0.0)
        self.p = check_p(self, p)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the sharpened patches."""
        shape = (*x.shape[:2], 1, 1, 1)
        low, high = self.alpha
        alpha = torch.rand(shape, device=x.device, dtype=x.dtype) * (high - low) + low
        alpha = alpha.where(torch.rand(shape, device=x.device) < self.p, 0.0)
        laplace = torch.zeros_like(x)
        for axis in (2, 3, 4):
            step = x.diff(dim=axis)  # its last and first neighbours are itself: a step of 0
            last = x.shape[axis] - 1
            laplace.narrow(axis, 0, last).add_(step)
            laplace.narrow(axis, 1, last).sub_(step)
        return torch.addcmul(x, alpha, laplace, value=-1)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"alpha={self.alpha}, p={self.p}"


def gaussian_kernels(sigma: Float[Tensor, "b 1"], largest: float, truncate: float) -> Float[Tensor, "b k"]:
    """Return a kernel for each width, all as long as `largest` needs; a width of 0 gives the single pixel."""
    tail = max(1, int(largest * truncate + 0.5))
    kernels: Tensor = get_gaussian_erf_kernel1d(2 * tail + 1, sigma.clamp_min(_SMALLEST))
    return kernels


def smooth(
    x: Float[Tensor, "b c z y x"], kernels: Sequence[Float[Tensor, "b _"] | None], border: Border
) -> Float[Tensor, "b c z y x"]:
    """Filter along Z, Y and X with a kernel for each sample and axis; None leaves an axis as it is."""
    for axis, kernel in enumerate(kernels, start=2):
        if kernel is None:
            continue
        length = x.shape[axis]
        wide = _extend(x, axis, kernel.shape[1] // 2, border)
        weights = kernel[:, :, None, None, None, None]
        x = wide.narrow(axis, 0, length) * weights[:, 0]
        for k in range(1, kernel.shape[1]):
            x = x.addcmul_(wide.narrow(axis, k, length), weights[:, k])
    return x


def _extend(x: Tensor, axis: int, tail: int, border: Border) -> Tensor:
    """Put `tail` pixels before and after one axis; a mirror reaches no further than the patch."""
    mode = _PADDING[border]
    if mode == "reflect" and tail >= x.shape[axis]:
        mode = "replicate"
    sides = [0] * 6
    sides[2 * (4 - axis)] = sides[2 * (4 - axis) + 1] = tail
    return pad(x, sides, mode=mode)
