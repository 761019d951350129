"""Builds shards from experiments.yaml: the command that runs index, cut and pack.

What it imports at the top is light, so that the command answers at once, also to Ctrl-C; the stages of a build are in
`etl.run.update`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.program import run_command
from dynaclr_wds.storage.location import Location, parse_place
from etl.build_options import SWITCHES, UPLOAD, make_parser, read_build_options

_WITH_PART = ("replace", "prune", "staging")

if TYPE_CHECKING:
    from dynaclr_wds.contract import Manifest
    from etl.run.executors import MakeExecutor
    from etl.run.progress import Progress
    from etl.source.experiments import BuildConfig
    from etl.upload.build import UploadOptions


def build_shards(
    config: BuildConfig,
    out: str | Path | Location,
    *,
    replace: bool = False,
    prune: bool = False,
    overwrite: bool = False,
    repair: bool = False,
    trust_sources: bool = False,
    finish: bool = False,
    progress: Progress | None = None,
    make_executor: MakeExecutor | None = None,
    upload: UploadOptions | None = None,
) -> Manifest:
    """Build a shard set, bring it up to date, or find that it is.

    Parameters
    ----------
    config
        What to build.
    out
        Folder for it, made if absent; or a place in object storage, such as `s3://bucket/prefix`.
    replace
        Change what a set of another config holds. Groups of FOVs that both have, with the same options, keep their
        shards. It is not needed to add experiments, wells or FOVs.
    prune
        Drop experiments, wells and FOVs that the config does not ask for any more, and remove the files that only
        earlier versions of the set need. Without it, a build removes nothing that a reader may have opened.
    overwrite
        Build everything anew, even when the set is up to date.
    repair
        Compare every file of the set with its checksum, and build again what is bad.
    trust_sources
        Don't look whether plates and tracks changed since the set was built.
    finish
        Put together what `build_part` has built; an error where a group of FOVs is missing.
    progress
        Shows what happens; None shows nothing.
    make_executor
        (workers, advance) → executor that runs the units, as `etl.run.engines.Engine` makes them; None runs threads.
    upload
        Where a set that goes to object storage is built first, and how requests are made.

    Raises
    ------
    ConfigError, PlateError
        Bad input. What is in `out` stays as it was.
    BuildError
        A set of another config is there, the disk is full or failed, sources changed while they were read, or another
        build writes to the same place in object storage.
    StorageError
        A request failed, or the key may not write.
    """
    from etl.run.executors import ThreadUnits
    from etl.run.progress import Progress
    from etl.run.update import BuildMode, build_set

    place = parse_place(out, "out")
    mode = BuildMode(
        replace=replace or overwrite,
        prune=prune,
        overwrite=overwrite,
        repair=repair,
        trust_sources=trust_sources,
        finish=finish,
    )
    if isinstance(place, Path):
        _refuse_upload(place, upload)
        return build_set(config, place, mode, progress or Progress(), make_executor or ThreadUnits)
    from etl.upload.build import UploadOptions, build_to_storage

    told, units = progress or Progress(), make_executor or ThreadUnits
    return build_to_storage(config, place, upload or UploadOptions(), mode, told, units)


def build_part(
    config: BuildConfig,
    out: str | Path | Location,
    part: str,
    *,
    replace: bool = False,
    prune: bool = False,
    progress: Progress | None = None,
    make_executor: MakeExecutor | None = None,
    upload: UploadOptions | None = None,
) -> None:
    """Build one of n parts of a shard set; `build_shards(…, finish=True)` puts them together.

    Parts need nothing of each other: they may run at the same time on machines that see the same `out`, in any order,
    and twice. A part builds every n-th group of FOVs; what has been built already it leaves as it is.

    Parameters
    ----------
    config
        What to build; the same in all parts.
    out
        Folder for the set, or a place in object storage; nothing in it is visible to readers before it is finished.
    part
        `i/n`, i from 1.
    replace, prune
        As of `build_shards`; the set that is there stays until the new one is finished.
    progress, make_executor, upload
        As of `build_shards`.

    Raises
    ------
    ConfigError, PlateError, BuildError, StorageError
        As `build_shards` says.
    """
    from etl.run.executors import ThreadUnits
    from etl.run.parts import parse_part
    from etl.run.progress import Progress
    from etl.run.update import BuildMode
    from etl.run.update import build_part as build_in

    place, mode = parse_place(out, "out"), BuildMode(replace=replace, prune=prune)
    number, told, units = parse_part(part), progress or Progress(), make_executor or ThreadUnits
    if isinstance(place, Path):
        _refuse_upload(place, upload)
        build_in(config, place, number, mode, told, units)
        return
    from etl.upload.build import UploadOptions, build_part_to_storage

    build_part_to_storage(config, place, number, upload or UploadOptions(), mode, told, units)


def _refuse_upload(out: Path, upload: UploadOptions | None) -> None:
    if upload is not None:
        raise ConfigError(f"out={str(out)!r} is a folder: {', '.join(UPLOAD)} are for object storage. Leave them out.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 2 bad input or no space, 130 stopped."""
    return run_command(_run, argv, when_stopped="stopped. Give the same command again to go on.")


def _run(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    from dynaclr_wds.storage.options import parse_words
    from etl.run.engines import Engine
    from etl.run.next_steps import describe_options, list_next
    from etl.run.progress import make_progress, print_json, print_summary
    from etl.source.experiments import parse_build_config

    overrides = read_build_options(arguments)
    switches = {name: getattr(arguments, name) for name in SWITCHES}
    storage_options = parse_words(arguments.storage_options or ()) or None
    config = parse_build_config(arguments.experiments_yaml, overrides, storage_options)
    progress = make_progress(arguments.quiet)
    units = Engine(name=arguments.engine, slurm=dict(arguments.slurm), dask_address=arguments.dask_address).maker()
    if arguments.part is not None:
        _refuse_with_part(arguments)
        flags = {name: getattr(arguments, name) for name in _WITH_PART if name in SWITCHES}
        upload = _read_upload(arguments)
        build_part(
            config, arguments.out, arguments.part, progress=progress, make_executor=units, upload=upload, **flags
        )
        return 0
    manifest = build_shards(
        config, arguments.out, progress=progress, make_executor=units, upload=_read_upload(arguments), **switches
    )
    if arguments.json:
        print_json(manifest, arguments.out)
    elif not arguments.quiet and not progress.found_up_to_date:
        print_summary(manifest)
        print(f"{arguments.out}: built. Next:")
        for command in list_next(arguments.experiments_yaml, arguments.out):
            print(f"  {command}")
        if kept := describe_options(overrides):
            print(kept)
    return 0


def _read_upload(arguments: argparse.Namespace) -> UploadOptions | None:
    """Gather the options of an upload; None where none is given, and how requests are made is all that is said."""
    given = {name: getattr(arguments, name) for name in UPLOAD}
    if not any(given.values()) and isinstance(arguments.out, Path):
        return None
    from dynaclr_wds.storage.options import parse_words
    from etl.upload.build import UploadOptions

    return UploadOptions(**given, storage_options=parse_words(arguments.storage_options or ()))


def _refuse_with_part(arguments: argparse.Namespace) -> None:
    given = [name for name in (*SWITCHES, "json", *UPLOAD) if name not in _WITH_PART and getattr(arguments, name)]
    if given:
        allowed, named = (", ".join(f"--{name}" for name in names) for names in (_WITH_PART, given))
        raise ConfigError(f"--part goes with {allowed} only, not with {named}.")


if __name__ == "__main__":
    sys.exit(main())
