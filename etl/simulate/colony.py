"""Simulates cells that move, divide, die and respond: gives the living cells of every frame.

A cell is one record of `CELL`. Each lineage has a style: size, brightness, shape, how organelles are arranged, when and
how strongly it responds to infection. Daughters inherit the style almost unchanged. Where each organelle lies is drawn
for every cell and changes within hours, so texture lasts along a lineage and pixels do not. Infection gathers the
filaments in clumps, coarsens the cytoplasm, rounds the cell and slows it down. It changes neither the number of cells,
nor where they are, nor how bright they are as a whole.

The world is a torus somewhat larger than the frame: cells enter and leave across the border, and a cell that has gone
around the torus counts as another cell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from etl.simulate.design import ExperimentDesign, SimulationConfig

CHAINS, LINKS = 9, 5
GRANULES = CHAINS * LINKS
"""Organelles per cell: chains of links that look like filaments."""
CLUMPS = 3

CELL = np.dtype(
    [
        ("cell", "i4"),  # number in the FOV, in order of appearance
        ("parent", "i4"),  # cell it was born of, -1 = none
        ("y", "f4"),
        ("x", "f4"),
        ("vy", "f4"),  # pixels per hour
        ("vx", "f4"),
        ("angle", "f4"),
        ("age", "f4"),  # hours since birth
        ("divides_at", "f4"),  # age
        ("dies_at", "f4"),  # age
        ("rounding", "f4"),  # 0 spread .. 1 ball
        ("severity", "f4"),  # 0 healthy .. 1 full response
        # style of the lineage
        ("size", "f4"),
        ("brightness", "f4"),
        ("elongation", "f4"),
        ("lobes", "f4"),
        ("grain", "f4"),  # organelle radius over cell radius
        ("clumping", "f4"),  # of the healthy cell, 0 .. 1
        ("texture", "f4"),  # zoom of the cytoplasm's texture
        ("onset", "f4"),  # HPI of half response, +inf = does not respond
        ("response", "f4"),  # severity in the end
        # of this cell only; positions in cell radii
        ("lobe_angle", "f4"),
        ("tile", "f4", (2,)),  # where in the texture tile it looks
        ("filaments", "f4", (CHAINS, LINKS, 2)),  # where organelles of a healthy cell lie
        ("clump", "f4", (CLUMPS, 2)),  # angle and distance of where they gather
        ("home", "i4", (GRANULES,)),  # the clump an organelle goes to
        ("jitter", "f4", (GRANULES, 2)),  # its place in the clump
        ("drift", "f4", (GRANULES, 2)),
        ("depth", "f4", (GRANULES,)),
    ]
)

Cells = Shaped[np.ndarray, " n"]
"""Records of dtype `CELL`."""
MoreCells = Shaped[np.ndarray, " k"]
_CYCLE_HOURS, _LIFE_HOURS = 20.0, 90.0
_STYLE_DRIFT = 0.03
_RESPONSE_HOURS = 1.5


def sample_frames(
    rng: np.random.Generator, config: SimulationConfig, design: ExperimentDesign, infected: bool
) -> Iterator[Cells]:
    """Yield the cells (dtype `CELL`) of one FOV, frame after frame, those beyond the border included."""
    margin = 2.5 * config.cell_radius
    side = config.size + 2 * margin
    density = config.cells * rng.uniform(0.8, 1.2) * (side / config.size) ** 2
    n_start = max(int(rng.poisson(density)), 1)
    cells = sample_cells(rng, n_start, config, infected=infected)
    cells["age"] = rng.uniform(0, 0.9, n_start) * np.minimum(cells["divides_at"], cells["dies_at"])
    cells["y"], cells["x"] = rng.uniform(-margin, config.size + margin, (2, n_start))
    cells["cell"] = np.arange(n_start)
    for _ in range(20):
        _apply_repulsion(cells, config.cell_radius, side)
    count, hours = n_start, design.interval_minutes / 60
    for frame in range(config.frames):
        if frame:
            _sample_motion(rng, cells, config, design.speed_px_per_hour, hours)
            cells, count = _sample_events(rng, cells, count, crowded=len(cells) > 1.6 * density)
            count = _sample_arrivals(rng, cells, count, config, infected=infected)
        _apply_state(cells, design.hpi(frame))
        yield cells.copy()


def sample_cells(rng: np.random.Generator, n: int, config: SimulationConfig, *, infected: bool) -> Cells:
    """Draw n cells without parents, at the origin and of age 0."""
    cells = np.zeros(n, CELL)
    cells["parent"] = -1
    cells["size"] = np.clip(rng.lognormal(0, 0.12, n), 0.75, 1.3)
    cells["brightness"] = rng.lognormal(0, 0.35, n)
    cells["elongation"] = rng.uniform(0.02, 0.26, n)
    cells["lobes"] = rng.uniform(0.0, 0.12, n)
    cells["grain"] = rng.uniform(0.055, 0.085, n)
    cells["clumping"] = 0.45 * rng.beta(1.5, 4.0, n)
    cells["texture"] = rng.lognormal(0, 0.2, n)
    cells["onset"] = rng.normal(config.onset_hpi, 1.0, n) if infected else np.inf
    cells["response"] = rng.beta(9.0, 1.5, n)
    _sample_body(rng, cells)
    return cells


def _sample_body(rng: np.random.Generator, cells: Cells) -> None:
    """Draw what every newborn cell has of its own: fate, pose, and where its organelles are."""
    n = len(cells)
    cells["age"] = 0
    cells["divides_at"] = _CYCLE_HOURS * rng.gamma(25.0, 1 / 25.0, n)
    cells["dies_at"] = rng.exponential(_LIFE_HOURS, n) + 2.0
    cells["angle"], cells["lobe_angle"] = rng.uniform(0, 2 * np.pi, (2, n))
    cells["tile"] = rng.uniform(0, 256, (n, 2))
    cells["filaments"] = _sample_filaments(rng, n)
    cells["clump"] = np.stack([rng.uniform(0, 2 * np.pi, (n, CLUMPS)), rng.uniform(0.4, 0.6, (n, CLUMPS))], axis=-1)
    cells["home"] = rng.choice(CLUMPS, (n, GRANULES), p=[0.5, 0.3, 0.2])
    cells["jitter"] = rng.normal(0, 0.09, (n, GRANULES, 2))
    cells["drift"] = rng.standard_normal((n, GRANULES, 2))
    cells["depth"] = rng.uniform(-1, 1, (n, GRANULES))


def _sample_filaments(rng: np.random.Generator, n: int) -> Float[np.ndarray, "n chains links 2"]:
    """Lay chains of organelles around the nucleus, along the outline or somewhat across it."""
    start = rng.uniform(0, 2 * np.pi, (n, CHAINS, 1))
    reach = rng.uniform(0.42, 0.85, (n, CHAINS, 1))
    link = np.arange(LINKS) - LINKS // 2
    curl = rng.normal(0, 0.05, (n, CHAINS, 1)) * link
    return _to_yx(start + 0.13 * link / reach, reach + curl)


def _to_yx(theta: Float[np.ndarray, "*s"], radius: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s 2"]:
    return np.stack([radius * np.sin(theta), radius * np.cos(theta)], axis=-1)


def _sample_motion(
    rng: np.random.Generator, cells: Cells, config: SimulationConfig, speed: float, hours: float
) -> None:
    """Move by a persistent random walk (Ornstein-Uhlenbeck velocity) and turn; what is inside moves too."""
    n = len(cells)
    keep = np.float32(np.exp(-hours / 1.5))
    push = np.float32(np.sqrt(1 - keep**2))
    sigma = speed * (1 - 0.6 * cells["severity"]) * (1 - 0.9 * cells["rounding"]) / np.sqrt(2)
    for axis in ("vy", "vx"):
        cells[axis] = keep * cells[axis] + push * sigma * rng.standard_normal(n)
    cells["y"] += cells["vy"] * hours
    cells["x"] += cells["vx"] * hours
    cells["angle"] += 0.35 * np.sqrt(hours) * rng.standard_normal(n)
    cells["lobe_angle"] += 0.6 * np.sqrt(hours) * rng.standard_normal(n)
    cells["age"] += hours
    _sample_insides(rng, cells, hours)
    _apply_repulsion(cells, config.cell_radius, config.size + 5 * config.cell_radius)


def _sample_insides(rng: np.random.Generator, cells: Cells, hours: float) -> None:
    """Rearrange organelles and texture: within two hours little is left of the arrangement, but all of its style."""
    n = len(cells)
    keep = np.float32(np.exp(-hours))
    push = np.float32(np.sqrt(1 - keep**2))
    cells["drift"] = keep * cells["drift"] + push * rng.standard_normal((n, GRANULES, 2), dtype=np.float32)
    anew = rng.random((n, CHAINS)) >= keep
    cells["filaments"] = np.where(anew[..., None, None], _sample_filaments(rng, n), cells["filaments"])
    cells["clump"][..., 0] += 1.2 * np.sqrt(hours) * rng.standard_normal((n, CLUMPS))
    cells["tile"] += 20 * np.sqrt(hours) * rng.standard_normal((n, 2))


def _apply_repulsion(cells: Cells, radius: float, side: float) -> None:
    """Push cells apart that lie closer than about one diameter, half of the overlap at a time."""
    apart = np.stack([cells[a][:, None] - cells[a][None, :] for a in ("y", "x")])
    apart -= side * np.round(apart / side)
    distance = np.maximum(np.hypot(*apart), 1e-3)
    overlap = np.clip(1.8 * radius - distance, 0, None)
    np.fill_diagonal(overlap, 0)
    cells["y"] += 0.25 * (apart[0] / distance * overlap).sum(1)
    cells["x"] += 0.25 * (apart[1] / distance * overlap).sum(1)


def _sample_events(rng: np.random.Generator, cells: Cells, count: int, *, crowded: bool) -> tuple[MoreCells, int]:
    """Remove the dead and replace mothers by their daughters; a crowded dish puts divisions off."""
    due = (cells["age"] >= cells["divides_at"]) & (cells["divides_at"] <= cells["dies_at"])
    if crowded:
        cells["divides_at"][due] = cells["age"][due] + 2.0
        due[:] = False
    dead = ~due & (cells["age"] >= cells["dies_at"])
    daughters = sample_daughters(rng, cells[due])
    daughters["cell"] = count + np.arange(len(daughters))
    return np.concatenate([cells[~due & ~dead], daughters]), count + len(daughters)


def sample_daughters(rng: np.random.Generator, mothers: Cells) -> MoreCells:
    """Divide each mother in two, side by side along her axis, with her style a little changed."""
    daughters = np.repeat(mothers, 2)
    n = len(daughters)
    daughters["parent"] = daughters["cell"]
    for name in ("size", "brightness", "elongation", "lobes", "grain", "clumping", "texture"):
        daughters[name] *= rng.lognormal(0, _STYLE_DRIFT, n)
    _sample_body(rng, daughters)
    side = np.where(np.arange(n) % 2, 1.0, -1.0) * 8.0 * daughters["size"]
    axis = np.repeat(mothers["angle"], 2)
    daughters["y"] += side * np.sin(axis)
    daughters["x"] += side * np.cos(axis)
    daughters["vy"] = daughters["vx"] = 0
    return daughters


def _sample_arrivals(
    rng: np.random.Generator, cells: Cells, count: int, config: SimulationConfig, *, infected: bool
) -> int:
    """Wrap positions; a cell that comes round the torus, unseen, comes in as another one."""
    margin = 2.5 * config.cell_radius
    side = config.size + 2 * margin
    gone = np.zeros(len(cells), bool)
    for axis in ("y", "x"):
        wrapped = np.mod(cells[axis] + margin, side) - margin
        gone |= np.abs(wrapped - cells[axis]) > 1
        cells[axis] = wrapped
    return count + _sample_strangers(rng, cells, gone, count, config, infected=infected)


def _sample_strangers(
    rng: np.random.Generator,
    cells: Cells,
    gone: Bool[np.ndarray, " n"],
    count: int,
    config: SimulationConfig,
    *,
    infected: bool,
) -> int:
    n = int(gone.sum())
    if not n:
        return 0
    strangers = sample_cells(rng, n, config, infected=infected)
    for name in ("y", "x", "vy", "vx"):
        strangers[name] = cells[name][gone]
    strangers["age"] = rng.uniform(2.0, 0.8 * _CYCLE_HOURS, n)
    strangers["divides_at"] = np.maximum(strangers["divides_at"], strangers["age"] + 1.0)
    strangers["dies_at"] += strangers["age"]
    strangers["cell"] = count + np.arange(n, dtype=np.int32)
    cells[gone] = strangers
    return n


def _apply_state(cells: Cells, hpi: float) -> None:
    """Set what follows from age and time: rounding at division and death, severity of the response."""
    to_event = np.minimum(cells["divides_at"], cells["dies_at"]) - cells["age"]
    before = np.clip(1 - to_event / 0.9, 0, 1)
    after = np.where(cells["parent"] >= 0, np.clip(1 - cells["age"] / 1.0, 0, 1), 0) * 0.8
    cells["rounding"] = np.maximum(before, after)
    cells["severity"] = cells["response"] / (1 + np.exp((cells["onset"] - hpi) / (_RESPONSE_HOURS / 2)))


def organelle_positions(cells: Cells) -> Float[np.ndarray, "n granules 2"]:
    """Return where organelles lie, (y, x) in cell radii before rotation."""
    pull = cells["clumping"] + cells["severity"] * (1 - cells["clumping"])
    pull = pull[:, None, None].astype(np.float32)
    centre = _to_yx(cells["clump"][..., 0], cells["clump"][..., 1])
    gathered = np.take_along_axis(centre, cells["home"][..., None], axis=1) + cells["jitter"]
    resting = (1 - pull) * cells["filaments"].reshape(-1, GRANULES, 2) + pull * gathered
    position: Float[np.ndarray, "n granules 2"] = resting + np.float32(0.04) * cells["drift"]
    return position


def inside(cells: Cells, size: int) -> Int[np.ndarray, " k"]:
    """Rows of the cells whose centre lies within the frame."""
    return np.flatnonzero((cells["y"] >= 0) & (cells["y"] <= size - 1) & (cells["x"] >= 0) & (cells["x"] <= size - 1))
