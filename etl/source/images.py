"""Opens OME-Zarr images that are in no plate as if they were: experiments.yaml says of which well each is.

`data_path` is an image; a group of them (the layout of bioformats2raw); or a folder of either. Metadata and pixels of
an image are read as a plate's are, and when they are needed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import zarr

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Location, parse_place
from dynaclr_wds.storage.options import StorageOptions
from etl.source.plate_metadata import as_mapping, ome_of
from etl.source.plate_store import METADATA, PlateStore
from etl.source.plates import Fov, Plate

_SUFFIX = re.compile(r"(\.ome)?\.zarr$", re.IGNORECASE)
_LAYOUT = "bioformats2raw.layout"


def open_images(
    path: str | Path,
    wells: Mapping[str, Sequence[str]],
    options: StorageOptions | None = None,
    level: str | None = None,
) -> Plate:
    """Open images; nothing is read before it is needed.

    Parameters
    ----------
    path
        Folder or URL that holds them.
    wells
        Well (`row/col`) → paths of its images below `path`; `.` is `path` itself.
    options
        How requests to object storage are made.
    level
        Path of the array to take of each image; None is the first.

    Raises
    ------
    ConfigError
        Two images of a well whose FOVs would have one name.
    """
    place = parse_place(path, "plate")
    fovs: dict[str, Fov] = {}
    for well, images in wells.items():
        for image in images:
            name, inside = f"{well}/{name_fov(image)}", posixpath.normpath(image)
            if name in fovs:
                raise ConfigError(
                    f"wells.{well}: image {image!r} would be FOV {name!r}, which another image is already. Rename one "
                    "of the two."
                )
            root = place if inside == "." else place / inside
            store = PlateStore(root, options or StorageOptions()) if isinstance(root, Location) else None
            fovs[name] = Fov(plate_path=str(root), name=name, image="", level=level, store=store)
    return Plate(path=str(place), wells=tuple(wells), fovs=fovs)


def name_fov(image: str) -> str:
    """Return the last part of a FOV's name: the path of its image, without suffix; 0 for `.`."""
    inside = posixpath.normpath(image)
    return "0" if inside == "." else re.sub(r"[/\s]", "_", _SUFFIX.sub("", inside))


def list_images(path: Path) -> list[str]:
    """List the images in a local folder, as `wells` would name them; none where it is a plate, or holds none."""
    said = _read_ome(path)
    if said is None or not any(key in said for key in ("plate", "well", "multiscales", _LAYOUT)):
        # a plain folder, or a group of images that says nothing
        inside = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
        return [posixpath.join(entry.name, image) if image != "." else entry.name
                for entry in inside for image in _list_in_group(entry)]  # fmt: skip
    return _list_in_group(path)


def _list_in_group(path: Path) -> list[str]:
    """List the images of a Zarr group: itself, or those that bioformats2raw put into it."""
    said = _read_ome(path) or {}
    if "multiscales" in said:
        return ["."]
    if _LAYOUT not in said:
        return []
    series = as_mapping(_read_ome(path / "OME")).get("series")
    if isinstance(series, list) and all(isinstance(name, str) for name in series):
        return series
    names = (str(number) for number in count())
    found: list[str] = []
    for name in names:
        if "multiscales" not in (_read_ome(path / name) or {}):
            return found
        found.append(name)
    return found


def _read_ome(path: Path) -> Mapping[str, Any] | None:
    """Read the OME metadata of a group; None where there is no group."""
    if not any((path / name).is_file() for name in METADATA):
        return None
    try:
        attributes = dict(zarr.open_group(str(path), mode="r", use_consolidated=False).attrs)
    except Exception:  # no group, or a damaged one: whoever opens it says so
        return None
    return ome_of(attributes)


def propose_wells(images: Sequence[str]) -> dict[str, list[str]]:
    """Put each image into a well of its own, for people to correct."""
    return {f"A/{number}": [image] for number, image in enumerate(images, 1)}
