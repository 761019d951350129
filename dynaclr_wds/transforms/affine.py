"""Turns, shears, scales and shifts stacks in 3D, drawn per sample and the same for all channels.

Kornia's 3D rotations invert a matrix on the device and wait for its status. Here the inverse is written as a formula,
in which what is not drawn costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from dynaclr_wds.transforms.ranges import Range, check_p, draw_gate, parse_range

Border = Literal["zeros", "border", "reflection"]
"""What lies outside of a patch, as `grid_sample` names it: 0, the nearest pixel, or the patch mirrored."""

_FACETS = ("xy", "xz", "yx", "yz", "zx", "zy")
_FLAT = (0.0, 0.0)


Scalar = Tensor | float
"""A number per sample, (B,), or one that is the same for all: then nothing is asked of the device."""


class _Linear(NamedTuple):
    """A 3 × 3 matrix per sample: `rows[i][j]`, axes in the order x, y, z."""

    rows: tuple[tuple[Scalar, Scalar, Scalar], ...]

    def __matmul__(self, other: _Linear) -> _Linear:
        columns = tuple(zip(*other.rows, strict=True))
        return _Linear(
            tuple((_dot(row, columns[0]), _dot(row, columns[1]), _dot(row, columns[2])) for row in self.rows)
        )


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

    def _sample_inverse(self, x: Float[Tensor, "b c z y x"]) -> tuple[_Linear, tuple[Scalar, Scalar]]:
        """Draw the map from places of the result to places of the stack, both in [-1, 1], and the shift before it."""

        def draw(bounds: Range) -> Scalar:
            low, width = bounds[0], bounds[1] - bounds[0]
            if width == 0:
                return low
            return torch.rand(x.shape[0], device=x.device, dtype=x.dtype).mul_(width).add_(low)

        about_z, about_y, about_x = (_radians(draw(r)) for r in (self.degrees, self.tilt, self.tilt))
        shear = {name: _tan(_radians(draw(self.shear[name]))) for name in _FACETS}
        scale = [draw(r) for r in self.scale]
        scale_z, scale_y, scale_x = scale if len(scale) == 3 else scale * 3
        turn_back = _Linear(tuple(zip(*_rotation(about_z, about_y, about_x).rows, strict=True)))
        inverse = _unshearing(shear) @ _diagonal(1 / scale_x, 1 / scale_y, 1 / scale_z) @ turn_back
        size = (x.shape[4], x.shape[3], x.shape[2] * self.z_spacing)  # a patch is 2 wide along each axis here
        rows = tuple(tuple(_times(inverse.rows[i][j], size[j] / size[i]) for j in range(3)) for i in range(3))
        reach = 2 * self.translate
        return _Linear(rows), (draw((-reach, reach)), draw((-reach, reach)))  # type: ignore[arg-type]

    def _move_stack(self, x: Tensor, inverse: _Linear, shift: tuple[Scalar, Scalar]) -> Tensor:
        grid = x.new_empty((x.shape[0], *x.shape[2:], 3))
        for axis, row in enumerate(inverse.rows):
            _place(grid[..., axis], (row[2], row[1], row[0]), -_dot(row[:2], shift))
        return grid_sample(x, grid, padding_mode=self.border, align_corners=False)

    def _move_planes(self, x: Tensor, inverse: _Linear, shift: tuple[Scalar, Scalar]) -> Tensor:
        x_row, y_row, z_row = inverse.rows
        if x.shape[2] > 1 and self.scale[0] != (1.0, 1.0):
            x = _scale_planes(x, z_row[2], self.border)
        planes = x.flatten(1, 2)  # (B, C·Z, Y, X): one grid for all planes of a sample
        grid = x.new_empty((x.shape[0], *x.shape[3:], 2))
        for axis, row in enumerate((x_row, y_row)):
            _place(grid[..., axis], (row[1], row[0]), -_dot(row[:2], shift))
        moved = grid_sample(planes, grid, padding_mode=self.border, align_corners=False)
        return moved.reshape(x.shape)

    def extra_repr(self) -> str:
        """Say the settings in `print(module)`."""
        shear = {name: r for name, r in self.shear.items() if r != _FLAT}
        return (
            f"degrees={self.degrees}, tilt={self.tilt}, shear={shear}, scale={self.scale}, "
            f"translate={self.translate}, border={self.border}, p={self.p}"
        )


def _place(out: Float[Tensor, "b ..."], slopes: Sequence[Scalar], shift: Scalar) -> None:
    """Write, for every pixel, `shift` + the sum over axes of slope times its place in [-1, 1].

    `torch.nn.functional.affine_grid` gives the same, by a matrix product that takes several times as long and that
    torch may compute in TF32, with a tenth of a pixel of error.
    """
    total, count = _per_sample(shift, out), out.ndim - 1
    for axis, slope in enumerate(slopes):
        size = out.shape[axis + 1]
        place = torch.arange(1 - size, size, 2, device=out.device, dtype=out.dtype) / size  # centres of pixels
        view = [1] * out.ndim
        view[axis + 1] = size
        target = out if axis + 1 == count else None
        total = torch.addcmul(total, _per_sample(slope, out), place.view(view), out=target)


def _per_sample(value: Scalar, like: Float[Tensor, "b ..."]) -> Tensor:
    """Return a number per sample in a shape that goes with `like`."""
    if not isinstance(value, Tensor):
        value = like.new_full((like.shape[0],), value)
    return value.view(-1, *[1] * (like.ndim - 1))


def _scale_planes(x: Float[Tensor, "b c z y x"], shrink: Scalar, border: Border) -> Tensor:
    """Resample along Z only: plane z of the result lies at `shrink · z` of the stack, both from its centre."""
    depth = x.shape[2]
    middle = (depth - 1) / 2
    place = (torch.arange(depth, device=x.device, dtype=x.dtype) - middle) * _per_sample(shrink, x[:, 0, 0, 0]) + middle
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


def _rotation(z: Scalar, y: Scalar, x: Scalar) -> _Linear:
    """Turn about Z, then Y, then X, by angles in radians, in the direction that Kornia turns."""
    (cz, sz), (cy, sy), (cx, sx) = ((_cos(angle), _sin(angle)) for angle in (z, y, x))
    about_x = _Linear(((1.0, 0.0, 0.0), (0.0, cx, sx), (0.0, -sx, cx)))
    about_y = _Linear(((cy, 0.0, -sy), (0.0, 1.0, 0.0), (sy, 0.0, cy)))
    about_z = _Linear(((cz, sz, 0.0), (-sz, cz, 0.0), (0.0, 0.0, 1.0)))
    return about_x @ about_y @ about_z


def _unshearing(s: dict[str, Scalar]) -> _Linear:
    """Undo shearing x, then y, then z, each towards the two other axes, as Kornia does: negate each, in reverse."""
    of_x = _Linear(((1.0, 0.0, 0.0), (s["xy"], 1.0, 0.0), (s["xz"], 0.0, 1.0)))
    of_y = _Linear(((1.0, s["yx"], 0.0), (0.0, 1.0, 0.0), (0.0, s["yz"], 1.0)))
    of_z = _Linear(((1.0, 0.0, s["zx"]), (0.0, 1.0, s["zy"]), (0.0, 0.0, 1.0)))
    return of_z @ of_y @ of_x


def _diagonal(x: Scalar, y: Scalar, z: Scalar) -> _Linear:
    return _Linear(((x, 0.0, 0.0), (0.0, y, 0.0), (0.0, 0.0, z)))


def _radians(degrees: Scalar) -> Scalar:
    return degrees * (math.pi / 180)


def _cos(angle: Scalar) -> Scalar:
    return angle.cos() if isinstance(angle, Tensor) else math.cos(angle)


def _sin(angle: Scalar) -> Scalar:
    return angle.sin() if isinstance(angle, Tensor) else math.sin(angle)


def _tan(angle: Scalar) -> Scalar:
    return angle.tan() if isinstance(angle, Tensor) else math.tan(angle)


def _times(a: Scalar, b: Scalar) -> Scalar:
    """Multiply; known zeros and ones cost nothing on the device."""
    for one, other in ((a, b), (b, a)):
        if not isinstance(one, Tensor) and one in (0.0, 1.0):
            return other if one else 0.0
    return a * b


def _dot(a: Sequence[Scalar], b: Sequence[Scalar]) -> Scalar:
    terms = [_times(one, other) for one, other in zip(a, b, strict=True)]
    known = sum(term for term in terms if not isinstance(term, Tensor))
    total: Scalar = known
    for term in terms:
        if isinstance(term, Tensor):
            total = term if not isinstance(total, Tensor) and total == 0 else total + term
    return total
