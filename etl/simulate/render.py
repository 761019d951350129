"""Draws frames: all cells of a frame are drawn on a stack of stamps, which are then added to the frame.

Organelles are Gaussians, which separate into y and x, so all organelles of a cell are one matrix product. Bodies are
closed curves in polar coordinates. A frame of 256 × 256 with 20 cells takes a few milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Shaped, UInt16

from etl.simulate.colony import organelle_positions
from etl.simulate.design import ChannelDesign, ExperimentDesign, SimulationConfig

_TILE = 256

Stamps = Float32[np.ndarray, "n s s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenery:
    """Light and background of one FOV, which are the same in every frame."""

    light: Float32[np.ndarray, "y x"]
    """Relative illumination. Phase images are drawn without it, as if they were corrected."""
    ground: Float32[np.ndarray, "y x"]
    """Uneven background of the phase channel."""
    tile: Float32[np.ndarray, "t t"]
    """Texture of the cytoplasm, periodic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """Geometry of the cells of one frame, on stamps of s × s pixels."""

    top: Int[np.ndarray, " n"]
    """First row of the stamp in the frame; may be negative."""
    left: Int[np.ndarray, " n"]
    offset_y: Float32[np.ndarray, " n"]
    """Distance of the centre from the middle of the stamp, in pixels."""
    offset_x: Float32[np.ndarray, " n"]
    radius: Float32[np.ndarray, " n"]
    """In pixels."""
    rho: Stamps
    """Distance from the centre over the distance of the outline: 1 at the outline."""
    mask: Stamps
    """1 inside, 0 outside, soft by a pixel."""
    nucleus: Stamps


def sample_scenery(rng: np.random.Generator, config: SimulationConfig, design: ExperimentDesign) -> Scenery:
    """Draw illumination, background and texture of one FOV."""
    axis = np.linspace(-1, 1, config.size, dtype=np.float32)
    shift = rng.uniform(-0.3, 0.3, 2)
    squared = (axis[:, None] - shift[0]) ** 2 + (axis[None, :] - shift[1]) ** 2
    light = 1 - design.vignette * squared / 2
    return Scenery(
        light=light.astype(np.float32),
        ground=_sample_noise(rng, config.size, 1 / 40) * np.float32(0.03)
        + _sample_noise(rng, config.size, 1 / 3) * np.float32(0.02),
        tile=_sample_noise(rng, _TILE, 1 / 7),
    )


def _sample_noise(rng: np.random.Generator, size: int, cutoff: float) -> Float32[np.ndarray, "y x"]:
    """Periodic noise of mean 0 and variance 1 with features of about 1 / cutoff pixels."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    f2 = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None, :] ** 2
    spectrum *= np.exp(-f2 / (2 * (cutoff / 2) ** 2))
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (size, size))
    return (noise / max(float(noise.std()), 1e-9)).astype(np.float32)


def render_frame(
    rng: np.random.Generator,
    cells: Shaped[np.ndarray, " n"],
    scenery: Scenery,
    config: SimulationConfig,
    design: ExperimentDesign,
) -> UInt16[np.ndarray, "c z y x"]:
    """Draw one frame of one FOV (cells of dtype `CELL`), noise included; `rng` draws the noise only."""
    bodies = _outline(cells, config)
    frame = np.empty((len(design.channels), config.z, config.size, config.size), np.uint16)
    for plane in range(config.z):
        focus = 0.0 if config.z == 1 else 2 * plane / (config.z - 1) - 1
        organelles = _organelles(cells, bodies, design.blur_px, focus, config.cell_radius)
        for c, channel in enumerate(design.channels):
            stamps = _STAMPS[channel.kind](cells, bodies, organelles, scenery.tile, focus)
            signal = _paste(stamps, bodies, config.size)
            frame[c, plane] = _detect(rng, signal, scenery, channel)
    return frame


def _outline(cells: Shaped[np.ndarray, " n"], config: SimulationConfig) -> Bodies:
    half = math.ceil(2.4 * config.cell_radius)
    growth = np.clip(0.88 + 0.012 * cells["age"], 0.88, 1.12)
    radius = (config.cell_radius * cells["size"] * growth * (1 - 0.28 * cells["rounding"])).astype(np.float32)
    mid_y, mid_x = np.round(cells["y"]).astype(np.int64), np.round(cells["x"]).astype(np.int64)
    offset_y, offset_x = (cells["y"] - mid_y).astype(np.float32), (cells["x"] - mid_x).astype(np.float32)
    grid = np.arange(-half, half + 1, dtype=np.float32)
    dy, dx = grid[None, :, None] - offset_y[:, None, None], grid[None, None, :] - offset_x[:, None, None]
    theta = np.arctan2(dy, dx)
    spread = (1 - cells["rounding"]) * (1 - 0.45 * cells["severity"])
    a2, a3 = (_column(cells[name] * spread) for name in ("elongation", "lobes"))
    edge = (
        1 + a2 * np.cos(2 * (theta - _column(cells["angle"]))) + a3 * np.cos(3 * (theta - _column(cells["lobe_angle"])))
    )
    rho = np.hypot(dy, dx) / (_column(radius) * edge)
    return Bodies(
        top=mid_y - half,
        left=mid_x - half,
        offset_y=offset_y,
        offset_x=offset_x,
        radius=radius,
        rho=rho,
        mask=_soft_step((1 - rho) * _column(radius) / 2 + 0.5),
        nucleus=_soft_step((0.36 - rho) * _column(radius) / 2 + 0.5),
    )


def _column(values: Shaped[np.ndarray, " n"]) -> Float32[np.ndarray, "n 1 1"]:
    return values.astype(np.float32)[:, None, None]


def _soft_step(x: Stamps) -> Stamps:
    x = np.clip(x, 0, 1)
    smooth: Stamps = x * x * (3 - 2 * x)
    return smooth


def _organelles(
    cells: Shaped[np.ndarray, " n"], bodies: Bodies, blur_px: float, focus: float, cell_radius: float
) -> Stamps:
    """Sum of Gaussians of equal flux, as (weighted y profiles)ᵀ · (x profiles), a product per cell."""
    position = organelle_positions(cells) * bodies.radius[:, None, None]
    cos, sin = np.cos(cells["angle"])[:, None], np.sin(cells["angle"])[:, None]
    y = position[..., 0] * cos + position[..., 1] * sin + bodies.offset_y[:, None]
    x = position[..., 1] * cos - position[..., 0] * sin + bodies.offset_x[:, None]
    grain = cells["grain"] * (1 + 0.35 * cells["severity"]) * bodies.radius
    defocus = 0.12 * cell_radius * (focus - cells["depth"]) if focus else np.zeros_like(cells["depth"])
    variance = (grain[:, None] ** 2 + blur_px**2 + defocus**2).astype(np.float32)
    half = bodies.rho.shape[1] // 2
    grid = np.arange(-half, half + 1, dtype=np.float32)
    scale = (-0.5 / variance)[..., None]
    profile_y = np.exp((grid - y[..., None]) ** 2 * scale) / variance[..., None]
    profile_x = np.exp((grid - x[..., None]) ** 2 * scale)
    stamps: Stamps = np.matmul(profile_y.transpose(0, 2, 1), profile_x) * bodies.mask
    return stamps


def _organelle_stamps(
    cells: Shaped[np.ndarray, " n"], bodies: Bodies, organelles: Stamps, tile: Shaped[np.ndarray, "t t"], focus: float
) -> Stamps:
    del tile, focus
    diffuse = 0.16 * bodies.mask * (1 - 0.7 * bodies.nucleus)
    stamps: Stamps = _column(cells["brightness"]) * (0.35 * organelles + diffuse)
    return stamps


def _nucleus_stamps(
    cells: Shaped[np.ndarray, " n"], bodies: Bodies, organelles: Stamps, tile: Shaped[np.ndarray, "t t"], focus: float
) -> Stamps:
    del organelles
    grainy = 1 + 0.25 * _texture(cells, bodies, tile, zoom=1.5)
    stamps: Stamps = bodies.nucleus * grainy * (1 + _column(cells["rounding"])) * np.float32(1 - 0.3 * abs(focus))
    return stamps


def _phase_stamps(
    cells: Shaped[np.ndarray, " n"], bodies: Bodies, organelles: Stamps, tile: Shaped[np.ndarray, "t t"], focus: float
) -> Stamps:
    """Optical thickness: a dome with a nucleus, organelles and grain, and the dark rim of phase contrast."""
    dome = np.sqrt(np.clip(1 - bodies.rho**2, 0, None))
    coarse = 1 - 0.45 * cells["severity"]
    grain = _texture(cells, bodies, tile, zoom=1.6 * cells["texture"] * coarse)
    body = dome * (0.45 + 0.75 * _column(cells["rounding"])) + 0.1 * bodies.mask
    rim = np.exp(-(((bodies.rho - 1.12) / 0.12) ** 2))
    inner = bodies.mask * (1 - bodies.nucleus) * grain * 0.13 - 0.14 * bodies.nucleus + 0.05 * organelles
    stamps: Stamps = (body + inner - 0.22 * rim) * np.float32(1 - 0.5 * abs(focus))
    return stamps


_STAMPS = {"phase": _phase_stamps, "organelle": _organelle_stamps, "nucleus": _nucleus_stamps}


def _texture(
    cells: Shaped[np.ndarray, " n"],
    bodies: Bodies,
    tile: Shaped[np.ndarray, "t t"],
    zoom: float | Shaped[np.ndarray, " n"],
) -> Stamps:
    """Look the texture up around each cell's own place in the tile, turned with the cell."""
    half = bodies.rho.shape[1] // 2
    grid = np.arange(-half, half + 1, dtype=np.float32)
    step = np.broadcast_to(np.asarray(zoom, np.float32), len(cells))
    cos, sin = _column(np.cos(cells["angle"]) * step), _column(np.sin(cells["angle"]) * step)
    y, x = grid[None, :, None], grid[None, None, :]
    row = (y * cos - x * sin + _column(cells["tile"][:, 0])).astype(np.int32) % _TILE
    column = (y * sin + x * cos + _column(cells["tile"][:, 1])).astype(np.int32) % _TILE
    looked_up: Stamps = tile[row, column]
    return looked_up


def _paste(stamps: Stamps, bodies: Bodies, size: int) -> Float32[np.ndarray, "y x"]:
    """Add the stamps to an empty frame, cut at its border."""
    s = stamps.shape[1]
    canvas = np.zeros((size + 2 * s, size + 2 * s), np.float32)
    rows = np.clip(bodies.top + s, 0, size + s)
    columns = np.clip(bodies.left + s, 0, size + s)
    for stamp, top, left in zip(stamps, rows.tolist(), columns.tolist(), strict=True):
        canvas[top : top + s, left : left + s] += stamp
    return canvas[s : s + size, s : s + size]


def _detect(
    rng: np.random.Generator, signal: Float32[np.ndarray, "y x"], scenery: Scenery, channel: ChannelDesign
) -> UInt16[np.ndarray, "y x"]:
    """Turn signal into counts: gain, background, read noise, and shot noise in fluorescence."""
    if channel.kind == "phase":
        counts = channel.background + channel.gain * (signal + scenery.ground)
        noise = np.float32(channel.noise)
    else:
        counts = channel.background + channel.gain * scenery.light * signal
        noise = np.sqrt(channel.noise**2 + 2.0 * np.maximum(counts, 0)).astype(np.float32)
    counts = counts + noise * rng.standard_normal(counts.shape, dtype=np.float32)
    # a camera never reads zero: a frame of zeros would mean a lost frame
    detected: UInt16[np.ndarray, "y x"] = np.clip(np.rint(counts), 1, 65535).astype(np.uint16)
    return detected
