"""Finds the tables that a build reads: tracks of each FOV, and annotations. Those in object storage are copied.

Tables are read by libraries that want files. So a table in object storage is copied to a folder of this machine while
the index is made, and errors name it by its URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.location import Location, parse_place
from dynaclr_wds.storage.objects import copy_object, open_object
from etl.scratch import scratch_folder
from etl.source.config import BuildConfig
from etl.source.remote_tracks import RemoteTracks
from etl.source.track_formats import READERS, TablePlace
from etl.source.track_places import TracksPlace, find_local_tracks


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

    def find_tracks(self, number: int, fovs: Sequence[str]) -> list[TracksPlace]:
        """Find the tracks of an experiment: a source of each FOV, or one of all.

        Raises
        ------
        ConfigError
            A FOV has none, or more than one.
        StorageError
            A request failed.
        """
        experiment, where = self._config.experiments[number], f"{self._config.where}: experiments[{number}]"
        if isinstance(parse_place(experiment.tracks_path), Path):
            return find_local_tracks(experiment, fovs, f"{where}.tracks_path={experiment.tracks_path!r}")
        return RemoteTracks(experiment, where).copy(fovs, self._folder / str(number))

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
    with scratch_folder("tables") as folder:
        yield Tables(config, folder)
