"""Opens what a build is made of, plates and tracks, and leaves out the fields of view that can't be used, if it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dynaclr_wds.contract import Manifest, SkippedRecord
from dynaclr_wds.errors import BuildError, ConfigError
from etl.indexing import store_index
from etl.run.progress import Progress
from etl.run.stages import Sources
from etl.source.bad_fovs import find_bad_tracks, find_unopened, leave_out
from etl.source.experiments import BuildConfig
from etl.source.fingerprints import describe_absent, describe_changes, fingerprint_sources
from etl.source.plates import Plate
from etl.source.preflight import open_plates
from etl.source.scales import fill_in_from_plates
from etl.stored_index import StoredIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a build is made of, without the FOVs that have to be left out."""

    config: BuildConfig
    plates: Mapping[str, Plate]
    sources: Sources
    skipped: tuple[SkippedRecord, ...]


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


def read_index(opened: Opened, progress: Progress, scratch: Path) -> tuple[StoredIndex, Opened]:
    """Make the index; return it with what is left when FOVs with bad tracks are skipped."""

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
        opened = replace(opened, plates=leave_out(opened.plates, bad), skipped=(*opened.skipped, *bad))
        index = store_index(opened.config, opened.plates, make_folder("left"))
    for note in index.notes:
        progress.say(note)
    return index, opened


def add_skipped(manifest: Manifest, opened: Opened) -> Manifest:
    """List the FOVs that were left out before any pixel was read beside those of the units."""
    order = {experiment.name: number for number, experiment in enumerate(opened.config.experiments)}
    every = sorted((*opened.skipped, *manifest.skipped), key=lambda record: (order[record.experiment], record.fov_name))
    return replace(manifest, skipped=tuple(every))


def refuse_moving_sources(opened: Opened, trusted: Sources) -> None:
    """Look at the sources again: what changed while it was read may be stored half old, half new."""
    changes = describe_changes(opened.sources, open_sources(opened.config, trusted, Progress()).sources)
    if changes:
        raise BuildError(
            f"plates or tracks changed while they were read ({'; '.join(changes)}). Nothing was put in place. "
            "Run the same command again when they are at rest."
        )
