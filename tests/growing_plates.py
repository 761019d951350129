"""Plates that are still being acquired: movies of some frames, to which more are added, pixels and tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from tests.plates import Rows, random_tracks, write_experiments, write_plate, write_tracks

FOVS = ("A/1/0", "A/1/1", "B/2/0")
CHANNELS = ("Phase", "GFP")


class GrowingPlate:
    """One experiment, of which the frames below `frames` are there.

    Wells of row A are `control`, others `infected`. One frame is 30 minutes, and τ is 1 to 2 frames.
    """

    def __init__(self, root: Path, *, frames: int, most: int, version: str = "0.5", **options: Any) -> None:
        rng = np.random.default_rng(5)
        self.root, self.version, self.most = root, version, most
        self.pixels = {fov: rng.integers(1, 900, (most, 2, 1, 32, 32)).astype("uint16") for fov in FOVS}
        self.tracks: dict[str, Rows] = {
            fov: random_tracks(rng, frames=most, height=32, width=32, lineages=4) for fov in FOVS
        }
        entry = {
            "name": "e0",
            "data_path": "plate.zarr",
            "tracks_path": "tracks",
            "channel_names": list(CHANNELS),
            "source_channel": list(CHANNELS),
            "condition_wells": {"control": ["A/1"], "infected": ["B/2"]},
            "interval_minutes": 30.0,
            "start_hpi": 2.0,
        }
        given = {"yx_patch_size": [16, 16], "tau_range_hours": [0.5, 1.0], "max_border_shift_px": 9999}
        self.yaml = write_experiments(root / "experiments.yaml", [entry], **given | options)
        self.frames = frames

    def write(self) -> Path:
        """Write what is there; return the experiments.yaml."""
        chunks = (1, 1, 1, 32, 32)
        there = {fov: pixels[: self.frames] for fov, pixels in self.pixels.items()}
        write_plate(self.root / "plate.zarr", version=self.version, fovs=FOVS, pixels=there, chunks=chunks)
        self.write_tracks_so_far()
        return self.yaml

    def grow(self, frames: int) -> None:
        """Add frames: the chunks that are there are not touched."""
        for fov, pixels in self.pixels.items():
            driver = "zarr3" if self.version == "0.5" else "zarr"
            path = self.root / "plate.zarr" / fov / "0"
            array = ts.open({"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}).result()
            array = array.resize(exclusive_max=[frames, *pixels.shape[1:]]).result()
            array[self.frames : frames] = pixels[self.frames : frames]
        self.frames = frames
        self.write_tracks_so_far()

    def write_tracks_so_far(self) -> None:
        """Write the tracks of the frames that are there."""
        for fov, rows in self.tracks.items():
            write_tracks(self.root / "tracks", fov, [row for row in rows if row["t"] < self.frames])
