"""Names of tracks to observations: which cells `predict --tracks` embeds.

A track is named `<experiment>/<row>/<col>/<fov>/<track_id>`, as `global_track_id` in batches and tables, or without the
experiment, where only one has it. A table names many: its columns are `global_track_id`, or `fov_name` and `track_id`,
and `experiment` where several have FOVs of one name. Further columns are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.errors import ConfigError
from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    import pyarrow as pa

_TABLES = (".csv", ".tsv", ".parquet")


def list_tracks(given: Sequence[str]) -> list[str]:
    """Turn names and tables of tracks into names.

    Raises
    ------
    ConfigError
        A table isn't there, can't be read, or doesn't name tracks.
    """
    found: dict[str, None] = {}
    for word in given:
        found |= dict.fromkeys(_read_names(Path(word)) if word.endswith(_TABLES) else [word])
    return list(found)


def _read_names(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            rows = pq.read_table(path)
        else:
            rows = pacsv.read_csv(
                path, parse_options=pacsv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
            )
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"--tracks {path}: can't be read as a table ({str(error).splitlines()[0]:.200}).") from error
    names = _names_of(rows)
    if names is None:
        raise ConfigError(
            f"--tracks {path}: has the columns {', '.join(rows.column_names)}. Needed are global_track_id, or fov_name "
            "and track_id (and experiment, where several have FOVs of one name)."
        )
    if not names:
        raise ConfigError(f"--tracks {path}: names no track. Add rows, or leave out --tracks.")
    return names


def _names_of(rows: pa.Table) -> list[str] | None:
    columns: Mapping[str, list[Any]] = {name: rows[name].to_pylist() for name in rows.column_names}
    if "global_track_id" in columns:
        return [str(name) for name in columns["global_track_id"]]
    if not {"fov_name", "track_id"} <= columns.keys():
        return None
    tracks = [f"{str(f).strip('/')}/{int(k)}" for f, k in zip(columns["fov_name"], columns["track_id"], strict=True)]
    if "experiment" not in columns:
        return tracks
    return [f"{e}/{track}" for e, track in zip(columns["experiment"], tracks, strict=True)]


def keep_tracks(
    names: Sequence[str],
    fovs: Sequence[FovRecord],
    obs_fov: Int64[np.ndarray, " n"],
    obs_track_id: Int64[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """Say which observations are of the tracks that are named.

    Parameters
    ----------
    fovs
        Those of the shards.
    obs_fov, obs_track_id
        FOV and track of every observation.

    Raises
    ------
    ConfigError
        A name means no track, or tracks of two experiments.
    """
    by_fov, missing = _sort_by_fov(names, fovs)
    keep = np.zeros(len(obs_fov), bool)
    for place, tracks in by_fov.items():
        own = np.flatnonzero(obs_fov == place)
        keep[own[np.isin(obs_track_id[own], tracks)]] = True
        absent = sorted(set(tracks) - set(obs_track_id[own].tolist()))
        missing += [f"{fovs[place].experiment}/{fovs[place].fov_name}/{track}" for track in absent]
    if missing:
        first = fovs[obs_fov[0]]
        raise ConfigError(
            f"--tracks: the shards have no {', '.join(missing[:3])}{' …' * (len(missing) > 3)} "
            f"({count_of(len(missing), 'name')} of {len(names):,}). A track is named experiment/row/col/fov/track_id, "
            f"such as {first.experiment}/{first.fov_name}/{obs_track_id[0]}."
        )
    return keep


def _sort_by_fov(names: Sequence[str], fovs: Sequence[FovRecord]) -> tuple[dict[int, list[int]], list[str]]:
    """Return FOV → numbers of its tracks, and the names that mean no FOV or are not those of tracks."""
    places: dict[str, list[int]] = {}
    for place, fov in enumerate(fovs):
        for name in (f"{fov.experiment}/{fov.fov_name}", fov.fov_name):
            places.setdefault(name, []).append(place)
    found: dict[int, list[int]] = {}
    unknown = []
    for name in names:
        fov_name, _, track = name.rpartition("/")
        own = places.get(fov_name, [])
        if len(own) > 1:
            both = " and ".join(fovs[place].experiment for place in own[:2])
            raise ConfigError(f"--tracks {name}: {both} have a FOV of that name. Write the experiment before it.")
        if own and track.isdigit():
            found.setdefault(own[0], []).append(int(track))
        else:
            unknown.append(name)
    return found, unknown
