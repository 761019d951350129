"""Deforms stacks: shifts planes along Z, and bends stacks smoothly. Drawn per sample, the same for all channels."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from dynaclr_wds.transforms.affine import Border
from dynaclr_wds.transforms.filters import gaussian_kernels, smooth
from dynaclr_wds.transforms.ranges import check_p, draw_gate, parse_range


class RandomShiftZ(nn.Module):
    """Shift stacks by whole planes, as when the focus drifts.

    Parameters
    ----------
    max_shift
        Most planes in either direction; every whole number up to that is equally probable, 0 included.
    fill
        Value of the planes that come in; null repeats the plane at the end.
    p
        Probability of a change, per sample.

    Raises
    ------
    ValueError
        A shift below 0, or a probability that is none.
    """

    def __init__(self, max_shift: int = 3, fill: float | None = 0.0, p: float = 0.1) -> None:
        super().__init__()
        if max_shift < 0:
            raise ValueError(f"RandomShiftZ: max_shift={max_shift} must be >= 0. Give a number of planes.")
        self.max_shift, self.fill, self.p = max_shift, fill, check_p(self, p)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the shifted stacks."""
        depth = x.shape[2]
        shift = torch.randint(-self.max_shift, self.max_shift + 1, (x.shape[0], 1), device=x.device)
        shift = shift.where(draw_gate(x, self.p)[:, :, 0, 0, 0], 0)
        plane = (torch.arange(depth, device=x.device) - shift)[:, None, :, None, None]
        moved = x.gather(2, plane.clamp(0, depth - 1).expand_as(x))
        return moved if self.fill is None else moved.where((plane >= 0) & (plane < depth), self.fill)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"max_shift={self.max_shift}, fill={self.fill}, p={self.p}"


class RandomElasticStack(nn.Module):
    """Bend stacks by a smooth random field, with linear interpolation.

    Every voxel takes its value from a place that lies off by three numbers, along Z, Y and X. They are Gaussian noise,
    smoothed by a Gaussian and then scaled, so that their standard deviation is `magnitude`.

    Parameters
    ----------
    sigma
        Range of the smoothing in pixels, > 0; larger ones bend more gently.
    magnitude
        Range of the standard deviation of the shifts along Y and X, in pixels.
    z_magnitude
        The same along Z, in planes; (0, 0) bends within planes, all planes alike.
    border
        What lies outside of the patch: `zeros`, `border` (the nearest pixel) or `reflection`.
    p
        Probability of a change, per sample.

    Raises
    ------
    ValueError
        A range or probability that is not allowed.
    """

    def __init__(
        self,
        sigma: tuple[float, float] = (8.0, 12.0),
        magnitude: tuple[float, float] = (1.0, 3.0),
        z_magnitude: tuple[float, float] = (0.0, 0.0),
        border: Border = "reflection",
        p: float = 0.5,
    ) -> None:
        super().__init__()
        self.sigma = parse_range(self, "sigma", sigma, 0.1)
        self.magnitude = parse_range(self, "magnitude", magnitude, 0.0)
        self.z_magnitude = parse_range(self, "z_magnitude", z_magnitude, 0.0)
        self.border, self.p = border, check_p(self, p)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the bent stacks."""
        return torch.where(draw_gate(x, self.p), bend(x, self._sample_field(x), self.border), x)

    def _sample_field(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b 3 field_z y x"]:
        """Draw how far each voxel's source lies off, along Z, Y and X; one plane for all where planes stay apart."""

        def draw(low: float, high: float) -> Tensor:
            return torch.rand((x.shape[0], 1), device=x.device, dtype=x.dtype) * (high - low) + low

        in_planes = self.z_magnitude == (0.0, 0.0)
        depth = 1 if in_planes else x.shape[2]
        noise = torch.randn((x.shape[0], 3, depth, *x.shape[3:]), device=x.device, dtype=x.dtype)
        kernel = gaussian_kernels(draw(*self.sigma), self.sigma[1], truncate=3.0)
        kernels = (None if in_planes else kernel, kernel, kernel)
        # smoothing takes the variance down to the sum of the kernel's squares, along each axis
        left = prod(k.square().sum(1, keepdim=True).sqrt() for k in kernels if k is not None)
        magnitude = draw(*self.magnitude)
        scale = torch.cat([draw(*self.z_magnitude), magnitude, magnitude], dim=1) / left
        return smooth(noise, kernels, "reflection") * scale[:, :, None, None, None]

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"sigma={self.sigma}, magnitude={self.magnitude}, z_magnitude={self.z_magnitude}, p={self.p}"


def bend(
    x: Float[Tensor, "b c z y x"], field: Float[Tensor, "b 3 field_z y x"], border: Border
) -> Float[Tensor, "b c z y x"]:
    """Take every voxel from where `field` says, along Z, Y and X, in planes and pixels from its own place."""
    places = [
        (torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) * (2 / n) - 1 for n in x.shape[2:]
    ]  # middles of pixels; a patch reaches from -1 to 1
    if field.shape[2] == 1:  # all planes alike: (B, C·Z, Y, X)
        grid = torch.stack(
            [places[2] + field[:, 2, 0] * (2 / x.shape[4]), places[1][:, None] + field[:, 1, 0] * (2 / x.shape[3])],
            dim=-1,
        )
        moved = grid_sample(x.flatten(1, 2), grid, padding_mode=border, align_corners=False)
        return moved.reshape(x.shape)
    grid = torch.stack(
        [
            places[2] + field[:, 2] * (2 / x.shape[4]),
            places[1][:, None] + field[:, 1] * (2 / x.shape[3]),
            places[0][:, None, None] + field[:, 0] * (2 / x.shape[2]),
        ],
        dim=-1,
    )
    return grid_sample(x, grid, padding_mode=border, align_corners=False)
