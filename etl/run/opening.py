"""Opens what a build is made of, plates and tracks, and leaves out the fields of view that can't be used, if it may.

Units find pixels that can't be read, each in its own group. The FOVs that the set before had to skip are read here,
before there are groups: if one is still bad, no group is built with it in vain.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dynaclr_wds.contract import SkippedRecord
from dynaclr_wds.errors import BuildError, ConfigError, FovError
from dynaclr_wds.words import count_of
from etl.cut.job import ReadingRoom
from etl.cut.reading import read_frames
from etl.indexing import store_index
from etl.layout.jobs import plan_cuts
from etl.layout.segments import plan_segments
from etl.run.memory import find_room
from etl.run.progress import Progress
from etl.run.stages import Sources
from etl.source.bad_fovs import find_bad_tracks, find_unopened, leave_out, make_skipped
from etl.source.experiments import BuildConfig, ExperimentConfig
from etl.source.fingerprints import describe_absent, describe_changes, fingerprint_sources
from etl.source.plates import Fov, Plate
from etl.source.preflight import open_plates, plan_fovs
from etl.source.scales import fill_in_from_plates
from etl.stored_index import StoredIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a build is made of, without the FOVs that have to be left out."""

    config: BuildConfig
    plates: Mapping[str, Plate]
    sources: Sources
    skipped: tuple[SkippedRecord, ...]

    def without(self, bad: tuple[SkippedRecord, ...]) -> Opened:
        """Leave more FOVs out."""
        return replace(self, plates=leave_out(self.plates, bad), skipped=(*self.skipped, *bad))


def open_sources(config: BuildConfig, trusted: Sources, progress: Progress) -> Opened:
    """Open the plates, take fingerprints, and say where chunks are absent."""
    plates: Mapping[str, Plate] = open_plates(config)
    skipped = find_unopened(config, plates) if config.on_bad_fov == "skip" else ()
    plates = leave_out(plates, skipped) if skipped else plates
    config = fill_in_from_plates(config, plates)
    absent: dict[tuple[str, str], int] = {}
    sources = fingerprint_sources(config, plates, trusted, absent)
    for line in describe_absent(absent):
        progress.say(line)
    return Opened(config=config, plates=plates, sources=sources, skipped=skipped)


def read_index(
    opened: Opened, doubtful: Container[tuple[str, str]], progress: Progress, scratch: Path
) -> tuple[StoredIndex, Opened]:
    """Make the index; return it with what is left when FOVs are skipped whose tracks or, of some, pixels are bad.

    Parameters
    ----------
    doubtful
        (experiment, fov_name) of FOVs whose pixels are looked at, if they have cells.
    """

    def make_folder(name: str) -> Path:
        (scratch / name).mkdir()
        return scratch / name

    progress.say("index: reading tracks")
    try:
        index = store_index(opened.config, opened.plates, make_folder("index"))
    except ConfigError:
        bad = find_bad_tracks(opened.config, opened.plates) if opened.config.on_bad_fov == "skip" else ()
        if not bad:
            raise
        opened = opened.without(bad)
        index = store_index(opened.config, opened.plates, make_folder("left"))
    again = [(fov.experiment, fov.fov_name) for fov in index.fovs if (fov.experiment, fov.fov_name) in doubtful]
    if bad := find_unread(opened, again, progress, scratch):
        opened = leave_out_unread(opened, bad)
        index = store_index(opened.config, opened.plates, make_folder("readable"))
    for note in index.notes:
        progress.say(note)
    return index, opened


def find_unread(
    opened: Opened, fovs: Iterable[tuple[str, str]], progress: Progress, scratch: Path
) -> tuple[SkippedRecord, ...]:
    """Read the pixels of some FOVs; return those that can't be read."""
    entries = {experiment.name: experiment for experiment in opened.config.experiments}
    found = []
    for name, fov_name in fovs:
        progress.say(f"{name}, {fov_name}: was skipped before; its pixels are read, to see whether they can be now")
        try:
            _read_through(opened.config, entries[name], opened.plates[name].fovs[fov_name], scratch)
        except FovError as error:
            found.append(make_skipped(entries[name], fov_name, error))
    return tuple(found)


def _read_through(config: BuildConfig, experiment: ExperimentConfig, fov: Fov, scratch: Path) -> None:
    """Read all frames of a FOV, segment by segment as units do."""
    alone = replace(config, experiments=(experiment,))
    no_cells = dict.fromkeys(("fov_index", "t", "y_clamp", "x_clamp"), np.empty(0, np.int64))
    room = ReadingRoom(memory_bytes=find_room(config.memory_limit), folder=scratch)
    for segment in plan_segments(fov.shape[0], config.segment_frames, config.tau_frames(experiment)[1]):
        (cut,), _ = plan_cuts(alone, [fov], no_cells, room, segment)
        for _ in read_frames(cut):
            pass


def leave_out_unread(opened: Opened, bad: tuple[SkippedRecord, ...]) -> Opened:
    """Leave FOVs out whose pixels can't be read.

    Raises
    ------
    FovError
        An experiment has no other.
    """
    left = opened.without(bad)
    for experiment in opened.config.experiments:
        own = [record for record in bad if record.experiment == experiment.name]
        if own and not plan_fovs(opened.config, experiment, left.plates[experiment.name].fovs):
            count = count_of(len(own), "field of view", "fields of view")
            raise FovError(f"experiment {experiment.name}: none of {count} can be read. The first: {own[0].reason}")
    return left


def list_skipped(opened: Opened) -> tuple[SkippedRecord, ...]:
    """List the FOVs that were left out, in the order of the set."""
    order = {experiment.name: number for number, experiment in enumerate(opened.config.experiments)}
    return tuple(sorted(opened.skipped, key=lambda record: (order[record.experiment], record.fov_name)))


def refuse_moving_sources(opened: Opened, trusted: Sources) -> None:
    """Look at the sources again: what changed while it was read may be stored half old, half new."""
    changes = describe_changes(opened.sources, open_sources(opened.config, trusted, Progress()).sources)
    if changes:
        raise BuildError(
            f"plates or tracks changed while they were read ({'; '.join(changes)}). Nothing was put in place. "
            "Run the same command again when they are at rest."
        )
