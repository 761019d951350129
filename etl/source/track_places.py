"""Finds the tracks of each FOV below `tracks_path`: one source for each, or one table for the whole experiment.

`tracks_path` is a folder with a source at `<row>/<col>/<fov>/`; or says where each is, with {row}, {col} and {fov}; or
is itself a table whose rows name their FOV, or the source of the only FOV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaclr_wds.errors import ConfigError
from etl.source.config import ExperimentConfig
from etl.source.track_formats import READERS, TableFile, TablePlace
from etl.source.track_sources.formats import FORMATS, fits, list_sources, open_source, recognise

PARTS = ("{row}", "{col}", "{fov}")

OF_ALL = ("table", "ultrack")
"""Formats that may hold all FOVs of an experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracksPlace:
    """Where tracks are, and whose."""

    place: TablePlace
    form: str
    """Key of `FORMATS`."""
    fovs: tuple[str, ...]
    """FOVs (`row/col/fov`) that it holds the tracks of."""
    is_shared: bool = False
    """Whether `tracks_path` is this source itself, so that its rows may have to say their FOV."""

    def open(self) -> TableFile:
        """Open it."""
        return open_source(self.place, self.form)


def is_source(experiment: ExperimentConfig) -> bool:
    """Whether a local `tracks_path` is itself a source of tracks."""
    root = Path(experiment.tracks_path)
    if "{" in experiment.tracks_path:
        return False
    return root.is_file() or fits(recognise(root), experiment.tracks_format)


def fill_in(pattern: str, fov: str) -> str:
    """Write the name of a FOV into a path."""
    for part, value in zip(PARTS, fov.split("/"), strict=True):
        pattern = pattern.replace(part, value)
    return pattern


def list_fov_sources(experiment: ExperimentConfig, fov: str) -> dict[Path, str]:
    """List what may be the tracks of a FOV below a local `tracks_path`: path → format; one where all is well."""
    root, asked = experiment.tracks_path, experiment.tracks_format
    if "{" in root:
        path = Path(fill_in(root, fov))
        form = recognise(path)
        return list_sources(path, asked) if form is None else {path: asked or form}
    if is_source(experiment):
        return {Path(root): asked or recognise(Path(root)) or "table"}
    return list_sources(Path(root) / fov, asked)


def find_local_tracks(experiment: ExperimentConfig, fovs: Sequence[str], where: str) -> list[TracksPlace]:
    """Find the tracks of an experiment on a disk; `where` is the YAML path of `tracks_path`, for errors.

    Raises
    ------
    ConfigError
        A FOV has none, or several.
    """
    if "{" in experiment.tracks_path:
        check_pattern(experiment.tracks_path, where)
    elif fovs and is_source(experiment):
        ((path, form),) = list_fov_sources(experiment, fovs[0]).items()
        return [share(TablePlace.of(path), form, fovs, where)]
    return [_find_one(experiment, fov, where) for fov in fovs]


def check_pattern(text: str, where: str) -> None:
    """Check that a path that says where each FOV's tracks are says all of it."""
    if not all(part in text for part in PARTS):
        raise ConfigError(
            f"{where} must say where the tracks of each FOV are, with {', '.join(PARTS)}. Write such as "
            f"tracks/{'_'.join(PARTS)}.csv."
        )


def share(place: TablePlace, form: str, fovs: Sequence[str], where: str) -> TracksPlace:
    """Make the place of a source that `tracks_path` is itself: of all FOVs, or of the only one.

    Raises
    ------
    ConfigError
        There are several FOVs, and the format does not say which cell is in which.
    """
    if len(fovs) > 1 and form not in OF_ALL:
        raise ConfigError(
            f"{where} is {FORMATS[form].what}, which holds the tracks of one FOV, but {len(fovs)} are built "
            f"({', '.join(fovs[:3])}, …). Put one into <row>/<col>/<fov>/ for each, or say where each is, with "
            f"{', '.join(PARTS)}."
        )
    return TracksPlace(place=place, form=form, fovs=tuple(fovs), is_shared=True)


def _find_one(experiment: ExperimentConfig, fov: str, where: str) -> TracksPlace:
    found = list_fov_sources(experiment, fov)
    if len(found) == 1:
        ((path, form),) = found.items()
        return TracksPlace(place=TablePlace.of(path), form=form, fovs=(fov,))
    root = Path(experiment.tracks_path)
    if "{" in experiment.tracks_path:
        there: Any = Path(fill_in(experiment.tracks_path, fov))
        what = f"{len(found)} sources of tracks ({[path.name for path in found]})" if found else "nothing that is known"
        raise ConfigError(f"{where} has {what} for FOV {fov!r} ({there}). {_advise(experiment, there)}.")
    if not root.is_dir():
        raise ConfigError(f"{where} is no folder ({root}). Give the folder that holds <row>/<col>/<fov>.")
    folder = root / fov
    files = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    what = f"{len(found)} track files ({[path.name for path in found]})" if found else "no track file"
    what += f" (there is {files[:5]})" if files and not found else ""
    raise ConfigError(f"{where} has {what} for FOV {fov!r}. {_advise(experiment, folder)}.")


def _advise(experiment: ExperimentConfig, folder: Path) -> str:
    if experiment.tracks_format not in (None, "table"):
        wanted = f"exactly {FORMATS[str(experiment.tracks_format)].what}"
    else:
        wanted = f"exactly one table ({', '.join(READERS)})"
        wanted += "" if experiment.tracks_format else " or another source of tracks (docs/TRACKS.md)"
    return f"Put {wanted} into {folder}, or list the FOV in shards.exclude_fovs"
