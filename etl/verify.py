"""Checks a shard set: the command that compares every file, block and member with what was written.

    dynaclr-wds verify SHARDS [--quick] [--json]

Checks the manifest against itself; every index file against its checksum; the index arrays against each other; the
tables against the arrays; and, unless `--quick`, every shard and block against its checksum and every member against
the index. Reads only. Exit status: 0 all is well, 1 something is not, 2 there is no shard set to look at.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynaclr_wds.local_paths import parse_local_path, refuse_url
from dynaclr_wds.program import CommandParser, called_as, run_command
from dynaclr_wds.words import count_of

if TYPE_CHECKING:
    from etl.pack.read_back import Finding
    from etl.run.progress import Progress


def verify(
    root: str | Path, *, quick: bool = False, workers: int | None = None, progress: Progress | None = None
) -> list[Finding]:
    """Check a shard set.

    Parameters
    ----------
    root
        Folder with the manifest.
    quick
        Leave the content of the shards out: sizes, manifest and index only.
    workers
        Threads; None is all CPUs.
    progress
        Shows how far the check is; None shows nothing.

    Returns
    -------
    list
        What is not as it should be; empty when all is well.

    Raises
    ------
    FileNotFoundError
        There is no manifest.
    """
    from etl.run.executors import usable_cpus
    from etl.run.progress import Progress
    from etl.run.verification import verify_set

    refuse_url(root, "shards")
    return verify_set(Path(root), quick=quick, workers=workers or usable_cpus(), progress=progress or Progress())


def make_parser() -> CommandParser:
    """Make the command line."""
    parser = CommandParser(
        prog=called_as("verify", "etl.verify"),
        description="Check every file of a shard set. Exit status: 0 all is well, 1 something is not, 2 no shard set.",
        epilog=f"`{called_as('build')} experiments.yaml --repair` builds again what is bad.",
    )
    parser.add_argument("shards", type=parse_local_path, help="folder with manifest.json")
    parser.add_argument("--quick", action="store_true", help="leave the content of the shards out")
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")
    parser.add_argument("--workers", type=int, default=None, help="threads (default: all CPUs)")
    parser.add_argument("--quiet", action="store_true", help="print findings only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    import dataclasses
    import json

    from etl.run.progress import make_progress

    progress = make_progress(arguments.quiet)
    found = verify(arguments.shards, quick=arguments.quick, workers=arguments.workers, progress=progress)
    for finding in found:
        print(json.dumps(dataclasses.asdict(finding)) if arguments.json else finding)
    if not arguments.quiet and not arguments.json:
        print(
            f"{arguments.shards}: {count_of(len(found), 'finding')}." if found else f"{arguments.shards}: all is well."
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
