"""Turns, scales and shifts stacks in 3D, drawn per sample and the same for all channels.

Kornia's 3D rotations invert a matrix on the device and wait for its status. Here the inverse is written as a formula.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample


class RandomSimilarity3D(nn.Module):
    """Turn, scale and shift stacks about their centre, with linear interpolation; outside of the stack all is 0.

    Parameters
    ----------
    degrees
        Range of the angle about Z.
    tilt
        Range of the angles about Y and X, which are drawn independently.
    scale
        Range of the magnification, > 0.
    translate
        Largest shift along X and Y in either direction, as a fraction of the patch.
    z_spacing
        Distance of planes in pixels, which keeps shapes when a stack is tilted.
    p
        Probability of a change, per sample.

    Raises
    ------
    ValueError
        A range or probability that is not allowed.
    """

    def __init__(
        self,
        degrees: tuple[float, float] = (-180.0, 180.0),
        tilt: tuple[float, float] = (0.0, 0.0),
        scale: tuple[float, float] = (1.0, 1.0),
        translate: float = 0.0,
        z_spacing: float = 1.0,
        p: float = 0.5,
    ) -> None:
        super().__init__()
        for name, (low, high) in {"degrees": degrees, "tilt": tilt, "scale": scale}.items():
            if low > high:
                raise ValueError(f"RandomSimilarity3D: {name}=({low}, {high}) must be a range (low, high).")
        if scale[0] <= 0 or z_spacing <= 0 or translate < 0 or not 0 <= p <= 1:
            raise ValueError(
                f"RandomSimilarity3D: scale={tuple(scale)} and z_spacing={z_spacing} must be > 0, "
                f"translate={translate} >= 0 and p={p} in [0, 1]."
            )
        self.degrees, self.tilt, self.scale = tuple(degrees), tuple(tilt), tuple(scale)
        self.translate, self.z_spacing, self.p = translate, z_spacing, p

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the turned stacks."""
        grid = affine_grid(self._sample_inverse(x), list(x.shape), align_corners=False)
        moved = grid_sample(x, grid, align_corners=False)
        gate = torch.rand((x.shape[0], 1, 1, 1, 1), device=x.device) < self.p
        return torch.where(gate, moved, x)

    def _sample_inverse(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b 3 4"]:
        """Draw the map from places of the result to places of the stack, for `grid_sample` (x, y, z in [-1, 1])."""
        draws = torch.rand((6, x.shape[0]), device=x.device, dtype=x.dtype)
        low, high = self.degrees
        about_z = torch.deg2rad(draws[0] * (high - low) + low)
        low, high = self.tilt
        about_y, about_x = torch.deg2rad(draws[1:3] * (high - low) + low)
        shrink = 1 / (draws[3] * (self.scale[1] - self.scale[0]) + self.scale[0])
        shift = (draws[4:6] * 2 - 1) * (2 * self.translate)  # a patch is 2 wide here
        zero = torch.zeros_like(shrink)
        size = (x.shape[4], x.shape[3], x.shape[2] * self.z_spacing)
        turn = _rotation(about_z, about_y, about_x)
        rows = [
            torch.stack([*(turn[i][j] * shrink * (size[j] / size[i]) for j in range(3)), offset], dim=1)
            for i, offset in enumerate((shift[0], shift[1], zero))
        ]
        return torch.stack(rows, dim=1)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        return f"degrees={self.degrees}, tilt={self.tilt}, scale={self.scale}, translate={self.translate}, p={self.p}"


def _rotation(z: Tensor, y: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Elements of Rz · Ry · Rx, in radians."""
    cz, sz, cy, sy, cx, sx = z.cos(), z.sin(), y.cos(), y.sin(), x.cos(), x.sin()
    return (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
