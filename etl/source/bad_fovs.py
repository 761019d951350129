"""Finds fields of view whose metadata or tracks can't be used, so that a build may go on without them.

Unreadable pixels are found when they are cut (`etl.unit.build`). What is left out is listed in the manifest, and the
next build tries it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from dynaclr_wds.contract import SkippedRecord
from dynaclr_wds.errors import ConfigError, PlateError
from etl.source.config import BuildConfig, ExperimentConfig
from etl.source.plates import Fov, Plate
from etl.source.preflight import plan_fovs
from etl.source.table_places import open_tables
from etl.source.track_places import is_source
from etl.source.tracks import list_tracked, open_track_files, parse_track_file

_MOST_LETTERS = 500


def make_skipped(experiment: ExperimentConfig, fov_name: str, error: Exception) -> SkippedRecord:
    """Say why a field of view is left out, in one plain line that does not depend on where the data lie."""
    text = str(error)
    for key, path in experiment.written.items():
        if key.endswith("_path") and path is not None:
            text = text.replace(str(getattr(experiment, key)), str(path))
    line = "".join(letter if letter.isprintable() else " " for letter in text)[:_MOST_LETTERS]
    return SkippedRecord(experiment=experiment.name, fov_name=fov_name, reason=line)


def find_unopened(config: BuildConfig, plates: Mapping[str, Plate]) -> tuple[SkippedRecord, ...]:
    """Find the fields of view whose metadata can't be read."""
    asked = [
        (experiment, plates[experiment.name].fovs[name])
        for experiment in config.experiments
        for name in plan_fovs(config, experiment, plates[experiment.name].fovs)
    ]

    def look(pair: tuple[ExperimentConfig, Fov]) -> SkippedRecord | None:
        experiment, fov = pair
        try:
            _ = fov.shape, fov.channel_names, fov.scale
        except PlateError as error:
            return make_skipped(experiment, fov.name, error)
        return None

    with ThreadPoolExecutor(config.workers) as pool:
        return tuple(record for record in pool.map(look, asked) if record is not None)


def find_bad_tracks(config: BuildConfig, plates: Mapping[str, Plate]) -> tuple[SkippedRecord, ...]:
    """Find the fields of view whose track file is missing, damaged or cut, or holds what it may not.

    Returns
    -------
    tuple
        Nothing of an experiment of which none is good, for then it is the config that is wrong. Of one with a single
        table, the fields of view that the table doesn't name, as those that are not tracked yet.
    """
    found: list[SkippedRecord] = []
    for experiment in config.experiments:
        names = plan_fovs(config, experiment, plates[experiment.name].fovs)
        alone = replace(config, experiments=(experiment,))
        if is_source(experiment):
            found += _find_untracked(alone, names)
            continue
        with ThreadPoolExecutor(config.workers) as pool:
            looked = list(pool.map(lambda name, of=alone: _look(of, name), names))
        bad = [record for record in looked if record is not None]
        found += bad if len(bad) < len(names) else []
    return tuple(found)


def _find_untracked(config: BuildConfig, names: tuple[str, ...]) -> list[SkippedRecord]:
    """Find the fields of view that a table of all doesn't name; `config` has its experiment only."""
    (experiment,) = config.experiments
    with open_tables(config) as tables:
        files = open_track_files(config, {experiment.name: names}, tables)
        tracked = [list_tracked(file) for file in files]
    if any(one is None for one in tracked):
        return []
    there = {name for one in tracked for name in one or ()}
    lost = [name for name in names if name not in there]
    why = ConfigError(f"{experiment.tracks_path}: no row is of this field of view.")
    return [make_skipped(experiment, name, why) for name in lost] if len(lost) < len(names) else []


def _look(config: BuildConfig, fov_name: str) -> SkippedRecord | None:
    """Read the tracks of one field of view; `config` has its experiment only."""
    (experiment,) = config.experiments
    try:
        with open_tables(config) as tables:
            for file in open_track_files(config, {experiment.name: (fov_name,)}, tables):
                parse_track_file(file)
    except ConfigError as error:
        return make_skipped(experiment, fov_name, error)
    return None


def leave_out(plates: Mapping[str, Plate], skipped: Iterable[SkippedRecord]) -> dict[str, Plate]:
    """Return plates without some of their fields of view."""
    names = {(record.experiment, record.fov_name) for record in skipped}
    left = {}
    for experiment, plate in plates.items():
        fovs = {name: fov for name, fov in plate.fovs.items() if (experiment, name) not in names}
        left[experiment] = replace(plate, fovs=fovs)
    return left
