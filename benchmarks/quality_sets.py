"""Plates to the sets of shards that the quality benchmark trains on, with what is held out of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaclr_wds.shardset import ShardSet
from etl.build_shards import build_shards
from etl.simulate.__main__ import simulate_collection
from etl.simulate.design import SimulationConfig
from etl.source.experiments import parse_build_config

SIMULATED = SimulationConfig(wells=4, fovs=5, frames=26, cells=14, condition_ratio=(3, 1))
"""Three of four wells are uninfected, so that there is something to balance."""
STORED = {"shard_bytes": 1 << 22, "block_bytes": 1 << 17, "clip_anchors": 8}
"""Shards, blocks and clips are as small beside the set as those of a large set are."""
PATCH = 64
MOVIE_STEPS = 160
"""Of a training on the movies, which are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained on and what is judged."""

    name: str
    shards: Path
    label: str
    """`experiment`, or another label that shards are partitioned by."""
    held_out: tuple[str, ...]
    """Values of it that are judged and never trained on."""
    tau_hours: tuple[float, float]
    """From anchor to positive."""
    again_hours: float
    """After which a cell is to be found again."""
    late_hpi: float | None = None
    """Cells are judged by their condition from here on; None = not at all."""
    read: int = 48
    """Pixels (Y and X) that are read and augmented."""
    side: int = 40
    """Pixels that the network sees of them."""
    batch_size: int = 48
    steps: int = 960

    @property
    def split(self) -> dict[str, Any]:
        """What the DataModule is told to hold out."""
        if self.label == "experiment":
            return {"val_experiments": list(self.held_out)}
        return {"split": self.label, "val_values": list(self.held_out)}


def build(yaml: Path, out: Path, tau_hours: tuple[float, float], **options: Any) -> Path:
    """Build shards, or find that they are there."""
    asked: Mapping[str, Any] = {
        "yx_patch_size": [PATCH, PATCH],
        "tau_range_hours": list(tau_hours),
        **STORED,
        **options,
    }
    build_shards(parse_build_config(yaml, asked), out)
    return out


def make_simulated(root: Path, config: SimulationConfig = SIMULATED) -> list[Task]:
    """Simulate four experiments; the last one is held out."""
    tau_hours = (1.0, 2.0)
    yaml = simulate_collection(root / "simulated", config)
    shards = build(yaml, root / "simulated_shards", tau_hours)
    return [
        Task(
            name="simulated",
            shards=shards,
            label="experiment",
            held_out=(ShardSet.open(shards).experiments[-1],),
            tau_hours=tau_hours,
            again_hours=1.0,
            late_hpi=config.onset_hpi + 2.0,
        )
    ]


def make_movies(root: Path, yaml: Path) -> list[Task]:
    """Build shards of several movies with a channel each; every movie is held out in turn."""
    tau_hours = (0.25, 1.0)
    shards = build(yaml, root / "movie_shards", tau_hours)
    records = ShardSet.open(shards).manifest.experiments
    return [
        Task(
            name=record.name,
            shards=shards,
            label="experiment",
            held_out=(record.name,),
            tau_hours=tau_hours,
            again_hours=min(1.0, 3 * record.interval_minutes / 60),
            steps=MOVIE_STEPS,
        )
        for record in records
    ]
