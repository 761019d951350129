"""Finds the tracks of an experiment in object storage, and copies them to this machine.

In a folder the one source of a FOV is found by its name; a folder that is a source, as GEFF, is copied whole. Where
there is no listing (https, or a key that may not list), `tracks_path` says itself where each file is:
`https://host/tracks/{row}/{col}/{fov}/tracks.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.storage.client import Storage
from dynaclr_wds.storage.location import Location, parse_place
from dynaclr_wds.storage.objects import copy_object
from dynaclr_wds.storage.versions import ObjectInfo
from etl.source.config import ExperimentConfig
from etl.source.track_formats import READERS, TablePlace
from etl.source.track_places import PARTS, TracksPlace, fill_in, share
from etl.source.track_sources.ctc import TEXTS
from etl.source.track_sources.formats import KNOWN, choose_files, fits

AT_ONCE = 16
"""Objects that are asked for at a time."""

_NODES = "nodes/ids/"
"""What a GEFF has below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSource:
    """A source of tracks in object storage."""

    name: str
    """Of the object, or of the folder, below the root."""
    form: str
    """Key of `FORMATS`."""
    objects: Mapping[str, ObjectInfo]
    """Name below the root → version."""


class RemoteTracks:
    """The tracks of an experiment in object storage.

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
        self._asked = experiment.tracks_format
        fixed = [part for part in place.key.split("/") if part]
        first = next((n for n, part in enumerate(fixed) if "{" in part), len(fixed))
        self._pattern = "/".join(fixed[first:])
        if self._pattern and not all(part in self._pattern for part in PARTS):
            raise ConfigError(
                f"{self._where} must say where the file of each FOV is, with {', '.join(PARTS)}. Write such as "
                f"{_example(place, fixed[:first])}."
            )
        self._shared = fixed.pop() if not self._pattern and place.key.lower().endswith(KNOWN) else ""
        """Name of the object where `tracks_path` is one itself."""
        self._storage = Storage(Location(place.scheme, place.bucket, "/".join(fixed[:first])), experiment.storage)
        self._hint = _example(place, fixed)

    def list_sources(self, fov: str) -> list[RemoteSource]:
        """List what may be the tracks of a FOV; one source where all is well.

        Raises
        ------
        ConfigError
            There is no listing.
        StorageError
            A request failed.
        """
        if self._pattern or self._shared:
            name = self._shared or fill_in(self._pattern, fov)
            form = self._asked or choose_files([name.rpartition("/")[2]], None).get(name.rpartition("/")[2], "table")
            try:
                return [RemoteSource(name=name, form=form, objects={name: self._storage.info(name)})]
            except FileNotFoundError:
                return []
        found = self._storage.list(fov, nested=False)
        if found is None:
            raise ConfigError(
                f"{self._where} can't be listed: there is no listing, or the key may not list. Say where the file of "
                f"each FOV is, such as {self._hint}."
            )
        files = {} if not set(TEXTS).isdisjoint(found) else choose_files(found, self._asked)
        if not files:
            return self._list_folders(fov)
        return [
            RemoteSource(name=f"{fov}/{name}", form=form, objects={f"{fov}/{name}": found[name]})
            for name, form in files.items()
        ]

    def _list_folders(self, fov: str) -> list[RemoteSource]:
        """List folders that are sources: the folder of the FOV, or one in it."""
        found = self._storage.list(fov) or {}
        roots = {name.partition("/")[0] + "/" for name in found if name.partition("/")[2].startswith(_NODES)}
        roots |= {""} if any(name.startswith(_NODES) for name in found) else set()
        forms = dict.fromkeys(sorted(roots), "geff") if fits("geff", self._asked) else {}
        if fits("ctc", self._asked):
            texts = [name for name in found if name.count("/") <= 1 and name.rpartition("/")[2] in TEXTS]
            forms |= {name.rpartition("/")[0] + "/" if "/" in name else "": "ctc" for name in texts}
        return [
            RemoteSource(
                name=f"{fov}/{root}".rstrip("/"),
                form=form,
                objects={f"{fov}/{name}": info for name, info in found.items() if name.startswith(root)},
            )
            for root, form in forms.items()
        ]

    def copy(self, fovs: Sequence[str], folder: Path) -> list[TracksPlace]:
        """Copy the tracks of FOVs into a folder.

        Raises
        ------
        ConfigError
            A FOV has none, or several.
        StorageError
            A request failed.
        """
        if self._shared and fovs:
            source = self._find_one(fovs[0])
            return [share(self._copy(source, folder), source.form, fovs, self._where)]

        def take(fov: str) -> TracksPlace:
            source = self._find_one(fov)
            return TracksPlace(place=self._copy(source, folder / fov), form=source.form, fovs=(fov,))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(take, fovs))

    def _find_one(self, fov: str) -> RemoteSource:
        found = self.list_sources(fov)
        if len(found) != 1:
            what = f"{len(found)} track files ({[source.name for source in found]})" if found else "no track file"
            there = self._storage.root / (self._shared or self._pattern or fov)
            raise ConfigError(
                f"{self._where} has {what} for FOV {fov!r}. Put exactly one table ({', '.join(READERS)}) or another "
                f"source of tracks (docs/TRACKS.md) there ({there}), or list the FOV in shards.exclude_fovs."
            )
        return found[0]

    def _copy(self, source: RemoteSource, folder: Path) -> TablePlace:
        """Copy a source; in the folder it has the name that it has in its own."""
        above = source.name.rpartition("/")[0]
        for name, info in source.objects.items():
            copy_object(self._storage, name, folder / name.removeprefix(f"{above}/"), info)
        return TablePlace(folder / source.name.removeprefix(f"{above}/"), str(self._storage.root / source.name))


def _example(place: Location, fixed: Sequence[str]) -> str:
    return f"{place.scheme}://{'/'.join([place.bucket, *fixed, *PARTS, 'tracks.csv'])}"
