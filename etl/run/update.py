"""Brings a shard set up to date: finds what is there and what changed, runs the stages, puts the result in place.

One build at a time owns the output folder. A build that was stopped anywhere goes on when the same command is given
again, and ends with the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynaclr_wds.contract import MANIFEST, Manifest
from dynaclr_wds.errors import BuildError, FormatError
from dynaclr_wds.manifest_checks import parse_manifest
from etl.index import build_index
from etl.pack.previous import PreviousSet, load_arrays, read_previous
from etl.run.commit import commit, finish_commits
from etl.run.executors import MakeExecutor, ThreadUnits
from etl.run.output import OutFolder, discard_work
from etl.run.progress import Progress
from etl.run.stages import Build, Sources
from etl.source.experiments import BuildConfig
from etl.source.fingerprints import describe_changes, fingerprint_sources
from etl.source.preflight import open_plates
from etl.source.scales import describe_intervals, fill_in_scales


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMode:
    """What to do about a set that is there."""

    replace: bool = False
    """Replace a set of another config."""
    overwrite: bool = False
    """Build everything anew, even a set that is up to date."""
    repair: bool = False
    """Compare every file with its checksum, and build again what is bad."""
    trust_sources: bool = False
    """Believe that plates and tracks are as they were."""


def build_set(
    config: BuildConfig, out: Path, mode: BuildMode, progress: Progress, make_executor: MakeExecutor = ThreadUnits
) -> Manifest:
    """Build a shard set, bring it up to date, or find that it is; see `etl.build_shards.build_shards`."""
    folder = OutFolder(out, config.token)
    with folder.locked(lambda: progress.say(f"{out}: another build is running there; waiting for it to end.")):
        finish_commits(folder)
        previous = _find_previous(folder, mode)
        trusted = previous.sources if previous is not None and mode.trust_sources else {}
        if previous is not None and trusted and _is_up_to_date(previous, config, mode, previous.sources):
            return _say_up_to_date(folder, previous, progress)
        plates = open_plates(config)
        config = fill_in_scales(config, plates)
        for line in describe_intervals(config):
            progress.say(line)
        sources = fingerprint_sources(config, plates, trusted)
        if previous is not None:
            for line in describe_changes(previous.sources, sources):
                progress.say(f"changed since the set was built: {line}")
            if _is_up_to_date(previous, config, mode, sources):
                return _say_up_to_date(folder, previous, progress)
        progress.say("index: reading tracks")
        index = build_index(config, plates)
        for note in index.notes:
            progress.say(note)
        if mode.overwrite:
            discard_work(folder.work)
        folder.begin()
        folder.discard_others()
        kept = load_arrays(previous) if previous is not None and not mode.overwrite else None
        build = Build(config, folder, plates, sources, kept, progress, make_executor)
        manifest = build.run(index)
        _refuse_moving_sources(config, sources, trusted)
        commit(folder, manifest)
        return manifest


def _find_previous(folder: OutFolder, mode: BuildMode) -> PreviousSet | None:
    """Return the set that is there; None without one, or when it is damaged and may be replaced."""
    path = folder.out / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except FormatError as error:
        if mode.replace or mode.overwrite or mode.repair:
            return None
        raise BuildError(f"{error} Give --replace to build it anew, or another --out.") from error
    if manifest.config_hash != folder.token and not mode.replace:
        raise BuildError(
            f"{path}: holds shards of another config (config_hash={manifest.config_hash[:12]}, "
            f"asked for {folder.token[:12]}). Give --replace to replace them, or another --out."
        )
    return read_previous(folder.out, manifest, checked=mode.repair)


def _is_up_to_date(previous: PreviousSet, config: BuildConfig, mode: BuildMode, sources: Sources) -> bool:
    same = previous.manifest.config_hash == config.token and list(previous.sources.items()) == list(sources.items())
    return same and previous.is_whole and not mode.overwrite


def _say_up_to_date(folder: OutFolder, previous: PreviousSet, progress: Progress) -> Manifest:
    discard_work(folder.work)
    progress.say(f"{folder.out}: up to date, nothing to do.")
    return previous.manifest


def _refuse_moving_sources(config: BuildConfig, sources: Sources, trusted: Sources) -> None:
    """Look at the sources again: what changed while it was read may be stored half old, half new."""
    changes = describe_changes(sources, fingerprint_sources(config, open_plates(config), trusted))
    if changes:
        raise BuildError(
            f"plates or tracks changed while they were read ({'; '.join(changes)}). Nothing was put in place. "
            "Run the same command again when they are at rest."
        )
