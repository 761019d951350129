"""Opens OME-Zarr HCS plates: one lazy zarr array per field of view, and its metadata.

Reads OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3, sharded or not) with zarr-python; metadata is checked
with ome-zarr-models. Opening a plate reads the metadata of the plate and of the wells asked for; a
FOV is opened at first use and its pixels only when its array is sliced. Objects pickle to workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import zarr
from ome_zarr_models.v04.multiscales import Multiscale as MultiscaleV04
from ome_zarr_models.v05.multiscales import Multiscale as MultiscaleV05

from dynaclr_wds.errors import DynaCLRError, PlateError, StorageError
from dynaclr_wds.storage.location import Location, parse_place
from dynaclr_wds.storage.options import StorageOptions
from etl.source.image_axes import AXES, AxesView, Image
from etl.source.plate_metadata import (
    Normalization,
    as_mapping,
    ome_of,
    parse_model,
    parse_multiscale,
    parse_normalization,
)
from etl.source.plate_store import PlateStore
from etl.source.units import MICROMETRES, MINUTES

PixelSize = tuple[float | None, float | None, float | None]
"""Micrometres per pixel along z, y and x; None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What a FOV's metadata say about time and space."""

    interval_minutes: float | None
    """Minutes between frames; None where the metadata don't say."""
    pixel_size_um: PixelSize


@dataclass(frozen=True, kw_only=True)
class Fov:
    """One field of view of a plate, opened at first use."""

    plate_path: str
    """Where the plate is: a path or URL."""
    name: str
    """`row/col/fov`."""
    image: str | None = None
    """Path of its image below `plate_path`, empty where it is that itself; None is `name`, as in a plate."""
    level: str | None = None
    """Path of the array in the image; None is the first level, of full resolution."""
    store: PlateStore | None = field(default=None, repr=False, compare=False)
    """Reads the plate where that is in object storage."""
    plate_normalization: Normalization | None = field(default=None, repr=False)
    """Statistics as VisCy writes them, from the plate's attributes."""
    plate_focus_slice: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Slices in focus as VisCy's quality control writes them, from the plate's attributes."""

    @property
    def where(self) -> str:
        """The FOV, as errors name it."""
        return f"{self.plate_path}/{self.group}".rstrip("/")

    @property
    def group(self) -> str:
        """Path of its image below `plate_path`."""
        return self.name if self.image is None else self.image

    @property
    def well(self) -> str:
        """`row/col`."""
        return self.name.rpartition("/")[0]

    @cached_property
    def array(self) -> Image:
        """The chosen level, (T, C, Z, Y, X), any integer or float dtype."""
        return self.stored if self.axes == AXES else AxesView(source=self.stored, axes=self.axes)

    @cached_property
    def stored(self) -> zarr.Array[Any]:
        """The chosen level as it is on disk, whatever its axes."""
        path, axes = self._dataset.path, self.axes
        try:
            with _naming_plate(f"{self.where}/{path}"):
                place, more = _find(self.plate_path, self.store)
                array = zarr.open_array(place, path=f"{self.group}/{path}".lstrip("/"), mode="r", **more)
        except FileNotFoundError as error:
            raise PlateError(f"{self.where}: level {path!r} is not there. Write the plate again.") from error
        if min(array.chunks, default=1) < 1:
            raise PlateError(f"{self.where}/{path}: chunks {array.chunks} must be above 0. Write the plate again.")
        if array.ndim != len(axes) or array.dtype.kind not in "iuf":
            raise PlateError(
                f"{self.where}/{path}: shape {array.shape}, dtype {array.dtype} must be a {len(axes)}-D "
                f"({', '.join(axes.upper())}) array of integers or floats. Convert the plate."
            )
        return array

    @property
    def axes(self) -> str:
        """Axes of `stored`, in its order, as letters of `image_axes.AXES`."""
        return self._multiscale[1]

    @property
    def _dataset(self) -> Any:
        datasets = self._multiscale[0].datasets
        if self.level is None:
            return datasets[0]
        for dataset in datasets:
            if dataset.path == self.level:
                return dataset
        raise PlateError(
            f"{self.where}: level {self.level!r} must be one of {[dataset.path for dataset in datasets]}. Correct "
            "`level`, or leave it out for the first."
        )

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(T, C, Z, Y, X)."""
        t, c, z, y, x = self.array.shape
        return t, c, z, y, x

    @cached_property
    def channel_names(self) -> tuple[str, ...]:
        """Labels of the C axis; empty where the plate names no channels."""
        omero = ome_of(self.attributes).get("omero", {})
        try:
            return tuple(str(channel["label"]) for channel in omero.get("channels", ()))
        except (AttributeError, KeyError, TypeError) as error:
            raise PlateError(
                f"{self.where}: omero.channels has an entry without label. Name every channel, or remove omero."
            ) from error

    @cached_property
    def scale(self) -> Scale:
        """Frame interval and pixel size, from units of the axes and `coordinateTransformations`.

        A scale of exactly 1 along t, or along both y and x, counts as not said: writers fill it in where they know
        nothing. So does a 1 along z where there is one slice.
        """
        depth, (multiscale, _) = self.shape[2], self._multiscale
        factors = [1.0] * len(multiscale.axes)
        whole: Any = multiscale.coordinateTransformations or ()
        for transform in (*self._dataset.coordinateTransformations, *whole):
            if transform.type == "scale":
                factors = [a * b for a, b in zip(factors, getattr(transform, "scale", factors), strict=True)]
        letters = sorted(self.axes, key=AXES.index)
        along = {letter: (factor, axis) for letter, factor, axis in zip(letters, factors, multiscale.axes, strict=True)}
        said = {letter: factor > 0 and factor != 1 for letter, (factor, _) in along.items()}
        said["y"] = said["x"] = said["y"] or said["x"]
        if "z" in along:
            said["z"] |= said["y"] and depth > 1 and along["z"][0] > 0
        t, z, y, x = (
            _round(along[letter][0] * units[str(along[letter][1].unit)])
            if said.get(letter) and str(along[letter][1].unit) in units
            else None
            for letter, units in zip("tzyx", (MINUTES, *[MICROMETRES] * 3), strict=True)
        )
        return Scale(interval_minutes=t, pixel_size_um=(z, y, x))

    @cached_property
    def normalization(self) -> Normalization | None:
        """Statistics as VisCy writes them, the FOV's added to the plate's; None without any."""
        own = parse_normalization(self.attributes.get("normalization"), self.where)
        if own is None or self.plate_normalization is None:
            return own or self.plate_normalization
        names = dict.fromkeys((*self.plate_normalization, *own))
        return {name: {**self.plate_normalization.get(name, {}), **own.get(name, {})} for name in names}

    @cached_property
    def focus_slice(self) -> Mapping[str, Any]:
        """Slices in focus as VisCy's quality control writes them: channel → kind of value → values; see `focus.py`."""
        own = as_mapping(self.attributes.get("focus_slice"))
        plate = self.plate_focus_slice
        return {name: {**as_mapping(plate.get(name)), **as_mapping(own.get(name))} for name in (*plate, *own)}

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the image."""
        try:
            return _read_attributes(self.plate_path, self.group, self.store)
        except FileNotFoundError as error:
            raise PlateError(f"{self.where}: no such image. Correct `wells`, or restore the image.") from error

    @cached_property
    def _multiscale(self) -> tuple[MultiscaleV04 | MultiscaleV05, str]:
        """Metadata with sorted axes, and the axes of the array."""
        return parse_multiscale(self.attributes, self.where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plate:
    """A plate, or those of its wells that were asked for."""

    path: str
    wells: tuple[str, ...]
    """All wells of the plate (`row/col`), opened or not."""
    fovs: Mapping[str, Fov]
    """`row/col/fov` → FOV of the opened wells, in the plate's order."""


def open_plate(
    path: str | Path,
    wells: Collection[str] | None = None,
    options: StorageOptions | None = None,
    level: str | None = None,
) -> Plate:
    """Open a plate; no pixels are read.

    Parameters
    ----------
    path
        Folder or URL of the plate.
    wells
        Open the FOVs of these wells only (`row/col`); None is all. Names that are not there are ignored.
    options
        How requests to object storage are made.
    level
        Path of the array to take of each image; None is the first.

    Raises
    ------
    FileNotFoundError
        Nothing at `path`.
    ConfigError
        A URL that can't be read, or no credentials for it.
    PlateError
        Not an HCS plate, or metadata that is missing or wrong.
    StorageError
        It can't be read.
    """
    place = parse_place(path, "plate")
    store = PlateStore(place, options or StorageOptions()) if isinstance(place, Location) else None
    path = str(place)
    attributes = _read_attributes(path, "", store)
    normalization = parse_normalization(attributes.get("normalization"), path)
    present = tuple(well.path for well in parse_model(attributes, "plate", path).wells)
    chosen = [well for well in present if wells is None or well in wells]
    if store is not None:
        store.fetch_metadata(chosen)
    names = [
        f"{well}/{image.path}"
        for well in chosen
        for image in parse_model(_read_attributes(path, well, store), "well", f"{path}/{well}").images
    ]
    if store is not None:
        store.fetch_metadata(names, [f"{name}/{level or 0}" for name in names])
    focus_slice = as_mapping(attributes.get("focus_slice"))
    fovs = {
        name: Fov(
            plate_path=path,
            name=name,
            level=level,
            store=store,
            plate_normalization=normalization,
            plate_focus_slice=focus_slice,
        )
        for name in names
    }
    return Plate(path=path, wells=present, fovs=fovs)


def _find(plate_path: str, store: PlateStore | None) -> tuple[str | PlateStore, dict[str, Any]]:
    """Return what zarr opens, and how."""
    return (plate_path, {}) if store is None else (store, {"zarr_format": store.zarr_format})


def _round(value: float) -> float:
    """Round to twelve digits, so that a product of a scale and a unit is the number that people write."""
    return float(f"{value:.12g}")


@contextmanager
def _naming_plate(where: str) -> Iterator[None]:
    """Turn what goes wrong while zarr reads metadata into an error that names the plate, well or FOV."""
    try:
        yield
    except (FileNotFoundError, ImportError, DynaCLRError):
        raise  # the caller knows what is missing; or it says already what failed
    except OSError as error:
        raise StorageError(
            f"{where}: could not be read ({error}). Look at the disk, the network and the permissions, then run again."
        ) from error
    except Exception as error:  # zarr and its codecs raise whatever the metadata lead to
        raise PlateError(f"{where}: its metadata is damaged ({error!s:.300}). Write the plate again.") from error


def _read_attributes(plate_path: str, name: str, store: PlateStore | None) -> dict[str, Any]:
    """Read the attributes of a group; of the plate where there is no name."""
    try:
        with _naming_plate(f"{plate_path}/{name}".rstrip("/")):
            place, more = _find(plate_path, store)
            return dict(zarr.open_group(place, path=name, mode="r", use_consolidated=False, **more).attrs)
    except FileNotFoundError as error:
        if not name:
            raise
        raise PlateError(f"{plate_path}: lists {name}, but has no such group. Write the plate again.") from error
