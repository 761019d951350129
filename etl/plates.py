"""OME-Zarr HCS plates to lazy frames: one zarr array per field of view, and its metadata.

Reads OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3, sharded or not) with zarr-python; metadata is checked
with ome-zarr-models. Opening a plate reads the metadata of the plate and of the wells asked for; a
FOV is opened at first use and its pixels only when its array is sliced. Objects pickle to workers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import zarr
from ome_zarr_models import v04, v05
from pydantic import ValidationError

Normalization = Mapping[str, Mapping[str, Any]]
"""Channel → level (`fov_statistics`, `dataset_statistics`, `timepoint_statistics`) → statistics."""


class PlateError(ValueError):
    """A plate whose metadata or arrays are not what OME-Zarr or this project needs."""


@dataclass(frozen=True, kw_only=True)
class Fov:
    """One field of view of a plate, opened at first use."""

    plate_path: str
    """Of the plate: a path, or a URL that zarr understands."""
    name: str
    """`row/col/fov`."""
    plate_normalization: Normalization | None = field(default=None, repr=False)
    """VisCy-style statistics found on the plate."""

    @property
    def well(self) -> str:
        """`row/col`."""
        return self.name.rpartition("/")[0]

    @cached_property
    def array(self) -> zarr.Array[Any]:
        """Full resolution, (T, C, Z, Y, X)."""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(T, C, Z, Y, X)."""

    @cached_property
    def channel_names(self) -> tuple[str, ...]:
        """Labels of the C axis; empty where the plate names no channels."""

    @cached_property
    def normalization(self) -> Normalization | None:
        """VisCy-style statistics of the FOV and its plate, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plate:
    """A plate, or the asked-for wells of it."""

    path: str
    wells: tuple[str, ...]
    """All wells of the plate (`row/col`), opened or not."""
    fovs: Mapping[str, Fov]
    """`row/col/fov` → FOV, in the plate's order."""


def open_plate(path: str, wells: Collection[str] | None = None) -> Plate:
    """Open a plate; no pixels are read.

    Parameters
    ----------
    path
        Folder or URL of the plate.
    wells
        Open the FOVs of these wells only (`row/col`); None is all.

    Raises
    ------
    FileNotFoundError
        Nothing at `path`.
    PlateError
        Not an HCS plate, or metadata that is missing or wrong.
    """
