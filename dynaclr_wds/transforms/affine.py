"""Turns, shears, scales and shifts stacks in 3D, drawn per sample and the same for all channels.

Kornia's 3D rotations invert a matrix on the device and wait for its status. Here the inverse is written as a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from dynaclr_wds.transforms.ranges import Range, check_p, draw_gate, parse_range

Border = Literal["zeros", "border", "reflection"]
"""What lies outside of a patch, as `grid_sample` names it: 0, the nearest pixel, or the patch mirrored."""

_FACETS = ("xy", "xz", "yx", "yz", "zx", "zy")
_FLAT = (0.0, 0.0)


class _Linear(NamedTuple):
    """A 3 × 3 matrix, as elements of shape (B,): `rows[i][j]`, axes in the order x, y, z."""

    rows: tuple[tuple[Tensor, Tensor, Tensor], ...]

    def __matmul__(self, other: _Linear) -> _Linear:
        columns = tuple(zip(*other.rows, strict=True))
        return _Linear(
            tuple((_dot(row, columns[0]), _dot(row, columns[1]), _dot(row, columns[2])) for row in self.rows)
        )

    def invert(self) -> _Linear:
        """Return the inverse, by the cross products of the rows."""
        a, b, c = self.rows
        bc, ca, ab = _cross(b, c), _cross(c, a), _cross(a, b)
        scale = 1 / _dot(a, bc)
        return _Linear(tuple((bc[i] * scale, ca[i] * scale, ab[i] * scale) for i in range(3)))


class RandomAffineStack(nn.Module):
    """Turn, shear, scale and shift stacks about their centre, with linear interpolation.

    A pixel moves by `turn · scale · shear`, then by the shift, as in Kornia's `RandomAffine3D`. Where nothing but
    `scale` reaches along Z (no tilt, no shear with Z), planes are turned one by one, which gives the same at a fraction
    of the work.

    Parameters
    ----------
    degrees
        Range of the angle about Z.
    tilt
        Range of the angles about Y and X, which are drawn independently.
    shear
        Range of the shear angles in degrees: of x along y and of y along x, drawn independently; or six ranges, in the
        order xy, xz, yx, yz, zx, zy.
    scale
        Range of the magnification, > 0, the same along all axes; or three ranges (Z, Y, X), drawn independently.
    translate
        Largest shift along X and Y in either direction, as a fraction of the patch.
    z_spacing
        Distance of planes in pixels, which keeps shapes when a stack is tilted.
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
        degrees: tuple[float, float] = (-180.0, 180.0),
        tilt: tuple[float, float] = (0.0, 0.0),
        shear: Sequence[float] | Sequence[Sequence[float]] = (0.0, 0.0),
        scale: Sequence[float] | Sequence[Sequence[float]] = (1.0, 1.0),
        translate: float = 0.0,
        z_spacing: float = 1.0,
        border: Border = "zeros",
        p: float = 0.5,
    ) -> None:
        super().__init__()
        self.degrees = parse_range(self, "degrees", degrees)
        self.tilt = parse_range(self, "tilt", tilt)
        self.shear = _parse_shear(self, shear)
        self.scale = _parse_scale(self, scale)
        self.p = check_p(self, p)
        if z_spacing <= 0 or translate < 0:
            raise ValueError(
                f"RandomAffineStack: z_spacing={z_spacing} must be > 0 and translate={translate} >= 0. "
                "Give the distance of planes in pixels, and the shift as a fraction of the patch."
            )
        self.translate, self.z_spacing, self.border = translate, z_spacing, border
        self._flat = self.tilt == _FLAT and all(self.shear[name] == _FLAT for name in ("xz", "yz", "zx", "zy"))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Return the altered stacks."""
        inverse, shift = self._sample_inverse(x)
        moved = self._move_planes(x, inverse, shift) if self._flat else self._move_stack(x, inverse, shift)
        return torch.where(draw_gate(x, self.p), moved, x)

    def _sample_inverse(self, x: Float[Tensor, "b c z y x"]) -> tuple[_Linear, tuple[Tensor, Tensor]]:
        """Draw the map from places of the result to places of the stack, both in [-1, 1], and the shift before it."""

        def draw(bounds: Range) -> Tensor:
            return torch.rand(x.shape[0], device=x.device, dtype=x.dtype) * (bounds[1] - bounds[0]) + bounds[0]

        about_z, about_y, about_x = (torch.deg2rad(draw(r)) for r in (self.degrees, self.tilt, self.tilt))
        shear = _shearing({name: torch.tan(torch.deg2rad(draw(self.shear[name]))) for name in _FACETS})
        scale = [draw(r) for r in self.scale]
        scale_z, scale_y, scale_x = scale if len(scale) == 3 else scale * 3
        forward = _rotation(about_z, about_y, about_x) @ _diagonal(scale_x, scale_y, scale_z) @ shear
        size = (x.shape[4], x.shape[3], x.shape[2] * self.z_spacing)  # a patch is 2 wide along each axis here
        inverse = forward.invert()
        rows = tuple(tuple(inverse.rows[i][j] * (size[j] / size[i]) for j in range(3)) for i in range(3))
        reach = 2 * self.translate
        return _Linear(rows), (draw((-reach, reach)), draw((-reach, reach)))  # type: ignore[arg-type]

    def _move_stack(self, x: Tensor, inverse: _Linear, shift: tuple[Tensor, Tensor]) -> Tensor:
        rows = [torch.stack([*row, -(row[0] * shift[0] + row[1] * shift[1])], dim=1) for row in inverse.rows]
        grid = affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
        return grid_sample(x, grid, padding_mode=self.border, align_corners=False)

    def _move_planes(self, x: Tensor, inverse: _Linear, shift: tuple[Tensor, Tensor]) -> Tensor:
        x_row, y_row, z_row = inverse.rows
        if x.shape[2] > 1 and self.scale[0] != (1.0, 1.0):
            x = _scale_planes(x, z_row[2], self.border)
        rows = [torch.stack([r[0], r[1], -(r[0] * shift[0] + r[1] * shift[1])], dim=1) for r in (x_row, y_row)]
        planes = x.flatten(1, 2)  # (B, C·Z, Y, X): one grid for all planes of a sample
        grid = affine_grid(torch.stack(rows, dim=1), list(planes.shape), align_corners=False)
        moved = grid_sample(planes, grid, padding_mode=self.border, align_corners=False)
        return moved.reshape(x.shape)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        shear = {name: r for name, r in self.shear.items() if r != _FLAT}
        return (
            f"degrees={self.degrees}, tilt={self.tilt}, shear={shear}, scale={self.scale}, "
            f"translate={self.translate}, border={self.border}, p={self.p}"
        )


def _scale_planes(x: Float[Tensor, "b c z y x"], shrink: Float[Tensor, " b"], border: Border) -> Tensor:
    """Resample along Z only: plane z of the result lies at `shrink · z` of the stack, both from its centre."""
    depth = x.shape[2]
    middle = (depth - 1) / 2
    place = (torch.arange(depth, device=x.device, dtype=x.dtype) - middle) * shrink[:, None] + middle
    if border == "reflection":  # about the outer faces of the first and the last plane
        place = depth - 0.5 - ((place + 0.5).abs() % (2 * depth) - depth).abs()
    if border != "zeros":
        place = place.clamp(0, depth - 1)
    below = place.floor()
    upper = place - below
    result: Tensor | None = None
    for plane, weight in ((below, 1 - upper), (below + 1, upper)):
        inside = (plane >= 0) & (plane <= depth - 1)
        index = plane.clamp(0, depth - 1).long()[:, None, :, None, None].expand_as(x)
        part = x.gather(2, index) * weight.where(inside, 0.0)[:, None, :, None, None]
        result = part if result is None else result.add_(part)
    assert result is not None
    return result


def _parse_shear(module: nn.Module, shear: Sequence[float] | Sequence[Sequence[float]]) -> dict[str, Range]:
    if len(shear) == 2:
        flat = parse_range(module, "shear", shear)
        return {name: flat if name in ("xy", "yx") else _FLAT for name in _FACETS}
    if len(shear) != len(_FACETS):
        raise ValueError(
            f"RandomAffineStack: shear={shear} must be a range (low, high) or six of them, for {', '.join(_FACETS)}."
        )
    return {n: parse_range(module, f"shear[{n}]", s) for n, s in zip(_FACETS, shear, strict=True)}


def _parse_scale(module: nn.Module, scale: Sequence[float] | Sequence[Sequence[float]]) -> tuple[Range, ...]:
    if len(scale) not in (2, 3):
        raise ValueError(f"RandomAffineStack: scale={scale} must be a range (low, high) or three, for Z, Y and X.")
    ranges = [scale] if len(scale) == 2 else scale
    parsed = tuple(parse_range(module, "scale", r) for r in ranges)
    if any(low <= 0 for low, _ in parsed):
        raise ValueError(f"RandomAffineStack: scale={scale} must be > 0. 1.0 keeps the size, 2.0 doubles it.")
    return parsed


def _rotation(z: Tensor, y: Tensor, x: Tensor) -> _Linear:
    """Turn about Z, then Y, then X, by angles in radians, in the direction that Kornia turns."""
    cz, sz, cy, sy, cx, sx = z.cos(), z.sin(), y.cos(), y.sin(), x.cos(), x.sin()
    return _Linear(
        (
            (cz * cy, sz * cy, -sy),
            (cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx),
            (cz * sy * cx + sz * sx, sz * sy * cx - cz * sx, cy * cx),
        )
    )


def _shearing(s: dict[str, Tensor]) -> _Linear:
    """Shear x, then y, then z, each towards the two other axes, as Kornia does."""
    one, zero = torch.ones_like(s["xy"]), torch.zeros_like(s["xy"])
    of_x = _Linear(((one, zero, zero), (-s["xy"], one, zero), (-s["xz"], zero, one)))
    of_y = _Linear(((one, -s["yx"], zero), (zero, one, zero), (zero, -s["yz"], one)))
    of_z = _Linear(((one, zero, -s["zx"]), (zero, one, -s["zy"]), (zero, zero, one)))
    return of_x @ of_y @ of_z


def _diagonal(x: Tensor, y: Tensor, z: Tensor) -> _Linear:
    zero = torch.zeros_like(x)
    return _Linear(((x, zero, zero), (zero, y, zero), (zero, zero, z)))


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
