"""Finds the tables that a build reads: track files of each FOV, and annotations. Those in object storage are copied.

Tables are read by libraries that want files. So a table in object storage is copied to a folder of this machine while
the index is made, and errors name it by its URL. In a folder the one track file of a FOV is found by its suffix. Where
there is no listing (https, or a key that may not list), `tracks_path` says itself where each file is:
`https://host/tracks/{row}/{col}/{fov}/tracks.csv`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import Location, parse_place
from dynaclr_wds.storage.objects import copy_object, open_object
from dynaclr_wds.storage.versions import ObjectInfo
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.track_formats import READERS, TablePlace, choose_tables, list_tables

AT_ONCE = 16
"""Tables that are asked for at a time."""

_PARTS = ("{row}", "{col}", "{fov}")


class RemoteTracks:
    """The track files of an experiment in object storage.

    Parameters
    ----------
    experiment
        Says where they are, and how requests are made.
    where
        YAML path of the experiment, for errors.

    Raises
    ------
    ConfigError
        A `tracks_path` that doesn't say enough, or no credentials.
    """

    def __init__(self, experiment: ExperimentConfig, where: str) -> None:
        place = parse_place(experiment.tracks_path, f"{where}.tracks_path")
        assert isinstance(place, Location), "local tracks are found without it"
        self._where = f"{where}.tracks_path={experiment.tracks_path!r}"
        fixed = [part for part in place.key.split("/") if part]
        first = next((n for n, part in enumerate(fixed) if "{" in part), len(fixed))
        self._pattern = "/".join(fixed[first:])
        if self._pattern and not all(part in self._pattern for part in _PARTS):
            raise ConfigError(
                f"{self._where} must say where the file of each FOV is, with {', '.join(_PARTS)}. Write such as "
                f"{_example(place, fixed[:first])}."
            )
        self._storage = Storage(Location(place.scheme, place.bucket, "/".join(fixed[:first])), experiment.storage)
        self._hint = _example(place, fixed)

    def list(self, fov: str) -> dict[str, ObjectInfo]:
        """Return the track files of a FOV: name below the root → version; one where all is well.

        Raises
        ------
        ConfigError
            There is no listing.
        StorageError
            A request failed.
        """
        if self._pattern:
            name = self._pattern
            for part, value in zip(_PARTS, fov.split("/"), strict=True):
                name = name.replace(part, value)
            try:
                return {name: self._storage.info(name)}
            except FileNotFoundError:
                return {}
        found = self._storage.list(fov, nested=False)
        if found is None:
            raise ConfigError(
                f"{self._where} can't be listed: there is no listing, or the key may not list. Say where the file of "
                f"each FOV is, such as {self._hint}."
            )
        return {f"{fov}/{name}": found[name] for name in choose_tables(found)}

    def copy(self, fov: str, folder: Path) -> TablePlace:
        """Copy the track file of a FOV into a folder.

        Raises
        ------
        ConfigError
            There is none, or more than one.
        StorageError
            A request failed.
        """
        found = self.list(fov)
        if len(found) != 1:
            what = f"{len(found)} track files ({list(found)})" if found else "no track file"
            there = self._storage.root / (self._pattern or fov)
            raise ConfigError(
                f"{self._where} has {what} for FOV {fov!r}. Put exactly one table ({', '.join(READERS)}) there "
                f"({there}), or list the FOV in shards.exclude_fovs."
            )
        ((name, info),) = found.items()
        path = folder / fov / name.rpartition("/")[2]
        copy_object(self._storage, name, path, info)
        return TablePlace(path, str(self._storage.root / name))


class Tables:
    """The tables of a build.

    Parameters
    ----------
    config
        Says where they are.
    folder
        Takes the copies of those that are in object storage.
    """

    def __init__(self, config: BuildConfig, folder: Path) -> None:
        self._config, self._folder = config, folder

    def find_tracks(self, number: int, fovs: Sequence[str]) -> list[TablePlace]:
        """Find the track file of each FOV of an experiment.

        Raises
        ------
        ConfigError
            A FOV has none, or more than one.
        StorageError
            A request failed.
        """
        experiment, where = self._config.experiments[number], f"{self._config.where}: experiments[{number}]"
        if isinstance(parse_place(experiment.tracks_path), Path):
            at = f"{where}.tracks_path={experiment.tracks_path!r}"
            return [TablePlace.of(find_track_file(experiment.tracks_path, fov, at)) for fov in fovs]
        remote, folder = RemoteTracks(experiment, where), self._folder / str(number)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda fov: remote.copy(fov, folder), fovs))

    def find_annotations(self, number: int) -> TablePlace:
        """Find the annotations of an experiment that has some.

        Raises
        ------
        ConfigError
            There is no such file.
        StorageError
            A request failed.
        """
        experiment = self._config.experiments[number]
        given = str(experiment.annotations)
        where = f"{self._config.where}: experiments[{number}].annotations={given!r}"
        place = parse_place(given, where)
        try:
            if isinstance(place, Location):
                path = self._folder / f"annotations-{number}" / place.name
                if not path.is_file():
                    copy_object(*open_object(place, experiment.storage), path)
                return TablePlace(path, str(place))
            if place.is_file():
                return TablePlace.of(place)
        except FileNotFoundError:
            pass
        raise ConfigError(f"{where} has no file. Give a table ({', '.join(READERS)}), relative to the YAML.")


@contextmanager
def open_tables(config: BuildConfig) -> Iterator[Tables]:
    """Find tables; copies of those in object storage are there until the end of the `with`."""
    with TemporaryDirectory(prefix="dynaclr-wds-tables-") as folder:
        yield Tables(config, Path(folder))


def find_track_file(root: str, fov: str, where: str) -> Path:
    """Find the one track file of a FOV below a local `tracks_path`; `where` is the YAML path, for errors.

    Raises
    ------
    ConfigError
        There is none, or more than one.
    """
    folder = Path(root) / fov
    found = list_tables(folder)
    if len(found) != 1:
        there = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        what = f"{len(found)} track files ({[file.name for file in found]})" if found else "no track file"
        what += f" (there is {there[:5]})" if there and not found else ""
        if not Path(root).is_dir():
            raise ConfigError(f"{where} is no folder ({Path(root)}). Give the folder that holds <row>/<col>/<fov>.")
        raise ConfigError(
            f"{where} has {what} for FOV {fov!r}. Put exactly one table ({', '.join(READERS)}) into {folder}, "
            "or list the FOV in shards.exclude_fovs."
        )
    return found[0]


def _example(place: Location, fixed: Sequence[str]) -> str:
    return f"{place.scheme}://{'/'.join([place.bucket, *fixed, *_PARTS, 'tracks.csv'])}"
