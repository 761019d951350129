"""Shows arrays whose axes are fewer than five, or in another order, as (T, C, Z, Y, X), without reading them.

The metadata say which axes there are, by name or type. Those that are missing have length 1. A chunk of the view is a
chunk of the array, so what reads each chunk of one once does so with the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from jaxtyping import Num
from zarr.abc.store import Store

from dynaclr_wds.errors import PlateError

AXES = "tczyx"
_BY_TYPE = {"time": "t", "channel": "c"}


def find_axes(raw: object, where: str) -> str:
    """Return the axes of an image, in its order, as letters of `AXES`.

    Parameters
    ----------
    raw
        `axes` of its metadata: a list of `{name: …, type: …}`.
    where
        The image, for errors.

    Raises
    ------
    PlateError
        An axis without a name, one that is none of these, one that is there twice, or no y or no x.
    """
    entries = raw if isinstance(raw, list) else []
    names = [_find_letter(entry) if isinstance(entry, Mapping) else None for entry in entries]
    letters = "".join(name for name in names if name is not None)
    good = len(letters) == len(entries) == len(set(letters)) and {"y", "x"} <= set(letters)
    if not good:
        said = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries]
        raise PlateError(
            f"{where}: axes {said} must be some of t, c, z, y, x, each once, with y and x among them. Write the image "
            "again with the names of its axes."
        )
    return letters


def _find_letter(entry: Mapping[str, Any]) -> str | None:
    name = str(entry.get("name", "")).lower()
    return name if len(name) == 1 and name in AXES else _BY_TYPE.get(str(entry.get("type")))


def sort_axes(multiscale: Mapping[str, Any], axes: str) -> dict[str, Any]:
    """Put the axes of metadata, and the scales along them, in the order of `AXES`, as OME-Zarr wants them."""
    order = sorted(range(len(axes)), key=lambda place: AXES.index(axes[place]))
    if order == list(range(len(axes))):
        return dict(multiscale)

    def sort(transforms: object) -> object:
        return [_sort_transform(t, order) for t in transforms] if isinstance(transforms, list) else transforms

    datasets = multiscale.get("datasets")
    sorted_ = dict(multiscale) | {"axes": [multiscale["axes"][place] for place in order]}
    if isinstance(datasets, list):
        key = "coordinateTransformations"
        sorted_["datasets"] = [{**d, key: sort(d.get(key))} if isinstance(d, Mapping) else d for d in datasets]
    if multiscale.get("coordinateTransformations") is not None:
        sorted_["coordinateTransformations"] = sort(multiscale["coordinateTransformations"])
    return sorted_


def _sort_transform(transform: object, order: Sequence[int]) -> object:
    if not isinstance(transform, Mapping):
        return transform
    vectors = {
        key: [value[place] for place in order]
        for key, value in transform.items()
        if key in ("scale", "translation") and isinstance(value, list) and len(value) == len(order)
    }
    return {**transform, **vectors}


@dataclass(frozen=True, slots=True, kw_only=True)
class AxesView:
    """An array as (T, C, Z, Y, X); it has what the reader of plates asks of an array."""

    source: zarr.Array[Any]
    axes: str
    """Of `source`, in its order."""

    def _spread(self, sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(sizes[self.axes.index(axis)] if axis in self.axes else 1 for axis in AXES)

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, C, Z, Y, X)."""
        return self._spread(self.source.shape)

    @property
    def ndim(self) -> int:
        """Five."""
        return len(AXES)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Of the array, along T, C, Z, Y and X."""
        return self._spread(self.source.chunks)

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Of the array, along T, C, Z, Y and X; None without."""
        return None if self.source.shards is None else self._spread(self.source.shards)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.source.dtype

    @property
    def fill_value(self) -> Any:
        """Of the array."""
        return self.source.fill_value

    @property
    def store(self) -> Store:
        """Of the array."""
        return self.source.store

    @property
    def path(self) -> str:
        """Of the array."""
        return self.source.path

    @property
    def metadata(self) -> Any:
        """Of the array."""
        return self.source.metadata

    def find_box(self, asked: Sequence[slice]) -> tuple[slice, ...]:
        """Return where in `source` a box of the view is; `asked` are ranges along its first axes."""
        ranges = {axis: slice(0, size) for axis, size in zip(AXES, self.shape, strict=True)}
        ranges |= dict(zip(AXES, asked, strict=False))
        return tuple(ranges[axis] for axis in self.axes)

    def arrange(self, pixels: Num[np.ndarray, "*axes"], asked: Sequence[slice] = ()) -> Num[np.ndarray, "t c z y x"]:
        """Give pixels of `source` the axes of the view, without a copy; `asked` is the box that they were read for."""
        there = pixels.transpose([self.axes.index(axis) for axis in AXES if axis in self.axes])
        spread = there[tuple(slice(None) if axis in self.axes else None for axis in AXES)]
        missing = zip(AXES, asked, strict=False)
        return spread[tuple(slice(None) if axis in self.axes else part for axis, part in missing)]


Image = zarr.Array[Any] | AxesView
"""An array with axes T, C, Z, Y and X."""
