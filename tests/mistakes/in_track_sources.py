"""Mistakes in tracks that are no table per FOV, and in images that are in no plate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr

from tests.mistakes.in_experiments_yaml import BUILD
from tests.mistakes.world import Mistake, World

_SPOTS = "".join(
    f'<Spot ID="{n}" FRAME="{t}" POSITION_X="9" POSITION_Y="{9 + n}" POSITION_Z="0"/>'
    for n, t in enumerate((0, 0, 1, 1))
)
_EDGES = "".join(f'<Edge SPOT_SOURCE_ID="{a}" SPOT_TARGET_ID="{b}"/>' for a, b in ((0, 2), (1, 2), (1, 3)))
_MERGED = (
    '<TrackMate><Model spatialunits="pixel"><AllSpots>'
    f'{_SPOTS}</AllSpots><AllTracks><Track TRACK_ID="0">{_EDGES}</Track></AllTracks></Model></TrackMate>'
)


def _images(below: str = "A", **values: Any):
    def make(world: World) -> list[str]:
        world.set_experiment(data_path=f"e0/plate.zarr/{below}", **values)
        return BUILD

    return make


def _one_table(header: str, fov: str):
    def make(world: World) -> list[str]:
        (world.root / "all.csv").write_text(f"{header},track_id,t,y,x\n{fov},1,0,9,9\n")
        world.set_experiment(tracks_path="all.csv")
        return BUILD

    return make


def _merged(world: World) -> list[str]:
    world.tracks().unlink()
    world.tracks().with_name("model.xml").write_text(_MERGED)
    return BUILD


def _geff(change: Mapping[str, Any]):
    """Write a GEFF of one cell; `change` is put into its metadata."""

    def make(world: World) -> list[str]:
        path = world.tracks().with_name("tracks.geff")
        world.tracks().unlink()
        group = zarr.create_group(path, zarr_format=2)
        arrays = {"nodes/ids": np.arange(2), "edges/ids": np.array([[0, 1]])}
        arrays |= {f"nodes/props/{name}/values": np.array([0.0, 1.0]) for name in "tyx"}
        for name, values in arrays.items():
            group.create_array(name, data=values)
        axes = [{"name": name, "type": "time" if name == "t" else "space"} for name in "tyx"]
        said = {"geff_version": "1.1", "directed": True, "axes": axes} | change
        (path / ".zattrs").write_text(json.dumps({"geff": said}))
        return BUILD

    return make


_X_FIRST = [{"name": name, "type": "time" if name == "t" else "space"} for name in "txy"]
_INCHES = [{"name": name, "type": "time" if name == "t" else "space", "unit": "frame" if name == "t" else "inch"}
           for name in "tyx"]  # fmt: skip


def _format(world: World) -> list[str]:
    world.set_experiment(tracks_format="geff")
    return BUILD


def _source_of_one(world: World) -> list[str]:
    (world.root / "model.xml").write_text(_MERGED)
    world.set_experiment(tracks_path="model.xml")
    return BUILD


IN_TRACK_SOURCES = [
    Mistake(what="Asks for a format of tracks that is not there", make=_format),
    Mistake(what="Gives one file of TrackMate for several FOVs", make=_source_of_one),
    Mistake(what="Gives one table of all FOVs that does not say them", make=_one_table("well", "A/1/0")),
    Mistake(what="Spells FOVs in a table as no one does", make=_one_table("fov", "A1-0")),
    Mistake(what="Has merges in a file of TrackMate", make=_merged),
    Mistake(what="Has a GEFF whose axes may be swapped", make=_geff({"axes": _X_FIRST})),
    Mistake(what="Has a GEFF whose axes are not named", make=_geff({"axes": None})),
    Mistake(what="Has a GEFF in inches", make=_geff({"axes": _INCHES})),
    Mistake(what="Gives an image without `wells`", make=_images("A/1/0")),
    Mistake(what="Names an image that is not there", make=_images(wells={"A/1": ["1/0", "1/7"]})),
    Mistake(what="Asks for a level that is not there", make=_images(wells={"A/1": ["1/0"]}, level="3")),
]
