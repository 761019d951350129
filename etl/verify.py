"""Checks a shard set: the command that compares every file, block and member with what was written.

    dynaclr-wds verify SHARDS [--quick] [--json]

Checks the manifest against itself; every index file against its checksum; the index arrays against each other; the
tables against the arrays; and, unless `--quick`, every shard and block against its checksum and every member against
the index. Reads only. Exit status: 0 all is well, 1 something is not, 2 there is no shard set to look at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaclr_wds.errors import ConfigError
from dynaclr_wds.program import CommandParser, called_as, run_command
from dynaclr_wds.storage.location import Location, Place, parse_place
from dynaclr_wds.storage.options import StorageOptions, parse_options, parse_words
from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    from etl.pack.read_back import Finding
    from etl.run.progress import Progress


def verify(
    root: str | Path | Location,
    *,
    quick: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | StorageOptions | None = None,
) -> list[Finding]:
    """Check a shard set.

    Parameters
    ----------
    root
        Folder with the manifest, or a place in object storage such as `s3://bucket/prefix`.
    quick
        Leave the content of the shards out: sizes, manifest and index only.
    workers
        Threads; None is all CPUs, and 8 at least for object storage.
    progress
        Shows how far the check is; None shows nothing.
    storage_options
        How requests to object storage are made; see `dynaclr_wds.storage.options`.

    Returns
    -------
    list
        What is not as it should be; empty when all is well.

    Raises
    ------
    FileNotFoundError
        There is no manifest.
    StorageError
        The manifest in object storage can't be read. A shard that can't be is a finding.
    """
    from etl.run.executors import usable_cpus
    from etl.run.progress import Progress
    from etl.run.verification import verify_set

    place, told = parse_place(root), progress or Progress()
    if isinstance(place, Path):
        return verify_set(place, quick=quick, workers=workers or usable_cpus(), progress=told)
    from etl.upload.verification import verify_remote

    threads = workers or max(usable_cpus(), _REQUESTS)
    return verify_remote(place, parse_options(storage_options), quick=quick, workers=threads, progress=told)


_REQUESTS = 8
"""Shards that are read at a time, from object storage."""


def make_parser() -> CommandParser:
    """Make the command line."""
    parser = CommandParser(
        prog=called_as("verify", "etl.verify"),
        description="Check every file of a shard set. Exit status: 0 all is well, 1 something is not, 2 no shard set.",
        epilog=f"`{called_as('build')} experiments.yaml --repair` builds again what is bad.",
    )
    parser.add_argument("shards", type=_parse_shards, help="folder with manifest.json, or its URL (s3://…)")
    parser.add_argument("--quick", action="store_true", help="leave the content of the shards out")
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")
    parser.add_argument("--workers", type=int, default=None, help="threads (default: all CPUs)")
    parser.add_argument("--quiet", action="store_true", help="print findings only")
    parser.add_argument(
        "--storage_options", "--storage-options", dest="storage_options", nargs="+", metavar="KEY=VALUE", default=(),
        help="for shards in object storage, such as endpoint=https://…; keys come from the environment",
    )  # fmt: skip
    return parser


def _parse_shards(text: str) -> Place:
    try:
        return parse_place(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    import dataclasses
    import json

    from etl.run.progress import make_progress

    progress = make_progress(arguments.quiet)
    found = verify(
        arguments.shards,
        quick=arguments.quick,
        workers=arguments.workers,
        progress=progress,
        storage_options=parse_words(arguments.storage_options),
    )
    for finding in found:
        print(json.dumps(dataclasses.asdict(finding)) if arguments.json else finding)
    if not arguments.quiet and not arguments.json:
        print(
            f"{arguments.shards}: {count_of(len(found), 'finding')}." if found else f"{arguments.shards}: all is well."
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
